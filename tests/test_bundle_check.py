"""The check of adjusted cameras, apart from the adjustment."""

from dataclasses import replace

import pytest
import torch

from recon3d.bundle_check import RefineReport, fitting, held_out, is_sure, judged
from recon3d.bundle_solve import Problem, Rig
from recon3d.config import RefineConfig
from recon3d.tracks import Tracks, select_observations
from seen_tracks import open_problem, tracks_of

N_VIEWS, N_POINTS = 3, 200
REPORT = RefineReport(improved=False, reason="", sharp_pairs=0, n_tracks=N_POINTS)


def rig(**changes: object) -> Rig:
    cam2world = torch.eye(4).double().repeat(N_VIEWS, 1, 1)
    cam2world[:, 0, 3] = torch.arange(N_VIEWS)
    return replace(
        Rig(cam2world=cam2world, focal=torch.full((N_VIEWS,), 900.0).double()), **changes
    )


def spoilt(size: float) -> Rig:
    """Return the cameras turned about their viewing axes, each by another angle (radians)."""
    cam2world = rig().cam2world.clone()
    for n, angle in enumerate((-size, size, 2 * size)):
        turn = torch.tensor([[0.0, -angle, 0], [angle, 0, 0], [0, 0, 0]]).double().matrix_exp()
        cam2world[n, :3, :3] = turn
    return rig(cam2world=cam2world)


def problem() -> Problem:
    return open_problem(N_VIEWS)


def observed(noise: float = 0.3) -> Tracks:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(N_POINTS, 3, generator=generator).double() + torch.tensor([1.0, 0, 6])
    in_cam = points - rig().cam2world[:, None, :3, 3]
    pixels = 900 * in_cam[..., :2] / in_cam[..., 2:]
    pixels = pixels + noise * torch.randn(pixels.shape, generator=generator).double()
    return tracks_of(pixels)


def test_better_cameras_pass_and_worse_do_not() -> None:
    good = judged(REPORT, problem(), spoilt(0.02), rig(), observed())
    assert good.reason == ""
    assert good.support > 0.95
    assert good.n_held_out == N_POINTS
    assert 0.0001 < good.error_after < 0.0005 < good.error_before <= 0.02
    assert is_sure(good)
    worse = judged(REPORT, problem(), rig(), spoilt(0.005), observed())
    assert "fit" in worse.reason
    same = judged(REPORT, problem(), rig(), rig(), observed())
    assert same.reason == "the tracks kept aside do not fit better"
    assert is_sure(same)  # they could not be better
    far = judged(REPORT, problem(), spoilt(0.5), spoilt(0.1), observed())
    assert "of the tracks kept aside fit" in far.reason
    assert not is_sure(far)


@pytest.mark.parametrize(
    ("before", "after", "remapped", "plausible"),
    [
        (900.0, 1700.0, False, True),
        (900.0, 1900.0, False, False),
        (900.0, 400.0, False, False),
        # a poor start is no measure of a focal length; the field of view is
        (900.0, 1900.0, True, True),
        (900.0, 5900.0, True, True),
        (900.0, 6100.0, True, False),
        (900.0, 290.0, True, False),
        (7000.0, 7000.0, True, True),  # as it was given
        (900.0, float("nan"), True, False),
        (900.0, float("nan"), False, False),
    ],
)
def test_implausible_focal_lengths(
    before: float, after: float, remapped: bool, plausible: bool
) -> None:
    rigs = [rig(focal=torch.tensor([900.0, f, 900.0]).double()) for f in (before, after)]
    report = judged(replace(REPORT, remapped=remapped), problem(), *rigs, observed())
    assert (report.reason != "a focal length became implausible") == plausible
    if not plausible:
        assert not is_sure(report)


def test_the_share_kept_aside() -> None:
    tracks = observed()
    for share in (0.1, 0.5):
        aside = held_out(tracks, RefineConfig(held_out=share))
        assert abs(float(aside.double().mean()) - share) < 0.1
        assert torch.equal(aside, held_out(tracks, RefineConfig(held_out=share)))
    assert not torch.equal(aside, held_out(tracks, RefineConfig(held_out=share, seed=1)))


def test_one_wrong_view_of_few_tracks_leaves_doubt() -> None:
    """Nearly all tracks fit, since few see the third view; but none of those does."""
    tracks = observed()
    seen = (tracks.view != 2) | (tracks.track < N_POINTS // 10)
    tracks = select_observations(tracks, seen)
    turned = rig().cam2world.clone()
    turned[2] = spoilt(0.1).cam2world[2]
    report = judged(REPORT, problem(), spoilt(0.02), rig(cam2world=turned), tracks)
    assert report.reason == ""
    assert report.support > 0.85
    assert report.weakest < 0.1
    assert not is_sure(report)
    fits = fitting(problem(), rig(cam2world=turned), tracks)
    assert fits[tracks.view != 2].double().mean() > 0.85
    assert is_sure(judged(REPORT, problem(), spoilt(0.02), rig(), tracks))
    assert fitting(problem(), rig(), tracks).double().mean() > 0.99
