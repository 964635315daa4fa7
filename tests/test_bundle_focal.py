"""Given focal lengths that features contradict are named, and only those."""

from dataclasses import replace

import pytest
import torch

from recon3d.bundle_check import RefineReport, judged
from recon3d.bundle_focal import warn_of_focals
from recon3d.bundle_solve import Problem, Rig, adjust
from recon3d.config import RefineConfig
from recon3d.tracks import Tracks, select_observations
from recon3d.types import View
from seen_tracks import open_problem, photo, ring, seen_by, tracks_of

pytest.importorskip("pycolmap", reason="needs the extra colmap")

N_VIEWS, N_POINTS, FOCAL = 5, 300, 900.0
VIEWS = [photo(f"{n}.jpg", 1500, 2000) for n in range(N_VIEWS)]


def observed(seed: int, views: range) -> Tracks:
    """Return points that views see, with noise of half a thousandth."""
    generator = torch.Generator().manual_seed(seed)
    pixels = seen_by(ring(N_VIEWS, FOCAL), N_POINTS, generator)
    tracks = tracks_of(pixels + 0.5 * torch.randn(pixels.shape, generator=generator).double())
    return select_observations(tracks, torch.isin(tracks.view, torch.tensor(views)))


def warned(
    given: dict[int, float],
    caplog: pytest.LogCaptureFixture,
    *,
    n_seen: int = N_VIEWS,
    config: RefineConfig | None = None,
    reason: str = "",
    views: list[View] | None = None,
    fixed: int | None = None,
) -> str:
    """Return what is said of cameras adjusted with those focal lengths; the others are free."""
    problem: Problem = open_problem(
        N_VIEWS,
        constant_focal=torch.tensor([n in given for n in range(N_VIEWS)]),
        focal_spread=torch.full((N_VIEWS,), 0.2).double(),
        centre_spread=torch.full((N_VIEWS,), 7.0).double(),
        constant_pose=torch.tensor([n == fixed for n in range(N_VIEWS)]),
        config=config or RefineConfig(),
    )
    used, aside = (observed(seed, range(n_seen)) for seed in (0, 1))
    rig: Rig = ring(N_VIEWS, FOCAL)
    for n, focal in given.items():
        rig.focal[n] = focal
    for _ in range(5):
        rig = adjust(problem, rig, used)
    report = RefineReport(improved=True, reason="", sharp_pairs=1, n_tracks=N_POINTS)
    report = judged(replace(report, remapped=True), problem, ring(N_VIEWS, 600.0), rig, aside)
    caplog.clear()
    warn_of_focals(views or VIEWS, problem, rig, (used, aside), replace(report, reason=reason))
    return caplog.text


@pytest.mark.parametrize("focal", [700.0, 1200.0])
def test_one_wrong_focal_length_for_all_is_named(
    focal: float, caplog: pytest.LogCaptureFixture
) -> None:
    text = warned(dict.fromkeys(range(N_VIEWS), focal), caplog)
    assert f"the given focal length of {N_VIEWS} photos does not fit" in text
    fitting = float(text.split("speak for about ")[1].split(" ")[0])
    assert abs(fitting / 1800 - 1) < 0.03  # of 2000 pixels
    assert f"pixels, not {2 * focal:.0f} (" in text


def test_the_photo_whose_focal_length_is_wrong_is_named(caplog: pytest.LogCaptureFixture) -> None:
    text = warned({0: FOCAL, 1: FOCAL, 3: 1.3 * FOCAL}, caplog)
    assert "the given focal length of 3.jpg does not fit the photos" in text
    assert "image features of 3.jpg speak for about 18" in text


def test_true_and_nearly_true_focal_lengths_are_not_questioned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for factor in (0.95, 1.0, 1.05):
        assert not warned(dict.fromkeys(range(N_VIEWS), factor * FOCAL), caplog)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_seen": 2},
        {"reason": "the tracks kept aside do not fit better"},
        {"config": RefineConfig(refine_focal=False)},
        # a wrong pose, or a crop, looks much alike
        {"fixed": 1},
        {"views": [*VIEWS[1:], replace(VIEWS[0], photo_width=1200)]},
    ],
)
def test_nothing_is_said_where_features_do_not_tell(
    changes: dict, caplog: pytest.LogCaptureFixture
) -> None:
    assert not warned(dict.fromkeys(range(N_VIEWS), 1200.0), caplog, **changes)


def test_estimated_focal_lengths_are_not_given(caplog: pytest.LogCaptureFixture) -> None:
    assert not warned({}, caplog)
