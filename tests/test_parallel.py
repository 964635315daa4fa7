"""Two cameras side by side: the number that they cannot tell, by hand and against projection."""

import pytest
import torch

from recon3d.geometry import invert_rigid, look_at, project, transform_points
from recon3d.parallel import are_parallel, inverse_depth_offset, moved_lens


def camera(x: float, z: float = 0.0, turn: float = 0.0) -> torch.Tensor:
    centre = torch.tensor([x, 0.0, z])
    return look_at(centre, centre + torch.tensor([turn, 0, 1.0]), torch.tensor([0.0, -1, 0]))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (camera(0.5), True),
        (camera(0.5, turn=0.02), True),
        (camera(0.5, turn=0.1), False),
        (camera(0.1, z=0.5), False),
    ],
)
def test_parallel_cameras_are_told_from_others(other: torch.Tensor, expected: bool):
    assert are_parallel(camera(0.0), other) is expected


def test_the_number_is_found_among_noise_and_gross_errors():
    generator = torch.Generator().manual_seed(0)
    true = 1 + 4 * torch.rand(2000, generator=generator)
    swept = 1 / (1 / true + 0.3)
    expected = 3 * true * (1 + 0.1 * torch.randn(2000, generator=generator))
    expected[::10] *= 2
    assert inverse_depth_offset(expected, swept) == pytest.approx(-0.3, abs=0.03)


def test_the_number_is_found_though_the_network_errs_by_half():
    """Factors of 0.6 and 1.6 are common: near things weigh no more than far ones."""
    generator = torch.Generator().manual_seed(1)
    inverse = 0.2 + torch.rand(4000, generator=generator) ** 2
    factor = torch.exp(0.5 * torch.randn(4000, generator=generator))
    assert inverse_depth_offset(factor / (inverse + 0.4), 1 / inverse) == pytest.approx(
        0.4, abs=0.15
    )
    assert inverse_depth_offset(factor / inverse, 1 / inverse) == 0


def test_the_number_is_bounded_where_the_network_sees_a_plane():
    swept = 1 + torch.rand(2000, generator=torch.Generator().manual_seed(0))
    offset = inverse_depth_offset(torch.full((2000,), 5.0), swept)
    assert offset == pytest.approx(10 * float((1 / swept).median()), rel=1e-4)


def test_no_number_where_it_explains_nothing():
    generator = torch.Generator().manual_seed(0)
    swept = 1 + 4 * torch.rand(2000, generator=generator)
    expected = swept * (1 + 0.2 * torch.randn(2000, generator=generator)).clamp_min(0.3)
    assert inverse_depth_offset(expected, swept) == 0


def test_with_the_moved_lens_new_depths_fall_on_the_old_pixels():
    """A point at its new depth is where it was at its old one."""
    first, second = camera(0.0), camera(0.5)
    intrinsics = torch.tensor([[200.0, 0, 100], [0, 200, 80], [0, 0, 1]])
    offset, depth = -0.1, torch.tensor([1.5, 3.0, 6.0])
    ray = torch.tensor([[0.1, -0.2, 1.0], [-0.3, 0.1, 1.0], [0.0, 0.0, 1.0]])
    old = ray * depth[:, None]
    new = ray / (1 / depth + offset)[:, None]
    lens = moved_lens(intrinsics, second, first, offset)
    first2second = invert_rigid(second) @ first
    torch.testing.assert_close(
        project(transform_points(first2second, new), lens),
        project(transform_points(first2second, old), intrinsics),
        rtol=0, atol=1e-3,
    )  # fmt: skip
