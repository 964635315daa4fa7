"""Refinement of exact scenes with spoilt cameras, and of what must not be refined."""

import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import far_apart
from exact_scene import ExactScene, errors, exact_scene
from recon3d.bundle import refine_scene
from recon3d.config import MatchConfig, RefineConfig
from recon3d.errors import UsageError
from recon3d.geometry import (
    compose,
    invert_rigid,
    project,
    rotation_angle,
    so3_exp,
    transform_points,
)
from recon3d.matches import Matches, matches_of_prediction, merge_orders
from recon3d.types import Scene, Verdict, View

N_VIEWS = 4
CONFIG = RefineConfig()


@cache
def truth(focals: tuple[float, ...] | None = None) -> ExactScene:
    return exact_scene(N_VIEWS, shapes=((96, 128), (128, 96)), focals=focals)


@cache
def pixel_matches(focals: tuple[float, ...] | None = None) -> tuple[Matches, ...]:
    """Matches between whole pixels: right to about half of one."""
    config = MatchConfig(stride=2, max_distance=0.01)
    predictions = truth(focals).predictions()
    return tuple(merge_orders(matches_of_prediction(p, config) for p in predictions))


@cache
def true_matches(focals: tuple[float, ...] | None = None) -> tuple[Matches, ...]:
    """The same with the exact place in the second view."""
    scene = truth(focals)
    exact = []
    for one in pixel_matches(focals):
        column, row = one.pixels_i.floor().long().T
        cam_i2cam_j = compose(invert_rigid(scene.cam2world[one.j]), scene.cam2world[one.i])
        points = transform_points(cam_i2cam_j, scene.pointmap(one.i)[row, column])
        exact.append(replace(one, pixels_j=project(points, scene.intrinsics(one.j)).float()))
    return tuple(exact)


def nonsense() -> list[Matches]:
    generator = torch.Generator().manual_seed(1)
    return [
        replace(one, pixels_j=one.pixels_j[torch.randperm(len(one.pixels_j), generator=generator)])
        for one in true_matches()
    ]


def spoilt_scene(
    *,
    focal_source: str = "estimated",
    same_focal: bool = False,
    focals: tuple[float, ...] | None = None,
) -> Scene:
    """Return the true scene with cameras turned by some degrees and moved, depth out of scale."""
    scene = truth(focals)
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).double()

    cam2world = scene.cam2world.clone()
    cam2world[:, :3, :3] = so3_exp(0.02 * noise(N_VIEWS, 3)) @ cam2world[:, :3, :3]
    cam2world[:, :3, 3] += 0.05 * noise(N_VIEWS, 3)
    intrinsics = torch.stack([scene.intrinsics(n) for n in range(N_VIEWS)])
    factor = (0.05 * noise(1 if same_focal else N_VIEWS)).exp()
    intrinsics[:, [0, 1], [0, 1]] *= factor[:, None]
    verdict = Verdict(
        residual=0.1, edges=3, rotation_uncertainty_deg=1.0, focal_source=focal_source
    )
    return Scene(
        views=scene.views,
        cam2world=cam2world.float(),
        intrinsics=intrinsics.float(),
        depth=tuple((d * (0.2 * noise()).exp()).float() for d in scene.depth),
        confidence=tuple(2 * torch.ones(d.shape) for d in scene.depth),
        verdicts=(verdict,) * N_VIEWS,
    )


pycolmap = pytest.importorskip("pycolmap", reason="needs the extra colmap")


def test_spoilt_cameras_become_better() -> None:
    start = spoilt_scene()
    told: list[tuple[str, int, int]] = []
    scene, report = refine_scene(
        start, true_matches(), CONFIG, track=lambda *step: told.append(step)
    )
    before, after = errors(start, truth()), errors(scene, truth())
    assert before["rotation_deg"] > 2
    assert min(before["centre"], before["focal"], before["depth"]) > 0.02
    assert after["rotation_deg"] < 0.02
    assert max(after["centre"], after["focal"]) < 1e-3
    assert after["depth"] < 0.01
    assert report.improved
    assert report.reason == ""
    assert report.refined == tuple(view.name for view in truth().views)
    assert report.error_after < 0.02 * report.error_before
    assert 0.1 * report.n_tracks < report.n_held_out < 0.3 * report.n_tracks
    assert told[0][:2] == ("refine", 1)
    assert told[-1][1] == told[-1][2]
    # the first camera and its depth set the world
    assert torch.equal(scene.cam2world[0], start.cam2world[0])
    assert torch.allclose(scene.depth[0], start.depth[0], rtol=1e-3)
    assert scene.cam2world.dtype == scene.intrinsics.dtype == scene.depth[1].dtype == torch.float32
    assert torch.equal(scene.intrinsics[:, :2, 2], start.intrinsics[:, :2, 2])


def test_half_a_pixel_of_noise_is_no_harm() -> None:
    start = spoilt_scene()
    scene, report = refine_scene(start, pixel_matches(), CONFIG)
    before, after = errors(start, truth()), errors(scene, truth())
    assert report.improved
    for name in before:
        assert after[name] < 0.5 * before[name], name


def test_the_same_on_every_run() -> None:
    first, second = (refine_scene(spoilt_scene(), true_matches(), CONFIG) for _ in range(2))
    assert first[1] == second[1]
    assert torch.equal(first[0].cam2world, second[0].cam2world)


def test_nonsense_leaves_the_scene_as_it_was() -> None:
    start = spoilt_scene()
    scene, report = refine_scene(start, nonsense(), CONFIG)
    assert scene is start
    assert not report.improved
    assert "fit" in report.reason or "focal" in report.reason


def test_a_perfect_scene_is_not_made_worse() -> None:
    perfect = replace(
        spoilt_scene(),
        cam2world=truth().cam2world.float(),
        intrinsics=torch.stack([truth().intrinsics(n) for n in range(N_VIEWS)]).float(),
        depth=tuple(d.float() for d in truth().depth),
    )
    scene, _ = refine_scene(perfect, true_matches(), CONFIG)
    after = errors(scene, truth())
    assert after["rotation_deg"] < 0.02
    assert after["depth"] < 0.01


@pytest.mark.parametrize("some", [[], [replace(one) for one in true_matches()[:1]]])
def test_too_few_matches_leave_the_scene_as_it_was(some: list[Matches]) -> None:
    start = spoilt_scene()
    few = [
        replace(one, pixels_i=one.pixels_i[:20], pixels_j=one.pixels_j[:20],
                confidence=one.confidence[:20])
        for one in some
    ]  # fmt: skip
    scene, report = refine_scene(start, few, CONFIG)
    assert scene is start
    assert report.reason == f"{20 * len(few)} tracks, at least 40 are needed"


def test_too_few_photos_leave_the_scene_as_it_was() -> None:
    """One pair of four photos is joined; here half is enough, so five photos are asked for."""
    start = spoilt_scene()
    more = replace(
        start,
        views=(*start.views, replace(start.views[0], name="lonely.jpg")),
        cam2world=torch.cat((start.cam2world, torch.eye(4)[None])),
        intrinsics=torch.cat((start.intrinsics, start.intrinsics[:1])),
        depth=(*start.depth, start.depth[0]),
        confidence=(*start.confidence, start.confidence[0]),
        verdicts=(*start.verdicts, start.verdicts[0]),
    )
    pair = [one for one in true_matches() if (one.i, one.j) == (0, 1)]
    scene, report = refine_scene(more, pair, CONFIG)
    assert scene is more
    assert report.reason == "tracks join only 2 of 5 photos"


def test_photos_without_tracks_keep_their_place() -> None:
    start = spoilt_scene()
    some = [one for one in true_matches() if 0 not in (one.i, one.j)]
    scene, report = refine_scene(start, some, CONFIG)
    assert report.refined == ("1.jpg", "2.jpg", "3.jpg")
    assert torch.equal(scene.cam2world[0], start.cam2world[0])
    assert torch.equal(scene.intrinsics[0], start.intrinsics[0])
    assert torch.equal(scene.depth[0], start.depth[0])
    # the others are better among themselves, and still about where they were
    others = [
        replace(
            s, views=s.views[1:], cam2world=s.cam2world[1:], intrinsics=s.intrinsics[1:],
            depth=s.depth[1:], confidence=s.confidence[1:], verdicts=s.verdicts[1:],
        )
        for s in (start, scene)
    ]  # fmt: skip
    before, after = (errors(s, truth(), placed=(1, 2, 3)) for s in others)
    assert after["rotation_deg"] < 0.02 < before["rotation_deg"]
    moved = scene.cam2world[1:, :3, 3].mean(0) - start.cam2world[1:, :3, 3].mean(0)
    assert float(moved.norm()) < 0.01


def test_given_focal_lengths_and_places_stay() -> None:
    start = spoilt_scene(focal_source="given")
    scene, _ = refine_scene(start, true_matches(), CONFIG)
    assert torch.allclose(scene.intrinsics, start.intrinsics)
    assert not torch.equal(scene.cam2world[1], start.cam2world[1])
    true_places = replace(spoilt_scene(), cam2world=truth().cam2world.float())
    true_places.cam2world[1] = spoilt_scene().cam2world[1]
    for fixed in ((0, 2, 3), (2,)):
        scene, report = refine_scene(true_places, true_matches(), CONFIG, fixed=fixed)
        assert report.improved
        for n in fixed:
            assert torch.allclose(scene.cam2world[n], true_places.cam2world[n], atol=1e-6)
        assert errors(scene, truth())["rotation_deg"] < 0.02
    assert torch.allclose(scene.depth[2], true_places.depth[2], rtol=1e-3)


def test_a_world_far_from_its_origin_loses_no_digits() -> None:
    far = torch.tensor([5e5, 5.3e6, 100.0], dtype=torch.float64)
    start = replace(spoilt_scene(), cam2world=spoilt_scene().cam2world.double())
    there = replace(start, cam2world=start.cam2world.clone())
    there.cam2world[:, :3, 3] += far
    near, moved = (
        refine_scene(scene, true_matches(), CONFIG, fixed=(0, 2))[0] for scene in (start, there)
    )
    fixed = [0, 2]
    torch.testing.assert_close(moved.cam2world[fixed], there.cam2world[fixed], rtol=0, atol=1e-6)
    back = moved.cam2world.clone()
    back[:, :3, 3] -= far
    torch.testing.assert_close(back, near.cam2world, rtol=0, atol=1e-7)
    for one, other in zip(moved.depth, near.depth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_without_refining_focal_lengths() -> None:
    start = spoilt_scene()
    scene, _ = refine_scene(start, true_matches(), replace(CONFIG, refine_focal=False))
    assert torch.allclose(scene.intrinsics, start.intrinsics)


def test_a_shared_focal_length_is_one_of_the_photo() -> None:
    """Views of other shapes share it in relation to their photos' long edges."""
    scene, _ = refine_scene(
        spoilt_scene(same_focal=True), true_matches(), replace(CONFIG, shared_focal=True)
    )
    focal = scene.intrinsics[:, 0, 0]
    assert torch.allclose(focal, focal[0].expand(N_VIEWS))
    assert torch.allclose(focal, scene.intrinsics[:, 1, 1])


def test_photos_of_one_size_share_a_focal_length_whatever_others_there_are() -> None:
    half = torch.diag(torch.tensor([0.5, 0.5, 1.0]))
    focals = (0.8, 0.8, 1.1, 1.1)
    start = spoilt_scene(focals=focals)
    views = list(start.views)
    for n in (2, 3):
        view = views[n]
        views[n] = replace(
            view,
            photo_width=2 * view.photo_width,
            photo_height=2 * view.photo_height,
            photo2view=half @ view.photo2view,
        )
    noisy = [
        replace(one, pixels_j=one.pixels_j + 0.1 * torch.randn(one.pixels_j.shape))
        for one in true_matches(focals)
    ]
    scene, _ = refine_scene(replace(start, views=tuple(views)), noisy, CONFIG)
    focal = scene.intrinsics[:, 0, 0].tolist()
    assert focal[0] == focal[1]
    assert focal[2] == focal[3] != focal[0]
    after = errors(scene, truth(focals))
    assert after["rotation_deg"] < 0.1
    assert after["focal"] < 5e-3


def test_pictures_without_features_fall_back_to_the_matches() -> None:
    def grey(view: object) -> np.ndarray:
        return np.full((192, 256, 3) if view.image.shape[1] == 96 else (256, 192, 3), 128, np.uint8)

    start = spoilt_scene()
    plain, _ = refine_scene(start, true_matches(), CONFIG)
    scene, report = refine_scene(start, true_matches(), CONFIG, rgb_of=grey)
    assert report.sharp_pairs == 0
    assert torch.equal(scene.cam2world, plain.cam2world)


def test_features_as_seen_from_aside_place_photos_that_plain_ones_do_not() -> None:
    """Two photos 60 degrees apart, cameras at one place, and no matches to start from."""
    cameras, config = (
        (far_apart.camera(-30), far_apart.camera(30)),
        replace(CONFIG, wide_features=250),
    )
    photos = {f"{n}.png": far_apart.photo(one) for n, one in enumerate(cameras)}
    views = tuple(far_apart.view(name) for name in photos)
    verdict = Verdict(
        residual=np.nan, edges=0, rotation_uncertainty_deg=np.nan, focal_source="given"
    )
    intrinsics = torch.diag(torch.tensor([0.5, 0.5, 1.0])) @ far_apart.lens()
    flat = tuple(torch.full(view.image.shape[1:], 3.0) for view in views)
    start = Scene(
        views=views,
        cam2world=torch.eye(4).repeat(2, 1, 1),
        intrinsics=intrinsics.repeat(2, 1, 1),
        depth=flat,
        confidence=flat,
        verdicts=(verdict, verdict),
    )

    def rgb_of(view: View) -> np.ndarray:
        return photos[view.name]

    scene, report = refine_scene(start, [], config, rgb_of=rgb_of)
    assert report.improved
    assert report.remapped
    found, true = (
        compose(invert_rigid(one[0].double()), one[1].double())
        for one in (scene.cam2world, torch.stack(cameras))
    )
    assert float(torch.rad2deg(rotation_angle(true[:3, :3]))) > 55
    assert float(torch.rad2deg(rotation_angle(found[:3, :3].mT @ true[:3, :3]))) < 0.5
    none, report = refine_scene(start, [], replace(config, max_wide_pairs=0), rgb_of=rgb_of)
    assert not report.improved
    assert torch.equal(none.cam2world, start.cam2world)


def test_descriptors_adjust_cameras_where_the_points_are_too_rough() -> None:
    """A network with descriptors: points are off by a tenth, descriptors tell them apart."""
    scene = truth()
    waves = 6 * torch.randn(3, 12, generator=torch.Generator().manual_seed(0)).double()
    world = [transform_points(scene.cam2world[n], scene.pointmap(n)) for n in range(N_VIEWS)]
    descriptors = [
        torch.cat(((points @ waves).cos(), (points @ waves).sin()), -1).half() / 12**0.5
        for points in world
    ]

    def seen_in(points: torch.Tensor, view: int) -> torch.Tensor:
        """Return a high confidence where a point of another view can be seen in this one."""
        in_cam = transform_points(invert_rigid(scene.cam2world[view]), points)
        place = project(in_cam, scene.intrinsics(view)).nan_to_num(-1)
        height, width = scene.depth[view].shape
        column, row = place.floor().long().unbind(-1)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        depth = scene.depth[view][row.clamp(0, height - 1), column.clamp(0, width - 1)]
        known = inside & ((in_cam[..., 2] / depth - 1).abs() < 0.03)
        return torch.where(known, 5.0, 1.0)

    rough = [
        replace(p, confidence_i=seen_in(world[p.i], p.j), confidence_j=seen_in(world[p.j], p.i))
        for p in scene.predictions(noise=0.1)
    ]
    told = [
        replace(p, descriptors_i=descriptors[p.i], descriptors_j=descriptors[p.j]) for p in rough
    ]
    start, off = spoilt_scene(), {}
    for name, predictions in (("points", rough), ("descriptors", told)):
        config = MatchConfig(stride=2)
        matches = merge_orders(matches_of_prediction(p, config) for p in predictions)
        off[name] = errors(refine_scene(start, matches, CONFIG)[0], scene)
    before = errors(start, scene)
    assert off["points"] == before  # refused
    for name, share in (("rotation_deg", 0.7), ("centre", 0.4), ("focal", 0.6), ("depth", 0.3)):
        assert off["descriptors"][name] < share * before[name], name


def test_a_missing_solver_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UsageError, match=r"pip install 'pycolmap>=4"):
        refine_scene(spoilt_scene(), true_matches(), CONFIG)
