"""Families of scenes indoors: furnished rooms, and tables full of things."""

import torch

from recon3d.synth import furniture
from recon3d.synth.assembly import N_VANTAGES, Assembly, Vantage, indoors
from recon3d.synth.draw import Draw
from recon3d.synth.furniture import put, thing
from recon3d.synth.layout import (
    HALF_TURN,
    against_wall,
    any_yaw,
    either,
    halo,
    moved,
    panel,
    small_things,
    spin,
)
from recon3d.synth.shapes import rods, solids, turned
from recon3d.synth.textures import Atlas
from recon3d.synth.world import World


def room(n: int, draw: Draw, atlas: Atlas) -> tuple[World, Vantage]:
    """Furnished rooms, seen from eye height."""
    extent = draw.box(n, low=(1.6, 1.6, 2.3), high=(4.0, 4.0, 3.4))
    kit = Assembly(n=n, draw=draw)
    desk, size = furniture.table(n, draw)
    middle = torch.cat(
        (extent[:, :2] * draw.uniform(n, 2, low=-0.4, high=0.4), torch.zeros(n, 1)), -1
    )
    turn = torch.where(draw.chance(n, share=0.6), 0.0, any_yaw(n, draw))
    kit.add(put(desk, middle, turn))
    top = middle + torch.stack((0 * size[:, 2], 0 * size[:, 2], size[:, 2]), -1)
    small_things(kit, top, size[:, :2] * 0.7, 4, (0.05, 0.2))
    for side in (-1.0, 1.0):
        aside = torch.tensor([0.0, side, 0.0]) * (
            size[:, 1:2] + draw.uniform(n, 1, low=0.0, high=0.5)
        )
        seat = middle + spin(aside[:, None], turn)[:, 0]
        face = turn + (0.0 if side > 0 else HALF_TURN) + 0.4 * draw.normal(n)
        kit.add(put(furniture.chair(n, draw), seat, face))
    kit.add(against_wall(furniture.sofa(n, draw), extent, 0.55, draw, 0))
    for wall, role in ((1, "shelf"), (2, "cabinet"), (3, "shelf")):
        kit.add(against_wall(furniture.case(n, draw, role), extent, 0.31, draw, wall))
    kit.add(against_wall(furniture.lamp(n, draw), extent, 0.4, draw, 0))
    kit.add(against_wall(furniture.plant(n, draw), extent, 0.4, draw, 2))
    for wall in range(4):
        height = extent[:, 2] * draw.uniform(n, low=0.45, high=0.65)
        picture = panel(n, draw, (0.2, 0.01, 0.2), (0.7, 0.03, 0.6), height)
        kit.add(against_wall(thing([(picture, "picture")]), extent, 0.01, draw, wall))
    window = panel(n, draw, (0.4, 0.05, 0.4), (1.0, 0.08, 0.65), extent[:, 2] * 0.55)
    kit.add(against_wall(thing([(window, "window")]), extent, 0.0, draw, 1))
    door = panel(n, draw, (0.4, 0.03, 1.0), (0.5, 0.05, 1.05), torch.full((n,), 1.0))
    kit.add(against_wall(thing([(door, "cabinet")]), extent, 0.0, draw, 3))
    rug = solids(
        "box", middle[:, None], draw.box(n, 1, low=(0.7, 0.5, 0.006), high=(1.6, 1.1, 0.012))
    )
    kit.add(thing([(rug, "fabric")]))
    count = 6
    spots = draw.uniform(n, count, 3, low=-0.9, high=0.9) * extent[:, None]
    spots[..., 2] = 0
    kit.scatter(
        moved(furniture.assorted(n, count, draw, (0.08, 0.35)), spots),
        ("any", "fabric", "wood", "print"),
    )
    high = draw.within(extent * torch.tensor([-0.9, -0.9, 0.3]), extent * 0.95, 4)
    far = high + draw.normal(n, 4, 3) * 0.7
    kit.add(thing([(rods(high, far, draw.uniform(n, 4, low=0.005, high=0.03)), "metal")]))
    world = kit.world(indoors(draw, n, extent), atlas, "wall", "floor")
    low = extent * torch.tensor([-1.0, -1, 0]) + torch.tensor([0.3, 0.3, 0.4])
    high = extent - torch.tensor([0.3, 0.3, 0.25])
    stand = torch.maximum(low, torch.tensor([-9.0, -9, 1.0]))
    position = draw.within(stand, torch.minimum(high, torch.tensor([9.0, 9, 1.9])), N_VANTAGES)
    target = draw.within(
        extent * torch.tensor([-0.8, -0.8, 0.1]), extent * torch.tensor([0.8, 0.8, 0.6]), N_VANTAGES
    )
    return world, Vantage(position, target, low, high)


def table(n: int, draw: Draw, atlas: Atlas) -> tuple[World, Vantage]:
    """Tables with many things on them, seen from nearby."""
    kit = Assembly(n=n, draw=draw)
    desk, size = furniture.table(n, draw)
    nowhere = torch.zeros(n, 3)
    kit.add(put(desk, nowhere, torch.zeros(n)))
    top = torch.stack((0 * size[:, 2], 0 * size[:, 2], size[:, 2]), dim=-1)
    spread = size[:, :2] * 0.85
    small_things(kit, top, spread, 14, (0.02, 0.1))
    cups = furniture.vessels(n, 5, draw)
    spot = draw.uniform(n, 5, 2, low=-1.0, high=1.0) * spread[:, None]
    on_top = torch.cat((spot, size[:, None, 2:].expand(n, 5, 1)), -1)
    kit.add(cups._replace(solids=moved(cups.solids, on_top)))
    for _ in range(2):
        spot = draw.uniform(n, 2, low=-1.0, high=1.0) * spread
        kit.add(put(furniture.bottle(n, draw), torch.cat((spot, size[:, 2:]), -1), torch.zeros(n)))
    spot = draw.uniform(n, 2, low=-1.0, high=1.0) * spread
    kit.add(put(furniture.lamp(n, draw), torch.cat((spot, size[:, 2:] - 0.3), -1), torch.zeros(n)))
    # Books lie in a pile.
    count = 4
    book = draw.box(n, count, low=(0.08, 0.1, 0.006), high=(0.12, 0.16, 0.025))
    height = 2 * book[..., 2].cumsum(1) - book[..., 2] + size[:, 2:]
    corner = (draw.uniform(n, 1, 2, low=-0.8, high=0.8) * spread[:, None]).expand(n, count, 2)
    pile = torch.cat((corner + 0.015 * draw.normal(n, count, 2), height[..., None]), -1)
    kit.scatter(solids("box", pile, book, turned(0.3 * draw.normal(n, count))), ("print",))
    for _ in range(2):
        spot = spin(
            torch.tensor([0.0, 1.0, 0.0]).expand(n, 1, 3)
            * (size[:, 1:2, None] + draw.uniform(n, 1, 1, low=0.2, high=0.8)),
            any_yaw(n, draw),
        )
        kit.add(put(furniture.chair(n, draw), spot[:, 0], any_yaw(n, draw)))
    extent = draw.box(n, low=(1.8, 1.8, 2.3), high=(3.5, 3.5, 3.2))
    for wall in range(4):
        picture = panel(n, draw, (0.3, 0.01, 0.2), (0.9, 0.03, 0.6), torch.full((n,), 1.4))
        kit.add(against_wall(thing([(picture, "picture")]), extent, 0.01, draw, wall))
    for wall, role in ((0, "shelf"), (1, "cabinet")):
        kit.add(against_wall(furniture.case(n, draw, role), extent, 0.31, draw, wall))
    around, _ = either(n, draw, extent, torch.tensor([25.0, 25.0, 15.0]).expand(n, 3), 0.8)
    world = kit.world(around, atlas, "wall", "floor")
    position = halo(n, draw, top, (0.5, 1.6), (0.15, 1.1))
    target = top[:, None] + draw.normal(n, N_VANTAGES, 3) * torch.tensor([0.15, 0.15, 0.05])
    low = torch.cat((-extent[:, :2] + 0.3, size[:, 2:] - 0.2), dim=-1)
    return world, Vantage(position, target, low, extent - 0.25)
