"""The two-view network: a shared ViT encoder, two decoders that attend to each other, two heads.

Names and shapes of the parameters are those of the published checkpoints, so that every size of the
family, ours included, is one layout. Sources: ViT (Dosovitskiy et al. 2021), RoPE (Su et al. 2021),
CroCo (Weinzaepfel et al. 2022), DUSt3R (Wang et al. 2024). The heads are in heads.py.

Shapes: B pairs, N tokens, D channels, H heads, C channels of one head.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon3d.attention import attend
from recon3d.config import ModelConfig
from recon3d.heads import (
    HEADS,
    DptHead,
    Grid,
    LinearHead,
    Mlp,
    Skips,
    activate,
    activate_descriptors,
)
from recon3d.lattice import EVERY_PIXEL, Lattice

Rope = tuple[Tensor, Tensor]


class TwoViewOutput(NamedTuple):
    """Pointmaps of both views in camera i, and their confidences (1 + e^c); always fp32.

    Networks with a descriptor head also give unit descriptors and their confidences (e^c).
    """

    pointmap_i: Float[Tensor, "pair height_i width_i 3"]
    confidence_i: Float[Tensor, "pair height_i width_i"]
    pointmap_j: Float[Tensor, "pair height_j width_j 3"]
    confidence_j: Float[Tensor, "pair height_j width_j"]
    descriptors_i: Float[Tensor, "pair height_i width_i channel"] | None = None
    descriptors_j: Float[Tensor, "pair height_j width_j channel"] | None = None
    descriptor_confidence_i: Float[Tensor, "pair height_i width_i"] | None = None
    descriptor_confidence_j: Float[Tensor, "pair height_j width_j"] | None = None


class DecoderTokens(NamedTuple):
    """Features of both views after each decoder layer, and attention of the requested layers.

    `tokens_*[0]` is the encoder's output, the last entry is after the final norm; those not asked
    for are empty. `attention[l]` holds log-attention of i over the tokens of j, and of j over those
    of i, before layer l's MLP.
    """

    tokens_i: list[Tensor]
    tokens_j: list[Tensor]
    attention: dict[int, tuple[Tensor, Tensor]]


@lru_cache(maxsize=64)
def rope_table(
    grid: Grid, head_dim: int, base: float, device: torch.device, dtype: torch.dtype
) -> Rope:
    """Return cos and sin of the rotary angles of every token, (N, C).

    The first half of the channels turns with the patch row, the second with the column; within a
    half, channel k is paired with channel k + C/4 (REFERENCE: RoPE-2D, "rotate half"). The sine is
    that by which `rotate` multiplies the partner: negative for the first of the two.
    """
    rows, columns = grid
    quarter = head_dim // 4
    with torch.inference_mode(False):  # cached: must serve training as well
        return _rope_table(rows, columns, quarter, base, device, dtype)


def _rope_table(
    rows: int, columns: int, quarter: int, base: float, device: torch.device, dtype: torch.dtype
) -> Rope:
    frequency = base ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    y = torch.arange(rows, device=device, dtype=torch.float32).repeat_interleave(columns)
    x = torch.arange(columns, device=device, dtype=torch.float32).repeat(rows)
    angle_y, angle_x = y[:, None] * frequency, x[:, None] * frequency
    angle = torch.cat((angle_y, angle_y, angle_x, angle_x), dim=-1)
    signed = torch.cat((-angle_y, angle_y, -angle_x, angle_x), dim=-1)
    return angle.cos().to(dtype), signed.sin().to(dtype)


def rotate(x_BHNC: Tensor, rope: Rope) -> Tensor:
    """Return queries or keys turned by their positions."""
    if not x_BHNC.requires_grad:
        return _turned(x_BHNC, *rope)
    turned: Tensor = _Rotation.apply(x_BHNC, *rope)  # type: ignore[no-untyped-call]
    return turned


class _Rotation(torch.autograd.Function):
    """Turns back what comes back, in fewer operations than autograd would find."""

    @staticmethod
    def forward(ctx: Any, x_BHNC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x_BHNC, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin), None, None


def _turned(x_BHNC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return every channel times its cosine, plus its partner times its sine."""
    if x_BHNC.is_cuda and not torch.compiler.is_compiling():
        return _turned_in_place(x_BHNC, cos, sin)
    a, b, c, d = x_BHNC.chunk(4, dim=-1)
    return (x_BHNC * cos).addcmul_(torch.cat((b, a, d, c), dim=-1), sin)


def _turned_in_place(x_BHNC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same to the bit. Fewer bytes are moved, but a processor is slower at such short rows."""
    out = x_BHNC * cos
    to, partner, by = (x.unflatten(-1, (2, 2, -1)) for x in (out, x_BHNC, sin))
    to[..., 0, :].addcmul_(partner[..., 1, :], by[..., 0, :])
    to[..., 1, :].addcmul_(partner[..., 0, :], by[..., 1, :])
    return out


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions and one fused q, k, v projection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, rope: Rope) -> Tensor:
        qkv = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out_BHNC = attend(rotate(q, rope), rotate(k, rope), v)
        return self.proj(out_BHNC.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of one view's tokens over the other view's."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(dim, dim)
        self.projk = nn.Linear(dim, dim)
        self.projv = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self,
        query_BND: Tensor,
        memory_BND: Tensor,
        rope_q: Rope,
        rope_k: Rope,
        watched_heads: int = 0,
    ) -> tuple[Tensor, Float[Tensor, "B H Nq Nk"] | None]:
        """Return the result, and the log of the weights of the first heads, in fp32."""
        q = rotate(self._split(self.projq(query_BND)), rope_q)
        k = rotate(self._split(self.projk(memory_BND)), rope_k)
        out_BHNC = attend(q, k, self._split(self.projv(memory_BND)))
        out_BND = self.proj(out_BHNC.transpose(1, 2).flatten(2))
        if watched_heads == 0:
            return out_BND, None
        # contiguous: compiled for all numbers of tokens, the strides of a slice are not
        watched_q, watched_k = (x[:, :watched_heads].contiguous() for x in (q, k))
        scores = (watched_q @ watched_k.mT).float()
        return out_BND, scores.mul(q.shape[-1] ** -0.5).log_softmax(dim=-1)


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, x_BND: Tensor, rope: Rope) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND), rope)
        return x_BND + self.mlp(self.norm2(x_BND))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the other view, and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.norm_y = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(
        self,
        x_BND: Tensor,
        y_BND: Tensor,
        rope_x: Rope,
        rope_y: Rope,
        *,
        with_attention: bool,
        watched_heads: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        x_BND = x_BND + self.attn(self.norm1(x_BND), rope_x)
        query, memory = self.norm2(x_BND), self.norm_y(y_BND)
        n_heads = self.cross_attn.heads if watched_heads is None else watched_heads
        mixed, attention = self.cross_attn(
            query, memory, rope_x, rope_y, n_heads if with_attention else 0
        )
        x_BND = x_BND + mixed
        return x_BND + self.mlp(self.norm3(x_BND)), attention


def _run_block(
    block: nn.Module,
    x_BND: Tensor,
    y_BND: Tensor,
    rope_x: Rope,
    rope_y: Rope,
    with_attention: bool,
    watched_heads: int | None,
) -> tuple[Tensor, Tensor | None]:
    out: tuple[Tensor, Tensor | None] = block(
        x_BND, y_BND, rope_x, rope_y, with_attention=with_attention, watched_heads=watched_heads
    )
    return out


@cache
def _compiled_block() -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return `_run_block` compiled; as blocks differ in their weights alone, once for all."""
    return torch.compile(_run_block, dynamic=False, fullgraph=True)


class PatchEmbed(nn.Module):
    """One strided convolution: an image patch becomes a token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        # exact even under autocast: a few thousandths of the work, and every layer adds to it
        with torch.autocast(images.device.type, enabled=False):
            return self.proj(images.to(self.proj.weight.dtype)).flatten(2).mT


class TwoViewModel(nn.Module):
    """Predicts, for every pixel of two views, a 3D point in the first camera and a confidence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch_size, config.enc_dim)
        # Used by cross-view completion only; part of the published layout.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dec_dim), requires_grad=False)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(config.enc_dim, config.enc_heads, config.mlp_ratio)
            for _ in range(config.enc_depth)
        )
        self.enc_norm = nn.LayerNorm(config.enc_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(config.enc_dim, config.dec_dim)

        def decoder() -> nn.ModuleList:
            return nn.ModuleList(
                DecoderBlock(config.dec_dim, config.dec_heads, config.mlp_ratio)
                for _ in range(config.dec_depth)
            )

        self.dec_blocks, self.dec_blocks2 = decoder(), decoder()
        self.dec_norm = nn.LayerNorm(config.dec_dim, eps=1e-6)
        head = HEADS[config.head]
        self.downstream_head1, self.downstream_head2 = head(config), head(config)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform matrices, zero biases, heads that start near zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.config.enc_dim, -1))
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        for head in (self.downstream_head1, self.downstream_head2):
            if isinstance(head, LinearHead):
                nn.init.normal_(head.proj.weight, std=0.02)

    def _rope(self, grid: Grid, dim: int, heads: int, like: Tensor) -> Rope:
        dtype = torch.get_autocast_dtype(like.device.type)
        if not torch.is_autocast_enabled(like.device.type):
            dtype = like.dtype
        return rope_table(grid, dim // heads, self.config.rope_base, like.device, dtype)

    def encode(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch token enc_dim"]:
        """Return the tokens of each image (RGB in [-1, 1], sides multiples of the patch size)."""
        config = self.config
        height, width = images.shape[-2:]
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(f"image {height}x{width} is no multiple of {config.patch_size}")
        grid = (height // config.patch_size, width // config.patch_size)
        rope = self._rope(grid, config.enc_dim, config.enc_heads, images)
        x_BND = self.patch_embed(images)
        for block in self.enc_blocks:
            x_BND = block(x_BND, rope)
        return self.enc_norm(x_BND)

    def decode_tokens(
        self,
        tokens_i: Tensor,
        tokens_j: Tensor,
        grid_i: Grid,
        grid_j: Grid,
        attention_layers: frozenset[int] = frozenset(),
        watched_heads: int | None = None,
        *,
        compiled: bool = False,
        kept: Sequence[int] | None = None,
        embedded: tuple[Tensor, Tensor] | None = None,
    ) -> DecoderTokens:
        """Run both decoders; every layer of each reads the other's previous layer.

        Of the `attention_layers` the log-attention of the first `watched_heads` is kept (None: of
        all heads). Features are kept after the layers `kept`, counted from 1 (None: after all).
        `embedded` is `decoder_embed` of the tokens, where it is known.
        """
        config = self.config
        run = _compiled_block() if compiled else _run_block
        rope_i = self._rope(grid_i, config.dec_dim, config.dec_heads, tokens_i)
        rope_j = self._rope(grid_j, config.dec_dim, config.dec_heads, tokens_j)
        features_i, features_j = [tokens_i], [tokens_j]
        attention: dict[int, tuple[Tensor, Tensor]] = {}
        # The sum over the layers is kept in the type of the weights, also under autocast.
        exact = self.dec_norm.weight.dtype
        if embedded is None:
            embedded = self.decoder_embed(tokens_i), self.decoder_embed(tokens_j)
        x_i, x_j = (x.to(exact) for x in embedded)
        for layer, (block_i, block_j) in enumerate(
            zip(self.dec_blocks, self.dec_blocks2, strict=True)
        ):
            wanted = layer in attention_layers
            next_i, attention_i = run(block_i, x_i, x_j, rope_i, rope_j, wanted, watched_heads)
            next_j, attention_j = run(block_j, x_j, x_i, rope_j, rope_i, wanted, watched_heads)
            x_i, x_j = next_i, next_j
            if attention_i is not None and attention_j is not None:
                attention[layer] = (attention_i, attention_j)
            is_kept = kept is None or layer + 1 in kept
            features_i.append(x_i if is_kept else x_i.new_empty(0))
            features_j.append(x_j if is_kept else x_j.new_empty(0))
        features_i[-1], features_j[-1] = self.dec_norm(x_i), self.dec_norm(x_j)
        return DecoderTokens(features_i, features_j, attention)

    @contextlib.contextmanager
    def _arithmetic_of_heads(self, device: str) -> Iterator[None]:
        bf16 = (
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        )
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            yield

    def skip(
        self, side: int, tokens: Float[Tensor, "batch token enc_dim"], grid: Grid
    ) -> Float[Tensor, "batch channel rows columns"]:
        """Return the part of a head with DPT that depends on one view alone.

        `side` is 0 for views that are first in their pairs (i), 1 for those that are second (j).
        """
        head = cast(DptHead, self.downstream_head2 if side else self.downstream_head1)
        with self._arithmetic_of_heads(tokens.device.type):
            return head.dpt.skip(tokens, grid)

    def heads(
        self,
        decoded: DecoderTokens,
        grid_i: Grid,
        grid_j: Grid,
        skips: Skips | None = None,
        lattice: Lattice = EVERY_PIXEL,
    ) -> TwoViewOutput:
        """Turn decoder features into pointmaps and confidences, which are always fp32.

        Of a lattice of pixels only these are returned.

        Under bf16 autocast the finest convolutions of DPT run in bf16, the rest in fp32. Under
        fp16 all of the head is fp32: nothing bounds the size of its features.
        """
        device = decoded.tokens_i[-1].device.type
        skips_i, skips_j = skips or (None, None)
        with self._arithmetic_of_heads(device):
            raw_i = self.downstream_head1(decoded.tokens_i, grid_i, skips_i, lattice)
            raw_j = self.downstream_head2(decoded.tokens_j, grid_j, skips_j, lattice)
        with torch.autocast(device, enabled=False):
            output = TwoViewOutput(*activate(raw_i[:, :4]), *activate(raw_j[:, :4]))
            if not self.config.has_descriptors:
                return output
            descriptors_i, trust_i = activate_descriptors(raw_i[:, 4:])
            descriptors_j, trust_j = activate_descriptors(raw_j[:, 4:])
        return output._replace(
            descriptors_i=descriptors_i,
            descriptors_j=descriptors_j,
            descriptor_confidence_i=trust_i,
            descriptor_confidence_j=trust_j,
        )

    def decode(
        self,
        tokens_i: Float[Tensor, "pair token_i enc_dim"],
        tokens_j: Float[Tensor, "pair token_j enc_dim"],
        grid_i: Grid,
        grid_j: Grid,
        *,
        skips: Skips | None = None,
        compiled: bool = False,
    ) -> TwoViewOutput:
        """Return both pointmaps, in camera i, from the encoded views; a grid is (rows, columns).

        `skips` are known values of `skip`. `compiled` runs the blocks of the decoders compiled,
        which rounds differently.
        """
        kept = self.downstream_head1.hooks
        decoded = self.decode_tokens(
            tokens_i, tokens_j, grid_i, grid_j, compiled=compiled, kept=kept
        )
        return self.heads(decoded, grid_i, grid_j, skips)
