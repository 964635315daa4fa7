"""Families of scenes that nobody built: piles of things, and things that float."""

import torch

from recon3d.synth import furniture
from recon3d.synth.assembly import N_VANTAGES, Assembly, Vantage
from recon3d.synth.draw import Draw
from recon3d.synth.furniture import put
from recon3d.synth.layout import any_yaw, either, halo, moved
from recon3d.synth.shapes import rods
from recon3d.synth.textures import Atlas
from recon3d.synth.world import Solids, World


def _heap(n: int, count: int, draw: Draw, size: tuple[float, float], spread: float) -> Solids:
    """Return things in a pile: the nearer the middle, the higher some of them lie."""
    part = furniture.assorted(n, count, draw, size, upright=0.5)
    xy = draw.normal(n, count, 2) * spread
    level = draw.uniform(n, count, low=0.0, high=1.0) * torch.exp(-(xy**2).sum(-1) / spread**2)
    level = torch.where(draw.chance(n, count, share=0.5), level * 2 * spread, 0.0)
    return moved(part, torch.cat((xy, level[..., None]), dim=-1))


def clutter(n: int, draw: Draw, atlas: Atlas, inside_share: float = 0.5) -> tuple[World, Vantage]:
    """Piles of assorted things, in a room or in the open."""
    kit = Assembly(n=n, draw=draw)
    spread = 0.8
    materials = ("any", "any", "wood", "fabric", "metal", "stone", "print", "ceramic", "foliage")
    kit.scatter(_heap(n, 6, draw, (0.18, 0.5), 0.7 * spread), materials)
    kit.scatter(_heap(n, 26, draw, (0.05, 0.3), spread), materials)
    start = draw.normal(n, 6, 3) * spread
    start[..., 2] = start[..., 2].abs()
    stick = rods(
        start, start + draw.normal(n, 6, 3) * 0.6, draw.uniform(n, 6, low=0.006, high=0.05)
    )
    kit.scatter(stick, ("metal", "wood", "paint"))
    # Larger things far behind.
    count = 10
    angle, radius = (
        any_yaw(n * count, draw).view(n, count),
        draw.uniform(n, count, low=6.0, high=20.0),
    )
    behind = torch.stack((angle.cos() * radius, angle.sin() * radius, 0 * radius), dim=-1)
    kit.scatter(
        moved(furniture.assorted(n, count, draw, (0.5, 2.5)), behind), (*materials, "facade")
    )
    for k in range(2):
        kit.add(put(furniture.tree(n, draw), behind[:, k] * 0.9, any_yaw(n, draw)))
    extent = draw.box(n, low=(2.6, 2.6, 2.5), high=(5.0, 5.0, 4.0))
    around, inside = either(
        n, draw, extent, torch.tensor([30.0, 30.0, 20.0]).expand(n, 3), inside_share
    )
    world = kit.world(around, atlas, "wall", "grass")
    middle = torch.tensor([0.0, 0.0, 0.5]).expand(n, 3)
    position = halo(n, draw, middle, (1.8, 3.8), (0.02, 0.9))
    target = middle[:, None] + draw.normal(n, N_VANTAGES, 3) * 0.25
    wide = torch.where(inside[:, None], extent - 0.3, torch.tensor([6.0, 6.0, 5.0]))
    low = torch.cat((-wide[:, :2], torch.full((n, 1), 0.25)), dim=-1)
    return world, Vantage(position, target, low, wide)


def floaters(n: int, draw: Draw, atlas: Atlas) -> tuple[World, Vantage]:
    """Things that float everywhere at any angle, thin ones among them."""
    kit = Assembly(n=n, draw=draw)
    extent = draw.box(n, low=(2.5, 2.5, 3.0), high=(5.0, 5.0, 6.0))
    low, high = extent * torch.tensor([-1.0, -1.0, 0.05]), extent
    part = furniture.assorted(n, 44, draw, (0.08, 0.7), upright=0.2)
    kit.scatter(
        moved(part, draw.within(low, high, 44) - part.centre),
        ("any", "any", "print", "metal", "stone", "ceramic", "paint"),
    )
    start = draw.within(low, high, 10)
    kit.scatter(
        rods(start, start + draw.normal(n, 10, 3), draw.uniform(n, 10, low=0.005, high=0.05)),
        ("metal", "any"),
    )
    around, _ = either(n, draw, extent, torch.tensor([30.0, 30.0, 25.0]).expand(n, 3), 0.5)
    world = kit.world(around, atlas, "any", "any")
    low = low + torch.tensor([0.3, 0.3, 0.2])
    position = draw.within(low, high - 0.3, N_VANTAGES)
    target = draw.within(low * 0.8, high * 0.8, N_VANTAGES)
    return world, Vantage(position, target, low, high - 0.3)


def lone(n: int, draw: Draw, atlas: Atlas) -> tuple[World, Vantage]:
    """Piles in the open."""
    return clutter(n, draw, atlas, inside_share=0.0)
