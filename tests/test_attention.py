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


@pytest.mark.parametrize("kept_bytes", [0, 64_000_000])
def test_what_learns_has_the_fused_result_and_gradients(
    kept_bytes: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "_KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(attention, "_in_pieces", None)  # calling it would fail
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(2, 3, n, 16, generator=generator) for n in (20, 31, 31)]
    exact = [part.requires_grad_() for part in exact]
    half = [part.detach().bfloat16().requires_grad_() for part in exact]
    expected = functional.scaled_dot_product_attention(*exact)
    found = attend(*half)
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    expected.square().sum().backward()
    found.square().sum().backward()
    for one, other in zip(half, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, atol=0.06, rtol=0.06)


def test_many_scores_are_not_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch):
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    query, key, value = torch.randn(3, 2, 3, 64, 16).bfloat16()
    for limit, expected in ((0, False), (64_000_000, True)):
        monkeypatch.setattr(attention, "_KEPT_BYTES", limit)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attend(query.requires_grad_(), key, value)
        assert (2 * 3 * 64 * 64 in kept) is expected


def test_what_is_exact_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_in_pieces", None)  # calling it would fail
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    attend(query, key, value)
