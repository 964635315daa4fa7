"""How much arithmetic a network needs, and how much of what the device can do it gets.

Only matrix products count (linear layers, attention, convolutions), a multiplication and an
addition as two operations; the backward pass costs twice the forward pass. Source: Chowdhery et
al., PaLM (2022), appendix B: model FLOPs utilisation, MFU.
"""

import time
from typing import NamedTuple

import torch

from recon3d.config import CrocoConfig, ModelConfig
from recon3d.device import synchronize

TRAINING_PASSES = 3
"""Forward once, backward twice as much."""

_PEAK_TFLOPS = (
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("RTX 4090", 165.0),
)
"""Dense 16-bit peaks from the makers' data sheets; the first name that fits counts."""


class Peak(NamedTuple):
    """The most operations a second a device reaches, and where that figure is from."""

    flops_per_s: float
    source: str


def attention_flops(dim: int, n_queries: int, n_keys: int) -> int:
    """Return the forward cost of one attention layer with its four projections."""
    projections = 2 * dim * dim * (2 * n_queries + 2 * n_keys)
    return projections + 2 * 2 * n_queries * n_keys * dim


def encoder_flops(config: ModelConfig | CrocoConfig, n_tokens: int, n_patches: int) -> int:
    """Return the forward cost of encoding one image of `n_patches` of which `n_tokens` are seen."""
    dim = config.enc_dim
    block = attention_flops(dim, n_tokens, n_tokens) + 4 * config.mlp_ratio * dim**2 * n_tokens
    embedding = 2 * 3 * config.patch_size**2 * dim * n_patches
    return embedding + config.enc_depth * block


def decoder_flops(config: ModelConfig | CrocoConfig, n_queries: int, n_memory: int) -> int:
    """Return the forward cost of one decoder: `n_queries` tokens that read `n_memory` others."""
    dim = config.dec_dim
    block = attention_flops(dim, n_queries, n_queries) + attention_flops(dim, n_queries, n_memory)
    block += 4 * config.mlp_ratio * dim**2 * n_queries
    return config.dec_depth * block


def embedding_flops(config: ModelConfig | CrocoConfig, n_tokens: int) -> int:
    """Return the forward cost of the layer between encoder and decoder."""
    return 2 * config.enc_dim * config.dec_dim * n_tokens


def linear_head_flops(config: ModelConfig | CrocoConfig, n_tokens: int) -> int:
    """Return the forward cost of the pixel layer of one view: 4 values a pixel, or RGB."""
    values = 4 if isinstance(config, ModelConfig) else 3
    return 2 * config.dec_dim * values * config.patch_size**2 * n_tokens


def two_view_flops(
    config: ModelConfig, n_images: int, n_pairs: int, n_tokens: int, pixel_step: int = 1
) -> int:
    """Return the forward cost of `n_images` encoded and embedded once each, `n_pairs` decoded.

    Of the pixels, every `pixel_step`-th row and column. Of a convolutional head only the linear
    layer's equivalent is counted, so MFU is then a lower bound.
    """
    image = encoder_flops(config, n_tokens, n_tokens) + embedding_flops(config, n_tokens)
    view = decoder_flops(config, n_tokens, n_tokens)
    view += linear_head_flops(config, n_tokens) // pixel_step**2
    return n_images * image + 2 * n_pairs * view


def completion_flops(
    config: CrocoConfig, n_images: int, n_pairs: int, n_tokens: int, n_visible: int
) -> int:
    """Return the forward cost of completing `n_pairs` from `n_images` encoded in full."""
    pair = encoder_flops(config, n_visible, n_tokens)
    pair += embedding_flops(config, n_visible + n_tokens)
    pair += decoder_flops(config, n_tokens, n_tokens) + linear_head_flops(config, n_tokens)
    return n_images * encoder_flops(config, n_tokens, n_tokens) + n_pairs * pair


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the peak of a device in a type: from the makers' table, else measured."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for part, tflops in _PEAK_TFLOPS:
            if part in name:
                return Peak(tflops * 1e12, f"data sheet of {part}")
    side = 512 if device.type == "cpu" else 8192
    return Peak(measured_flops(device, dtype, side), f"measured: product of two {side}^2 matrices")


def measured_flops(device: torch.device, dtype: torch.dtype, side: int, repeats: int = 6) -> float:
    """Return the operations a second of the fastest of some square matrix products."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / max(best, 1e-9)
