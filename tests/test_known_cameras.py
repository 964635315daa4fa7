"""What the user gave of the cameras: which source counts, and faults that would go unnoticed."""

from dataclasses import replace

import pytest
import torch

from exact_scene import blank_view
from recon3d.config import AlignConfig, CamerasAre
from recon3d.errors import UsageError
from recon3d.known_cameras import all_given, check_focal, given_intrinsics
from recon3d.types import KnownCamera, View

HALF = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
LENS = torch.tensor([[300.0, 0, 160], [0, 310, 120], [0, 0, 1]])
"""In pixels of the view: twice as much in the photo."""
CAMERA = KnownCamera(intrinsics=LENS, cam2world=torch.eye(4))
POSE = KnownCamera(intrinsics=None, cam2world=torch.eye(4))
FIXED = AlignConfig(focal_px=700.0)
PRIOR = replace(FIXED, cameras_are=CamerasAre.PRIOR)


def view(name: str, width: int, height: int) -> View:
    one = blank_view(name, (48, 64))
    return replace(one, photo2view=HALF, photo_width=width, photo_height=height)


A, B, LARGE = view("a.jpg", 640, 480), view("b.jpg", 480, 640), view("large.jpg", 1280, 960)
NEARLY = view("nearly.jpg", 632, 478)


def test_two_sources_for_every_focal_length_are_refused():
    with pytest.raises(UsageError, match=r"--focal 700 contradicts --cameras.* all 2 photos\. L"):
        check_focal([A, B], [CAMERA, CAMERA], FIXED)


@pytest.mark.parametrize(
    ("cameras", "config"),
    [
        ([], FIXED),
        ([POSE, None], FIXED),
        ([CAMERA, CAMERA], PRIOR),
        ([CAMERA, CAMERA], AlignConfig()),
    ],
)
def test_one_source_is_no_fault(cameras, config, caplog):
    check_focal([A, B], cameras, config)
    assert not caplog.records


def test_the_file_wins_where_it_says_something_and_the_run_tells(caplog):
    check_focal([A, B, LARGE], [None, None, CAMERA], FIXED)  # its size does not matter
    assert "--focal 700 is for the 2 photos without one in --cameras; the other 1" in caplog.text


def test_one_focal_length_in_pixels_for_several_sizes_is_refused():
    check_focal([A, B, NEARLY], [], FIXED)
    for cameras in ([], [None, CAMERA, None]):
        with pytest.raises(
            UsageError,
            match=r"--focal 700 .* a\.jpg has 640 x 480, large\.jpg 1280 x 960\. Give photos",
        ):
            check_focal([A, B, LARGE], cameras, FIXED)
    check_focal([A, B, LARGE], [], AlignConfig())


def test_given_intrinsics_are_in_pixels_of_the_photos():
    first, second, third = given_intrinsics([A, B, A], [CAMERA, None, POSE], FIXED)
    assert first.tolist() == [[600, 0, 320], [0, 620, 240], [0, 0, 1]]
    assert second.tolist() == [[700, 0, 240], [0, 700, 320], [0, 0, 1]]
    assert third.tolist() == [[700, 0, 320], [0, 700, 240], [0, 0, 1]]
    (prior,) = given_intrinsics([A], [CAMERA], PRIOR)
    assert prior.tolist() == [[700, 0, 320], [0, 700, 240], [0, 0, 1]]
    assert given_intrinsics([A, B], [], AlignConfig()) == (None, None)


@pytest.mark.parametrize(
    ("cameras", "config", "expected"),
    [
        ([CAMERA, CAMERA], AlignConfig(), True),
        ([CAMERA, CAMERA], AlignConfig(cameras_are=CamerasAre.PRIOR), False),
        ([CAMERA, POSE], AlignConfig(), False),
        ([CAMERA, None], AlignConfig(), False),
        ([CAMERA, KnownCamera(intrinsics=LENS, cam2world=None)], AlignConfig(), False),
        ([], AlignConfig(), False),
    ],
)
def test_whether_anything_is_left_to_refine(cameras, config, expected):
    assert all_given(cameras, config) is expected
