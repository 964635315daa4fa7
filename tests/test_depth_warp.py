"""Depth bent to points: what is recovered, what is left alone."""

import pytest
import torch

from recon3d.depth_warp import MIN_POINTS, bend_depth
from recon3d.geometry import pixel_grid


def wavy(height: int = 48, width: int = 64) -> torch.Tensor:
    grid = pixel_grid(height, width)
    return 3 + (grid[..., 0] / 9).sin() + (grid[..., 1] / 7).cos()


def warped(depth: torch.Tensor, kind: str) -> torch.Tensor:
    """Return what a network might make of a depth map."""
    grid = pixel_grid(*depth.shape) / torch.tensor([64.0, 48.0]) - 0.5
    x, y = grid.unbind(-1)
    factor = {
        "scale": torch.full_like(x, 1.7),
        "tilt": 1.7 * (0.3 * x - 0.2 * y).exp(),
        "flat": 1.7 * (depth / 3) ** -0.25,
        "bowl": 1.7 * (0.5 * x * x - 0.4 * x * y).exp(),
    }[kind]
    return depth * factor


def points(n_points: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(n_points, 2, generator=generator).double() * torch.tensor([64, 48])
    return place.floor() + 0.5


def at(depth: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    column, row = pixels.long().unbind(-1)
    return depth.double()[row, column]


@pytest.mark.parametrize("kind", ["scale", "tilt", "flat", "bowl"])
def test_slow_warps_are_undone(kind: str):
    true, pixels = wavy(), points(200)
    z = at(true, pixels)
    z[::9] *= 3  # wrong points
    found = bend_depth(warped(true, kind), pixels, z)
    assert found is not None
    error = (found.depth / true - 1).abs()
    plain = warped(true, kind) / true
    before = (plain / plain.median() - 1).abs()  # what the scale alone leaves
    assert float(error.median()) < max(0.01, 0.5 * float(before.median()))
    assert float(error.max()) < max(0.01, 0.6 * float(before.max()))
    assert found.error < 0.03


def test_few_points_give_the_scale_alone():
    true, pixels = wavy(), points(30)
    found = bend_depth(warped(true, "tilt"), pixels, at(true, pixels))
    assert found is not None
    ratio = found.depth / warped(true, "tilt")
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))
    assert found.error > 0.02  # and it says that the tilt is still there


def test_noise_is_not_taken_for_a_bend():
    true, pixels = wavy(), points(120)
    generator = torch.Generator().manual_seed(3)
    noise = (0.2 * torch.randn(120, generator=generator)).double().exp()
    found = bend_depth(true, pixels, at(true, pixels) * noise)
    assert found is not None
    ratio = found.depth / true
    assert float(ratio.std()) < 0.05


def test_far_from_all_points_the_bend_is_bounded():
    true = wavy()
    pixels = points(200) * torch.tensor([0.1, 0.1])  # all in one corner
    pixels = pixels.floor() + 0.5
    grid = pixel_grid(48, 64).double()
    z = at(true, pixels) * (0.5 * (pixels[:, 0] - pixels[:, 1])).exp()
    found = bend_depth(true, pixels, z)
    assert found is not None
    assert grid.shape[:2] == found.depth.shape
    ratio = found.depth / true
    assert float(ratio.max() / ratio.min()) <= 1.5**2 + 1e-3


def test_unknown_stays_unknown_and_too_few_points_change_nothing():
    true, pixels = wavy(), points(60)
    hole = true.clone()
    hole[10:20, 10:30] = 0
    found = bend_depth(hole, pixels, 2 * at(true, pixels))
    assert found is not None
    assert torch.equal(found.depth == 0, hole == 0)
    torch.testing.assert_close(found.depth[hole > 0], 2 * true[hole > 0], rtol=1e-3, atol=0)
    few = points(MIN_POINTS - 1)
    assert bend_depth(true, few, at(true, few)) is None
    behind = -torch.ones(60).double()
    assert bend_depth(true, pixels, behind) is None
