"""Focal lengths and principal points, estimated and given."""

import dataclasses

import pytest
import torch

from exact_scene import blank_view
from recon3d.align_focal import (
    choose_focals,
    lenses,
    principal_point,
    resect,
    weiszfeld_focal,
)
from recon3d.config import AlignConfig, CamerasAre
from recon3d.geometry import pixel_grid, similarity, so3_exp, transform_points
from recon3d.types import KnownCamera


def rays(focal: float, height: int = 48, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    pixel = (pixel_grid(height, width).double() - torch.tensor([width / 2, height / 2])).flatten(
        0, 1
    )
    depth = 1 + torch.rand(len(pixel), 1).double()
    return torch.cat((pixel / focal, torch.ones_like(depth)), -1) * depth, pixel


def test_weiszfeld_is_exact_and_shrugs_off_outliers():
    points, pixel = rays(57.0)
    points[::10, :2] *= 3
    found = weiszfeld_focal(
        points[None], pixel[None], torch.ones(1, len(pixel)).double(), torch.tensor([64.0]).double()
    )
    assert float(found) == pytest.approx(57.0, rel=1e-3)


@pytest.mark.parametrize(("focal", "expected"), [(5.0, 22.4), (1000.0, 256.0)])
def test_absurd_focals_are_clipped(focal: float, expected: float):
    points, pixel = rays(focal)
    found = weiszfeld_focal(
        points[None], pixel[None], torch.ones(1, len(pixel)).double(), torch.tensor([64.0]).double()
    )
    assert float(found) == pytest.approx(expected)


def test_points_of_nothing_give_a_finite_focal():
    zero = torch.zeros(1, 9, 3).double()
    found = weiszfeld_focal(zero, zero[..., :2], zero[..., 0], torch.tensor([64.0]).double())
    assert bool(found.isfinite().all())


def test_a_stretched_photo_has_two_focals():
    points, pixel = rays(60.0)
    view = dataclasses.replace(
        blank_view("a", (48, 64)), photo2view=torch.diag(torch.tensor([0.5, 0.25, 1.0]))
    )
    found = choose_focals(
        points[None],
        torch.ones(1, len(pixel)).double(),
        pixel[None],
        lenses([view], AlignConfig(focal_px=100.0)),
        AlignConfig(),
    )
    assert found.focal.tolist() == [[50.0, 25.0]]
    assert found.source == ("given",)


@pytest.mark.parametrize(
    ("exif", "expected", "source"),
    [
        ((None, 120.0, None), 60.0, "exif"),  # the photo is twice as large
        ((None, None, None), 57.0, "estimated"),
        ((None, 180.0, None), 57.0, "estimated"),  # contradicts all that is seen
    ],
)
def test_a_shared_lens_is_that_of_the_photo_that_knows_it(
    exif: tuple[float | None, ...], expected: float, source: str
):
    points, pixel = rays(57.0)
    views = [blank_view("a", (48, 64), focal_px=focal) for focal in exif]
    config = AlignConfig(shared_focal=True)
    found = choose_focals(
        points.expand(3, -1, -1),
        torch.ones(3, len(pixel)).double(),
        pixel.expand(3, -1, -1),
        lenses(views, config),
        config,
    )
    assert found.focal.flatten().tolist() == pytest.approx([expected] * 6, rel=1e-3)
    assert found.source == (source,) * 3


@pytest.mark.parametrize(
    ("are", "given"),
    [(CamerasAre.FIXED, 190.0), (CamerasAre.FIXED, 57.0), (CamerasAre.PRIOR, 60.0)],
)
def test_a_shared_lens_is_the_given_one(are: CamerasAre, given: float):
    points, pixel = rays(57.0)
    views = [blank_view("a", (48, 64), focal_px=focal) for focal in (None, 120.0, None)]
    config = AlignConfig(shared_focal=True, cameras_are=are)
    cameras = [None, None, known(given)] if are is CamerasAre.FIXED else [None, known(given), None]
    found = choose_focals(
        points.expand(3, -1, -1),
        torch.ones(3, len(pixel)).double(),
        pixel.expand(3, -1, -1),
        lenses(views, config, cameras),
        config,
    )
    assert found.focal.flatten().tolist() == pytest.approx([given] * 6, rel=1e-3)
    assert found.source == ("given" if are is CamerasAre.FIXED else "prior",) * 3


def test_a_principal_point_off_the_centre_is_found():
    points, pixel = rays(57.0)
    points[::10, :2] *= 2
    offset = torch.tensor([3.0, -2.0]).double()
    found = principal_point(
        points[None],
        (pixel + offset)[None],
        torch.ones(1, len(pixel)).double(),
        torch.tensor([64.0]).double(),
    )
    torch.testing.assert_close(found[0], offset, atol=0.05, rtol=0)
    config = AlignConfig(estimate_principal_point=True)
    focals = choose_focals(
        points[None],
        torch.ones(1, len(pixel)).double(),
        (pixel + offset)[None],
        lenses([blank_view("a", (48, 64))], config),
        config,
    )
    torch.testing.assert_close(focals.centre[0], offset, atol=0.05, rtol=0)
    assert float(focals.focal[0, 0]) == pytest.approx(57.0, rel=2e-3)


def test_an_absurd_principal_point_is_limited():
    points, pixel = rays(57.0)
    found = principal_point(
        points[None], (pixel + 30)[None], torch.ones(1, len(pixel)).double(),
        torch.tensor([64.0]).double(),
    )  # fmt: skip
    torch.testing.assert_close(found[0], torch.full((2,), 6.4).double())


def known(focal: float) -> KnownCamera:
    return KnownCamera(
        intrinsics=torch.tensor([[focal, 0, 31.0], [0, focal, 25.0], [0, 0, 1]]), cam2world=None
    )


@pytest.mark.parametrize(
    ("are", "given", "expected", "source"),
    [
        (CamerasAre.FIXED, 90.0, 90.0, "given"),
        (CamerasAre.PRIOR, 62.0, 62.0, "prior"),
        (CamerasAre.PRIOR, 90.0, 57.0, "estimated"),
    ],
)
def test_given_intrinsics_are_fixed_or_a_prior(
    are: CamerasAre, given: float, expected: float, source: str
):
    points, pixel = rays(57.0)
    config = AlignConfig(cameras_are=are, estimate_principal_point=True)
    found = choose_focals(
        points[None],
        torch.ones(1, len(pixel)).double(),
        (pixel + 2)[None],
        lenses([blank_view("a", (48, 64), focal_px=1.0)], config, [known(given)]),
        config,
    )
    assert found.source == (source,)
    assert found.centre.tolist() == [[0, 0]]  # a given principal point stays
    assert float(found.focal[0, 0]) == pytest.approx(expected, rel=0.03)


def test_resection_of_an_unknown_camera():
    points, pixel = rays(70.0)
    elsewhere = similarity(
        torch.tensor(1.0), so3_exp(torch.tensor([0.3, -0.5, 0.1])), torch.tensor([1.0, 0.2, -0.5])
    ).double()
    seen = transform_points(elsewhere, points)
    seen[::7] += 1.0
    weight = torch.ones(len(pixel)).double()
    weight[-5:] = 0
    seen[-5:] = 0
    found = resect(seen, pixel, weight, 32.0, 192.0)
    good = torch.ones(len(pixel), dtype=torch.bool)
    good[::7] = good[-5:] = False
    assert float((found - points)[good].norm(dim=-1).max()) < 0.01
    exact = resect(seen, pixel, weight, 70.0, 70.0)
    assert float((exact - points)[good].norm(dim=-1).max()) < 1e-6
