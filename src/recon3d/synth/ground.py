"""The ground and the box around a scene: where rays leave the room or meet the terrain.

The terrain is a sum of warped waves. A ray is followed in two sweeps, coarse and fine, each a fused
reduction over its steps, and the crossing is refined by secants: exact to about a millimetre.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon3d.kernels import apart
from recon3d.synth.trace import FAR, NEAR
from recon3d.synth.world import N_WAVES, Surroundings

FLOOR = 2
COARSE_STEPS, FINE_STEPS = 48, 16
_WARP = 0.12


def height_at(waves: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the height of the ground; `waves` [..., wave, 4] broadcasts with x and y.

    Waves are smooth, from -1 to 1, of period 1: two parabolas, much cheaper than a sine.
    """
    height = torch.zeros_like(x)
    warp = torch.zeros_like(x)
    for index in range(N_WAVES):
        kx, ky, phase, amplitude = waves[..., index, :].unbind(-1)
        periods = kx * x + ky * y + phase + warp
        off = periods - periods.round()
        wave = 8 * off - 16 * off * off.abs()
        height = height + amplitude * wave
        warp = _WARP * wave  # each wave bends the next, so that no pattern repeats
    return height


def highest(waves: Float[Tensor, "*batch wave 4"]) -> Float[Tensor, "*batch"]:
    """Return a bound of the ground's height."""
    return waves[..., 3].abs().sum(-1)


def leave_bounds(
    low: Float[Tensor, "group 3"],
    high: Float[Tensor, "group 3"],
    origin: Float[Tensor, "group 3"],
    ray: Float[Tensor, "group 3 ray"],
) -> tuple[Float[Tensor, "group ray"], Int[Tensor, "group ray"]]:
    """Return the ray parameter at which each ray leaves the box around it, and the face."""
    t = torch.full_like(ray[:, 0], FAR)
    face = torch.zeros_like(t, dtype=torch.int64)
    for axis in range(3):
        along = ray[:, axis]
        safe = torch.where(along.abs() < 1e-7, 1e-7, along)
        start = origin[:, axis, None]
        to_side = torch.where(safe > 0, high[:, axis, None] - start, low[:, axis, None] - start)
        here = to_side / safe
        face = torch.where(here < t, torch.where(safe > 0, axis + 3, axis), face)
        t = torch.minimum(t, here)
    return t, face


def meet_ground(
    waves: Float[Tensor, "group wave 4"],
    origin: Float[Tensor, "group 3"],
    ray: Float[Tensor, "group 3 ray"],
    limit: Float[Tensor, "group ray"],
) -> Float[Tensor, "group ray"]:
    """Return the ray parameter of the first crossing below `limit`, FAR where there is none."""
    top = highest(waves)[:, None]
    x, y, z = (origin[:, axis, None] for axis in range(3))
    dx, dy, dz = ray.unbind(1)
    safe = torch.where(dz.abs() < 1e-7, 1e-7, dz)
    at_top, at_bottom = (top - z) / safe, (-top - z) / safe
    first = torch.minimum(at_top, at_bottom).clamp_min(NEAR)
    last = torch.minimum(torch.maximum(at_top, at_bottom) + 1e-3, limit)
    first, span = apart(first), apart(last - first)

    def above(t: Tensor, axes: int = 0) -> Tensor:
        """Height of the ray over the ground; `axes` more axes than rays have."""
        spread = (..., *(None,) * axes)
        by_group = waves[:, *(None,) * (1 + axes)]
        px, py = x[spread] + t * dx[spread], y[spread] + t * dy[spread]
        return z[spread] + t * dz[spread] - height_at(by_group, px, py)

    step = torch.arange(COARSE_STEPS, device=ray.device)
    share = ((step + 1) / COARSE_STEPS) ** 2  # finer near the camera
    below = above(first[..., None] + span[..., None] * share, 1) <= 0
    index = apart(torch.where(below, step, COARSE_STEPS).amin(-1))
    found = (index < COARSE_STEPS) & (span > 0)
    start = apart(first + span * (index / COARSE_STEPS) ** 2)
    span = apart(span * (((index + 1) / COARSE_STEPS) ** 2 - (index / COARSE_STEPS) ** 2))
    step = torch.arange(FINE_STEPS, device=ray.device)
    below = above(start[..., None] + span[..., None] * ((step + 1) / FINE_STEPS), 1) <= 0
    index = apart(torch.where(below, step, FINE_STEPS - 1).amin(-1))
    low = start + span * (index / FINE_STEPS)
    high = low + span / FINE_STEPS
    t = high
    for _ in range(2):
        up, down = above(low).clamp_min(0), above(high).clamp_max(0)
        t = low + (high - low) * (up / (up - down).clamp_min(1e-12))
        over = above(t) > 0
        low, high = torch.where(over, t, low), torch.where(over, high, t)
    return torch.where(found, t, FAR)


def all_hits(
    around: Surroundings, origin: Float[Tensor, "group 3"], ray: Float[Tensor, "group 3 ray"]
) -> tuple[Float[Tensor, "group ray"], Int[Tensor, "group ray"]]:
    """Return where rays meet what is around the solids, and the face; the ground is FLOOR."""
    t, face = leave_bounds(around.bounds_low, around.bounds_high, origin, ray)
    ground = meet_ground(around.waves, origin, ray, t)
    return torch.minimum(t, ground), torch.where(ground < t, FLOOR, face)
