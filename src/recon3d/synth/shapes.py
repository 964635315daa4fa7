"""Shapes of solids: rows (wx, wy, wz, l, k) of wx x^2 + wy y^2 + wz z^2 + l z <= k in the box.

x, y, z are in half sizes, so that every shape also fills at most |x|, |y|, |z| <= 1.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.geometry import so3_exp
from recon3d.synth.world import Solids

SHAPES: dict[str, tuple[float, float, float, float, float]] = {
    "box": (1.0, 1.0, 1.0, 0.0, 100.0),  # a ball around the box: never the surface
    "ellipsoid": (1.0, 1.0, 1.0, 0.0, 1.0),
    "cylinder": (1.0, 1.0, 0.0, 0.0, 1.0),
    "cone": (1.0, 1.0, -0.25, 0.5, 0.25),  # apex at z = 1
    "frustum": (1.0, 1.0, -0.0625, 0.375, 0.5625),  # half as wide at z = 1 as at z = -1
    "wedge": (1.0, 0.0, -0.25, 0.5, 0.25),  # a gable roof along y
    "dome": (1.0, 1.0, 0.25, 0.5, 0.75),  # the upper half of an ellipsoid
    "bullet": (1.0, 1.0, 0.0, 0.5, 0.5),  # a paraboloid, its tip at z = 1
    "arch": (1.0, 0.0, 1.0, 0.0, 1.0),  # a cylinder along y
    "nothing": (1.0, 1.0, 1.0, 0.0, -1.0),
}
_NAMES = tuple(SHAPES)
_ROWS = torch.tensor(tuple(SHAPES.values()))
IS_BOX = 50.0
"""A quadric with k above this is that of a box."""


def quadric(name: str) -> Float[Tensor, "5"]:
    """Return the row of a named shape."""
    return _ROWS[_NAMES.index(name)]


def random_shapes(
    names: tuple[str, ...], size: tuple[int, ...], generator: torch.Generator
) -> Float[Tensor, "*size 5"]:
    """Return rows of shapes drawn from `names`."""
    rows = torch.stack([quadric(name) for name in names])
    return rows[torch.randint(0, len(names), size, generator=generator)]


def turned(yaw: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Return world2solid of solids turned by `yaw` radians about the vertical."""
    cos, sin = yaw.cos(), yaw.sin()
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    rows = torch.stack((cos, sin, zero, -sin, cos, zero, zero, zero, one), dim=-1)
    return rows.unflatten(-1, (3, 3))


def tumbled(size: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*size 3 3"]:
    """Return any rotations."""
    return so3_exp((torch.rand(*size, 3, generator=generator) * 2 - 1) * torch.pi)


def solids(
    shape: str | Float[Tensor, "scene solid 5"],
    centre: Float[Tensor, "scene solid 3"],
    half_size: Float[Tensor, "scene #solid 3"],
    world2solid: Float[Tensor, "scene solid 3 3"] | None = None,
) -> Solids:
    """Return uncut solids; upright and along the axes where no rotation is given."""
    n, k = centre.shape[:2]
    rows = quadric(shape).expand(n, k, 5) if isinstance(shape, str) else shape
    if world2solid is None:
        world2solid = torch.eye(3).expand(n, k, 3, 3)
    return Solids(
        centre=centre,
        half_size=half_size.expand(n, k, 3),
        world2solid=world2solid,
        quadric=rows,
        cut_centre=torch.zeros(n, k, 3),
        cut_size=torch.ones(n, k, 3),
        cut_quadric=quadric("nothing").expand(n, k, 5),
    )


def rods(start: Float[Tensor, "scene rod 3"], end: Tensor, radius: Tensor) -> Solids:
    """Return cylinders of `radius` [scene rod] between pairs of points."""
    along = end - start
    length = along.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    z = along / length
    helper = torch.where(
        z[..., 2:].abs() < 0.9, torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 0, 0])
    )
    x = torch.nn.functional.normalize(torch.linalg.cross(helper, z), dim=-1)
    y = torch.linalg.cross(z, x)
    half = torch.stack((radius, radius, length[..., 0] / 2), dim=-1)
    return solids("cylinder", (start + end) / 2, half, torch.stack((x, y, z), dim=-2))


def placed(
    part: Solids, position: Float[Tensor, "scene 3"], yaw: Float[Tensor, " scene"]
) -> Solids:
    """Return a group of solids, built around the origin, turned by `yaw` and moved."""
    local2world = turned(yaw).mT[:, None]
    return replace(
        part,
        centre=(local2world @ part.centre[..., None]).squeeze(-1) + position[:, None],
        world2solid=part.world2solid @ local2world.mT,
    )


def where_cut(part: Solids, chosen: Tensor, shape: Tensor, centre: Tensor, size: Tensor) -> Solids:
    """Return the solids, cut where `chosen` [scene solid] by a shape in half sizes of the solid."""
    keep = ~chosen[..., None]
    return replace(
        part,
        cut_centre=torch.where(keep, part.cut_centre, centre),
        cut_size=torch.where(keep, part.cut_size, size),
        cut_quadric=torch.where(keep, part.cut_quadric, shape),
    )
