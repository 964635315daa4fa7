"""Similarity of pooled tokens: by hand, against loops, and its laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon3d.retrieval import pooled_similarity


def test_by_hand():
    # unit means (1, 0), (0, 1), (-1, 0) have the mean (0, 1/3): left are (1, -1/3), (0, 2/3) and
    # (-1, -1/3), of cosines -1/sqrt(10) with the middle one and (-1 + 1/9) / (10/9) = -0.8
    tokens = [
        torch.tensor([[2.0, 1.0], [4.0, -1.0]]),
        torch.tensor([[0.0, 5.0]]),
        torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [-4.0, 0.0]]),
    ]
    side = -1 / math.sqrt(10)
    expected = [[1, side, -0.8], [side, 1, side], [-0.8, side, 1]]
    np.testing.assert_allclose(pooled_similarity(tokens), expected, atol=1e-12)


def test_equals_loops():
    tokens = [torch.randn(n, 7) for n in (3, 5, 4, 1)]
    units = []
    for view in tokens:
        mean = view.double().numpy().mean(axis=0)
        units.append(mean / np.linalg.norm(mean))
    middle = sum(units) / len(units)
    similarity = pooled_similarity(tokens)
    for i, a in enumerate(units):
        for j, b in enumerate(units):
            x, y = a - middle, b - middle
            cosine = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            assert similarity[i, j] == pytest.approx(cosine, abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_symmetric_bounded_and_independent_of_order_and_size(n_views, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randn(4, 5, generator=generator) for _ in range(n_views)]
    similarity = pooled_similarity(tokens)
    assert similarity.shape == (n_views, n_views)
    assert (np.abs(similarity) <= 1).all()
    assert (np.diag(similarity) == 1).all()
    np.testing.assert_array_equal(similarity, similarity.T)
    order = torch.randperm(n_views, generator=generator).tolist()
    shuffled = pooled_similarity([3.0 * tokens[k] for k in order])
    np.testing.assert_allclose(shuffled, similarity[np.ix_(order, order)], atol=1e-5)


def test_what_all_views_share_does_not_count():
    """Around a strong common part, two groups still look unlike each other."""
    common, a, b = torch.eye(3)
    views = [common + 0.1 * direction for direction in (a, a, b, b)]
    similarity = pooled_similarity([view[None] for view in views])
    assert similarity[0, 1] > 0.99
    assert similarity[2, 3] > 0.99
    assert similarity[0, 2] < -0.99


def test_equal_views_are_like_no_other():
    similarity = pooled_similarity([torch.full((2, 3), 0.7)] * 3)
    np.testing.assert_array_equal(similarity, np.eye(3))


def test_half_precision_tokens():
    tokens = [torch.randn(6, 16) for _ in range(4)]
    half = pooled_similarity([view.half() for view in tokens])
    np.testing.assert_allclose(half, pooled_similarity(tokens), atol=5e-3)


def test_bad_tokens():
    with pytest.raises(ValueError, match="no views"):
        pooled_similarity([])
    with pytest.raises(ValueError, match="not finite"):
        pooled_similarity([torch.zeros(2, 3), torch.full((2, 3), math.nan)])
