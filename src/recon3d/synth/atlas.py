"""All textures in one tensor with mip levels, a texel an int32, and how it is looked up."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

SIDE = 128
MIP_LEVELS = 7


def build_atlas(
    textures: Float[Tensor, "texture 3 side side"],
) -> Int[Tensor, "texture texel"]:
    """Return all textures, given in [0, 1], with their mip levels, each after the one it halves.

    A texel is red + 256 green + 65536 blue.
    """
    levels = [textures]
    while len(levels) < MIP_LEVELS:
        levels.append(F.avg_pool2d(levels[-1], 2))
    flat = torch.cat([level.flatten(2) for level in levels], dim=2)
    red, green, blue = (flat * 255).round().to(torch.int32).unbind(1)
    return (red + 256 * green + 65536 * blue).to(torch.int32)


def look_up(
    atlas: Int[Tensor, "texture texel"], index: Tensor, u: Tensor, v: Tensor, footprint: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return red, green and blue at (u, v) tiles, interpolated between texels of one level.

    Tiles are mirrored; `footprint`, the size of a pixel in tiles, chooses the level.
    """
    level = (footprint * SIDE).clamp_min(1.0).log2().round().clamp_max(MIP_LEVELS - 1)
    size = SIDE * torch.exp2(-level)
    start = (SIDE * SIDE * (1 - torch.exp2(-2 * level)) * (4 / 3)).round()
    low, high, share = [], [], []
    for value in (u, v):
        folded = value - 2 * (value / 2).floor()
        texel = ((folded - 1).abs() * size - 0.5).clamp_min(0)
        first = torch.minimum(texel.floor(), size - 1)
        low.append(first)
        high.append(torch.minimum(first + 1, size - 1))
        share.append(texel - first)
    base = index.to(torch.int64) * atlas.shape[1]
    flat = atlas.flatten()
    red = torch.zeros_like(u)
    green, blue = red, red
    for y, weight_y in ((low[1], 1 - share[1]), (high[1], share[1])):
        for x, weight_x in ((low[0], 1 - share[0]), (high[0], share[0])):
            texel = flat[base + (start + y * size + x).to(torch.int64)]
            weight = weight_x * weight_y / 255
            red = red + (texel & 255).to(torch.float32) * weight
            green = green + ((texel >> 8) & 255).to(torch.float32) * weight
            blue = blue + (texel >> 16).to(torch.float32) * weight
    return red, green, blue
