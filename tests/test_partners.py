"""The most similar descriptors of two sets, in both directions."""

import pytest
import torch
from torch.nn.functional import normalize

from recon3d import partners


def random_rows(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, 128, generator=generator), dim=1)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 300), (300, 1), (129, 127), (128, 384), (500, 700)])
def test_the_best_of_all_products(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partners, "resolve_precision", lambda precision, device: torch.float32)
    first, second = random_rows(sizes[0], 0), random_rows(sizes[1], 1)
    row_j, row_i = partners.best_partners(first, second)
    product = first @ second.T
    assert torch.equal(row_j, product.argmax(1))
    assert torch.equal(row_i, product.argmax(0))


def test_all_products_may_be_negative() -> None:
    first = random_rows(200, 0).abs()
    row_j, row_i = partners.best_partners(first, -first.flip(0))
    product = first @ -first.flip(0).T
    assert (product.max(1).values - product[torch.arange(200), row_j]).max() < 0.01
    assert (product.max(0).values - product[row_i, torch.arange(200)]).max() < 0.01


def test_bf16_misses_by_no_more_than_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partners, "resolve_precision", lambda precision, device: torch.bfloat16)
    first = random_rows(900, 2)
    second = normalize(first[torch.randperm(900)] + 0.05 * torch.randn(900, 128), dim=1)
    product = first @ second.T
    row_j, row_i = partners.best_partners(first, second)
    each = torch.arange(900)
    # of a row and its noisy copy no other comes near
    assert torch.equal(row_j, product.argmax(1))
    assert torch.equal(row_i, product.argmax(0))
    first, second = random_rows(900, 3), random_rows(900, 4)
    product = first @ second.T
    row_j, row_i = partners.best_partners(first, second)
    assert (product.max(1).values - product[each, row_j]).max() < 0.004
    assert (product.max(0).values - product[row_i, each]).max() < 0.004
