"""Matches of watermarks and of what moves with the camera, and of cameras that stand still."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from exact_scene import blank_view
from recon3d.features import all_on_epipolar_lines
from recon3d.geometry import invert_rigid, project, so3_exp, transform_points
from recon3d.matches import Matches, select
from recon3d.overlays import is_spread, overlay_matches
from recon3d.types import View

WIDTH, HEIGHT = 640, 480
LENS = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


def random(seed: int, n: int) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed))


def still(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Return pixels that stay where they are, to 0.3 of them."""
    first = random(seed, n) * torch.tensor([WIDTH, HEIGHT])
    return first, first + 0.4 * random(seed + 1, n) - 0.2


def world(seed: int, n: int, step: float = 0.5, size: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return what two cameras see of points, in a part of the photo of that size."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, 3, generator=generator) - torch.tensor([0.5, 0.5, 0.0])
    points = points * torch.tensor([4.0 * size, 3.0 * size, 4.0]) + torch.tensor([0.0, 0.0, 4.0])
    camera = torch.eye(4)
    camera[:3, :3] = so3_exp(torch.tensor([0.0, 0.05, 0.02]))
    camera[0, 3] = step
    return project(points, LENS), project(transform_points(invert_rigid(camera), points), LENS)


def pair(i: int, j: int, *parts: tuple[Tensor, Tensor]) -> Matches:
    first, second = (torch.cat(pixels) for pixels in zip(*parts, strict=True))
    return Matches(i=i, j=j, pixels_i=first, pixels_j=second, confidence=torch.ones(len(first)))


def views(n: int = 4) -> list[View]:
    return [blank_view(str(k), (HEIGHT, WIDTH)) for k in range(n)]


def lengths(found: list[Matches]) -> list[int]:
    return [len(one.confidence) for one in found]


def test_what_stays_at_its_pixel_is_dropped_where_the_camera_moves() -> None:
    """Though most matches stay, and in one of three pairs nothing else is left."""
    found = [
        pair(0, 1, still(1, 200), world(2, 80)),
        pair(1, 2, still(3, 200), world(4, 70)),
        pair(0, 2, still(5, 200), world(6, 5)),
    ]
    kept = all_on_epipolar_lines(found, views())
    assert [(one.i, one.j) for one in kept] == [(0, 1), (1, 2)]
    for one, wanted in zip(kept, (80, 70), strict=True):
        assert wanted - 5 <= len(one.confidence) <= wanted
        assert not overlay_matches(one, views()).any()


def test_a_tripod_keeps_its_matches() -> None:
    """Somebody walks through the picture; elsewhere features are matched wrongly."""
    wrong = random(9, 15) * 400, random(10, 15) * 400
    found = [
        pair(i, j, still(i, 90), world(j, 40, size=0.2), wrong)
        for i, j in ((0, 1), (1, 2), (0, 2), (2, 3))
    ]
    assert all(n >= 90 for n in lengths(all_on_epipolar_lines(found, views())))


def test_points_that_hardly_move_are_no_overlay() -> None:
    """As of far points in the middle of a street: more move a little than stay."""
    first = random(1, 90) * torch.tensor([WIDTH, HEIGHT])
    angle = 6.3 * random(2, 90)[:, 0]
    length = 1.8 * random(3, 90)[:, :1].sqrt()  # as many in every part of a disk
    second = first + length * torch.stack((angle.cos(), angle.sin()), dim=-1)
    one = pair(0, 1, (first, second), world(4, 60))
    assert not overlay_matches(one, views()).any()


@pytest.mark.parametrize(("n_still", "expected"), [(0, 0), (7, 0), (8, 8)])
def test_a_few_that_stay_are_chance(n_still: int, expected: int) -> None:
    one = pair(0, 1, still(1, n_still), world(2, 50))
    assert int(overlay_matches(one, views()).sum()) == expected


def test_pixels_are_compared_in_the_photos() -> None:
    """Views that show other parts of their photos at other scales; photos of several sizes."""
    found = pair(0, 1, still(1, 20), world(2, 60))
    half = torch.tensor([[0.25, 0, -9], [0, 0.25, 4], [0, 0, 1]])  # others are half the photo
    cut = replace(views()[1], photo2view=half)
    moved = replace(found, pixels_j=found.pixels_j / 2 + half[:2, 2])
    assert int(overlay_matches(moved, [views()[0], cut]).sum()) == 20
    other = replace(views()[1], photo_width=3 * WIDTH, photo_height=3 * HEIGHT)
    assert not overlay_matches(found, [views()[0], other]).any()


def test_matches_all_over_the_photo_are_spread() -> None:
    assert is_spread(pair(0, 1, world(1, 50)), views())
    assert not is_spread(pair(0, 1, world(1, 50, size=0.2)), views())
    assert not is_spread(select(pair(0, 1, world(1, 50)), torch.arange(1)), views())


def test_nothing_is_nothing() -> None:
    assert all_on_epipolar_lines([], views()) == []
    assert all_on_epipolar_lines([pair(0, 1, world(1, 0))], views()) == []
