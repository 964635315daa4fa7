"""The families of scenes, how often training sees each, and batches of them."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from recon3d.synth.assembly import Vantage
from recon3d.synth.draw import Draw
from recon3d.synth.family_indoor import room, table
from recon3d.synth.family_outdoor import street, terrain
from recon3d.synth.family_piles import clutter, floaters, lone
from recon3d.synth.textures import Atlas
from recon3d.synth.world import World, join_scenes, pick

_FAMILIES: dict[str, Callable[[int, Draw, Atlas], tuple[World, Vantage]]] = {
    "room": room,
    "street": street,
    "terrain": terrain,
    "table": table,
    "clutter": clutter,
    "floaters": floaters,
    "object": lone,
}
KINDS = {name: number for number, name in enumerate(_FAMILIES)}
SHARES = {
    "room": 0.3,
    "street": 0.15,
    "terrain": 0.12,
    "table": 0.18,
    "clutter": 0.15,
    "floaters": 0.1,
}
"""How often training sees each family."""


def draw_kinds(n: int, draw: Draw) -> Int[Tensor, " scene"]:
    """Return the families of n scenes, drawn with their shares."""
    edges = torch.tensor(list(SHARES.values())).cumsum(0)
    return torch.searchsorted(edges, draw.uniform(n) * edges[-1]).clamp_max(len(edges) - 1)


def sample_worlds(
    kinds: Int[Tensor, " scene"], atlas: Atlas, generator: torch.Generator
) -> tuple[World, Vantage]:
    """Return random scenes of the given kinds and where to look at them from."""
    draw = Draw(generator)
    worlds, vantages, order = [], [], []
    for name, number in KINDS.items():
        here = (kinds == number).nonzero().flatten()
        if len(here):
            world, vantage = _FAMILIES[name](len(here), draw, atlas)
            worlds.append(world)
            vantages.append(vantage)
            order.append(here)
    back = torch.cat(order).argsort()
    vantage = Vantage(*(torch.cat(parts)[back] for parts in zip(*vantages, strict=True)))
    return pick(join_scenes(worlds), back), vantage
