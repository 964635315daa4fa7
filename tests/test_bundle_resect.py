"""A view that stands wrong among right ones is placed anew by the points that these hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from exact_scene import exact_scene, start_scene
from recon3d import bundle
from recon3d.bundle_check import RefineReport, judged
from recon3d.bundle_evidence import Evidence
from recon3d.bundle_resect import resected
from recon3d.bundle_solve import Rig
from recon3d.config import RefineConfig
from recon3d.geometry import rotation_angle, so3_exp
from recon3d.matches import Matches
from recon3d.progress import silent
from recon3d.tracks import Tracks, select_observations, select_tracks
from seen_tracks import open_problem, ring, seen_by, tracks_of

N_VIEWS, N_POINTS = 6, 200
CONFIG = RefineConfig()


def observed(seed: int) -> Tracks:
    """Return points that all views see, with noise of 0.3 thousandths."""
    generator = torch.Generator().manual_seed(seed)
    pixels = seen_by(ring(N_VIEWS), N_POINTS, generator)
    return tracks_of(pixels + 0.3 * torch.randn(pixels.shape, generator=generator).double())


def with_wrong(*views: int) -> Rig:
    """Return the true cameras, but for those turned by four degrees and moved."""
    rig = ring(N_VIEWS)
    for n in views:
        turn = so3_exp(torch.deg2rad(torch.tensor([0.0, 4.0, 1.0]).double()))
        rig.cam2world[n, :3, :3] = rig.cam2world[n, :3, :3] @ turn
        rig.cam2world[n, 0, 3] += 0.2
    return rig


def wrong_deg(rig: Rig) -> Tensor:
    true = ring(N_VIEWS).cam2world[:, :3, :3]
    return torch.rad2deg(rotation_angle(true.mT @ rig.cam2world[:, :3, :3]))


def test_the_view_that_stands_wrong_is_placed_anew() -> None:
    start = with_wrong(2)
    found = resected(open_problem(N_VIEWS), start, observed(0))
    assert found is not None
    view, rig = found
    assert view == 2
    assert float(wrong_deg(rig).max()) < 0.1
    others = [0, 1, 3, 4, 5]
    assert torch.equal(rig.cam2world[others], start.cam2world[others])
    assert torch.equal(rig.focal, start.focal)


def test_views_that_stand_right_are_tried_or_fixed_stay() -> None:
    problem, tracks = open_problem(N_VIEWS), observed(0)
    assert resected(problem, ring(N_VIEWS), tracks) is None
    assert resected(problem, with_wrong(2), tracks, [2]) is None
    fixed = replace(problem, constant_pose=torch.arange(N_VIEWS) == 2)
    assert resected(fixed, with_wrong(2), tracks) is None


def test_points_that_tell_no_place_move_nothing() -> None:
    problem, start, tracks = open_problem(N_VIEWS), with_wrong(2), observed(0)
    few = select_tracks(tracks, torch.arange(N_POINTS) < 14)
    assert resected(problem, start, few) is None
    # no point that two others see
    pairs = select_observations(tracks, (tracks.view == 2) | (tracks.view == tracks.track % 2))
    assert resected(problem, start, pairs) is None
    # all at one place
    same = replace(
        tracks, pixels=tracks.pixels[tracks.view.argsort()][:N_VIEWS].repeat(N_POINTS, 1)
    )
    assert resected(problem, start, same) is None


def test_of_several_views_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until no more of their points would fit elsewhere, and only where most fits already."""
    problem, start = open_problem(N_VIEWS), ring(N_VIEWS, 600.0)
    used, aside = observed(0), observed(1)
    monkeypatch.setattr(bundle, "_in_rounds", lambda _problem, rig, *_: rig)
    plain = RefineReport(
        improved=False, reason="", sharp_pairs=1, n_tracks=2 * N_POINTS, remapped=True
    )

    def after(*wrong: int) -> bundle._Attempt:
        found = bundle._Attempt(
            rig=with_wrong(*wrong),
            placed=torch.ones(N_VIEWS, dtype=torch.bool),
            used=used,
            aside=aside,
            report=plain,
        )
        return bundle._judged_in_rounds(problem, start, found, silent)

    monkeypatch.setattr(bundle, "is_sure", lambda _report: True)
    both = after(1, 4)
    assert float(wrong_deg(both.rig).max()) < 0.1
    assert both.report == judged(plain, problem, start, both.rig, aside)
    monkeypatch.setattr(bundle, "is_sure", lambda _report: False)
    assert torch.equal(after(1, 4).rig.cam2world, with_wrong(1, 4).cam2world)


def nothing(i: int, j: int) -> Matches:
    return Matches(
        i=i,
        j=j,
        pixels_i=torch.zeros(0, 2),
        pixels_j=torch.zeros(0, 2),
        confidence=torch.zeros(0),
    )


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"support": 0.85}, True),
        ({"support": 0.95}, False),
        ({"support": 0.85, "n_tracks": 160 * N_VIEWS}, False),
        ({"support": 0.85, "reason": "a focal length became implausible"}, False),
        ({"support": 0.85, "remapped": False}, False),
        ({"support": 0.85, "sharp_pairs": 9}, False),  # of more than features anywhere
    ],
)
def test_where_few_tracks_do_not_all_fit_more_are_asked(
    changes: dict, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, start, aside = open_problem(N_VIEWS), ring(N_VIEWS, 600.0), observed(1)
    report = RefineReport(
        improved=False, reason="", sharp_pairs=1, n_tracks=60 * N_VIEWS, remapped=True, weakest=0.8
    )

    def attempt(rig: Rig, report: RefineReport) -> bundle._Attempt:
        placed = torch.ones(N_VIEWS, dtype=torch.bool)
        return bundle._Attempt(rig=rig, placed=placed, used=observed(0), aside=aside, report=report)

    best = attempt(with_wrong(0, 1), replace(report, **changes))
    more = attempt(ring(N_VIEWS), replace(report, support=0.99))
    monkeypatch.setattr(bundle, "split_tracks", lambda *_, **__: None)
    monkeypatch.setattr(bundle, "_remapped", lambda *_: more)
    scene = start_scene(exact_scene(N_VIEWS, shapes=((32, 32),)))
    evidence = Evidence(scene, [], CONFIG, lambda _: np.zeros((32, 32, 3), np.uint8), silent)
    evidence.__dict__["_anywhere"] = [nothing(0, 1)]
    found = bundle._with_second_opinion(scene, problem, start, evidence, best, silent)
    assert found is (more if asked else best)
