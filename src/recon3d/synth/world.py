"""What a procedural scene is made of: tensors over scenes and solids, nothing that draws them.

World frame: +z up, units as metres. A solid is the part of its box |x| <= half_size (in its own
frame) that a quadric keeps and a second box with quadric, the cut, does not take away.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Part = TypeVar("Part", "Solids", "Materials", "Surroundings")
Rows = TypeVar("Rows", "Solids", "Materials")

N_LIGHTS = 4
N_WAVES = 6
ROOM_FACES = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Solids:
    """Solids of a batch of scenes; the rows of `quadric` are those of `recon3d.synth.shapes`."""

    centre: Float[Tensor, "scene solid 3"]
    half_size: Float[Tensor, "scene solid 3"]
    world2solid: Float[Tensor, "scene solid 3 3"]
    quadric: Float[Tensor, "scene solid 5"]
    cut_centre: Float[Tensor, "scene solid 3"]
    """Of the cut, in half sizes of the solid."""
    cut_size: Float[Tensor, "scene solid 3"]
    """Half sizes of the cut, in half sizes of the solid."""
    cut_quadric: Float[Tensor, "scene solid 5"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Materials:
    """Looks of surfaces: six faces of the room (-x, -y, -z, +x, +y, +z), then the solids.

    The second texture covers what lies in recesses and shares the rest by `blend`. Recesses are
    holes in a grid of `cell` metres on flat faces, `hole` of each cell wide, `recess` metres deep.
    """

    texture: Int[Tensor, "scene surface 2"]
    tile: Float[Tensor, "scene surface 2"]
    blend: Float[Tensor, "scene surface"]
    tint: Float[Tensor, "scene surface 3"]
    gloss: Float[Tensor, "scene surface"]
    bump: Float[Tensor, "scene surface"]
    cell: Float[Tensor, "scene surface 2"]
    hole: Float[Tensor, "scene surface 2"]
    recess: Float[Tensor, "scene surface"]
    glass: Float[Tensor, "scene surface"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """What is around the solids: a box seen from inside, ground, lights, sky.

    The floor is z = 0 displaced by `waves` (x and y in periods a metre, phase, amplitude in
    metres). The first light casts shadows of strength `shadow`; light falls off over `reach`
    metres. `haze` is the share of light lost per metre.
    """

    bounds_low: Float[Tensor, "scene 3"]
    bounds_high: Float[Tensor, "scene 3"]
    face_is_sky: Bool[Tensor, "scene 6"]
    waves: Float[Tensor, "scene wave 4"]
    light: Float[Tensor, "scene light 3"]
    light_colour: Float[Tensor, "scene light 3"]
    reach: Float[Tensor, "scene light"]
    shadow: Float[Tensor, "scene"]
    ambient: Float[Tensor, "scene 2 3"]
    """Light from below and from above."""
    sky: Float[Tensor, "scene 3 3"]
    """Colours of the horizon, the zenith and the clouds."""
    clouds: Float[Tensor, "scene 4"]
    """Cover, frequency, and two phases."""
    haze: Float[Tensor, "scene"]


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """A batch of scenes."""

    solids: Solids
    materials: Materials
    around: Surroundings


def _mapped(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    return replace(part, **{f.name: change(getattr(part, f.name)) for f in fields(part)})


def to_device(world: World, device: torch.device) -> World:
    """Return the world with every tensor on `device`."""
    return World(
        **{
            f.name: _mapped(getattr(world, f.name), lambda t: t.to(device, non_blocking=True))
            for f in fields(world)
        }
    )


def pick(world: World, index: Int[Tensor, " chosen"]) -> World:
    """Return the scenes at `index`."""
    return World(
        **{f.name: _mapped(getattr(world, f.name), lambda t: t[index]) for f in fields(world)}
    )


def join_scenes(worlds: list[World]) -> World:
    """Return all scenes of several worlds, one after the other."""
    parts = {}
    for part in fields(World):
        pieces = [getattr(world, part.name) for world in worlds]
        parts[part.name] = replace(
            pieces[0],
            **{f.name: torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(pieces[0])},
        )
    return World(**parts)


def join_solids(parts: list[Solids]) -> Solids:
    """Return the solids of all parts, which belong to the same scenes."""
    return Solids(
        **{f.name: torch.cat([getattr(p, f.name) for p in parts], dim=1) for f in fields(Solids)}
    )


def rows_of(part: Rows, index: Int[Tensor, "scene row"]) -> Rows:
    """Return the solids or surfaces at `index`, in that order, scene by scene."""
    scene = torch.arange(len(index))[:, None]
    return replace(part, **{f.name: getattr(part, f.name)[scene, index] for f in fields(part)})
