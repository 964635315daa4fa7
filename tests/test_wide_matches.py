"""Matches of photos from far apart: whole photos, neighbours, lines, and what chance gives."""

import math

import cv2
import numpy as np
import pytest
import torch

from exact_scene import blank_view
from far_apart import camera, lens, photo, view
from recon3d.config import RefineConfig
from recon3d.essential import line_distance
from recon3d.features import Features, gather_features, match_photos
from recon3d.matches import Matches
from recon3d.types import Scene, Verdict, View
from recon3d.wide_features import WideFeatures, find_wide_features
from recon3d.wide_matches import (
    gathered,
    log_chance,
    match_far_apart,
    support,
    wide_matches,
)

CONFIG = RefineConfig(wide_features=250)
CAMERAS = (camera(-30), camera(30))
PHOTOS = {
    "0.png": photo(CAMERAS[0]),
    "1.png": photo(CAMERAS[1]),
    "2.png": photo(CAMERAS[1], seeds=(2, 3)),
}
VIEWS = tuple(view(name) for name in PHOTOS)
LENS = torch.diag(torch.tensor([0.5, 0.5, 1.0])) @ lens()


@pytest.fixture(scope="module")
def features() -> list[WideFeatures]:
    return [find_wide_features(one, lambda v: PHOTOS[v.name], CONFIG) for one in VIEWS]


def blank_scene() -> Scene:
    """Return the views; their cameras have no meaning."""
    verdict = Verdict(
        residual=math.nan, edges=0, rotation_uncertainty_deg=math.nan, focal_source="given"
    )
    empty = tuple(torch.zeros(one.image.shape[1:]) for one in VIEWS)
    return Scene(
        views=VIEWS,
        cam2world=torch.eye(4).repeat(3, 1, 1),
        intrinsics=LENS.repeat(3, 1, 1),
        depth=empty,
        confidence=empty,
        verdicts=(verdict,) * 3,
    )


def lines_off(one: Matches) -> np.ndarray:
    """Return how far matches of the first two views are from the true lines, in pixels of these."""
    cam_j2cam_i = (torch.linalg.inv(CAMERAS[0]) @ CAMERAS[1]).double().numpy()
    pixels = [p.double().numpy() for p in (one.pixels_i, one.pixels_j)]
    return line_distance(*pixels, LENS.double().numpy(), LENS.double().numpy(), cam_j2cam_i)


@pytest.mark.parametrize(("factor", "sure"), [(1.0, True), (0.8, False)])
def test_photos_60_degrees_apart(features: list[WideFeatures], factor: float, sure: bool) -> None:
    lenses = LENS.repeat(3, 1, 1)
    lenses[:, [0, 1], [0, 1]] *= factor
    known = torch.full((3,), sure)
    one = wide_matches((0, features[0]), (1, features[1]), VIEWS, lenses, known)
    assert one is not None
    assert (one.i, one.j) == (0, 1)
    assert len(one.confidence) > 200
    assert np.median(lines_off(one)) < 0.15  # half a photo's pixel is 0.25
    assert np.quantile(lines_off(one), 0.9) < 0.5
    assert len(one.pixels_i.unique(dim=0)) == len(one.pixels_j.unique(dim=0)) == len(one.confidence)
    # other walls
    assert wide_matches((1, features[1]), (2, features[2]), VIEWS, lenses, known) is None


def test_tracks_join_plain_and_wide_features(caplog: pytest.LogCaptureFixture) -> None:
    """Where a view has a plain feature, a match ends in exactly that pixel."""
    plain: dict[int, Features] = {}
    gather_features(range(2), VIEWS, lambda v: PHOTOS[v.name], RefineConfig(), plain)
    assert match_photos([(0, 1)], VIEWS, plain, RefineConfig()) == []  # alone they do not match
    told: list[tuple[str, int, int]] = []
    said: list[str] = []

    def rgb_of(one: View) -> np.ndarray:
        said[:] = caplog.messages
        return PHOTOS[one.name]

    with caplog.at_level("INFO"):
        (one,) = match_far_apart(
            [(0, 1)],
            blank_scene(),
            rgb_of,
            CONFIG,
            plain=plain,
            track=lambda *step: told.append(step),
        )
    assert said == ["comparing features seen from aside in 1 more pairs of 2 photos"]
    assert told == [("features", 1, 2), ("features", 2, 2), ("matching", 1, 1)]
    for n, pixels in ((0, one.pixels_i), (1, one.pixels_j)):
        apart = (pixels[:, None] - plain[n].pixels).norm(dim=-1).min(dim=1).values
        assert int((apart == 0).sum()) > 20
    assert np.median(lines_off(one)) < 0.15


def test_pixels_of_one_point_become_one() -> None:
    pixels = torch.tensor([[5.0, 5], [9, 9], [5, 5.4], [5, 5.8], [9.3, 9], [1, 1]])
    expected = pixels.clone()
    expected[[0, 2, 3]] = torch.tensor([5.0, 5.4])  # the fourth by way of the third
    expected[[1, 4]] = torch.tensor([9.15, 9.0])
    torch.testing.assert_close(gathered(pixels, 0.5), expected)
    expected[[0, 2, 3]] = pixels[0]
    torch.testing.assert_close(gathered(pixels, 0.5, n_anchors=1), expected)
    assert gathered(pixels[:0], 0.5).shape == (0, 2)


def test_a_photo_without_features_matches_nothing(features: list[WideFeatures]) -> None:
    none = find_wide_features(
        blank_view("0.png", (144, 192)), lambda _: np.full((288, 384, 3), 90, np.uint8), CONFIG
    )
    lenses, sure = LENS.repeat(3, 1, 1), torch.ones(3, dtype=torch.bool)
    assert wide_matches((0, features[0]), (1, none), VIEWS, lenses, sure) is None
    assert wide_matches((0, none), (1, features[1]), VIEWS, lenses, sure) is None


def test_neighbours_that_move_alike_bear_each_other_out() -> None:
    """Four matches of one affine map, one that moves elsewhere, one turned, one too far away."""
    squeeze = torch.tensor([[0.5, 0.1], [0.0, 1.2]])
    pixels_i = torch.tensor(
        [[50.0, 50], [55, 52], [48, 57], [60, 60], [52, 48], [54, 56], [90, 50]]
    )
    pixels_j = pixels_i @ squeeze.T + torch.tensor([7.0, -3])
    pixels_j[4] += torch.tensor([9.0, -9])
    maps = squeeze.repeat(7, 1, 1)
    maps[5] = torch.tensor([[0.0, -1], [1, 0]]) @ squeeze
    found = Matches(i=0, j=1, pixels_i=pixels_i, pixels_j=pixels_j, confidence=torch.ones(7))
    assert support(found, maps, radius=16.0, near=1.0).tolist() == [3, 3, 3, 3, 0, 0, 0]
    # of the first four none is further than 9 from the second, and only that one from the third
    assert support(found, maps, radius=9.5, near=1.0)[:4].tolist() == [2, 3, 2, 1]
    # repeats of one point are no witnesses
    assert support(found, maps, radius=16.0, near=30.0).tolist() == [0] * 7


def test_distance_from_lines_against_opencv() -> None:
    generator = np.random.default_rng(0)
    cam_j2cam_i = np.eye(4)
    cam_j2cam_i[:3, :3] = cv2.Rodrigues(np.array([0.2, -0.7, 0.1]))[0]
    cam_j2cam_i[:3, 3] = 1.0, 0.2, -0.3
    lens_i, lens_j = np.diag((300.0, 320, 1)), np.diag((250.0, 250, 1))
    lens_i[:2, 2] = 160, 120
    in_j = generator.uniform((-1, -1, 3), (1, 1, 6), (20, 3))
    seen = []
    for points, matrix in (
        (in_j @ cam_j2cam_i[:3, :3].T + cam_j2cam_i[:3, 3], lens_i),
        (in_j, lens_j),
    ):
        projected = points @ matrix.T
        seen.append(projected[:, :2] / projected[:, 2:])
    assert line_distance(*seen, lens_i, lens_j, cam_j2cam_i).max() < 1e-9
    noisy = [pixels + generator.normal(0, 2, pixels.shape) for pixels in seen]
    x, y, z = cam_j2cam_i[:3, 3]
    essential = np.array([(0, -z, y), (z, 0, -x), (-y, x, 0)]) @ cam_j2cam_i[:3, :3]
    fundamental = np.linalg.inv(lens_i).T @ essential @ np.linalg.inv(lens_j)
    squared = [
        cv2.sampsonDistance(np.r_[b, 1.0].reshape(3, 1), np.r_[a, 1.0].reshape(3, 1), fundamental.T)
        for a, b in zip(noisy[1], noisy[0], strict=True)
    ]
    expected = np.sqrt(squared)
    np.testing.assert_allclose(
        line_distance(*noisy, lens_i, lens_j, cam_j2cam_i), expected, rtol=1e-6
    )


def test_what_chance_gives() -> None:
    # of 7 matches 6 near lines: 7 choices of them, 6 of five to draw the lines by, 10 solutions
    # each; the sixth is near by chance in 1 of 100 cases; times the 2 counts that were possible
    assert log_chance(6, 7, 0.01) == pytest.approx(math.log10(2 * 7 * 6 * 10 * 0.01))
    assert log_chance(5, 7, 0.01) == math.inf
    assert log_chance(40, 100, 0.01) < -12 < log_chance(12, 100, 0.01)
    assert log_chance(500, 3000, 0.01) < -100  # large counts do not overflow
