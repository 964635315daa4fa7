"""Losses by hand and against slow twins."""

import math

import pytest
import torch

from recon3d import losses
from recon3d.geometry import unproject


def test_normalise_gives_mean_distance_one_over_both_maps() -> None:
    points = (torch.rand(3, 4, 5, 3) + 1, torch.rand(3, 4, 5, 3) * 9)
    valid = (torch.rand(3, 4, 5) > 0.3, torch.rand(3, 4, 5) > 0.6)
    scaled = losses.normalise(points, valid)
    for b in range(3):
        distances = [
            float(point[b, y, x].norm())
            for point, mask in zip(scaled, valid, strict=True)
            for y in range(4)
            for x in range(5)
            if mask[b, y, x]
        ]
        assert sum(distances) / len(distances) == pytest.approx(1, abs=1e-5)


def test_errors_ignore_the_scale_of_either_side() -> None:
    target = (torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 3))
    valid = (torch.ones(2, 4, 4, dtype=torch.bool),) * 2
    same = losses.pointmap_errors(tuple(3.5 * t for t in target), target, valid)
    assert float(torch.stack(same).max()) < 1e-5
    moved = losses.pointmap_errors(tuple(t + 1 for t in target), target, valid)
    assert float(torch.stack(moved).mean()) > 0.1


def test_confidence_loss_is_least_at_alpha_over_error() -> None:
    error, alpha = torch.tensor(0.1), 0.2
    confidence = torch.linspace(1.01, 5, 4000)
    loss = losses.confidence_loss(error.expand_as(confidence), confidence, alpha)
    assert float(confidence[loss.argmin()]) == pytest.approx(alpha / 0.1, abs=0.01)
    assert float(loss[0]) == pytest.approx(0.1 * 1.01 - 0.2 * math.log(1.01), abs=1e-6)


def shifted_planes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A wall at depth 2 seen by two cameras 0.25 apart: a shift of 16 pixels, one patch."""
    intrinsics = torch.tensor([[[128.0, 0, 32], [0, 128, 16], [0, 0, 1]]])
    depth = torch.full((1, 32, 64), 2.0)
    points_i_in_j = unproject(depth, intrinsics) - torch.tensor([0.25, 0, 0])
    points = points_i_in_j[:, 2::4, 2::4]
    return points, torch.ones(points.shape[:3], dtype=torch.bool), depth, intrinsics


def test_ray_loss_knows_directions_alone() -> None:
    intrinsics = torch.tensor([[[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]]])
    depth = torch.linspace(1, 5, 48 * 64).view(1, 48, 64)
    points, valid = unproject(depth, intrinsics), depth > 1.5
    assert float(losses.ray_loss(3 * points, points, valid)) < 1e-6
    assert float(losses.ray_loss(unproject(depth**2, intrinsics), points, valid)) < 1e-6
    other = points + 9 * ~valid[..., None]
    assert float(losses.ray_loss(other, points, valid)) < 1e-6
    # one that looks ahead and one to the side, in 3-4-5 triangles: 1 apart in x, 0 and 1 in z
    ahead, aside = torch.tensor([[[[0.0, 0.0, 2.0], [3.0, 0.0, 4.0]]]]), torch.ones(1, 1, 2).bool()
    seen = torch.tensor([[[[2.0, 0.0, 0.0], [3.0, 0.0, 4.0]]]])
    assert float(losses.ray_loss(seen, ahead, aside)) == pytest.approx(math.sqrt(2) / 2)
    longer = unproject(depth, intrinsics * torch.tensor([1.2, 1.2, 1.0])[:, None])
    assert float(losses.ray_loss(longer, points, valid)) > 0.02


def test_matches_of_a_shift_by_one_patch() -> None:
    points, valid, depth, intrinsics = shifted_planes()
    matches = losses.token_matches(points, valid, depth, intrinsics, 4, 16)
    assert matches.shape == (1, 8, 8)
    expected = torch.zeros(8, 8)
    for row in range(2):
        for column in range(1, 4):  # the leftmost patch leaves the image
            expected[row * 4 + column, row * 4 + column - 1] = 16
    torch.testing.assert_close(matches[0], expected)


def test_hidden_and_unknown_points_do_not_match() -> None:
    points, valid, depth, intrinsics = shifted_planes()
    nearer = depth.clone()
    nearer[:, :, :16] = 1.0  # something stands before the wall in view j
    matches = losses.token_matches(points, valid, nearer, intrinsics, 4, 16)
    assert float(matches[0, :, [0, 4]].sum()) == 0
    assert float(matches.sum()) == 4 * 16
    nothing = losses.token_matches(points, ~valid, depth, intrinsics, 4, 16)
    assert float(nothing.sum()) == 0


def test_attention_loss_is_the_cross_entropy_of_a_loop() -> None:
    log_attention = torch.randn(2, 3, 5, 4).log_softmax(-1)
    matches = torch.randint(0, 3, (2, 5, 4)).float()
    total = 0.0
    for b in range(2):
        for i in range(5):
            for j in range(4):
                total -= float(matches[b, i, j] * log_attention[b, :, i, j].mean())
    expected = total / float(matches.sum())
    assert float(losses.attention_loss(log_attention, matches)) == pytest.approx(expected, rel=1e-5)
    assert float(losses.attention_loss(log_attention, torch.zeros(2, 5, 4))) == 0


def test_descriptor_loss_is_small_when_matches_are_alike() -> None:
    unit = torch.nn.functional.normalize(torch.randn(1, 12, 64), dim=-1)
    matches = torch.eye(12)[None]
    good, right = losses.descriptor_loss(unit, unit, matches)
    assert float(right) == 1
    bad, wrong = losses.descriptor_loss(unit, unit.roll(1, 1), matches)
    assert float(wrong) == 0
    assert float(good) < 0.2 < float(bad)
    # by hand: two patches at right angles
    pair = torch.eye(2)[None]
    loss, _ = losses.descriptor_loss(pair, pair, torch.eye(2)[None], temperature=1.0)
    assert float(loss) == pytest.approx(2 * math.log(1 + math.exp(-1)) / 2, abs=1e-6)
