"""Depth between believed pixels: planes go on as planes, edges of the photo may bend them."""

import torch

from plane_world import shot
from recon3d.sweep_fill import fill, moved_expectation


def sparse(shape: torch.Size, share: float) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) < share


def test_a_plane_is_continued_from_few_pixels():
    one = shot(0.0, board=False)
    good = sparse(one.depth.shape, 0.05)
    expected = torch.full_like(one.depth, 5.0)
    found = fill(expected, one.depth, good, torch.full_like(one.depth, 0.5))
    assert torch.equal(found[good], one.depth[good])
    before = (expected / one.depth - 1).abs()[~good].mean()
    after = (found / one.depth - 1).abs()[~good].mean()
    assert float(after) < 0.1 * float(before)


def test_a_step_at_an_edge_of_the_photo_stays_a_step():
    one = shot(0.0)
    good = sparse(one.depth.shape, 0.3)
    grey = (one.depth < 4).float()
    found = fill(torch.full_like(one.depth, 4.5), one.depth, good, grey)
    blind = fill(torch.full_like(one.depth, 4.5), one.depth, good, torch.zeros_like(grey))
    wrong, wrong_blind = ((f / one.depth - 1).abs().mean() for f in (found, blind))
    assert float(wrong) < 0.02
    assert float(wrong) < float(wrong_blind)


def test_without_a_believed_pixel_the_expectation_stays():
    one = shot(0.0)
    nowhere = torch.zeros_like(one.depth, dtype=torch.bool)
    expected = moved_expectation(one.depth, one.depth, nowhere)
    assert torch.equal(expected, one.depth)
    found = fill(expected, one.depth, nowhere, torch.rand_like(one.depth))
    assert float((found / one.depth - 1).abs().median()) < 0.03


def test_the_expectation_moves_by_the_ratio_around_and_by_all_far_away():
    expected = torch.full((64, 96), 2.0)
    good = torch.zeros(64, 96, dtype=torch.bool)
    good[:, :10] = True
    swept = torch.full_like(expected, 3.0)
    moved = moved_expectation(expected, swept, good)
    torch.testing.assert_close(moved, swept, rtol=1e-4, atol=0)
