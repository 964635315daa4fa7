"""Materials by role: what walls, wood, foliage, metal and so on look like, drawn at random."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon3d.synth.draw import Draw
from recon3d.synth.textures import Atlas
from recon3d.synth.world import Materials

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Role:
    """Bounds of a material. `recessed` is the share of surfaces of this role with recesses."""

    programs: tuple[str, ...]
    inner: tuple[str, ...] = ("plain", "gravel")
    """Of recesses, and of the second texture."""
    tile: Range = (0.4, 2.5)
    blend: Range = (0.0, 0.4)
    tint: Range = (0.6, 1.1)
    gloss: Range = (0.0, 0.3)
    bump: Range = (0.0, 0.15)
    recessed: float = 0.0
    cell: Range = (0.2, 0.6)
    hole: Range = (0.5, 0.92)
    recess: Range = (0.01, 0.05)
    glass: float = 0.0


_ANY = (
    "noise",
    "plain",
    "wave",
    "stripes",
    "checker",
    "leaves",
    "glyphs",
    "brick",
    "tile",
    "photo",
)
ROLES: dict[str, Role] = {
    "any": Role(programs=_ANY, inner=_ANY, gloss=(0.0, 0.7), recessed=0.3),
    "wall": Role(
        programs=("plaster", "plaster", "plaster", "paper", "brick", "plain", "tile", "noise",
        "photo"),
        tile=(0.8, 3.0), tint=(0.8, 1.2), gloss=(0.0, 0.1), bump=(0.0, 0.05), recessed=0.35,
        cell=(0.4, 1.6), recess=(0.01, 0.12),
    ),
    "floor": Role(
        programs=("wood", "wood", "wood", "tile", "plaster", "gravel", "checker", "noise",
        "leaves"),
        tile=(0.6, 2.4), blend=(0.0, 0.2), gloss=(0.0, 0.5), bump=(0.0, 0.03),
    ),
    "wood": Role(programs=("wood",), tile=(0.5, 2.0), blend=(0.0, 0.1), gloss=(0.0, 0.4)),
    "fabric": Role(
        programs=("noise", "stripes", "checker", "gravel", "wave", "plain", "leaves"),
        tile=(0.2, 1.2), gloss=(0.0, 0.05), bump=(0.05, 0.3),
    ),
    "metal": Role(
        programs=("plain", "gravel", "noise"), tile=(0.3, 1.5), gloss=(0.3, 0.95), bump=(0.0, 0.05)
    ),
    "paint": Role(programs=("plain", "plain", "noise", "glyphs"), tile=(0.5, 3.0), gloss=(0.1,
        0.9)),
    "print": Role(
        programs=("glyphs", "photo", "leaves", "stripes", "checker", "wave"), inner=("glyphs",),
        tile=(0.15, 0.6), blend=(0.0, 0.5), tint=(0.8, 1.2), gloss=(0.0, 0.5),
    ),
    "picture": Role(
        programs=("photo", "photo", "leaves", "glyphs", "noise"), tile=(0.9, 1.8),
        blend=(0.0, 0.0), tint=(0.8, 1.2), bump=(0.0, 0.0),
    ),
    "shelf": Role(
        programs=("wood", "plain"), inner=("stripes", "glyphs", "photo", "wood"), tile=(0.4, 1.0),
        blend=(0.0, 0.0), recessed=1.0, cell=(0.35, 0.8), hole=(0.85, 0.95), recess=(0.15, 0.3),
    ),
    "cabinet": Role(
        programs=("wood", "plain", "plain"), inner=("wood", "plain"), tile=(0.5, 2.0),
        recessed=0.8, cell=(0.3, 0.7), hole=(0.7, 0.93), recess=(0.01, 0.04), gloss=(0.0, 0.5),
    ),
    "window": Role(
        programs=("plain",), inner=("photo", "noise"), tile=(1.0, 2.5), tint=(1.0, 1.5),
        recessed=1.0, cell=(0.4, 0.9), hole=(0.8, 0.95), recess=(0.015, 0.03), glass=0.5,
    ),
    "facade": Role(
        programs=("plaster", "plaster", "brick", "brick", "tile", "gravel", "wood"),
        inner=("plain", "noise"),
        tile=(0.8, 3.5), blend=(0.0, 0.15), tint=(0.6, 1.3), gloss=(0.0, 0.1), recessed=0.95,
        cell=(1.4, 3.6), hole=(0.35, 0.75), recess=(0.1, 0.4), glass=0.85,
    ),
    "roof": Role(programs=("tile", "brick", "stripes"), tile=(0.8, 2.5), tint=(0.3, 0.9)),
    "foliage": Role(
        programs=("foliage", "foliage", "grass"), inner=("foliage",), tile=(0.5, 2.0),
        tint=(0.5, 1.1), gloss=(0.0, 0.1), bump=(0.3, 0.9),
    ),
    "bark": Role(programs=("wood", "earth"), tile=(0.3, 0.9), tint=(0.3, 0.8), bump=(0.1, 0.5)),
    "grass": Role(
        programs=("grass", "grass", "earth", "gravel", "leaves"), inner=("grass", "earth"),
        tile=(0.6, 5.0), blend=(0.2, 0.6), tint=(0.6, 1.1), gloss=(0.0, 0.0), bump=(0.0, 0.12),
    ),
    "stone": Role(
        programs=("gravel", "noise", "earth", "tile"), inner=("gravel", "noise"), tile=(0.6, 3.0),
        blend=(0.2, 0.6), gloss=(0.0, 0.1), bump=(0.1, 0.5),
    ),
    "asphalt": Role(
        programs=("gravel", "gravel", "gravel", "tile", "brick"), inner=("gravel", "noise"),
        tile=(1.5, 4.0), blend=(0.1, 0.5), tint=(0.25, 0.8), gloss=(0.0, 0.15), bump=(0.0, 0.15),
    ),
    "ceramic": Role(
        programs=("plain", "plain", "stripes", "glyphs", "leaves", "noise"), tile=(0.1, 0.5),
        tint=(0.8, 1.3), gloss=(0.3, 0.95), bump=(0.0, 0.03),
    ),
    "dark": Role(programs=("plain", "gravel"), tint=(0.03, 0.15), gloss=(0.0, 0.6)),
}  # fmt: skip
ROLE = {name: number for number, name in enumerate(ROLES)}
_RANGES = ("tile", "blend", "tint", "gloss", "bump", "cell", "hole", "recess")
_CHOICES = 10


def _table(name: str) -> Float[Tensor, "role 2"]:
    return torch.tensor([getattr(role, name) for role in ROLES.values()])


def _texture(
    programs: list[tuple[str, ...]], role: Tensor, atlas: Atlas, draw: Draw
) -> Int[Tensor, "scene surface"]:
    table = torch.tensor(
        [[atlas.of_program[p[k % len(p)]] for k in range(_CHOICES)] for p in programs]
    )
    lengths = torch.tensor([len(p) for p in programs])
    pick = (draw.uniform(*role.shape) * lengths[role]).long()
    start, stop = table[role, pick].unbind(-1)
    return start + (draw.uniform(*role.shape) * (stop - start)).long()


def draw_materials(role: Int[Tensor, "scene surface"], atlas: Atlas, draw: Draw) -> Materials:
    """Return a material for every surface, drawn within the bounds of its role."""
    n, k = role.shape
    drawn: dict[str, Tensor] = {}
    for name in _RANGES:
        low, high = _table(name)[role].unbind(-1)
        size = (2,) if name in ("tile", "cell", "hole") else ()
        share = draw.uniform(n, k, *size)
        if name == "gloss":
            share = share**2
        low, high = (bound.reshape(n, k, *(1,) * len(size)) for bound in (low, high))
        drawn[name] = low + share * (high - low)
    recessed, glass = (
        torch.tensor([getattr(r, name) for r in ROLES.values()])[role]
        for name in ("recessed", "glass")
    )
    # Lamps are never of one colour, neither are paints of one white.
    hue = 1 + 0.12 * (draw.uniform(n, k, 3) * 2 - 1)
    return Materials(
        texture=torch.stack(
            (
                _texture([r.programs for r in ROLES.values()], role, atlas, draw),
                _texture([r.inner for r in ROLES.values()], role, atlas, draw),
            ),
            dim=-1,
        ),
        tile=drawn["tile"],
        blend=drawn["blend"],
        tint=drawn["tint"][..., None] * hue,
        gloss=drawn["gloss"],
        bump=drawn["bump"],
        cell=drawn["cell"],
        hole=drawn["hole"],
        recess=torch.where(draw.uniform(n, k) < recessed, drawn["recess"], 0.0),
        glass=(draw.uniform(n, k) < glass).float(),
    )


def repainted(materials: Materials, atlas: Atlas, share: float, draw: Draw) -> Materials:
    """Return the materials with other textures in a share of the scenes, half of them photographs.

    Every texture of such a scene gives way to one drawn from all, whatever it is on, so that no
    network can rely on what floors and walls look like (Tobin et al., Domain randomization, 2017).
    """
    n, total = len(materials.texture), len(atlas.texels)
    first, last = atlas.of_program["photo"]
    number, kind = draw.uniform(n, total), draw.uniform(n, total)
    photo, anything = first + number * (last - first), number * total
    new = torch.where(kind < 0.5, photo, anything).long().clamp_max(total - 1)
    painted = new.gather(1, materials.texture.flatten(1)).view_as(materials.texture)
    chosen = draw.chance(n, 1, 1, share=share)
    return replace(materials, texture=torch.where(chosen, painted, materials.texture))
