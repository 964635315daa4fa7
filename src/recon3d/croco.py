"""Cross-view completion: fill in the hidden patches of one view from the rest of it and another.

The pretext that teaches encoder and decoder to find the other view's matching patch. Parameters
carry the names and shapes of the published checkpoints, of which there are two kinds: v1 adds
cosine position embeddings to the tokens, v2 turns queries and keys (RoPE). Sources: CroCo
(Weinzaepfel et al. 2022), CroCo v2 (2023), MAE (He et al. 2022) for the target.

Shapes: B pairs, N tokens, D channels, C channels of one attention head.
"""

from dataclasses import fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.checkpoint import with_second_decoder
from recon3d.config import CrocoConfig, ModelConfig, PositionType
from recon3d.heads import Grid
from recon3d.model import DecoderBlock, EncoderBlock, PatchEmbed, Rope, rope_table

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PIXEL_HEAD = "prediction_head."
_POSITIONS = ("enc_pos_embed", "dec_pos_embed")


class CrocoModel(nn.Module):
    """Predicts the pixels of the hidden patches of view i."""

    enc_pos_embed: Tensor
    dec_pos_embed: Tensor

    def __init__(self, config: CrocoConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.enc_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dec_dim))
        if config.position is PositionType.COSINE:
            side = config.image_size // config.patch_size
            self.register_buffer("enc_pos_embed", cosine_table((side, side), config.enc_dim))
            self.register_buffer("dec_pos_embed", cosine_table((side, side), config.dec_dim))
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(config.enc_dim, config.enc_heads, config.mlp_ratio)
            for _ in range(config.enc_depth)
        )
        self.enc_norm = nn.LayerNorm(config.enc_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(config.enc_dim, config.dec_dim)
        self.dec_blocks = nn.ModuleList(
            DecoderBlock(config.dec_dim, config.dec_heads, config.mlp_ratio)
            for _ in range(config.dec_depth)
        )
        self.dec_norm = nn.LayerNorm(config.dec_dim, eps=1e-6)
        self.prediction_head = nn.Linear(config.dec_dim, 3 * config.patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform matrices, zero biases, a small random mask token."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.enc_dim, -1))
        nn.init.normal_(self.mask_token, std=0.02)

    def grid_of(self, images: Tensor) -> Grid:
        """Return the rows and columns of patches of a batch of images."""
        patch, (height, width) = self.config.patch_size, images.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"image {height}x{width} is no multiple of {patch}")
        return height // patch, width // patch

    def encode(
        self,
        images: Float[Tensor, "batch 3 height width"],
        hidden: Bool[Tensor, "batch token"] | None = None,
    ) -> Float[Tensor, "batch visible enc_dim"]:
        """Return the tokens of each image, of its visible patches alone where some are hidden.

        Images are normalised as in training: by ImageNet's mean and deviation if the config says
        `imagenet_input`, else to [-1, 1].
        """
        config, grid = self.config, self.grid_of(images)
        x_BND = self.patch_embed(images)
        if config.position is PositionType.COSINE:
            x_BND = x_BND + resized(self.enc_pos_embed, grid)
        rope = self._rope(grid, config.enc_dim // config.enc_heads, images)
        if hidden is not None:
            x_BND = _visible(x_BND, hidden)
            cos, sin = (_visible(table.expand(len(hidden), -1, -1), hidden) for table in rope)
            rope = (cos[:, None], sin[:, None])  # one axis for the attention heads
        for block in self.enc_blocks:
            x_BND = block(x_BND, rope)
        return self.enc_norm(x_BND)

    def decode(
        self,
        visible_i: Float[Tensor, "batch visible enc_dim"],
        tokens_j: Float[Tensor, "batch token_j enc_dim"],
        hidden: Bool[Tensor, "batch token_i"],
        grid_i: Grid,
        grid_j: Grid,
    ) -> Float[Tensor, "batch token_i dec_dim"]:
        """Return the decoder's features of all patches of view i, after the last norm."""
        config = self.config
        embedded, memory = self.decoder_embed(visible_i), self.decoder_embed(tokens_j)
        x_BND = self.mask_token.to(embedded.dtype).repeat(*hidden.shape, 1)
        x_BND[~hidden] = embedded.flatten(0, 1)
        if config.position is PositionType.COSINE:
            x_BND = x_BND + resized(self.dec_pos_embed, grid_i)
            memory = memory + resized(self.dec_pos_embed, grid_j)
        dim = config.dec_dim // config.dec_heads
        rope_i, rope_j = self._rope(grid_i, dim, x_BND), self._rope(grid_j, dim, x_BND)
        for block in self.dec_blocks:
            x_BND, _ = block(x_BND, memory, rope_i, rope_j, with_attention=False)
        return self.dec_norm(x_BND)

    def forward(
        self,
        image_i: Float[Tensor, "batch 3 height_i width_i"],
        image_j: Float[Tensor, "batch 3 height_j width_j"],
        hidden: Bool[Tensor, "batch token_i"],
    ) -> Float[Tensor, "batch token_i value"]:
        """Return what every patch of view i should look like; `hidden` is True where unseen.

        Every row of `hidden` hides the same number of patches. Values are laid out as by
        `patchify`, each patch normalised to its own mean and deviation.
        """
        features = self.decode(
            self.encode(image_i, hidden),
            self.encode(image_j),
            hidden,
            self.grid_of(image_i),
            self.grid_of(image_j),
        )
        return self.prediction_head(features)

    def _rope(self, grid: Grid, head_dim: int, like: Tensor) -> Rope:
        device, dtype = like.device, like.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        if self.config.position is PositionType.COSINE:  # every angle is 0
            shape = (grid[0] * grid[1], head_dim)
            return like.new_ones(shape, dtype=dtype), like.new_zeros(shape, dtype=dtype)
        return rope_table(grid, head_dim, self.config.rope_base, device, dtype)


def _visible(x_BND: Tensor, hidden: Tensor) -> Tensor:
    """Return the tokens that are not hidden, as many in every row."""
    return x_BND[~hidden].unflatten(0, (len(x_BND), -1))


def cosine_table(grid: Grid, dim: int) -> Float[Tensor, "token dim"]:
    """Return the fixed position embeddings of a grid, row by row.

    The first half of the channels tells the column, the second the row; within a half the sines of
    dim/4 frequencies come before their cosines.
    """
    quarter = dim // 4
    frequency = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    halves = []
    for position in (x, y):
        angle = position.reshape(-1, 1) * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=-1).float()


def resized(table: Float[Tensor, "token dim"], grid: Grid) -> Float[Tensor, "resized_token dim"]:
    """Return the embeddings of a square grid interpolated (bicubic) to another grid."""
    side = round(table.shape[0] ** 0.5)
    if grid == (side, side):
        return table
    square = table.T.unflatten(-1, (side, side))[None]
    return F.interpolate(square, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T


def random_hidden(
    n_images: int, n_tokens: int, mask_ratio: float, generator: torch.Generator
) -> Bool[Tensor, "batch token"]:
    """Return which patches to hide: a random `mask_ratio` of each image, rounded down."""
    n_hidden = int(mask_ratio * n_tokens)
    if not 0 < n_hidden < n_tokens:
        raise ValueError(f"mask ratio {mask_ratio} hides {n_hidden} of {n_tokens} patches")
    order = torch.rand(n_images, n_tokens, generator=generator).argsort(dim=1)
    return order < n_hidden


def patchify(
    images: Float[Tensor, "batch 3 height width"], patch_size: int
) -> Float[Tensor, "batch token value"]:
    """Return the pixels of every patch: rows of the patch, then its columns, then RGB."""
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    x = images.unflatten(3, (grid[1], patch_size)).unflatten(2, (grid[0], patch_size))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(
    values: Float[Tensor, "batch token value"], grid: Grid, patch_size: int
) -> Float[Tensor, "batch 3 height width"]:
    """Return the images whose patches hold `values`; undoes `patchify`."""
    x = values.unflatten(2, (patch_size, patch_size, 3)).unflatten(1, grid)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def completion_loss(
    predicted: Float[Tensor, "batch token value"],
    images: Float[Tensor, "batch 3 height width"],
    hidden: Bool[Tensor, "batch token"],
    patch_size: int,
    *,
    normalised: bool = True,
) -> Float[Tensor, ""]:
    """Return the mean squared error over the hidden patches.

    `normalised` compares with each patch at mean 0 and deviation 1 (unbiased), so that texture
    counts as much as brightness (MAE, section 3). A blank guess of 0 then costs just under 1.
    """
    target = patchify(images, patch_size).to(predicted.dtype)
    if normalised:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    return (predicted - target).square().mean(dim=-1)[hidden].mean()


def shared_sizes(sizes: ModelConfig | CrocoConfig) -> dict[str, Any]:
    """Return the fields that two-view and completion networks have in common."""
    names = {field.name for field in fields(ModelConfig)} & {f.name for f in fields(CrocoConfig)}
    return {name: getattr(sizes, name) for name in names}


def to_two_view(tensors: dict[str, Tensor], config: CrocoConfig) -> dict[str, Tensor]:
    """Return the start of a two-view network: everything but its heads.

    The second decoder is a copy of the first. Where the weights saw ImageNet-normalised images, the
    change to [-1, 1] goes into the patch embedding, so that a photo keeps its tokens. The tables of
    cosine position embeddings (CroCo v1) are left out, for a two-view network turns queries and
    keys instead.
    """
    start = {n: t for n, t in tensors.items() if not n.startswith((_PIXEL_HEAD, *_POSITIONS))}
    start = with_second_decoder(start)
    if config.imagenet_input:
        weight, bias = (tensors[f"patch_embed.proj.{part}"].float() for part in ("weight", "bias"))
        mean, std = (weight.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        # (x + 1) / 2 lies in [0, 1]; less the mean, over the deviation
        start["patch_embed.proj.weight"] = weight / (2 * std)
        start["patch_embed.proj.bias"] = bias + (weight * ((0.5 - mean) / std)).sum((1, 2, 3))
    return start
