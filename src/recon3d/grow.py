"""A larger network from the weights of a smaller one that computes the same, to be trained on.

Source: Chen et al., Net2Net: accelerating learning via knowledge transfer (ICLR 2016).
"""

import torch
from torch import Tensor

from recon3d.config import HeadType, ModelConfig

_EVENNESS = 0.5
"""Least share of what an equal copy of a channel would get, when its readers divide it."""
_OUTPUTS = ("attn.proj.", "cross_attn.proj.", "mlp.fc2.")
"""What the parts of a block add to its input."""


def can_grow(small: ModelConfig, large: ModelConfig) -> bool:
    """Say whether the larger network can take over the smaller one.

    Its channels and heads are the same whole number of times as many, of the encoder and of the
    decoders, and it has no fewer layers. Heads that read from several layers do not grow.
    """
    as_many = all(
        big % little == 0 and big * little_heads == little * big_heads
        for big, little, big_heads, little_heads in (
            (large.enc_dim, small.enc_dim, large.enc_heads, small.enc_heads),
            (large.dec_dim, small.dec_dim, large.dec_heads, small.dec_heads),
        )
    )
    alike = all(
        getattr(large, name) == getattr(small, name)
        for name in ("patch_size", "mlp_ratio", "rope_base", "head")
    )
    deep = large.enc_depth >= small.enc_depth and large.dec_depth >= small.dec_depth
    return as_many and alike and deep and small.head is HeadType.LINEAR


def grown(
    tensors: dict[str, Tensor], small: ModelConfig, large: ModelConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return weights of the larger network with which it computes what the smaller one does.

    Every channel is there several times, and what reads it divides it among the copies, by chance
    and unevenly, so that they learn different things. New layers add nothing at first: they are
    copies of the one before but for their outputs, which are zero. Those of the encoder are spread
    evenly, those of the decoders come last, for training watches the attention of the first.

    Raises:
        ValueError: the one does not grow into the other.
    """
    if not can_grow(small, large):
        raise ValueError(f"{small} does not grow into {large}")
    wider = {"enc": large.enc_dim // small.enc_dim, "dec": large.dec_dim // small.dec_dim, "": 1}
    encoder = [layer * small.enc_depth // large.enc_depth for layer in range(large.enc_depth)]
    decoder = [min(layer, small.dec_depth - 1) for layer in range(large.dec_depth)]
    layers = {"enc_blocks": encoder, "dec_blocks": decoder, "dec_blocks2": decoder}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        rows, columns = (wider[side] for side in _sides(name))
        part, _, rest = name.partition(".")
        if part not in layers:
            found[name] = _widened(name, tensor, rows, columns, generator)
            continue
        old, _, inner = rest.partition(".")
        copies = [n for n, source in enumerate(layers[part]) if source == int(old)]
        for new in copies:
            wide = _widened(name, tensor, rows, columns, generator)
            if new != copies[0] and inner.startswith(_OUTPUTS):
                wide = torch.zeros_like(wide)
            found[f"{part}.{new}.{inner}"] = wide
    return found


def _sides(name: str) -> tuple[str, str]:
    """Return whose channels the rows and the columns of a tensor are: "enc", "dec" or nobody's."""
    if name.startswith("patch_embed."):
        return "enc", ""
    if name.startswith("decoder_embed."):
        return "dec", "enc"
    if name.startswith("downstream_head"):
        return "", "dec"
    side = "enc" if name.startswith("enc_") else "dec"
    return side, side


def _widened(
    name: str, tensor: Tensor, rows: int, columns: int, generator: torch.Generator
) -> Tensor:
    tensor = tensor.float()
    if name == "mask_token":
        return tensor.repeat(1, 1, rows)
    # queries, keys and values are each copied as a whole
    parts = tensor.chunk(3) if ".attn.qkv." in name else (tensor,)
    tensor = torch.cat([part for part in parts for _ in range(rows)])
    if tensor.ndim != 2 or columns == 1:
        return tensor
    share = torch.rand(columns, *tensor.shape, generator=generator)
    share = _EVENNESS + 2 * (1 - _EVENNESS) * share
    return torch.cat(list(tensor * share / share.sum(0)), dim=1)
