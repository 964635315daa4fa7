"""Matches of watermarks and of what moves with the camera, and of cameras that stand still."""

from dataclasses import replace

import pytest
import torch

from exact_scene import blank_view
from recon3d.matches import Matches
from recon3d.overlays import without_overlays
from recon3d.types import View

WIDTH, HEIGHT = 640, 480


def pair(i: int, j: int, still: int, moving: int, moved_px: float = 30.0) -> Matches:
    """Return matches of which some stay within 0.3 pixels, and some move by 0.5 to 1.5 times."""
    generator = torch.Generator().manual_seed(10 * i + j)

    def random(n: int) -> torch.Tensor:
        return torch.rand(n, 2, generator=generator)

    first = random(still + moving) * torch.tensor([WIDTH - 100.0, HEIGHT - 100.0]) + 50
    angle = 6.3 * random(moving)[:, 0]
    length = moved_px * (0.5 + random(moving)[:, 0])
    shift = torch.stack((length * angle.cos(), length * angle.sin()), dim=-1)
    second = first + torch.cat((0.4 * random(still) - 0.2, shift))
    return Matches(i=i, j=j, pixels_i=first, pixels_j=second, confidence=torch.ones(len(first)))


def views(n: int = 4) -> list[View]:
    return [blank_view(str(k), (HEIGHT, WIDTH)) for k in range(n)]


def lengths(found: list[Matches]) -> list[int]:
    return [len(one.confidence) for one in found]


def test_what_stays_at_its_pixel_is_dropped_where_the_camera_moves() -> None:
    found = [pair(0, 1, 15, 80), pair(1, 2, 15, 70), pair(0, 2, 15, 9)]
    kept = without_overlays(found, views())
    assert lengths(kept) == [80, 70, 9]  # of the last, too, in which most stay
    for one in kept:
        assert float((one.pixels_i - one.pixels_j).norm(dim=-1).min()) > 10


def test_a_tripod_keeps_its_matches() -> None:
    found = [pair(0, 1, 90, 20), pair(1, 2, 90, 15), pair(0, 2, 15, 60)]
    assert lengths(without_overlays(found, views())) == [110, 105, 75]


def test_points_that_hardly_move_are_no_overlay() -> None:
    """As of far points in the middle of a street: fewer stay than move a little."""
    near = replace(pair(0, 1, 0, 60))
    far = pair(0, 1, 12, 40, moved_px=1.5)
    both = Matches(
        i=0,
        j=1,
        pixels_i=torch.cat((near.pixels_i, far.pixels_i)),
        pixels_j=torch.cat((near.pixels_j, far.pixels_j)),
        confidence=torch.ones(112),
    )
    assert lengths(without_overlays([both], views())) == [112]


@pytest.mark.parametrize("n_still", [0, 7])
def test_a_few_that_stay_are_chance(n_still: int) -> None:
    assert lengths(without_overlays([pair(0, 1, n_still, 50)], views())) == [n_still + 50]


def test_pixels_are_compared_in_the_photos() -> None:
    """Views that show other parts of their photos at other scales; photos of several sizes."""
    found = pair(0, 1, 20, 60)
    half = torch.tensor([[0.25, 0, -9], [0, 0.25, 4], [0, 0, 1]])  # others are half the photo
    cut = replace(views()[1], photo2view=half)
    moved = replace(found, pixels_j=found.pixels_j / 2 + half[:2, 2])
    assert lengths(without_overlays([moved], [views()[0], cut])) == [60]
    other = replace(views()[1], photo_width=2 * WIDTH, photo_height=2 * HEIGHT)
    assert lengths(without_overlays([found], [views()[0], other])) == [80]


def test_nothing_is_nothing() -> None:
    assert without_overlays([], views()) == []
    assert lengths(without_overlays([pair(0, 1, 0, 0)], views())) == [0]
