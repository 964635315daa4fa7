"""Things that scenes hold, as groups of solids around their own origin, on the floor z = 0.

Every function returns the same kind of thing once for each of n scenes, all different, front
towards -y. With the solids come the roles of their materials and which of them share one.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from recon3d.synth.draw import Draw
from recon3d.synth.materials import ROLE
from recon3d.synth.shapes import (
    placed,
    quadric,
    random_shapes,
    rods,
    solids,
    tumbled,
    turned,
    where_cut,
)
from recon3d.synth.world import Solids, join_solids


class Thing(NamedTuple):
    """Solids with the roles of their materials [scene, solid] and, by solid, a group number."""

    solids: Solids
    role: Tensor
    group: tuple[int, ...]
    """Solids of one thing with the same number share a material."""


def thing(parts: list[tuple[Solids, str]]) -> Thing:
    """Return a thing of several parts; the solids of a part share a material."""
    n = len(parts[0][0].centre)
    role, group = [], []
    for number, (part, name) in enumerate(parts):
        count = part.centre.shape[1]
        role += [torch.full((n, count), ROLE[name])]
        group += [number] * count
    return Thing(join_solids([part for part, _ in parts]), torch.cat(role, dim=1), tuple(group))


def put(item: Thing, position: Tensor, yaw: Tensor) -> Thing:
    """Return the thing turned by `yaw` [scene] about the vertical and moved to [scene, 3]."""
    return item._replace(solids=placed(item.solids, position, yaw))


def _one(*parts: Tensor) -> Tensor:
    """Return [scene, 1, 3] of three [scene] tensors."""
    return torch.stack(torch.broadcast_tensors(*parts), dim=-1)[:, None]


def _corners(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Return [scene, 4, 3]: the four signs of x and y."""
    signs = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    xy = torch.stack((x, y), dim=-1)[:, None] * signs
    return torch.cat((xy, z[:, None, None].expand(-1, 4, 1)), dim=-1)


def table(n: int, draw: Draw) -> tuple[Thing, Tensor]:
    """Return tables on four legs and the half sizes and height of their tops [scene, 3]."""
    half_x, half_y = draw.uniform(n, low=0.4, high=1.0), draw.uniform(n, low=0.3, high=0.6)
    height, slab = draw.uniform(n, low=0.4, high=0.85), draw.uniform(n, low=0.012, high=0.04)
    round_top = draw.chance(n, 1, 1, share=0.3)
    top = solids(
        torch.where(round_top, quadric("cylinder"), quadric("box")),
        _one(torch.zeros(n), torch.zeros(n), height - slab),
        _one(half_x, half_y, slab),
    )
    leg = draw.uniform(n, low=0.015, high=0.04)
    inset = torch.where(round_top[:, 0, 0], 0.6, 0.9)
    feet = _corners(half_x * inset, half_y * inset, (height - 2 * slab) / 2)
    legs = solids(
        random_shapes(("box", "cylinder"), (n, 1), draw.generator).expand(n, 4, 5),
        feet,
        _one(leg, leg, (height - 2 * slab) / 2),
    )
    size = torch.stack((half_x * inset, half_y * inset, height), dim=-1)
    return thing([(top, "wood"), (legs, "wood")]), size


def chair(n: int, draw: Draw) -> Thing:
    """Return chairs: seat, back, four legs."""
    half, height = draw.uniform(n, low=0.19, high=0.26), draw.uniform(n, low=0.4, high=0.5)
    slab, leg = draw.uniform(n, low=0.015, high=0.05), draw.uniform(n, low=0.012, high=0.03)
    back = draw.uniform(n, low=0.2, high=0.32)
    zero = torch.zeros(n)
    seat = solids(
        "box",
        torch.cat((_one(zero, zero, height), _one(zero, half, height + back + 0.05)), dim=1),
        torch.cat((_one(half, half, slab), _one(half, slab * 0.7, back)), dim=1),
    )
    feet = _corners(half * 0.88, half * 0.88, height / 2)
    legs = rods(
        feet - _one(zero, zero, height / 2),
        feet + _one(zero, zero, height / 2 - slab),
        leg[:, None].expand(n, 4),
    )
    return thing([(seat, "fabric"), (legs, "wood")])


def sofa(n: int, draw: Draw) -> Thing:
    """Return sofas or beds: a base, a back, two arms, cushions."""
    wide, deep = draw.uniform(n, low=0.6, high=1.1), draw.uniform(n, low=0.38, high=0.5)
    seat, arm = draw.uniform(n, low=0.18, high=0.24), draw.uniform(n, low=0.06, high=0.12)
    back = draw.uniform(n, low=0.3, high=0.45)
    zero = torch.zeros(n)
    frame = solids(
        "box",
        torch.cat(
            (
                _one(zero, zero, seat),
                _one(zero, deep, back),
                _one(-wide, zero, seat * 1.35),
                _one(wide, zero, seat * 1.35),
            ),
            dim=1,
        ),
        torch.cat(
            (
                _one(wide, deep, seat),
                _one(wide + arm, arm, back),
                _one(arm, deep, seat * 1.35),
                _one(arm, deep, seat * 1.35),
            ),
            dim=1,
        ),
    )
    pillow = solids(
        "ellipsoid",
        torch.cat(
            (_one(-wide * 0.6, deep * 0.5, seat * 2.6), _one(wide * 0.5, deep * 0.5, seat * 2.6)), 1
        ),
        _one(
            draw.uniform(n, low=0.18, high=0.3),
            draw.uniform(n, low=0.08, high=0.15),
            draw.uniform(n, low=0.15, high=0.25),
        ),
    )
    return thing([(frame, "fabric"), (pillow, "fabric")])


def case(n: int, draw: Draw, role: str) -> Thing:
    """Return shelves or cabinets: one box, tall or low, whose material holds the recesses."""
    half = draw.box(n, 1, low=(0.3, 0.15, 0.3), high=(0.9, 0.3, 1.1))
    centre = torch.zeros(n, 1, 3)
    centre[..., 2] = half[..., 2]
    return thing([(solids("box", centre, half), role)])


def lamp(n: int, draw: Draw) -> Thing:
    """Return standing lamps: foot, thin rod, shade."""
    height, zero = draw.uniform(n, low=0.4, high=1.7), torch.zeros(n)
    shade = draw.uniform(n, low=0.1, high=0.25)
    foot = solids(
        "cylinder", _one(zero, zero, zero + 0.015), _one(shade * 0.7, shade * 0.7, zero + 0.015)
    )
    rod = rods(
        _one(zero, zero, zero), _one(zero, zero, height), draw.uniform(n, 1, low=0.006, high=0.015)
    )
    top = solids("frustum", _one(zero, zero, height), _one(shade, shade, shade * 0.8))
    return thing([(join_solids([foot, rod]), "metal"), (top, "paint")])


def plant(n: int, draw: Draw) -> Thing:
    """Return potted plants: a pot and clouds of leaves."""
    pot, zero = draw.uniform(n, low=0.08, high=0.2), torch.zeros(n)
    base = solids("frustum", _one(zero, zero, pot), _one(pot, pot, pot))
    upside_down = base.world2solid * torch.tensor([1.0, -1.0, -1.0])[:, None]
    base = replace(base, world2solid=upside_down)
    spread = draw.box(n, 3, low=(-1.0, -1.0, 2.2), high=(1.0, 1.0, 4.5)) * pot[:, None, None]
    leaves = solids(
        "ellipsoid", spread, draw.uniform(n, 3, 3, low=0.7, high=1.8) * pot[:, None, None]
    )
    return thing([(base, "ceramic"), (leaves, "foliage")])


def tree(n: int, draw: Draw) -> Thing:
    """Return trees: a trunk, and a crown of clouds of leaves or of stacked cones."""
    height, zero = draw.log_uniform(n, low=2.5, high=9.0), torch.zeros(n)
    wide = height * draw.uniform(n, low=0.15, high=0.3)
    trunk = rods(
        _one(zero, zero, zero - 0.5),
        _one(draw.normal(n) * 0.15, zero, height * 0.7),
        (height * draw.uniform(n, low=0.015, high=0.04))[:, None],
    )
    cloud = draw.box(n, 3, low=(-0.7, -0.7, 0.0), high=(0.7, 0.7, 0.0)) * wide[:, None, None]
    cloud[..., 2] = height[:, None] * draw.uniform(n, 3, low=0.55, high=0.95)
    cloud_half = draw.uniform(n, 3, 3, low=0.6, high=1.1) * wide[:, None, None]
    level = torch.tensor([0.35, 0.6, 0.85])
    stack = torch.stack(
        (zero[:, None] + 0 * level, zero[:, None] + 0 * level, height[:, None] * level), -1
    )
    taper = wide[:, None] * (1.25 - level)
    stack_half = torch.stack((taper, taper, height[:, None].expand(n, 3) * 0.2), -1)
    conifer = draw.chance(n, 1, 1, share=0.35)
    crown = solids(
        torch.where(conifer, quadric("cone"), quadric("ellipsoid")).expand(n, 3, 5),
        torch.where(conifer, stack, cloud),
        torch.where(conifer, stack_half, cloud_half),
    )
    return thing([(trunk, "bark"), (crown, "foliage")])


def house(n: int, draw: Draw, half: Tensor) -> Thing:
    """Return houses of half sizes [scene, 3] with windows and a gable or flat roof."""
    x, y, z = half.unbind(-1)
    zero = torch.zeros(n)
    walls = solids("box", _one(zero, zero, z), half[:, None])
    gable = draw.chance(n, share=0.6)
    rise = torch.where(gable, x * draw.uniform(n, low=0.3, high=0.9), zero + 0.15)
    overhang = draw.uniform(n, low=0.05, high=0.4)
    roof = solids(
        torch.where(gable[:, None, None], quadric("wedge"), quadric("box")),
        _one(zero, zero, 2 * z + rise),
        _one(x + overhang, y + overhang, rise),
    )
    chimney = solids(
        "box",
        _one(x * 0.4, y * draw.uniform(n, low=-0.6, high=0.6), 2 * z + rise),
        _one(zero + 0.25, zero + 0.25, rise + 0.5),
    )
    return thing([(walls, "facade"), (roof, "roof"), (chimney, "facade")])


def car(n: int, draw: Draw) -> Thing:
    """Return cars along x: body, cabin, four wheels."""
    long, wide = draw.uniform(n, low=1.7, high=2.4), draw.uniform(n, low=0.75, high=0.95)
    zero = torch.zeros(n)
    body = solids(
        "box",
        _one(zero, zero, zero + 0.6),
        _one(long, wide, zero + draw.uniform(n, low=0.25, high=0.4)),
    )
    cabin = solids(
        "arch",
        _one(long * 0.1, zero, zero + 0.95),
        _one(
            long * draw.uniform(n, low=0.5, high=0.8),
            wide * 0.9,
            zero + draw.uniform(n, low=0.35, high=0.7),
        ),
    )
    wheel_x, radius = long * 0.62, draw.uniform(n, low=0.28, high=0.38)
    hub = _corners(wheel_x, wide * 0.95, radius)
    axle = torch.tensor([0.0, 0.1, 0.0])
    wheels = rods(hub - axle, hub + axle, radius[:, None].expand(n, 4))
    return thing([(body, "paint"), (cabin, "paint"), (wheels, "dark")])


def pole(n: int, draw: Draw) -> Thing:
    """Return poles with a sign or a lamp on top."""
    height, zero = draw.uniform(n, low=2.0, high=7.0), torch.zeros(n)
    rod = rods(
        _one(zero, zero, zero), _one(zero, zero, height), draw.uniform(n, 1, low=0.025, high=0.09)
    )
    sign = draw.chance(n, 1, 1, share=0.6)
    head = solids(
        torch.where(
            sign, random_shapes(("box", "cylinder"), (n, 1), draw.generator), quadric("ellipsoid")
        ),
        _one(zero, zero - 0.06, height),
        draw.box(n, 1, low=(0.2, 0.02, 0.2), high=(0.8, 0.04, 0.6))
        + (~sign) * torch.tensor([0.0, 0.15, 0.0]),
    )
    return thing([(rod, "metal"), (head, "print")])


def person(n: int, draw: Draw) -> Thing:
    """Return upright figures: legs, body, head."""
    tall, zero = draw.uniform(n, low=0.8, high=1.08), torch.zeros(n)
    legs = solids(
        "frustum", _one(zero, zero, tall * 0.42), _one(tall * 0.16, tall * 0.12, tall * 0.42)
    )
    body = solids(
        "ellipsoid", _one(zero, zero, tall * 1.15), _one(tall * 0.23, tall * 0.15, tall * 0.38)
    )
    head = solids(
        "ellipsoid", _one(zero, zero, tall * 1.62), _one(tall * 0.09, tall * 0.1, tall * 0.13)
    )
    return thing([(legs, "fabric"), (body, "fabric"), (head, "ceramic")])


def fence(n: int, draw: Draw, count: int = 6) -> Thing:
    """Return thin posts in a row along x with two rails or wires."""
    gap, height = draw.uniform(n, 1, low=0.5, high=2.5), draw.uniform(n, 1, low=0.7, high=1.5)
    x = (torch.arange(count) - (count - 1) / 2) * gap
    zero = torch.zeros(n, count)
    posts = rods(
        torch.stack((x, zero, zero - 0.6), -1),
        torch.stack((x, zero, height + zero), -1),
        draw.uniform(n, 1, low=0.015, high=0.06).expand(n, count),
    )
    level = height * torch.tensor([0.5, 0.9])
    end = gap * (count - 1) / 2 + 0 * level
    rails = rods(
        torch.stack((-end, 0 * level, level), -1),
        torch.stack((end, 0 * level, level), -1),
        draw.uniform(n, 1, low=0.006, high=0.03).expand(n, 2),
    )
    return thing([(posts, "wood"), (rails, "metal")])


def vessels(n: int, count: int, draw: Draw) -> Thing:
    """Return cups, bowls and pots [scene, count], hollow, standing on z = 0 at the origin."""
    wide = draw.log_uniform(n, count, low=0.035, high=0.12)
    tall = wide * draw.uniform(n, count, low=0.5, high=1.8)
    half = torch.stack((wide, wide, tall), -1)
    centre = torch.stack((0 * wide, 0 * wide, tall), -1)
    shape = random_shapes(("cylinder", "cylinder", "ellipsoid"), (n, count), draw.generator)
    part = solids(shape, centre, half)
    hollow = quadric("cylinder").expand(n, count, 5)
    wall = draw.uniform(n, count, 1, low=0.7, high=0.93)
    size = torch.cat((wall, wall, torch.ones_like(wall)), -1)
    part = where_cut(
        part, torch.ones(n, count, dtype=torch.bool), hollow, torch.tensor([0.0, 0.0, 0.12]), size
    )
    return Thing(part, torch.full((n, count), ROLE["ceramic"]), tuple(range(count)))


def bottle(n: int, draw: Draw) -> Thing:
    """Return bottles: body, shoulder, neck."""
    wide, tall, zero = (
        draw.uniform(n, low=0.03, high=0.05),
        draw.uniform(n, low=0.07, high=0.12),
        torch.zeros(n),
    )
    body = solids("cylinder", _one(zero, zero, tall), _one(wide, wide, tall))
    shoulder = solids(
        "frustum", _one(zero, zero, 2 * tall + wide * 0.7), _one(wide, wide, wide * 0.7)
    )
    neck = solids(
        "cylinder", _one(zero, zero, 2 * tall + wide * 2), _one(wide * 0.45, wide * 0.45, wide)
    )
    return thing([(body, "print"), (join_solids([shoulder, neck]), "ceramic")])


_THINGS = (
    "box",
    "box",
    "box",
    "ellipsoid",
    "cylinder",
    "cone",
    "frustum",
    "wedge",
    "dome",
    "bullet",
)


def assorted(
    n: int, count: int, draw: Draw, size: tuple[float, float], *, upright: float = 0.8
) -> Solids:
    """Return solids of all shapes that touch z = 0 at the origin; a share of them stands upright.

    About a fifth is cut: hollowed, bitten or with a passage.
    """
    half = draw.log_uniform(n, count, 1, low=size[0], high=size[1])
    half = half * draw.log_uniform(n, count, 3, low=0.45, high=1.6)
    shape = random_shapes(_THINGS, (n, count), draw.generator)
    yaw = turned(draw.uniform(n, count, low=-torch.pi, high=torch.pi))
    any_way = tumbled((n, count), draw.generator)
    stands = draw.chance(n, count, 1, 1, share=upright)
    rotation = torch.where(stands, yaw, any_way)
    reach = (rotation.mT[..., 2, :].abs() * half).sum(-1)  # a box's extent downwards
    centre = torch.stack((0 * reach, 0 * reach, reach), -1)
    part = solids(shape, centre, half, rotation)
    return where_cut(part, draw.chance(n, count, share=0.2), *_bites(n, count, draw))


def _bites(n: int, count: int, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Return (shape, middle, size) of cuts: bites out of a corner, or passages right through."""
    shape = random_shapes(("box", "ellipsoid", "cylinder", "arch"), (n, count), draw.generator)
    through = draw.chance(n, count, 1, share=0.5)
    middle = draw.uniform(n, count, 3, low=-1.0, high=1.0)
    passage = middle * torch.tensor([0.3, 0.0, 0.3])
    size = draw.uniform(n, count, 3, low=0.35, high=0.9)
    long = torch.stack((size[..., 0] * 0.8, torch.full((n, count), 1.5), size[..., 2] * 0.8), -1)
    straight = random_shapes(("box", "arch"), (n, count), draw.generator)
    return (
        torch.where(through, straight, shape),
        torch.where(through, passage, middle),
        torch.where(through, long, size),
    )
