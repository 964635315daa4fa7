"""Attention in pieces is attention."""

import pytest
import torch
from torch.nn import functional

from recon3d import attention
from recon3d.attention import attend


@pytest.mark.parametrize("piece_bytes", [1, 3000, 40_000, 4_000_000])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (20, 31), (64, 7)])
def test_pieces_of_any_size_give_the_fused_result(
    piece_bytes: int, n_queries: int, n_keys: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "_PIECE_BYTES", piece_bytes)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, n_queries, 16, generator=generator)
    key, value = torch.randn(2, 2, 3, n_keys, 16, generator=generator)
    expected = functional.scaled_dot_product_attention(query, key, value)
    found = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)


def test_what_learns_or_is_exact_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_in_pieces", None)  # calling it would fail
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    attend(query, key, value)
    attend(query.bfloat16().requires_grad_(), key.bfloat16(), value.bfloat16()).sum().backward()
