"""Scale from one distance: laws of the scaled scene, photos by name and index, faults."""

import math
from dataclasses import replace

import pytest
import torch

from exact_scene import exact_scene
from recon3d.errors import UsageError
from recon3d.geometry import project, transform_points, unproject
from recon3d.scale import ScaleFrom, parse_scale_from, scale_scene, scale_scenes, with_names
from recon3d.types import LeftOut, Scene, Verdict


def scene_of(names=("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg")) -> Scene:
    """Return four placed views; three photos are left out."""
    truth = exact_scene(4)
    verdict = Verdict(
        residual=0.01,
        edges=3,
        rotation_uncertainty_deg=0.1,
        focal_source="estimated",
        position_uncertainty=0.5,
    )
    return Scene(
        views=tuple(
            replace(view, name=name) for view, name in zip(truth.views, names, strict=True)
        ),
        cam2world=truth.cam2world.float(),
        intrinsics=torch.stack([truth.intrinsics(n) for n in range(4)]).float(),
        depth=tuple(depth.float() for depth in truth.depth),
        confidence=tuple(2 * torch.ones_like(depth).float() for depth in truth.depth),
        verdicts=(verdict,) * 4,
        left_out=(
            LeftOut(name="x.jpg", reason="no confident overlap"),
            LeftOut(name="p/same.jpg", reason="damaged"),
            LeftOut(name="q/same.jpg", reason="damaged"),
        ),
    )


def distance(scene: Scene, i: int, j: int) -> float:
    return float((scene.cam2world[i, :3, 3] - scene.cam2world[j, :3, 3]).norm())


def test_the_distance_is_as_given_and_nothing_else_changes():
    before = scene_of()
    after = scale_scene(before, 1, 3, 12.5)
    assert after.metric
    assert not before.metric
    assert distance(after, 1, 3) == pytest.approx(12.5, rel=1e-6)
    factor = 12.5 / distance(before, 1, 3)
    for n, points in enumerate(map(world_points, [before] * 4, range(4))):
        torch.testing.assert_close(world_points(after, n), factor * points, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.cam2world[:, :3, :3], before.cam2world[:, :3, :3])
    torch.testing.assert_close(after.intrinsics, before.intrinsics)
    assert after.verdicts[0].position_uncertainty == pytest.approx(0.5 * factor)
    assert after.verdicts[0].residual == before.verdicts[0].residual


def world_points(scene: Scene, n: int) -> torch.Tensor:
    points = unproject(scene.depth[n], scene.intrinsics[n]).reshape(-1, 3)
    return transform_points(scene.cam2world[n], points)


def test_every_view_sees_the_same_pixels_as_before():
    before = scene_of()
    after = scale_scene(before, 0, 2, 0.3)
    for scene in (before, after):
        world2cam = torch.linalg.inv(scene.cam2world[1])
        seen = transform_points(world2cam, world_points(scene, 0))
        pixels = project(seen, scene.intrinsics[1])
        if scene is before:
            expected = pixels
    torch.testing.assert_close(pixels, expected, rtol=1e-3, atol=1e-2)


def test_scaling_again_replaces_the_scale():
    twice = scale_scene(scale_scene(scene_of(), 0, 1, 3.0), 2, 3, 7.0)
    torch.testing.assert_close(twice.cam2world, scale_scene(scene_of(), 2, 3, 7.0).cam2world)


def test_unknown_depth_stays_unknown_and_unknown_uncertainty_too():
    scene = scene_of()
    depth = scene.depth[0].clone()
    depth[:5] = 0
    verdict = replace(scene.verdicts[0], position_uncertainty=math.nan)
    scene = replace(scene, depth=(depth, *scene.depth[1:]), verdicts=(verdict, *scene.verdicts[1:]))
    after = scale_scene(scene, 0, 1, 5.0)
    assert (after.depth[0][:5] == 0).all()
    assert (after.depth[0][5:] > 0).all()
    assert math.isnan(after.verdicts[0].position_uncertainty)


@pytest.mark.parametrize(
    ("i", "j"),
    [
        (1, 3),
        ("1", "3"),
        ("sub/b.jpg", "d.jpg"),
        ("b.jpg", 3),
        ("d.jpg", "1"),
    ],
)
def test_photos_by_name_and_by_index(i, j):
    expected = scale_scene(scene_of(), 1, 3, 2.0).cam2world
    torch.testing.assert_close(scale_scene(scene_of(), i, j, 2.0).cam2world, expected)


def test_numbers_count_all_photos_that_were_given():
    names = ["0.jpg", "a.jpg", "a-copy.jpg", "sub/b.jpg", "c.jpg"]
    out = (LeftOut(name="0.jpg", reason="empty file"), LeftOut(name="a-copy.jpg", reason="a copy"))
    for first, second in (("1", "4"), ("a.jpg", "c.jpg"), ("a.jpg", "4")):
        found = with_names(ScaleFrom(first=first, second=second, metres=2.0), names, out)
        assert found == ScaleFrom(first="a.jpg", second="c.jpg", metres=2.0)
    found = with_names(ScaleFrom(first="b.jpg", second="4", metres=2.0), names, out)
    assert (found.first, found.second) == ("sub/b.jpg", "c.jpg")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("0", "4", "'0.jpg' could not be placed: empty file. Give another one"),
        ("1", "5", "there is no photo '5'. Give .* an index from 0 to 4"),
        ("4", "c.jpg", "'c.jpg' is given twice"),
        ("1", "same.jpg", "2 photos are called 'same.jpg'"),
    ],
)
def test_photos_that_were_not_given_or_left_out(first, second, words):
    names = ["0.jpg", "a.jpg", "p/same.jpg", "q/same.jpg", "c.jpg"]
    out = (LeftOut(name="0.jpg", reason="empty file"),)
    with pytest.raises(UsageError, match=words):
        with_names(ScaleFrom(first=first, second=second, metres=2.0), names, out)


def test_a_name_comes_before_an_index():
    scene = scene_of(("3", "b", "c", "d"))
    expected = scale_scene(scene_of(), 0, 1, 2.0).cam2world
    torch.testing.assert_close(scale_scene(scene, "3", "b", 2.0).cam2world, expected)


@pytest.mark.parametrize(
    ("i", "j", "words"),
    [
        ("none.jpg", 0, r"there is no photo 'none.jpg'. Give .* an index from 0 to 3"),
        (0, 4, "there is no photo '4'"),
        (0, -1, "there is no photo '-1'"),
        ("same.jpg", 0, "2 photos are called 'same.jpg'"),
        (0, "x.jpg", "'x.jpg' could not be placed: no confident overlap"),
        (2, 2, "'c.jpg' and 'c.jpg' are in the same place"),
        ("c.jpg", 2, "in the same place"),
    ],
)
def test_photos_that_do_not_serve(i, j, words):
    with pytest.raises(UsageError, match=words) as caught:
        scale_scene(scene_of(), i, j, 2.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("apart", [0.0, 1e-5])
def test_cameras_in_the_same_place(apart):
    scene = scene_of()
    cam2world = scene.cam2world.clone()
    cam2world[3, :3, 3] = cam2world[1, :3, 3] + apart
    with pytest.raises(UsageError, match=r"'sub/b.jpg' and 'd.jpg' are in the same place"):
        scale_scene(replace(scene, cam2world=cam2world), 1, 3, 2.0)


def test_without_parallax_a_distance_is_none(caplog):
    scene = scene_of()
    unknown = replace(scene.verdicts[0], position_uncertainty=math.inf)
    scene = replace(scene, verdicts=(unknown,) * 4)
    with pytest.raises(UsageError, match="no parallax, so that nobody knows how far apart"):
        scale_scene(scene, 1, 3, 2.0)
    known = ScaleFrom(first="sub/b.jpg", second="d.jpg", metres=2.0)
    (same,) = scale_scenes((scene,), known)
    assert same is scene
    assert "No scene is in metres" in caplog.text


@pytest.mark.parametrize(
    ("with_poses", "warned"), [((), False), (("d.jpg",), False), (("d.jpg", "c.jpg"), True)]
)
def test_given_poses_are_scaled_too_and_that_is_said(with_poses, warned, caplog):
    scene = scene_of()
    known = ScaleFrom(first="sub/b.jpg", second="d.jpg", metres=3 * distance(scene, 1, 3))
    (after,) = scale_scenes((scene,), known, with_poses=with_poses)
    assert distance(after, 0, 2) == pytest.approx(3 * distance(scene, 0, 2), rel=1e-5)
    words = "the poses of --cameras, and all else, were scaled by 3"
    assert (words in caplog.text) is warned


@pytest.mark.parametrize("metres", [0.0, -1.0, math.nan, math.inf])
def test_impossible_distances_are_mistakes_of_the_caller(metres):
    with pytest.raises(ValueError, match="a distance of"):
        scale_scene(scene_of(), 0, 1, metres)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,5,2.75", ("0", "5", 2.75)),
        (" IMG 1.jpg , sub/b.jpg,\t3e-1 ", ("IMG 1.jpg", "sub/b.jpg", 0.3)),
        ("a,b,.5", ("a", "b", 0.5)),
    ],
)
def test_parsing(text, expected):
    first, second, metres = expected
    assert parse_scale_from(text) == ScaleFrom(first=first, second=second, metres=metres)


@pytest.mark.parametrize(
    "text",
    ["", "1", "1,2", "1,2,", "1,2,0", "1,2,-3", "1,2,nan", "1,2,inf", "1,2,1e999", "1,2,1.2.3",
     "1,2,3,4", ",2,3", "1,2,3m", "1,2,1_0", "1,2,.", "1,2,1e-300", "1,2,1e9"],
)  # fmt: skip
def test_text_that_is_none(text):
    with pytest.raises(UsageError, match=r"is not I,J,METRES\. Give two photos"):
        parse_scale_from(text)
