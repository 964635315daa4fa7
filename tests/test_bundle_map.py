"""Cameras found anew where the start is far off: exact scenes turned by 40 degrees."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch

from exact_scene import ExactScene, errors, exact_scene, pattern, start_scene
from recon3d.bundle import refine_scene
from recon3d.bundle_map import Mapped, map_cameras
from recon3d.bundle_solve import problem_of
from recon3d.config import RefineConfig
from recon3d.geometry import (
    invert_rigid,
    project,
    rotation_angle,
    seen_from,
    transform_points,
)
from recon3d.matches import Matches, select
from recon3d.tracks import build_tracks
from recon3d.types import Scene, View

pytest.importorskip("pycolmap", reason="needs the extra colmap")

N_VIEWS = 6
CONFIG = RefineConfig()


def first_of(scene: ExactScene, n_views: int) -> ExactScene:
    """Return the first views: neighbours on a shorter arc see more of what the others see."""
    return ExactScene(
        views=scene.views[:n_views],
        cam2world=scene.cam2world[:n_views],
        focal=scene.focal[:n_views],
        depth=scene.depth[:n_views],
    )


@cache
def truth() -> ExactScene:
    return first_of(exact_scene(10, shapes=((96, 128), (128, 96))), N_VIEWS)


@cache
def true_matches() -> tuple[Matches, ...]:
    """Points on the surfaces, wherever two views see them, at one exact pixel in each view."""
    scene = truth()
    generator = torch.Generator().manual_seed(0)
    points = torch.cat(
        [
            transform_points(scene.cam2world[n], scene.pointmap(n).reshape(-1, 3))[
                torch.randperm(scene.depth[n].numel(), generator=generator)[:300]
            ]
            for n in range(N_VIEWS)
        ]
    )
    pixels, seen = [], []
    for n in range(N_VIEWS):
        in_cam = transform_points(invert_rigid(scene.cam2world[n]), points)
        seen.append(seen_from(in_cam[None], scene.depth[n][None], scene.intrinsics(n)[None])[0][0])
        pixels.append(project(in_cam, scene.intrinsics(n)).float())
    found = []
    for i, j in combinations(range(N_VIEWS), 2):
        both = seen[i] & seen[j]
        found.append(
            Matches(
                i=i,
                j=j,
                pixels_i=pixels[i][both],
                pixels_j=pixels[j][both],
                confidence=torch.ones(int(both.sum())),
            )
        )
    return tuple(found)


def nonsense() -> list[Matches]:
    generator = torch.Generator().manual_seed(1)
    return [
        replace(one, pixels_j=one.pixels_j[torch.randperm(len(one.pixels_j), generator=generator)])
        for one in true_matches()
    ]


def mapped_from(
    start: Scene, matches: Sequence[Matches], *, fixed: tuple[int, ...] = ()
) -> Mapped | None:
    problem, rig = problem_of(start, CONFIG, fixed)
    return map_cameras(
        problem,
        rig,
        build_tracks(matches),
        {(one.i, one.j) for one in matches},
        trusted_focal=problem.constant_focal,
    )


def test_cameras_turned_by_40_degrees_become_right() -> None:
    start = start_scene(truth())
    scene, report = refine_scene(start, true_matches(), CONFIG)
    before, after = errors(start, truth()), errors(scene, truth())
    assert before["rotation_deg"] > 30
    assert report.improved
    assert report.remapped
    assert report.reason == ""
    assert report.support > 0.95
    assert report.error_after < 0.02 * report.error_before
    assert after["rotation_deg"] < 0.05
    assert max(after["centre"], after["focal"]) < 2e-3
    # each depth map had a wrong scale only, so all of it is right now
    assert after["depth"] < 0.01
    assert report.depth_error < 0.01
    # the first camera sets the world
    assert torch.equal(scene.cam2world[0], start.cam2world[0])
    assert torch.allclose(scene.depth[0], start.depth[0], rtol=1e-3)


def test_a_good_start_is_not_mapped_anew() -> None:
    scene, report = refine_scene(start_scene(truth(), turned_deg=1.0), true_matches(), CONFIG)
    assert report.improved
    assert not report.remapped
    assert errors(scene, truth())["rotation_deg"] < 0.05


def test_the_same_on_every_run() -> None:
    first, second = (refine_scene(start_scene(truth()), true_matches(), CONFIG) for _ in range(2))
    assert first[1] == second[1]
    assert torch.equal(first[0].cam2world, second[0].cam2world)


def test_nonsense_leaves_the_scene_as_it_was() -> None:
    start = start_scene(truth())
    scene, report = refine_scene(start, nonsense(), CONFIG)
    assert scene is start
    assert not report.improved
    assert report.reason


def test_tracks_of_nonsense_give_no_model() -> None:
    some = tuple(select(one, torch.arange(40)) for one in nonsense() if max(one.i, one.j) < 3)
    assert mapped_from(start_scene(truth()), some) is None


def test_given_focal_lengths_stay() -> None:
    start = start_scene(truth(), focal_source="given")
    scene, report = refine_scene(start, true_matches(), CONFIG)
    assert report.remapped
    assert torch.allclose(scene.intrinsics, start.intrinsics)
    assert errors(scene, truth())["rotation_deg"] < 0.05


def test_given_focal_lengths_stay_though_they_are_wrong() -> None:
    start = start_scene(truth(), focal_source="given")
    start.intrinsics[:, [0, 1], [0, 1]] *= 0.6
    scene, _ = refine_scene(start, true_matches(), CONFIG)
    assert torch.allclose(scene.intrinsics, start.intrinsics)
    mapped = mapped_from(start, true_matches())
    assert mapped is None or torch.equal(mapped.rig.focal, problem_of(start, CONFIG, ())[1].focal)


@pytest.mark.parametrize("fixed", [(2,), (0, 3), (1, 2, 4)])
def test_given_places_stay_and_set_the_world(fixed: tuple[int, ...]) -> None:
    start = start_scene(truth())
    start.cam2world[list(fixed)] = truth().cam2world[list(fixed)].float()
    scene, report = refine_scene(start, true_matches(), CONFIG, fixed=fixed)
    assert report.improved
    assert report.remapped or len(fixed) > 2  # so many given places are a start
    for n in fixed:
        assert torch.allclose(scene.cam2world[n], start.cam2world[n], atol=1e-6)
    turned = scene.cam2world[:, :3, :3].double().mT @ truth().cam2world[:, :3, :3]
    assert float(torch.rad2deg(rotation_angle(turned)).max()) < 0.2
    if len(fixed) > 1:  # they set the scale, too
        off = scene.cam2world[:, :3, 3] - truth().cam2world[:, :3, 3]
        assert float(off.norm(dim=-1).max()) < 0.01
    assert errors(scene, truth())["rotation_deg"] < 0.05


def test_places_that_are_all_given_are_not_mapped() -> None:
    start = start_scene(truth())
    scene, report = refine_scene(start, true_matches(), CONFIG, fixed=range(N_VIEWS))
    assert not report.remapped
    assert torch.equal(scene.cam2world, start.cam2world)


def test_a_view_that_matches_nothing_keeps_its_place_and_says_how_doubtful_that_is() -> None:
    start = start_scene(truth(), focal_source="given")
    joined = tuple(one for one in true_matches() if 5 not in (one.i, one.j))
    scene, report = refine_scene(start, joined, CONFIG, calibrated=range(N_VIEWS))
    assert report.remapped
    assert report.refined == tuple(view.name for view in truth().views[:5])
    assert scene.verdicts[5].rotation_uncertainty_deg > 20
    assert scene.verdicts[5].position_uncertainty > 0.1
    assert scene.verdicts[5].residual == start.verdicts[5].residual
    for verdict in scene.verdicts[:5]:
        assert verdict.rotation_uncertainty_deg < 0.1
        assert verdict.position_uncertainty < 0.01
    problem, rig = problem_of(start, CONFIG, ())
    mapped = mapped_from(start, joined)
    assert mapped is not None
    assert mapped.placed.tolist() == [True] * 5 + [False]
    assert torch.equal(mapped.rig.cam2world[5], rig.cam2world[5])
    assert torch.equal(mapped.rig.focal[5], rig.focal[5])
    assert not problem.constant_pose.any()


def steps_of_one_camera(step: tuple[float, float, float], n_views: int) -> ExactScene:
    """Return views of one room by a camera that moves in equal steps and never turns."""
    scene = exact_scene(n_views, shapes=((96, 128),))
    cam2world = torch.eye(4).double().repeat(n_views, 1, 1)
    cam2world[:, :3, 3] = torch.arange(n_views)[:, None] * torch.tensor(step).double()
    return replace(scene, cam2world=cam2world, focal=torch.full((n_views,), 100.0).double())


def matches_of_points(scene: ExactScene, n_points: int) -> list[Matches]:
    """Return where points before the cameras lie in each pair of views."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(n_points, 3, generator=generator).double() * 6
    points += torch.tensor([-3.0, -2.5, 5.0])
    n_views = len(scene.views)
    pixels = [
        project(transform_points(invert_rigid(scene.cam2world[n]), points), scene.intrinsics(n))
        for n in range(n_views)
    ]
    limit = torch.tensor([128.0, 96.0]).double()
    inside = [((one > 0) & (one < limit)).all(-1) for one in pixels]
    return [
        Matches(
            i=i,
            j=j,
            pixels_i=pixels[i][both].float(),
            pixels_j=pixels[j][both].float(),
            confidence=torch.ones(int(both.sum())),
        )
        for i, j in combinations(range(n_views), 2)
        if (both := inside[i] & inside[j]).any()
    ]


@pytest.mark.parametrize(
    ("step", "n_views"),
    [
        pytest.param((0.0, 0.0, 0.25), 4, id="driving straight on"),
        pytest.param((0.3, 0.0, 0.0), 2, id="two eyes of a stereo camera"),
    ],
)
def test_motions_from_which_colmap_alone_would_not_start(
    step: tuple[float, float, float], n_views: int
) -> None:
    true = steps_of_one_camera(step, n_views)
    matches = matches_of_points(true, 150)
    mapped = mapped_from(start_scene(true), matches)
    assert mapped is not None
    assert mapped.placed.all()
    turn, centre = mapped.rig.cam2world[:, :3, :3], mapped.rig.cam2world[:, :3, 3]
    assert float(torch.rad2deg(rotation_angle(turn[0].mT @ turn)).max()) < 0.1
    way = torch.nn.functional.normalize((centre[1:] - centre[0]) @ turn[0], dim=-1)
    true_way = torch.nn.functional.normalize(torch.tensor(step).double(), dim=0)
    assert float((way @ true_way).min()) > 0.9999


def test_less_than_half_of_the_views_is_no_model() -> None:
    pair = tuple(one for one in true_matches() if {one.i, one.j} <= {0, 1})
    assert mapped_from(start_scene(truth()), pair) is None


def test_features_of_the_photos_find_what_matches_and_cameras_miss() -> None:
    """The whole way: matches are nonsense, cameras are far off, but the photos are true."""
    true = first_of(exact_scene(60, shapes=((192, 256),)), 5)
    points = [
        transform_points(true.cam2world[n], true.pointmap(n).reshape(-1, 3)) for n in range(5)
    ]
    photos = {
        view.name: pattern(seen).reshape(*view.image.shape[1:], 3)
        for view, seen in zip(true.views, points, strict=True)
    }
    read: list[str] = []

    def rgb_of(view: View) -> np.ndarray:
        read.append(view.name)
        return photos[view.name]

    generator = torch.Generator().manual_seed(2)
    wrong = [
        Matches(
            i=i,
            j=j,
            pixels_i=190 * torch.rand(50, 2, generator=generator),
            pixels_j=190 * torch.rand(50, 2, generator=generator),
            confidence=torch.ones(50),
        )
        for i, j in combinations(range(4), 2)
    ]
    start, told = start_scene(true), []
    scene, report = refine_scene(
        start, wrong, CONFIG, rgb_of=rgb_of, track=lambda *step: told.append(step)
    )
    assert report.remapped
    assert report.parallax
    assert errors(start, true)["rotation_deg"] > 30
    assert errors(scene, true)["rotation_deg"] < 0.3
    # photos are read and searched once each, also the one that no match mentions
    assert sorted(read) == sorted(photos)
    assert ("matching", 10, 10) in told
    # beyond the limit only pairs with matches are looked at, and they leave one photo out
    told.clear()
    _, report = refine_scene(
        start,
        wrong,
        replace(CONFIG, max_all_pairs=4, max_wide_pairs=0),
        rgb_of=rgb_of,
        track=lambda *step: told.append(step),
    )
    assert ("matching", 6, 6) in told
    assert start.views[4].name not in report.refined
