"""A ray caster in plain loops and float64: no tables, no closed forms over many solids at once.

A solid is tested between consecutive crossings of all its bounding surfaces; recesses and ground
are walked through in small steps. Slow, and easy to believe.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from recon3d.synth.relief import MARGIN
from recon3d.synth.shapes import IS_BOX
from recon3d.synth.trace import NEAR
from recon3d.synth.world import ROOM_FACES, World


@dataclass
class Hit:
    """Where a ray ends, before and after recesses; `solid` is -1 for ground, walls and sky."""

    depth: float
    hull: float
    solid: int
    sky: bool


def _value(quadric: np.ndarray, p: np.ndarray) -> float:
    wx, wy, wz, linear, constant = quadric
    return wx * p[0] ** 2 + wy * p[1] ** 2 + wz * p[2] ** 2 + linear * p[2] - constant


def _crossings(quadric: np.ndarray, o: np.ndarray, d: np.ndarray) -> list[float]:
    found: list[float] = []
    for axis in range(3):
        if d[axis] != 0:
            found += [(-1 - o[axis]) / d[axis], (1 - o[axis]) / d[axis]]
    values = [_value(quadric, o + t * d) for t in (-1.0, 0.0, 1.0)]  # a parabola by three points
    a, b = (values[0] + values[2]) / 2 - values[1], (values[2] - values[0]) / 2
    found += [float(r.real) for r in np.roots([a, b, values[1]]) if abs(r.imag) < 1e-12]
    return found


def _inside(quadric: np.ndarray, p: np.ndarray) -> bool:
    return bool((np.abs(p) < 1).all()) and _value(quadric, p) < 0


class SlowScene:
    """One scene of a world."""

    def __init__(self, world: World, number: int) -> None:
        def array(values: object) -> np.ndarray:
            return values[number].double().numpy()

        for part in (world.solids, world.materials, world.around):
            for name, values in vars(part).items():
                setattr(self, name, array(values))

    def height(self, x: float, y: float) -> float:
        """Height of the ground: each wave is bent by the one before."""
        total, warp = 0.0, 0.0
        for kx, ky, phase, amplitude in self.waves:
            turns = kx * x + ky * y + phase + warp
            turns -= np.round(turns)
            wave = 8 * turns - 16 * turns * abs(turns)
            total += amplitude * wave
            warp = 0.12 * wave
        return total

    def _meet_solid(self, number: int, origin: np.ndarray, ray: np.ndarray) -> float:
        rotation, half = self.world2solid[number], self.half_size[number]
        o, d = rotation @ (origin - self.centre[number]) / half, rotation @ ray / half
        cut_o = (o - self.cut_centre[number]) / self.cut_size[number]
        cut_d = d / self.cut_size[number]
        quadric, cut = self.quadric[number], self.cut_quadric[number]
        times = [NEAR, *_crossings(quadric, o, d), *_crossings(cut, cut_o, cut_d)]
        times = sorted(t for t in times if t >= NEAR)
        if _inside(quadric, o + NEAR * d) and not _inside(cut, cut_o + NEAR * cut_d):
            return np.inf  # the camera is within the solid
        for start, end in itertools.pairwise(times):
            middle = (start + end) / 2
            if _inside(quadric, o + middle * d) and not _inside(cut, cut_o + middle * cut_d):
                return start
        return np.inf

    def _meet_ground(self, origin: np.ndarray, ray: np.ndarray, limit: float) -> float:
        highest = np.abs(self.waves[:, 3]).sum()
        t = before = NEAR
        while t < limit:
            x, y, z = origin + t * ray
            if z < highest and z < self.height(x, y):
                low, high = before, t
                for _ in range(40):
                    middle = (low + high) / 2
                    x, y, z = origin + middle * ray
                    low, high = (low, middle) if z < self.height(x, y) else (middle, high)
                return high
            before, t = t, t + 0.004 * (1 + t)
        return np.inf

    def _hollow(self, at: np.ndarray, half: np.ndarray, axis: int, surface: int) -> float:
        """Depth of the recess at a point (u, v) of a face, 0 where there is none."""
        depth = self.recess[surface]
        if surface >= ROOM_FACES:
            depth = min(depth, 0.8 * half[axis])
        u_axis, v_axis = [a for a in range(3) if a != axis]
        for k, a in enumerate((u_axis, v_axis)):
            cell, opening = self.cell[surface, k], self.cell[surface, k] * self.hole[surface, k] / 2
            middle = np.round(at[a] / cell) * cell
            if abs(at[a] - middle) >= opening or abs(middle) + opening + MARGIN * depth >= half[a]:
                return 0.0
        return depth

    def _carve(
        self, t: float, o: np.ndarray, d: np.ndarray, half: np.ndarray, surface: int
    ) -> float:
        """Walk on from the hull at `t` until there is material, in millimetres."""
        at = o + t * d
        axis = int(np.argmax(np.abs(at) / half))
        face = abs(at[axis])
        if self._hollow(at, half, axis, surface) == 0:
            return t
        step = 1e-3 / np.linalg.norm(d)
        while True:
            t += step
            at = o + t * d
            if abs(abs(at[axis]) - face) >= self._hollow(at, half, axis, surface):
                return t - step / 2

    def cast(self, origin: np.ndarray, ray: np.ndarray) -> Hit:
        """Follow one ray; `ray` has z = 1 in its camera."""
        sides = np.where(ray > 0, self.bounds_high, self.bounds_low)
        to_side = (sides - origin) / np.where(ray == 0, 1e-30, ray)
        axis = int(np.argmin(to_side))
        wall, face = float(to_side[axis]), axis + 3 * bool(ray[axis] > 0)
        ground = self._meet_ground(origin, ray, wall)
        if ground < wall:
            wall, face = ground, 2
        times = [self._meet_solid(n, origin, ray) for n in range(len(self.centre))]
        solid = int(np.argmin(times))
        if times[solid] < wall:
            t = times[solid]
            rotation, half = self.world2solid[solid], self.half_size[solid]
            o, d = rotation @ (origin - self.centre[solid]), rotation @ ray
            flat = self.quadric[solid, 4] > IS_BOX and self.cut_quadric[solid, 4] < 0
            side = int(np.argmax(np.abs(o + t * d) / half))
            carved = flat and side != 2
            end = self._carve(t, o, d, half, solid + ROOM_FACES) if carved else t
            return Hit(end, t, solid, False)
        if self.face_is_sky[face]:
            return Hit(0.0, 0.0, -1, True)
        middle = (self.bounds_low + self.bounds_high) / 2
        half = (self.bounds_high - self.bounds_low) / 2
        end = wall if face == 2 else self._carve(wall, origin - middle, ray, half, face)
        return Hit(end, wall, -1, False)
