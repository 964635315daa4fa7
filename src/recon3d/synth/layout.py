"""Where things go: against walls, on the ground, on tables, and where one may look from."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from recon3d.synth import furniture
from recon3d.synth.assembly import N_VANTAGES, Assembly, indoors, outdoors, pick_scenes
from recon3d.synth.draw import Draw
from recon3d.synth.furniture import Thing, put
from recon3d.synth.ground import height_at
from recon3d.synth.shapes import solids
from recon3d.synth.world import N_WAVES, Solids, Surroundings

HALF_TURN = math.pi


def flat(n: int) -> Tensor:
    """Return waves of no height."""
    return torch.zeros(n, N_WAVES, 4)


def hills(n: int, draw: Draw, height: tuple[float, float], length: tuple[float, float]) -> Tensor:
    """Return waves of the ground, each about half as long and as high as the one before."""
    scale = 2.0 ** torch.arange(N_WAVES)
    direction = draw.uniform(n, N_WAVES, low=-HALF_TURN, high=HALF_TURN)
    rate = scale / draw.log_uniform(n, 1, low=length[0], high=length[1])
    rough = draw.uniform(n, 1, low=0.35, high=0.5)
    amplitude = draw.log_uniform(n, 1, low=height[0], high=height[1]) * rough ** torch.arange(
        N_WAVES
    )
    phase = draw.uniform(n, N_WAVES)
    return torch.stack((rate * direction.cos(), rate * direction.sin(), phase, amplitude), dim=-1)


def on_ground(waves: Tensor, xy: Tensor) -> Tensor:
    """Return points [scene, point, 3] on the ground at xy [scene, point, 2]."""
    z = height_at(waves[:, None], xy[..., 0], xy[..., 1])
    return torch.cat((xy, z[..., None]), dim=-1)


def moved(part: Solids, offset: Tensor) -> Solids:
    """Return solids moved each by its own offset [scene, solid, 3]."""
    return replace(part, centre=part.centre + offset)


def any_yaw(n: int, draw: Draw) -> Tensor:
    """Return angles about the vertical [scene]."""
    return draw.uniform(n, low=-HALF_TURN, high=HALF_TURN)


def spin(vectors: Tensor, yaw: Tensor) -> Tensor:
    """Turn xy of [scene, point, 3] about the vertical."""
    cos, sin = yaw[:, None].cos(), yaw[:, None].sin()
    x, y, z = vectors.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos, z), dim=-1)


def against_wall(item: Thing, extent: Tensor, inset: float, draw: Draw, wall: int) -> Thing:
    """Put things (front towards -y) with their backs to one of the four walls."""
    n = len(extent)
    turn = torch.full((n,), wall * HALF_TURN / 2)
    sideways = wall % 2 == 1
    along = extent[:, 0 if not sideways else 1] * draw.uniform(n, low=-0.8, high=0.8)
    back = extent[:, 1 if not sideways else 0] - inset
    local = torch.stack((along, back, torch.zeros(n)), dim=-1)
    return put(item, spin(local[:, None], turn)[:, 0], turn)


def panel(n: int, draw: Draw, low: tuple[float, ...], high: tuple[float, ...], z: Tensor) -> Solids:
    """Return upright boxes at height `z` [scene], half sizes between the bounds."""
    half = draw.box(n, 1, low=low, high=high)
    centre = torch.zeros(n, 1, 3)
    centre[..., 2] = z[:, None]
    return solids("box", centre, half)


def small_things(
    kit: Assembly, top: Tensor, size: Tensor, count: int, scale: tuple[float, float]
) -> None:
    """Stand assorted things on a surface: `top` [scene, 3] its middle, `size` [scene, 2] half."""
    n, draw = kit.n, kit.draw
    spot = draw.uniform(n, count, 2, low=-1.0, high=1.0) * size[:, None]
    offset = torch.cat((spot, torch.zeros(n, count, 1)), dim=-1) + top[:, None]
    kit.scatter(
        moved(furniture.assorted(n, count, draw, scale), offset),
        ("print", "ceramic", "any", "wood", "metal", "paint"),
    )


def halo(
    n: int, draw: Draw, centre: Tensor, radius: tuple[float, float], lift: tuple[float, float]
) -> Tensor:
    """Return positions on a shell around `centre`, at elevations between `lift` radians."""
    azimuth = draw.uniform(n, N_VANTAGES, low=-HALF_TURN, high=HALF_TURN)
    up = draw.uniform(n, N_VANTAGES, low=lift[0], high=lift[1])
    r = draw.log_uniform(n, N_VANTAGES, low=radius[0], high=radius[1])
    shell = torch.stack((azimuth.cos() * up.cos(), azimuth.sin() * up.cos(), up.sin()), dim=-1)
    return centre[:, None] + r[..., None] * shell


def either(
    n: int, draw: Draw, extent: Tensor, outside: Tensor, share: float
) -> tuple[Surroundings, Tensor]:
    """Return (surroundings, whether they are a room)."""
    inside = draw.chance(n, share=share)
    open_air = outdoors(
        draw, n, outside, hills(n, draw, (0.003, 0.05), (3.0, 12.0)), open_share=0.7
    )
    return pick_scenes(indoors(draw, n, extent), open_air, inside), inside
