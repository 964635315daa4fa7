"""Families of scenes outdoors: streets between houses, and hills."""

import torch
from torch import Tensor

from recon3d.synth import furniture
from recon3d.synth.assembly import N_VANTAGES, Assembly, Vantage, outdoors
from recon3d.synth.draw import Draw
from recon3d.synth.furniture import put, thing
from recon3d.synth.layout import HALF_TURN, any_yaw, flat, hills, moved, on_ground
from recon3d.synth.shapes import rods, solids, tumbled
from recon3d.synth.textures import Atlas
from recon3d.synth.world import World


def street(n: int, draw: Draw, atlas: Atlas) -> tuple[World, Vantage]:
    """Streets along x between houses, with cars, trees, poles and people."""
    kit = Assembly(n=n, draw=draw)
    half_road = draw.uniform(n, low=4.0, high=10.0)
    for side in (-1.0, 1.0):
        x = -22 + draw.uniform(n, low=-4.0, high=4.0)
        for _ in range(4):
            half = draw.box(n, low=(3.5, 3.0, 1.4), high=(8.0, 6.0, 7.0))
            setback = half_road + half[:, 1] + draw.uniform(n, low=0.0, high=1.5)
            centre = torch.stack((x + half[:, 0], side * setback, torch.zeros(n)), dim=-1)
            kit.add(put(furniture.house(n, draw, half), centre, torch.zeros(n)))
            x = x + 2 * half[:, 0] + draw.uniform(n, low=0.0, high=2.0) * draw.chance(n, share=0.5)
    curb = torch.stack((0 * half_road, half_road + 2.8, 0 * half_road), dim=-1)[:, None]
    pavement = torch.cat((curb, -curb), dim=1)
    half = torch.tensor([60.0, 5.0, 0.12]).expand(n, 2, 3)
    kit.add(thing([(solids("box", pavement, half), "asphalt")]))

    def beside(reach: float) -> Tensor:
        """Spots near the sides of the road."""
        side = torch.where(draw.chance(n, share=0.5), 1.0, -1.0)
        y = side * (half_road - draw.uniform(n, low=0.3, high=1.5) - reach)
        return torch.stack((draw.uniform(n, low=-12.0, high=14.0), y, torch.zeros(n)), dim=-1)

    for _ in range(2):
        kit.add(put(furniture.car(n, draw), beside(1.0), 0.1 * draw.normal(n)))
        kit.add(put(furniture.tree(n, draw), beside(0.0), any_yaw(n, draw)))
    kit.add(put(furniture.pole(n, draw), beside(0.0), any_yaw(n, draw)))
    kit.add(put(furniture.person(n, draw), beside(0.2), any_yaw(n, draw)))
    wire = torch.stack(
        (
            torch.full((n, 2), -30.0),
            draw.uniform(n, 2, low=-6.0, high=6.0),
            draw.uniform(n, 2, low=4.0, high=8.0),
        ),
        -1,
    )
    kit.add(
        thing(
            [
                (
                    rods(
                        wire,
                        wire * torch.tensor([-1.0, 1.0, 1.0]) + draw.normal(n, 2, 3),
                        draw.uniform(n, 2, low=0.01, high=0.03),
                    ),
                    "dark",
                )
            ]
        )
    )
    spots = torch.stack([beside(0.0) for _ in range(3)], dim=1)
    kit.scatter(
        moved(furniture.assorted(n, 3, draw, (0.15, 0.6)), spots), ("any", "paint", "stone")
    )
    around = outdoors(draw, n, torch.tensor([70.0, 45.0, 40.0]).expand(n, 3), flat(n))
    world = kit.world(around, atlas, "facade", "asphalt")
    reach = torch.stack((torch.full((n,), 15.0), half_road * 0.9, torch.full((n,), 1.2)), dim=-1)
    low = reach * torch.tensor([-1.0, -1, 1])
    high = torch.stack((reach[:, 0], reach[:, 1], torch.full((n,), 4.0)), dim=-1)
    position = draw.within(low, torch.minimum(high, torch.tensor([99.0, 99, 2.0])), N_VANTAGES)
    ahead = torch.where(draw.chance(n, N_VANTAGES, share=0.5), 1.0, -1.0)
    target = position.clone()
    target[..., 0] += ahead * draw.uniform(n, N_VANTAGES, low=3.0, high=20.0)
    target[..., 1] += draw.uniform(n, N_VANTAGES, low=-9.0, high=9.0)
    target[..., 2] += draw.uniform(n, N_VANTAGES, low=-0.6, high=3.5)
    return world, Vantage(position, target, low, high)


def terrain(n: int, draw: Draw, atlas: Atlas) -> tuple[World, Vantage]:
    """Hills with rocks, trees, a fence and a house."""
    kit = Assembly(n=n, draw=draw)
    waves = hills(n, draw, (0.3, 4.0), (15.0, 60.0))

    def spots(count: int, low: float, high: float) -> Tensor:
        angle = draw.uniform(n, count, low=-HALF_TURN, high=HALF_TURN)
        radius = draw.log_uniform(n, count, low=low, high=high)
        return on_ground(waves, torch.stack((angle.cos() * radius, angle.sin() * radius), dim=-1))

    for k in range(6):
        kit.add(put(furniture.tree(n, draw), spots(1, 4.0, 14.0 + 4 * k)[:, 0], any_yaw(n, draw)))
    half = draw.box(n, low=(2.0, 2.5, 1.2), high=(4.0, 6.0, 3.0))
    place = spots(1, 9.0, 30.0)[:, 0] - torch.tensor([0.0, 0.0, 0.5])
    kit.add(put(furniture.house(n, draw, half), place, any_yaw(n, draw)))
    for _ in range(2):
        kit.add(put(furniture.fence(n, draw), spots(1, 3.0, 9.0)[:, 0], any_yaw(n, draw)))
    count = 10
    rocks = solids(
        "ellipsoid",
        spots(count, 1.5, 20.0),
        draw.log_uniform(n, count, 1, low=0.15, high=2.0)
        * draw.uniform(n, count, 3, low=0.5, high=1.2),
        tumbled((n, count), draw.generator),
    )
    kit.scatter(rocks, ("stone",))
    kit.scatter(
        moved(furniture.assorted(n, 4, draw, (0.2, 0.8)), spots(4, 2.0, 10.0)),
        ("any", "wood", "stone"),
    )
    around = outdoors(draw, n, torch.tensor([90.0, 90.0, 60.0]).expand(n, 3), waves)
    world = kit.world(around, atlas, "stone", "grass")
    position = spots(N_VANTAGES, 1.0, 10.0)
    position[..., 2] += draw.uniform(n, N_VANTAGES, low=1.0, high=3.5)
    target = spots(N_VANTAGES, 0.5, 8.0)
    target[..., 2] += draw.uniform(n, N_VANTAGES, low=0.0, high=2.0)
    reach = torch.tensor([16.0, 16.0, 30.0]).expand(n, 3)
    return world, Vantage(position, target, -reach, reach)
