"""Views that fit each other pair by pair, but not three by three."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from exact_scene import exact_scene, start_scene
from recon3d import bundle, bundle_evidence
from recon3d.bundle import refine_scene
from recon3d.bundle_check import RefineReport
from recon3d.bundle_conflict import contradicted_view, rigs_contradict
from recon3d.bundle_solve import Problem, Rig
from recon3d.config import RefineConfig
from recon3d.geometry import invert_rigid, look_at, similarity, so3_exp, transform_points
from recon3d.matches import Matches
from recon3d.metrics import relative_pose_errors
from recon3d.tracks import Tracks, select_observations
from seen_tracks import open_problem, tracks_of

N_VIEWS, N_POINTS = 4, 120


def rig() -> Rig:
    angle = torch.linspace(0, 0.9, N_VIEWS).double()
    centre = torch.stack((5 * angle.sin(), 0.3 * angle, 5 - 5 * angle.cos()), -1)
    target = torch.tensor([0.0, 0, 5]).double().expand(N_VIEWS, 3)
    up = torch.tensor([0.0, -1, 0]).double()
    return Rig(cam2world=look_at(centre, target, up), focal=torch.full((N_VIEWS,), 900.0).double())


def turned(angle_deg: float) -> Rig:
    """Return the rig with its first two views turned apart by twice that angle."""
    cam2world = rig().cam2world
    for n, sign in ((0, 1), (1, -1)):
        axis = torch.tensor([0.0, sign * math.radians(angle_deg), 0.0]).double()
        cam2world[n, :3, :3] = cam2world[n, :3, :3] @ so3_exp(axis)
    return replace(rig(), cam2world=cam2world)


def problem() -> Problem:
    return open_problem(N_VIEWS)


def observed(wrong: Sequence[int] = (), share: float = 0.7) -> Tracks:
    """Return all points in all views; in the `wrong` ones a share of them is somewhere else."""
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(N_POINTS, 3, generator=generator).double() + torch.tensor([0.0, 0, 5])
    in_cam = transform_points(invert_rigid(rig().cam2world), points.expand(N_VIEWS, -1, -1))
    pixels = 900 * in_cam[..., :2] / in_cam[..., 2:]
    pixels = pixels + 0.2 * torch.randn(pixels.shape, generator=generator).double()
    for n in wrong:
        pixels[n, : int(share * N_POINTS)] += 60
    return tracks_of(pixels)


def test_views_that_agree_are_left_alone() -> None:
    assert contradicted_view(problem(), rig(), observed()) is None
    assert contradicted_view(problem(), rig(), observed([2], share=0.3)) is None


@pytest.mark.parametrize("wrong", range(N_VIEWS))
def test_the_view_that_shows_other_things_is_named(wrong: int) -> None:
    assert contradicted_view(problem(), rig(), observed([wrong])) == wrong


def test_points_of_two_views_alone_judge_nothing() -> None:
    tracks = observed([3])
    seen_by_two = (tracks.view >= 2) | (tracks.track >= 15)
    seen_by_two &= (tracks.track < 15) | (tracks.view < 3)
    assert contradicted_view(problem(), rig(), select_observations(tracks, seen_by_two)) is None


def test_of_three_views_that_quarrel_the_one_with_the_fewest_matches_goes() -> None:
    """Which of the three is wrong their common points do not tell; the others do."""
    tracks = observed([2])
    kept = (tracks.view < 2) | ((tracks.view == 2) & (tracks.track < 100))
    assert contradicted_view(problem(), rig(), select_observations(tracks, kept)) == 2


def test_a_view_that_each_other_places_elsewhere_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last view matches every other, each by an exact geometry, but each by another."""
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    truth = exact_scene(5, shapes=((96, 128),))
    generator = torch.Generator().manual_seed(0)
    points = torch.cat(
        [
            transform_points(truth.cam2world[n], truth.pointmap(n).reshape(-1, 3))[
                torch.randperm(truth.depth[n].numel(), generator=generator)[:150]
            ]
            for n in range(4)
        ]
    )

    def pixels(n: int, cam2world: Tensor) -> tuple[Tensor, Tensor]:
        in_cam = transform_points(invert_rigid(cam2world), points)
        image = in_cam @ truth.intrinsics(n).double().mT
        image = image[:, :2] / image[:, 2:]
        inside = (image > 0).all(1) & (image < torch.tensor([128, 96])).all(1)
        return image, inside & (in_cam[:, 2] > 0)

    found = []
    for j in range(1, 5):
        for i in range(j):
            place = truth.cam2world[j].double().clone()
            if j == 4:
                turn = torch.tensor([0.0, 0.12 * (i - 1.5), 0.0]).double()
                place[:3, :3] = place[:3, :3] @ so3_exp(turn)
                place[:3, 3] += (i - 1.5) * torch.tensor([0.0, 0.5, 0.0]).double()
            (at_i, in_i), (at_j, in_j) = pixels(i, truth.cam2world[i].double()), pixels(j, place)
            both = in_i & in_j
            one = Matches(
                i=i,
                j=j,
                pixels_i=at_i[both].float(),
                pixels_j=at_j[both].float(),
                # which pair a track takes its pixel of the last view from is chance
                confidence=torch.rand(int(both.sum()), generator=generator),
            )
            found.append(one)
    monkeypatch.setattr(bundle_evidence, "_matches_anywhere", lambda *_: found)
    monkeypatch.setattr(bundle_evidence, "sharpen_matches", lambda *_, **__: found)
    monkeypatch.setattr(bundle_evidence, "match_far_apart", lambda *_, **__: [])
    caplog.set_level("INFO")
    grey = np.full((96, 128, 3), 90, np.uint8)
    better, report = refine_scene(start_scene(truth), found, RefineConfig(), rgb_of=lambda _: grey)
    assert report.improved
    assert report.refined == tuple(view.name for view in truth.views[:4])
    assert f"others contradict what {truth.views[4].name} shows" in caplog.text
    off = relative_pose_errors(better.cam2world[:4].numpy(), truth.cam2world[:4].numpy())
    assert float(off.rotation_deg.max()) < 0.2


def test_placements_that_turn_views_otherwise_contradict_each_other() -> None:
    everyone = torch.ones(N_VIEWS, dtype=torch.bool)
    two = torch.tensor([True, True, False, False])
    world = similarity(torch.tensor(2.0), so3_exp(torch.ones(3)), torch.ones(3)).double()
    elsewhere = replace(rig(), cam2world=world @ rig().cam2world)
    elsewhere.cam2world[:, :3, :3] /= 2
    assert not rigs_contradict(rig(), elsewhere, everyone)
    assert not rigs_contradict(rig(), turned(4.0), everyone)
    assert rigs_contradict(rig(), turned(9.0), everyone)
    assert not rigs_contradict(rig(), turned(9.0), two)


def test_what_is_beyond_doubt_wins_over_more_views_that_contradict_it() -> None:
    tracks = observed()
    aside = select_observations(tracks, (tracks.view >= 2) | (tracks.track < 40))
    few = torch.tensor([True, True, True, False])

    def attempt(placed: Tensor, support: float, turned_deg: float) -> bundle._Attempt:
        report = RefineReport(improved=False, reason="", sharp_pairs=6, n_tracks=N_POINTS)
        return bundle._Attempt(
            rig=turned(turned_deg),
            placed=placed,
            used=tracks,
            aside=aside,
            report=replace(report, remapped=True, support=support, weakest=support),
        )

    sure, doubtful = attempt(few, 0.95, 0.0), attempt(few | True, 0.75, 9.0)
    for pair in ((sure, doubtful), (doubtful, sure)):
        assert bundle._better(problem(), *pair) is sure
    # where neither is beyond doubt, or they agree, what explains more wins
    unsure, agreeing = attempt(few, 0.75, 0.0), attempt(few | True, 0.75, 2.0)
    assert bundle._better(problem(), unsure, doubtful) is doubtful
    assert bundle._better(problem(), sure, agreeing) is agreeing
