"""Procedural textures, and photographs where given: what the surfaces of scenes look like."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.errors import InputError
from recon3d.synth.atlas import SIDE, build_atlas

Range = tuple[float, float]


def _noise(n: int, generator: torch.Generator, octaves: int = 6) -> Float[Tensor, "n side side"]:
    """Fractal value noise in [0, 1], a random roughness for each texture."""
    persistence = torch.rand(n, 1, 1, generator=generator) * 0.55 + 0.35
    total = torch.zeros(n, SIDE, SIDE)
    for octave in range(octaves):
        cells = 2 ** (octave + 1) + 1
        grid = torch.rand(n, 1, cells, cells, generator=generator)
        layer = F.interpolate(grid, size=(SIDE, SIDE), mode="bicubic", align_corners=True)[:, 0]
        total = total + layer * persistence**octave
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)


def _coordinates(
    n: int, generator: torch.Generator, turned_share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Unit coordinates, some turned by a random angle, shifted."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    angle = torch.rand(n, 1, 1, generator=generator) * math.pi
    angle = angle * (torch.rand(n, 1, 1, generator=generator) < turned_share)
    offset = torch.rand(2, n, 1, 1, generator=generator)
    return (
        x * angle.cos() - y * angle.sin() + offset[0],
        x * angle.sin() + y * angle.cos() + offset[1],
    )


def _between(low: float, high: float, n: int, generator: torch.Generator) -> Tensor:
    return torch.exp(
        torch.rand(n, 1, 1, generator=generator) * math.log(high / low) + math.log(low)
    )


def _wave(n: int, generator: torch.Generator) -> Tensor:
    x, _ = _coordinates(n, generator)
    warp = _noise(n, generator, 3) * _between(0.01, 1.5, n, generator)
    return 0.5 + 0.5 * torch.sin(2 * math.pi * _between(2.0, 14.0, n, generator) * (x + warp))


def _stripes(n: int, generator: torch.Generator) -> Tensor:
    x, _ = _coordinates(n, generator)
    duty = torch.rand(n, 1, 1, generator=generator) * 0.7 + 0.15
    return (torch.remainder(x * _between(2.0, 12.0, n, generator), 1) < duty).float()


def _checker(n: int, generator: torch.Generator) -> Tensor:
    x, y = _coordinates(n, generator)
    cells = _between(2.0, 9.0, n, generator)
    return torch.remainder((x * cells).floor() + (y * cells).floor(), 2)


def _brick(n: int, generator: torch.Generator) -> Tensor:
    """Bricks or tiles with mortar, each with its own grey."""
    x, y = _coordinates(n, generator, 0.1)
    rows = _between(3.0, 12.0, n, generator)
    row = (y * rows).floor()
    bond = (torch.rand(n, 1, 1, generator=generator) < 0.6).float() * 0.5
    column = x * rows / (torch.rand(n, 1, 1, generator=generator) * 2 + 1) + bond * row
    mortar = torch.rand(n, 1, 1, generator=generator) * 0.12 + 0.02
    inside = (torch.remainder(y * rows, 1) > mortar) & (torch.remainder(column, 1) > mortar)
    grey = torch.frac((torch.sin(row * 127.1 + column.floor() * 311.7) * 43758.5).abs())
    spread = torch.rand(n, 1, 1, generator=generator) * 0.5
    return inside * (1 - spread * grey)


def _discs(n: int, generator: torch.Generator, count: int = 60) -> Tensor:
    """Dead leaves: opaque discs of power-law radii, each with its own grey."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    out = torch.full((n, SIDE, SIDE), 0.5)
    for _ in range(count):
        centre = torch.rand(2, n, 1, 1, generator=generator)
        radius = 0.02 / torch.rand(n, 1, 1, generator=generator).clamp_min(0.08)
        grey = torch.rand(n, 1, 1, generator=generator)
        out = torch.where((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2, grey, out)
    return out


def _strokes(n: int, generator: torch.Generator, count: int = 70) -> Tensor:
    """Lines of glyph-like short strokes, some lines larger, on an empty ground."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    out = torch.zeros(n, SIDE, SIDE)
    lines = _between(3.0, 9.0, n, generator)
    for _ in range(count):
        centre = torch.rand(2, n, 1, 1, generator=generator)
        row = ((centre[1] * lines).floor() + 0.5) / lines
        centre_y = row + (torch.rand(n, 1, 1, generator=generator) - 0.5) * 0.3 / lines
        quarter = torch.randint(0, 4, (n, 1, 1), generator=generator)
        angle = quarter * (math.pi / 4)
        dx, dy = x - centre[0], y - centre_y
        along = dx * angle.cos() + dy * angle.sin()
        across = dy * angle.cos() - dx * angle.sin()
        length = (torch.rand(n, 1, 1, generator=generator) * 0.2 + 0.12) / lines
        width = 0.05 / lines + 0.003
        out = torch.where((along.abs() < length) & (across.abs() < width), 1.0, out)
    return out


def _plain(n: int, generator: torch.Generator) -> Tensor:
    return _noise(n, generator, 2) * 0.12 + 0.88 * torch.rand(n, 1, 1, generator=generator)


def _wood(n: int, generator: torch.Generator) -> Tensor:
    """Planks with grain along them."""
    _, y = _coordinates(n, generator, 0.1)
    planks = _between(1.5, 9.0, n, generator)
    plank = (y * planks).floor()
    shift = torch.frac((torch.sin(plank * 91.7) * 4375.5).abs())
    warp = _noise(n, generator, 4)
    rings = torch.sin(2 * math.pi * (_between(4.0, 16.0, n, generator) * (y + 0.25 * warp) + shift))
    fibre = F.interpolate(
        torch.rand(n, 1, SIDE, 12, generator=generator), size=(SIDE, SIDE), mode="bilinear"
    )[:, 0]
    gap = (torch.remainder(y * planks, 1) > 0.03).float()
    return gap * (0.5 + 0.2 * rings + 0.3 * (shift - 0.5) + 0.3 * (fibre - 0.5)).clamp(0, 1)


def _gravel(n: int, generator: torch.Generator) -> Tensor:
    """Fine grain: asphalt, plaster, gravel, carpet."""
    fine = torch.rand(n, 1, SIDE, SIDE, generator=generator)
    soft = F.avg_pool2d(F.pad(fine, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(n, 1, 1, generator=generator)
    grain = torch.lerp(soft[:, 0] * 1.6 - 0.3, fine[:, 0], share)
    return (0.5 + (grain - 0.5) * _between(0.15, 0.9, n, generator)) * 0.7 + 0.3 * _noise(
        n, generator, 3
    )


def _foliage(n: int, generator: torch.Generator) -> Tensor:
    """Leaves, one over the other, darker below."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    out = torch.zeros(n, SIDE, SIDE)
    for layer in range(90):
        centre = torch.rand(2, n, 1, 1, generator=generator)
        angle = torch.rand(n, 1, 1, generator=generator) * math.pi
        dx, dy = x - centre[0], y - centre[1]
        along = dx * angle.cos() + dy * angle.sin()
        across = dy * angle.cos() - dx * angle.sin()
        inside = (along / 0.09) ** 2 + (across / 0.04) ** 2 < 1
        grey = 0.2 + 0.6 * layer / 90 + 0.2 * torch.rand(n, 1, 1, generator=generator)
        out = torch.where(inside, grey + 0.8 * across, out)
    return out.clamp(0, 1)


def _colour(
    n: int, generator: torch.Generator, hue: Range, saturation: Range, value: Range
) -> Float[Tensor, "n 3 1 1"]:
    """Colours between bounds; hue in turns, red at 0."""
    low, high = torch.tensor((hue, saturation, value)).unbind(-1)
    h, s, v = (torch.rand(n, 3, generator=generator) * (high - low) + low).unbind(-1)
    phase = torch.tensor([0.0, 1.0, 2.0]) / 3
    wave = (torch.remainder(h[:, None] - phase + 0.5, 1) - 0.5).abs() * 6
    pure = (2 - wave).clamp(0, 1)
    return (v[:, None] * (1 - s[:, None] * (1 - pure)))[..., None, None]


def _any_colour(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 1 1"]:
    """Mostly muted, a few bright ones, as things of daily use."""
    muted = _colour(n, generator, (0.0, 1.0), (0.02, 0.35), (0.2, 0.95))
    bright = _colour(n, generator, (0.0, 1.0), (0.4, 0.9), (0.3, 0.95))
    return torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.25, bright, muted)


def _pale_colour(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 1 1"]:
    """As walls are painted."""
    warm = _colour(n, generator, (0.02, 0.18), (0.02, 0.3), (0.6, 0.98))
    other = _colour(n, generator, (0.0, 1.0), (0.02, 0.35), (0.4, 0.95))
    return torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.75, warm, other)


def _warm_colour(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 1 1"]:
    return _colour(n, generator, (0.03, 0.11), (0.25, 0.65), (0.3, 0.85))


def _green_colour(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 1 1"]:
    return _colour(n, generator, (0.16, 0.32), (0.2, 0.6), (0.25, 0.65))


def _grey_colour(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 1 1"]:
    return _colour(n, generator, (0.02, 0.7), (0.0, 0.18), (0.35, 0.95))


def _brick_colour(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 1 1"]:
    red = _colour(n, generator, (0.0, 0.09), (0.25, 0.65), (0.4, 0.8))
    return torch.where(
        torch.rand(n, 1, 1, 1, generator=generator) < 0.6, red, _grey_colour(n, generator)
    )


_Program = Callable[[int, torch.Generator], Tensor]
_PROGRAMS: dict[str, tuple[_Program, _Program]] = {
    "noise": (_noise, _any_colour),
    "plain": (_plain, _any_colour),
    "wave": (_wave, _any_colour),
    "stripes": (_stripes, _any_colour),
    "checker": (_checker, _any_colour),
    "brick": (_brick, _brick_colour),
    "tile": (_brick, _grey_colour),
    "wood": (_wood, _warm_colour),
    "plaster": (_gravel, _pale_colour),
    "paper": (_wave, _pale_colour),
    "leaves": (_discs, _any_colour),
    "glyphs": (_strokes, _any_colour),
    "foliage": (_foliage, _green_colour),
    "gravel": (_gravel, _grey_colour),
    "grass": (_gravel, _green_colour),
    "earth": (_noise, _warm_colour),
}
_JOINED = ("noise", "wave", "stripes", "checker", "leaves", "glyphs")
"""Patterns that may be joined with a second one."""
PROGRAMS = (*_PROGRAMS, "photo")


def _of_program(name: str, n: int, generator: torch.Generator) -> Float[Tensor, "n 3 side side"]:
    pattern, colour = _PROGRAMS[name]
    drawn = pattern(n, generator)
    if name in _JOINED:  # by AND, OR or XOR, as thresholded patterns would be
        other = _PROGRAMS[_JOINED[n % len(_JOINED)]][0](n, generator)
        choice = torch.randint(0, 6, (n, 1, 1), generator=generator)
        joined = torch.where(choice == 0, drawn * other, torch.maximum(drawn, other))
        joined = torch.where(choice == 2, (drawn - other).abs(), joined)
        drawn = torch.where(choice < 3, joined, drawn)
    first, second = colour(n, generator), colour(n, generator)
    if name in (
        "foliage",
        "grass",
        "gravel",
        "earth",
        "wood",
        "plain",
        "plaster",
        "paper",
    ):  # shades of one colour
        second = first * (0.35 + 0.5 * torch.rand(n, 1, 1, 1, generator=generator))
    mixed = first * drawn[:, None] + second * (1 - drawn[:, None])
    strength = torch.rand(n, 1, 1, 1, generator=generator) ** 2 * 0.4
    grain = (_noise(n, generator)[:, None] - 0.5) * strength
    return (mixed * (1 + grain)).clamp(0, 1)


def procedural(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 side side"]:
    """Return n textures in [0, 1], as many of each program as can be, in the order of PROGRAMS."""
    return torch.cat(
        [
            _of_program(name, stop - start, generator)
            for name, (start, stop) in _shares(n).items()
            if stop > start
        ]
    )


def _shares(n: int) -> dict[str, tuple[int, int]]:
    edges = [round(n * k / len(_PROGRAMS)) for k in range(len(_PROGRAMS) + 1)]
    return dict(zip(_PROGRAMS, pairwise(edges), strict=True))


def photograph_files(folder: Path) -> list[Path]:
    """Return the photographs in a folder, sorted."""
    kinds = {".jpg", ".jpeg", ".png"}
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in kinds and p.is_file())


def photographs(folder: Path, limit: int = 1024) -> Float[Tensor, "n 3 side side"]:
    """Return the photographs of a folder as textures, centre-cropped to squares, in [0, 1]."""
    import cv2

    textures = []
    for file in photograph_files(folder)[:limit]:
        try:
            image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        except cv2.error:  # more pixels than OpenCV takes
            continue
        if image is None:
            continue
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = cv2.resize(
            image[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA
        )
        textures.append(torch.from_numpy(square[..., ::-1].copy()).permute(2, 0, 1))
    if not textures:
        raise InputError(f"{folder} holds no readable jpg or png. Give a folder of photographs.")
    return torch.stack(textures).float() / 255


@dataclass(frozen=True, kw_only=True, eq=False)
class Atlas:
    """All textures with their mip levels, and which are of which program, [start, stop)."""

    texels: Int[Tensor, "texture texel"]
    of_program: dict[str, tuple[int, int]]


def make_atlas(n: int, generator: torch.Generator, folder: Path | None = None) -> Atlas:
    """Return an atlas of n procedural textures and, where given, the photographs of a folder.

    Programs without a texture of their own stand for all textures.
    """
    textures = procedural(n, generator)
    of_program = _shares(n)
    if folder is not None:
        textures = torch.cat((textures, photographs(folder)))
    of_program["photo"] = (n, len(textures))
    everything = (0, len(textures))
    return Atlas(
        texels=build_atlas(textures),
        of_program={k: v if v[1] > v[0] else everything for k, v in of_program.items()},
    )
