"""Procedural textures, and photographs where given, as one atlas with mip levels."""

import math
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.errors import InputError
from recon3d.synth.render import MIP_LEVELS

SIDE = 128


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


def _coordinates(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit coordinates, turned by a random angle (half of them upright) and shifted."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    angle = torch.rand(n, 1, 1, generator=generator) * math.pi
    angle = angle * (torch.rand(n, 1, 1, generator=generator) < 0.5)
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
    x, y = _coordinates(n, generator)
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


def _strokes(n: int, generator: torch.Generator, count: int = 40) -> Tensor:
    """Glyph-like short strokes on an empty ground."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    out = torch.zeros(n, SIDE, SIDE)
    for _ in range(count):
        centre = torch.rand(2, n, 1, 1, generator=generator)
        angle = torch.rand(n, 1, 1, generator=generator) * math.pi
        dx, dy = x - centre[0], y - centre[1]
        along = dx * angle.cos() + dy * angle.sin()
        across = dy * angle.cos() - dx * angle.sin()
        length = torch.rand(n, 1, 1, generator=generator) * 0.08 + 0.02
        width = torch.rand(n, 1, 1, generator=generator) * 0.012 + 0.006
        out = torch.where((along.abs() < length) & (across.abs() < width), 1.0, out)
    return out


def _plain(n: int, generator: torch.Generator) -> Tensor:
    return _noise(n, generator, 2) * 0.15 + torch.rand(n, 1, 1, generator=generator) * 0.8


_PROGRAMS = (_noise, _noise, _wave, _stripes, _checker, _brick, _discs, _strokes, _plain)


def _random_colour(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 1 1"]:
    """Colours of random hue, mostly of low saturation, as in buildings."""
    hue = torch.rand(n, 1, generator=generator) * 2 * math.pi
    phase = torch.tensor([0.0, 2.0, 4.0]) * math.pi / 3
    saturation = torch.rand(n, 1, generator=generator) ** 3
    value = torch.rand(n, 1, generator=generator) * 0.85 + 0.15
    return (value * (1 - saturation * (0.5 + 0.5 * torch.cos(hue + phase))))[..., None, None]


def procedural(n: int, generator: torch.Generator) -> Float[Tensor, "n 3 side side"]:
    """Return n textures in [0, 1]: two patterns joined by AND, OR or XOR between two colours."""
    chunk = -(-n // len(_PROGRAMS))
    patterns = [
        torch.cat([program(chunk, generator) for program in _PROGRAMS])[
            torch.randperm(chunk * len(_PROGRAMS), generator=generator)[:n]
        ]
        for _ in range(2)
    ]
    a, b = patterns
    choice = torch.randint(0, 5, (n, 1, 1), generator=generator)
    joined = torch.where(choice == 0, a * b, torch.where(choice == 1, torch.maximum(a, b), a))
    joined = torch.where(choice == 2, (a - b).abs(), joined)[:, None]
    first, second = _random_colour(n, generator), _random_colour(n, generator)
    grain = (
        (_noise(n, generator)[:, None] - 0.5) * torch.rand(n, 1, 1, 1, generator=generator) * 0.5
    )
    return (first * joined + second * (1 - joined) + grain).clamp(0, 1)


def photographs(folder: Path, limit: int = 1024) -> Float[Tensor, "n 3 side side"]:
    """Return the photographs of a folder as textures, centre-cropped to squares, in [0, 1]."""
    import cv2

    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    textures = []
    for file in files[:limit]:
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
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


def build_atlas(
    textures: Float[Tensor, "texture 3 side side"],
) -> UInt8[Tensor, "texture texel 3"]:
    """Return all textures with their mip levels, each level after the one it halves."""
    levels = [textures]
    while len(levels) < MIP_LEVELS:
        levels.append(F.avg_pool2d(levels[-1], 2))
    flat = [level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels]
    return (torch.cat(flat, dim=1) * 255).round().to(torch.uint8)


def make_atlas(
    n: int, generator: torch.Generator, folder: Path | None = None
) -> UInt8[Tensor, "texture texel 3"]:
    """Return an atlas of n procedural textures and, where given, the photographs of a folder."""
    textures = procedural(n, generator)
    if folder is not None:
        textures = torch.cat((textures, photographs(folder)))
    return build_atlas(textures)
