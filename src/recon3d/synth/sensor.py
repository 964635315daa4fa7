"""What a camera does to light: exposure, white balance, tone, blur, noise, vignetting, JPEG."""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.synth.draw import Draw

_MIDDLE_GREY = 0.2
_JPEG_BLOCK = 8
# Luminance quantisation of ITU-T T.81, table K.1, for quality 50.
_QUANTA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def _exposed(light: Tensor, draw: Draw, strength: float) -> Tensor:
    """Bring every view near middle grey, as cameras do, more or less."""
    luminance = light.mean(1, keepdim=True).clamp_min(1e-6)
    typical = luminance.clamp_min(1e-3).log().mean((2, 3), keepdim=True).exp()
    key = 0.6 * typical + 0.4 * luminance.mean((2, 3), keepdim=True)
    stops = draw.uniform(len(light), 1, 1, 1, low=-0.8, high=0.8) * strength
    return light * (_MIDDLE_GREY / key.clamp_min(1e-3)) * torch.exp2(stops)


def _filmed(light: Tensor, draw: Draw, strength: float) -> Tensor:
    """Turn light into values from 0 to 1: a shoulder for highlights, gamma, contrast."""
    soft = 1.1 * light / (1 + 0.25 * light + 0.1 * light * light)
    gamma = 2.2 * torch.exp2(draw.uniform(len(light), 1, 1, 1, low=-0.2, high=0.2) * strength)
    out = soft.clamp(1e-5, 1) ** (1 / gamma)
    contrast = 0.4 + draw.uniform(len(light), 1, 1, 1, low=-0.3, high=0.5) * strength
    return torch.lerp(out, out * out * (3 - 2 * out), contrast)


def _mean_of_3x3(x: Tensor) -> Tensor:
    """Return the means of windows that lie whole in [..., height, width].

    On a processor 2.5 times as fast as avg_pool2d.
    """
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9


def _motion(out: Tensor, draw: Draw, strength: float) -> Tensor:
    """Smear a fifth of the views along a line a few pixels long."""
    n = len(out)
    angle = draw.uniform(n, low=0.0, high=math.pi)
    length = draw.uniform(n, low=0.5, high=3.0) * strength
    length = length * draw.chance(n, share=0.2)
    grid = torch.arange(5, device=out.device) - 2.0
    along = (grid[None, :] * angle.cos()[:, None])[:, None, :] + (
        grid[None, :] * angle.sin()[:, None]
    )[:, :, None]
    across = (grid[None, :] * angle.sin()[:, None])[:, None, :] - (
        grid[None, :] * angle.cos()[:, None]
    )[:, :, None]
    kernel = torch.exp(-(across**2) / 0.3 - along**2 / (0.15 + length[:, None, None] ** 2 / 2))
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    identity = torch.zeros_like(kernel)
    identity[:, 2, 2] = 1
    kernel = torch.where(length[:, None, None] > 0, kernel, identity)
    flat = F.pad(out, (2, 2, 2, 2), mode="replicate").transpose(0, 1)
    return F.conv2d(flat, kernel[:, None], groups=n).transpose(0, 1)


_TO_YCC = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, on the device: RGB to YCbCr, its inverse, the steps of quality 50, the cosines.

    The last are the rows of the orthonormal discrete cosine transform of 8 values.
    """
    to_ycc = torch.tensor(_TO_YCC)
    k = torch.arange(_JPEG_BLOCK, dtype=torch.float32)
    rows = torch.cos((2 * k[None, :] + 1) * k[:, None] * math.pi / (2 * _JPEG_BLOCK))
    cosines = rows * torch.where(k == 0, 1 / 8, 1 / 4).sqrt()[:, None]
    quanta = torch.tensor(_QUANTA, dtype=torch.float32).view(8, 8)
    quanta = quanta * torch.tensor([1.0, 1.6, 1.6])[:, None, None]
    tables = (to_ycc, torch.linalg.inv(to_ycc), quanta, cosines)
    return tables[0].to(device), tables[1].to(device), tables[2].to(device), tables[3].to(device)


def compressed(
    rgb: Float[Tensor, "view 3 height width"], quality: Float[Tensor, " view"]
) -> Float[Tensor, "view 3 height width"]:
    """Return views as after JPEG compression of the given quality (1 to 100), colours unsampled.

    Source: ITU-T T.81, annex A and table K.1; quality as in the Independent JPEG Group's library.
    """
    n, _, height, width = rgb.shape
    to_ycc, to_rgb, quanta, cosines = _tables(rgb.device)
    ycc = torch.einsum("ij,njhw->nihw", to_ycc, rgb * 255)
    padded = F.pad(ycc, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    blocks = padded.view(n, 3, rows, 8, columns, 8).permute(0, 1, 2, 4, 3, 5)
    scale = torch.where(quality < 50, 50 / quality.clamp_min(1), 2 - quality / 50)
    step = (quanta * scale[:, None, None, None]).clamp_min(1)[:, :, None, None]
    frequency = ((cosines @ blocks @ cosines.mT) / step).round() * step
    back = (cosines.mT @ frequency @ cosines).permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)
    out = torch.einsum("ij,njhw->nihw", to_rgb, back[..., :height, :width])
    return (out / 255).clamp(0, 1)


def photograph(
    light: Float[Tensor, "view 3 height width"], generator: torch.Generator, strength: float = 1.0
) -> Float[Tensor, "view 3 height width"]:
    """Return views as consumer cameras would record linear light, in [0, 1], each in its own way.

    `generator` lives on the device of `light`; `strength` scales how much settings differ.
    """
    n, _, height, width = light.shape
    device = light.device
    draw = Draw(generator)
    balance = 1 + draw.uniform(n, 3, 1, 1, low=-0.1, high=0.1) * strength
    x = torch.linspace(-1, 1, width, device=device)
    y = torch.linspace(-1, 1, height, device=device)
    radius_squared = x[None, :] ** 2 + y[:, None] ** 2
    vignette = 1 - draw.uniform(n, 1, 1, 1, low=0.0, high=0.2) * strength * radius_squared
    out = _filmed(_exposed(light, draw, strength) * balance * vignette, draw, strength)
    # Lenses and sensors always blur a little; then some sharpen, some are out of focus.
    soft = _mean_of_3x3(F.pad(out, (1, 1, 1, 1), mode="replicate"))
    out = torch.lerp(out, soft, 0.3 + draw.uniform(n, 1, 1, 1, low=-0.3, high=0.7) * strength)
    if strength > 0:
        out = _motion(out, draw, strength)
    grey = out.mean(1, keepdim=True)
    out = torch.lerp(grey, out, 1 + draw.uniform(n, 1, 1, 1, low=-0.5, high=0.3) * strength)
    out = torch.where(draw.chance(n, 1, 1, 1, share=0.03 * strength), grey, out)
    noise = torch.randn(out.shape, generator=generator, device=device)
    noise = _mean_of_3x3(F.pad(noise, (1, 1, 1, 1))) * 2 + noise * 0.5  # of a few pixels too
    level = draw.uniform(n, 1, 1, 1, low=0.0, high=1.0) ** 3 * 0.03 * strength
    out = (out + noise * level).clamp(0, 1)
    if strength == 0:
        return out
    quality = 95 - draw.uniform(n, low=0.0, high=65.0) * strength
    return torch.where(draw.chance(n, 1, 1, 1, share=0.7), compressed(out, quality), out)
