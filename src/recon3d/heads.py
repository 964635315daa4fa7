"""The heads of the two-view network: tokens -> raw values of every pixel -> points and confidence.

Names and shapes of the parameters are those of the published checkpoints. Sources: DPT (Ranftl et
al. 2021), DUSt3R (Wang et al. 2024), MASt3R (Leroy et al. 2024).

Shapes: B pairs, N tokens, D channels.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.config import HeadType, ModelConfig
from recon3d.lattice import EVERY_PIXEL, Lattice

Grid = tuple[int, int]
"""Rows and columns of patches."""
Skips = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Of the views i and of the views j of some pairs, image after image: `DptBody.skip`."""


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BND)))


def _as_map(tokens_BND: Tensor, grid: Grid) -> Float[Tensor, "B D rows columns"]:
    """Return the tokens as a map whose channels lie side by side in memory.

    So they lie already, and convolutions and resampling are faster with it.
    """
    return tokens_BND.unflatten(1, grid).permute(0, 3, 1, 2)


class LinearHead(nn.Module):
    """Four values a pixel (x, y, z, c) from one linear layer a token.

    Of a lattice of pixels only these are worked out: each is a row of the layer.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.hooks = (config.dec_depth,)
        self.proj = nn.Linear(config.dec_dim, 4 * config.patch_size**2)

    def forward(
        self,
        features: list[Tensor],
        grid: Grid,
        skips: None = None,
        lattice: Lattice = EVERY_PIXEL,
    ) -> Float[Tensor, "B 4 height width"]:
        weight, bias = (
            x.unflatten(0, (4, self.patch_size, self.patch_size))[
                :, lattice.rows, lattice.columns
            ].flatten(0, 2)
            for x in (self.proj.weight, self.proj.bias)
        )
        with torch.autocast(features[-1].device.type, enabled=False):
            x = F.linear(features[-1].float(), weight, bias).mT.unflatten(-1, grid)
        return F.pixel_shuffle(x, self.patch_size // lattice.step)


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu_(self.conv1(F.relu(x))))


class Doubled(nn.Module):
    """Twice the resolution, in the type that comes in: autocast would double in fp32.

    The result is rounded to 16 bits in any case, here or by the convolution that reads it.
    """

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D height width"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class FusionBlock(nn.Module):
    """Add a skip that `resConfUnit1` has refined, refine, project, double the resolution.

    The published order is to double first: the same, for the projection acts on each pixel alone
    and the weights of the interpolation sum to 1; but on four times as many pixels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(dim, dim, 1)
        self.resConfUnit1 = ResidualConvUnit(dim)
        self.resConfUnit2 = ResidualConvUnit(dim)
        self.doubled = Doubled()

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = x + skip
        doubled: Tensor = self.doubled(self.out_conv(self.resConfUnit2(x)))
        return doubled


class Scratch(nn.Module):
    """The convolutional pyramid of DPT, under its published name.

    Under autocast only the finest level, where nearly all arithmetic is, runs in half precision:
    rounding in the coarse levels, which the others build upon, would cost most.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dpt_feature_dim
        for level, channels in enumerate(config.dpt_layer_dims, start=1):
            conv = nn.Conv2d(channels, dim, 3, padding=1, bias=False)
            self.add_module(f"layer{level}_rn", conv)
        for level in range(1, 5):
            self.add_module(f"refinenet{level}", FusionBlock(dim))

    def skip(self, level: int, x: Tensor) -> Tensor:
        """Return what the fusion block of this level adds, made from its map."""
        with torch.autocast(x.device.type, enabled=False):
            x = self.get_submodule(f"layer{level}_rn")(x)
        refine: Tensor = self.get_submodule(f"refinenet{level}.resConfUnit1")(x)
        return refine

    def forward(self, coarse: list[Tensor], skips: Sequence[Tensor]) -> Tensor:
        """Fuse the maps of the levels 2 to 4 and the skips of the finest, of image after image."""
        with torch.autocast(coarse[0].device.type, enabled=False):
            x = self.get_submodule("refinenet4")(self.get_submodule("layer4_rn")(coarse[2]))
            # An odd patch grid: the coarsest map was rounded up when it was halved.
            x = x[:, :, : coarse[1].shape[2], : coarse[1].shape[3]]
            for level in (3, 2):
                skip = self.skip(level, coarse[level - 2])
                x = self.get_submodule(f"refinenet{level}")(x, skip)
        finest = skips[0] if len(skips) == 1 else torch.cat(tuple(skips))
        return self.get_submodule("refinenet1")(x, finest)


class DptBody(nn.Module):
    """Reassemble tokens of four depths into a pyramid, fuse it, and predict four values a pixel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        depth = config.dec_depth
        self.hooks = (0, depth * 2 // 4, depth * 3 // 4, depth)
        dims = (config.enc_dim, config.dec_dim, config.dec_dim, config.dec_dim)
        a, b, c, d = config.dpt_layer_dims
        self.act_postprocess = nn.ModuleList(
            (
                nn.Sequential(nn.Conv2d(dims[0], a, 1), nn.ConvTranspose2d(a, a, 4, stride=4)),
                nn.Sequential(nn.Conv2d(dims[1], b, 1), nn.ConvTranspose2d(b, b, 2, stride=2)),
                nn.Sequential(nn.Conv2d(dims[2], c, 1)),
                nn.Sequential(nn.Conv2d(dims[3], d, 1), nn.Conv2d(d, d, 3, stride=2, padding=1)),
            )
        )
        self.scratch = Scratch(config)
        self.head = nn.Sequential(
            nn.Conv2d(config.dpt_feature_dim, config.dpt_feature_dim // 2, 3, padding=1),
            Doubled(),
            nn.Conv2d(config.dpt_feature_dim // 2, config.dpt_last_dim, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.dpt_last_dim, 4, 1),
        )

    def skip(self, tokens_BND: Tensor, grid: Grid) -> Float[Tensor, "B D rows columns"]:
        """Return what the finest level adds, a fifth of the work: of the encoder's tokens alone."""
        with torch.autocast(tokens_BND.device.type, enabled=False):
            x = self.act_postprocess[0](_as_map(tokens_BND.float(), grid))
        return self.scratch.skip(1, x)

    def forward(
        self, features: list[Tensor], grid: Grid, skips: Sequence[Tensor] | None = None
    ) -> Tensor:
        if skips is None:
            skips = (self.skip(features[0], grid),)
        with torch.autocast(features[-1].device.type, enabled=False):
            coarse = [
                self.act_postprocess[level](_as_map(features[self.hooks[level]].float(), grid))
                for level in (1, 2, 3)
            ]
        x = self.scratch(coarse, skips)
        return torch.cat([self._every_pixel(images) for images in _few_at_a_time(x)])

    def _every_pixel(self, x: Tensor) -> Float[Tensor, "B 4 height width"]:
        x = self.head[:-1](x)
        with torch.autocast(x.device.type, enabled=False):  # what the exponentials act on
            return _pointwise(cast(nn.Conv2d, self.head[-1]), x)


def _few_at_a_time(x: Tensor) -> tuple[Tensor, ...]:
    """Return the images one by one on a processor: more at once are not faster, only larger."""
    return x.split(1) if x.device.type == "cpu" else (x,)


def _pointwise(conv: nn.Conv2d, x: Float[Tensor, "B D height width"]) -> Tensor:
    """Return a 1 x 1 convolution in fp32; of 16 bits on a processor, in pieces that stay in cache.

    As a whole, only turning the pixels into fp32 takes five times as long as that.
    """
    if x.device.type != "cpu" or x.dtype == torch.float32:
        return conv(x.float())
    pixels = x.permute(0, 2, 3, 1)
    bias, weight = conv.bias, conv.weight.flatten(1)
    rows = [F.linear(some.float(), weight, bias) for some in pixels.flatten(0, 2).split(8192)]
    return torch.cat(rows).unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2)


class DptHead(nn.Module):
    """DPT regression head, resampled to the patch size where that is not 16."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.dpt = DptBody(config)
        self.hooks = self.dpt.hooks

    def forward(
        self,
        features: list[Tensor],
        grid: Grid,
        skips: Sequence[Tensor] | None = None,
        lattice: Lattice = EVERY_PIXEL,
    ) -> Float[Tensor, "B 4 height width"]:
        out: Tensor = self.dpt(features, grid, skips)
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        if out.shape[2:] != size:
            out = F.interpolate(out, size=size, mode="bilinear", align_corners=True)
        return out[..., lattice.rows, lattice.columns]


class DescriptorHead(DptHead):
    """DPT for points and confidence; for the descriptors an MLP on first and last features.

    Source: MASt3R (Leroy et al. 2024), section 3.2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        dim = config.enc_dim + config.dec_dim
        values = config.descriptor_dim + 1  # the last is the confidence
        self.head_local_features = Mlp(dim, 4 * dim, values * config.patch_size**2)

    def forward(
        self,
        features: list[Tensor],
        grid: Grid,
        skips: Sequence[Tensor] | None = None,
        lattice: Lattice = EVERY_PIXEL,
    ) -> Float[Tensor, "B channel height width"]:
        """Return x, y, z, c, then the descriptor, then its confidence."""
        both_BND = torch.cat((features[0].float(), features[-1].float()), dim=-1)
        local = self.head_local_features(both_BND).float().mT.unflatten(-1, grid)
        local = F.pixel_shuffle(local, self.patch_size)[..., lattice.rows, lattice.columns]
        return torch.cat((super().forward(features, grid, skips, lattice), local), dim=1)


HEADS: dict[HeadType, type[LinearHead | DptHead]] = {
    HeadType.LINEAR: LinearHead,
    HeadType.DPT: DptHead,
    HeadType.CATMLP_DPT: DescriptorHead,
}


def activate(raw: Float[Tensor, "B 4 height width"]) -> tuple[Tensor, Tensor]:
    """Return points (distance e^d - 1 along the raw direction) and confidence 1 + e^c."""
    # side by side in memory, a tenth of the time
    xyz = raw[:, :3].permute(0, 2, 3, 1).contiguous()
    distance = xyz.norm(dim=-1, keepdim=True)
    points = xyz / distance.clamp_min(1e-8) * torch.expm1(distance)
    return points, 1 + raw[:, 3].exp()


def activate_descriptors(raw: Float[Tensor, "B channel height width"]) -> tuple[Tensor, Tensor]:
    """Return descriptors of length 1 and their confidence e^c; c is the last channel."""
    descriptors = F.normalize(raw[:, :-1].permute(0, 2, 3, 1), dim=-1)
    return descriptors, raw[:, -1].exp()
