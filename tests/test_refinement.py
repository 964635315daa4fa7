"""Who takes part in the refinement: fixed cameras, and photos that the alignment left out."""

import dataclasses
import math
import re

import pytest
import torch

from exact_scene import ExactScene, errors, exact_scene
from recon3d import refinement
from recon3d.adopt import with_strays, without_unplaced
from recon3d.align import align
from recon3d.bundle_check import RefineReport
from recon3d.config import AlignConfig, CamerasAre, RunConfig
from recon3d.errors import DisconnectedError
from recon3d.geometry import compose, invert_rigid, so3_exp
from recon3d.refinement import (
    Material,
    exact_views,
    from_features_alone,
    refined,
    refined_with_strays,
    warn_of_given,
    with_warnings,
    without_doubtful,
)
from recon3d.scale import whole_middle
from recon3d.types import EdgeVerdict, KnownCamera, LeftOut, PairPrediction, Scene


def partial(truth: ExactScene, lacking: int) -> tuple[Scene, list[PairPrediction]]:
    """Return the scene of all views but one, and all predictions."""
    predictions = truth.predictions()
    scene = align([p for p in predictions if lacking not in (p.i, p.j)], truth.views, AlignConfig())
    assert len(scene.views) == len(truth.views) - 1
    return scene, predictions


def material(truth: ExactScene, predictions: list[PairPrediction], **changes: object) -> Material:
    fields = {
        "views": truth.views,
        "matches": (),
        "cameras": (),
        "own": lambda n: next(p for p in predictions if p.i == n),
        "rgb_of": lambda view: None,
    }
    return Material(**(fields | changes))


def report(**changes: object) -> RefineReport:
    fields = {"improved": True, "reason": "", "sharp_pairs": 3, "n_tracks": 99}
    return RefineReport(**(fields | changes))


@pytest.mark.parametrize("lacking", [0, 2, 3])
def test_a_stray_that_is_placed_takes_its_place_in_the_order(
    lacking: int, monkeypatch: pytest.MonkeyPatch
):
    truth = exact_scene(4)
    scene, predictions = partial(truth, lacking)

    def refine_scene(extended: Scene, *_: object, **__: object) -> tuple[Scene, RefineReport]:
        """Put the last view where it belongs, with its depth at the scene's scale."""
        assert [view.name for view in extended.views][-1] == f"{lacking}.jpg"
        assert math.isnan(extended.verdicts[-1].residual)
        first = next(n for n in range(4) if n != lacking)
        unit = float((scene.depth[0].double() / truth.depth[first]).median())
        pose = compose(invert_rigid(truth.cam2world[first]), truth.cam2world[lacking])
        pose[:3, 3] *= unit
        cam2world = extended.cam2world.clone()
        cam2world[-1] = pose.float()
        ratio = float((unit * truth.depth[lacking] / extended.depth[-1].double()).median())
        depth = (*extended.depth[:-1], extended.depth[-1] * ratio)
        names = tuple(view.name for view in extended.views)
        return (
            dataclasses.replace(extended, cam2world=cam2world, depth=depth),
            report(refined=names),
        )

    monkeypatch.setattr(refinement, "refine_scene", refine_scene)
    better, found = refined_with_strays(scene, material(truth, predictions), RunConfig())
    assert [view.name for view in better.views] == [f"{n}.jpg" for n in range(4)]
    assert better.left_out == ()
    assert set(found.refined) == {f"{n}.jpg" for n in range(4)}
    torch.testing.assert_close(better.cam2world[0], torch.eye(4), atol=1e-5, rtol=0)
    off = errors(better, truth)
    assert off["rotation_deg"] < 0.05
    assert max(off["centre"], off["focal"], off["depth"]) < 2e-3


def test_a_stray_that_is_not_placed_stays_left_out(monkeypatch: pytest.MonkeyPatch):
    truth = exact_scene(4)
    scene, predictions = partial(truth, 3)
    names = tuple(view.name for view in scene.views)
    monkeypatch.setattr(
        refinement, "refine_scene", lambda extended, *_, **__: (extended, report(refined=names))
    )
    better, found = refined_with_strays(scene, material(truth, predictions), RunConfig())
    assert [view.name for view in better.views] == list(names)
    assert better.left_out == scene.left_out
    torch.testing.assert_close(better.cam2world, scene.cam2world)
    assert found.refined == names


def test_where_strays_do_harm_the_scene_is_refined_without_them(monkeypatch: pytest.MonkeyPatch):
    truth = exact_scene(4)
    scene, predictions = partial(truth, 3)
    sizes = []

    def refine_scene(given: Scene, *_: object, **__: object) -> tuple[Scene, RefineReport]:
        sizes.append(len(given.views))
        return given, report(improved=len(given.views) == 3, reason="no")

    monkeypatch.setattr(refinement, "refine_scene", refine_scene)
    better, found = refined_with_strays(scene, material(truth, predictions), RunConfig())
    assert sizes == [4, 3]
    assert found.improved
    assert len(better.views) == 3


def test_more_strays_than_placed_photos_are_not_tried(monkeypatch: pytest.MonkeyPatch):
    truth = exact_scene(5)
    predictions = truth.predictions([(0, 1)])
    scene = align(predictions, truth.views, AlignConfig())
    sizes = []
    monkeypatch.setattr(
        refinement,
        "refine_scene",
        lambda given, *_, **__: (sizes.append(len(given.views)), (given, report()))[1],
    )
    refined_with_strays(scene, material(truth, predictions), RunConfig())
    assert sizes == [2]


def test_photos_that_nothing_joins_are_left_to_features(monkeypatch: pytest.MonkeyPatch):
    truth = exact_scene(4)
    edge = EdgeVerdict(first="0.jpg", second="1.jpg", used=False, reason="no", confidence=1.0)
    doubt = DisconnectedError("no two photos overlap")
    doubt.edges = (edge,)
    lens = truth.intrinsics(1).float()
    cameras = (None, KnownCamera(intrinsics=lens, cam2world=None), None, None)
    seen: list[Scene] = []

    def refine_scene(given: Scene, *_: object, **__: object) -> tuple[Scene, RefineReport]:
        seen.append(given)
        turned = given.cam2world.clone()
        turned[:, 0, 3] = torch.arange(4) + 1.0
        return dataclasses.replace(given, cam2world=turned), report(
            refined=("1.jpg", "2.jpg", "3.jpg")
        )

    monkeypatch.setattr(refinement, "refine_scene", refine_scene)
    given = material(truth, truth.predictions(), cameras=cameras)
    better, found = from_features_alone(doubt, given, RunConfig())
    (start,) = seen
    assert torch.equal(start.cam2world, torch.eye(4).expand(4, 4, 4))
    assert [one.focal_source for one in start.verdicts] == [
        "estimated", "given", "estimated", "estimated",
    ]  # fmt: skip
    assert torch.equal(start.intrinsics[1], lens)
    for n in (0, 2, 3):
        assert float(start.intrinsics[n, 0, 0]) == pytest.approx(float(truth.focal[n]), rel=0.02)
    assert found.improved
    assert [view.name for view in better.views] == ["1.jpg", "2.jpg", "3.jpg"]
    assert better.cam2world[:, 0, 3].tolist() == [0.0, 1.0, 2.0]  # world is the first again
    assert [one.name for one in better.left_out] == ["0.jpg"]
    assert better.edges == (edge,)

    monkeypatch.setattr(
        refinement, "refine_scene", lambda given, *_, **__: (given, report(improved=False))
    )
    with pytest.raises(DisconnectedError) as error:
        from_features_alone(doubt, given, RunConfig())
    assert error.value is doubt


@pytest.mark.parametrize(
    ("turn_deg", "elsewhere", "off_deg", "changes", "kept"),
    [
        (25.0, False, 26, {}, [1, 2, 3]),
        (5.0, False, 5, {}, [0, 1, 2, 3]),  # the network was about right: so it is about the first
        (0.0, True, 133, {}, [1, 2, 3]),  # right about how cameras are turned, not where they stand
        (25.0, True, 0, {"improved": False}, [0, 1, 2, 3]),
        (25.0, True, 0, {"refined": ("0.jpg", "1.jpg", "2.jpg", "3.jpg")}, [0, 1, 2, 3]),
    ],
)
def test_a_network_that_was_wrong_where_features_tell_is_not_believed_elsewhere(
    turn_deg: float, elsewhere: bool, off_deg: int, changes: dict[str, object], kept: list[int]
):
    truth = exact_scene(4)
    after = align(truth.predictions(), truth.views, AlignConfig())
    turns = so3_exp(torch.tensor([[0.0, math.radians(turn_deg) * n, 0.0] for n in range(4)]))
    cam2world = after.cam2world.clone()
    cam2world[:, :3, :3] = cam2world[:, :3, :3] @ turns
    if elsewhere:
        cam2world[:, :3, 3] = cam2world[:, :3, 3].flip(0)
    before = dataclasses.replace(after, cam2world=cam2world)
    found = report(**({"refined": ("1.jpg", "2.jpg", "3.jpg")} | changes))
    given = material(truth, truth.predictions())
    scene = without_doubtful(before, after, found, given)
    assert [view.name for view in scene.views] == [f"{n}.jpg" for n in kept]
    assert [one.name for one in scene.left_out] == [f"{n}.jpg" for n in range(4) if n not in kept]
    assert all(
        re.search(rf"where they do .* {off_deg} deg off", one.reason) for one in scene.left_out
    )
    known = KnownCamera(intrinsics=None, cam2world=torch.eye(4))
    with_pose = material(truth, truth.predictions(), cameras=(known, None, None, None))
    assert without_doubtful(before, after, found, with_pose) is after


def test_given_poses_are_fixed_by_their_number_in_the_scene(monkeypatch: pytest.MonkeyPatch):
    truth = exact_scene(4)
    scene, predictions = partial(truth, 0)
    known = KnownCamera(intrinsics=None, cam2world=torch.eye(4))
    cameras = (known, None, known, KnownCamera(intrinsics=torch.eye(3), cam2world=None))
    seen = []
    monkeypatch.setattr(
        refinement,
        "refine_scene",
        lambda given, *_, fixed, calibrated, **__: (
            seen.append((list(fixed), list(calibrated))),
            (given, report()),
        )[1],
    )
    refined(scene, material(truth, predictions, cameras=cameras), RunConfig())
    prior = RunConfig(align=AlignConfig(cameras_are=CamerasAre.PRIOR))
    refined(scene, material(truth, predictions, cameras=cameras), prior)
    assert seen == [([1], [2]), ([], [2])]  # photo 2 is the second of the scene


@pytest.mark.parametrize("placed", [False, True])
def test_a_stray_has_a_say_in_the_world_only_where_it_is_placed(
    placed: bool, monkeypatch: pytest.MonkeyPatch
):
    truth = exact_scene(4)
    scene, predictions = partial(truth, 3)
    given = truth.cam2world.float()
    given[3, :3, 3] += 7.0  # a gross mistake of whoever gave it
    cameras = [KnownCamera(intrinsics=None, cam2world=pose) for pose in given]
    cameras[1] = cameras[2] = None  # of two against one it could be told which is wrong
    started: list[torch.Tensor] = []

    def refine(start: Scene, *_: object, **__: object) -> tuple[Scene, RefineReport]:
        started.append(start.cam2world[3])
        names = [view.name for view in start.views]
        return start, report(refined=tuple(names if placed else names[:3]))

    monkeypatch.setattr(refinement, "refine_scene", refine)
    prior = RunConfig(align=AlignConfig(cameras_are=CamerasAre.PRIOR))
    found, _ = refined_with_strays(scene, material(truth, predictions, cameras=cameras), prior)
    torch.testing.assert_close(started[0], given[3].double())  # from where it was said to be
    assert len(found.views) == 3 + placed
    before, after = (
        float((some.cam2world[1, :3, 3] - some.cam2world[0, :3, 3]).norm())
        for some in (scene, found)
    )
    assert (after == pytest.approx(before, rel=1e-4)) is not placed  # one pose gives no scale


@pytest.mark.parametrize("known", [(0, 2, 3), (1,)])
def test_a_refined_scene_is_where_the_priors_are(
    known: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    truth = exact_scene(4)
    scene = align(truth.predictions(), truth.views, AlignConfig())
    turn = so3_exp(torch.tensor([0.3, -0.5, 0.2]))
    world = scene.cam2world.clone()
    world[:, :3, :3] = turn @ world[:, :3, :3]
    world[:, :3, 3] = 3.0 * world[:, :3, 3] @ turn.mT + torch.tensor([5.0, -7.0, 90.0])
    cameras = [
        KnownCamera(intrinsics=None, cam2world=world[n]) if n in known else None for n in range(4)
    ]
    monkeypatch.setattr(refinement, "refine_scene", lambda given, *_, **__: (given, report()))
    prior = RunConfig(align=AlignConfig(cameras_are=CamerasAre.PRIOR))
    found, _ = refined(scene, material(truth, [], cameras=cameras), prior)
    growth = 3.0 if len(known) > 1 else 1.0  # a single place tells no size
    shift = world[known[0], :3, 3] - growth * turn @ scene.cam2world[known[0], :3, 3]
    expected = growth * scene.cam2world[:, :3, 3] @ turn.mT + shift
    torch.testing.assert_close(found.cam2world[:, :3, 3], expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.cam2world[:, :3, :3], world[:, :3, :3], atol=1e-5, rtol=0)
    for old, new in zip(scene.depth, found.depth, strict=True):
        torch.testing.assert_close(new, growth * old)
    spread = [one.position_uncertainty for one in found.verdicts]
    assert spread == pytest.approx([growth * v.position_uncertainty for v in scene.verdicts])


@pytest.mark.parametrize(
    ("wrong", "are", "words"),
    [
        (1, CamerasAre.PRIOR, "contradict 1 of 4 given poses (1.jpg by 0 deg and 7): check"),
        (0, CamerasAre.PRIOR, ""),
        (1, CamerasAre.FIXED, ""),
    ],
)
def test_far_priors_are_warned_of(
    wrong: int, are: CamerasAre, words: str, caplog: pytest.LogCaptureFixture
):
    truth = exact_scene(4)
    given = truth.cam2world.clone()
    given[1, :3, 3] += torch.tensor([7.0 * wrong, 0, 0])
    cameras = [KnownCamera(intrinsics=None, cam2world=pose) for pose in given]
    config = AlignConfig(cameras_are=CamerasAre.PRIOR)
    scene = align(truth.predictions(), truth.views, config, cameras=cameras)
    caplog.clear()
    run = RunConfig(align=AlignConfig(cameras_are=are))
    warn_of_given(scene, material(truth, [], cameras=cameras), run)
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)


def test_a_stray_has_the_depth_and_the_focal_that_the_network_gives_it_alone():
    truth = exact_scene(3)
    scene, predictions = partial(truth, 2)
    own = next(p for p in predictions if p.i == 2)
    own.pointmap_i_in_i[4, 5] = torch.nan
    extended = with_strays(scene, {2: own}, truth.views, AlignConfig())
    ratio = extended.depth[2].double() / truth.depth[2]
    known = extended.depth[2] > 0
    assert int((~known).sum()) == 1
    torch.testing.assert_close(
        ratio[known], ratio[0, 0].expand(int(known.sum())), rtol=1e-4, atol=0
    )
    assert float(extended.intrinsics[2, 0, 0]) == pytest.approx(float(truth.focal[2]), rel=1e-3)
    scene = without_unplaced(extended, 2, (), truth.views, keep_world=True)
    assert [view.name for view in scene.views] == ["0.jpg", "1.jpg"]
    assert scene.left_out == (LeftOut(name="2.jpg", reason=scene.left_out[0].reason),)


def test_a_stray_has_no_depth_where_it_is_masked():
    truth = exact_scene(3)
    scene, predictions = partial(truth, 2)
    own = next(p for p in predictions if p.i == 2)
    mask = torch.ones(truth.depth[2].shape, dtype=torch.bool)
    mask[:, :20] = False
    own.pointmap_i_in_i[:, :20] *= torch.tensor([1.0, 1.0, 3.0])  # would spoil the focal length
    views = (*truth.views[:2], dataclasses.replace(truth.views[2], mask=mask))
    extended = with_strays(scene, {2: own}, views, AlignConfig())
    assert torch.equal(extended.depth[2] > 0, mask)
    assert torch.equal(extended.confidence[2] > 0, mask)
    assert float(extended.intrinsics[2, 0, 0]) == pytest.approx(float(truth.focal[2]), rel=1e-3)


FAR = torch.tensor([5e5, 5.3e6, 100.0]).double()


def test_a_stray_with_a_pose_far_away_keeps_its_digits():
    truth = exact_scene(3)
    scene, predictions = partial(truth, 2)
    pose = truth.cam2world[2].clone()
    pose[:3, 3] += FAR
    cameras = (None, None, KnownCamera(intrinsics=None, cam2world=pose))
    own = next(p for p in predictions if p.i == 2)
    extended = with_strays(scene, {2: own}, truth.views, AlignConfig(), cameras)
    assert torch.equal(extended.cam2world[2], pose)
    torch.testing.assert_close(extended.cam2world[:2], scene.cam2world.double(), rtol=0, atol=0)
    assert torch.equal(whole_middle(extended, [2]), pose[:3, 3].round())
    assert float(whole_middle(extended).norm()) < 100  # where most cameras are
    unknown = with_strays(scene, {2: own}, truth.views, AlignConfig())
    assert unknown.cam2world.dtype == scene.cam2world.dtype


@pytest.mark.parametrize("is_placed", [True, False])
def test_the_world_is_that_of_a_pose_only_if_its_photo_is_placed(
    is_placed: bool, monkeypatch: pytest.MonkeyPatch
):
    truth = exact_scene(5)
    all_but_two = [p for p in truth.predictions() if not {0, 4} & {p.i, p.j}]
    scene = align(all_but_two, truth.views, AlignConfig())
    pose = truth.cam2world[4].clone()
    pose[:3, 3] += FAR
    cameras = (None, None, None, None, KnownCamera(intrinsics=None, cam2world=pose))

    def refine(start: Scene, *_: object, **__: object) -> tuple[Scene, RefineReport]:
        assert [view.name for view in start.views] == ["1.jpg", "2.jpg", "3.jpg", "0.jpg", "4.jpg"]
        turned = start.cam2world.clone()
        turned[3, :3, :3] = so3_exp(torch.tensor([0.1, 0.2, 0.3])).to(turned)
        names = [f"{n}.jpg" for n in range(4 + is_placed)]
        return dataclasses.replace(start, cam2world=turned), report(refined=tuple(names))

    monkeypatch.setattr(refinement, "refine_scene", refine)
    given = material(truth, truth.predictions(), cameras=cameras)
    found, _ = refined_with_strays(scene, given, RunConfig())
    assert len(found.views) == 4 + is_placed
    assert found.in_first_camera is not is_placed


def test_a_group_whose_cameras_are_all_given_is_not_refined(monkeypatch: pytest.MonkeyPatch):
    truth = exact_scene(4)
    scene, predictions = partial(truth, 0)
    lens = torch.eye(3)
    cameras = (None, *(KnownCamera(intrinsics=lens, cam2world=p) for p in truth.cam2world[1:]))
    monkeypatch.setattr(refinement, "refine_scene", lambda *_, **__: pytest.fail("refined"))
    same, found = refined(scene, material(truth, predictions, cameras=cameras), RunConfig())
    assert same is scene
    assert not found.improved


def test_a_photo_without_a_pixel_that_counts_is_not_adopted(monkeypatch: pytest.MonkeyPatch):
    truth = exact_scene(4)
    scene, predictions = partial(truth, 3)
    sizes = []

    def refine_scene(given: Scene, *_: object, **__: object) -> tuple[Scene, RefineReport]:
        sizes.append(len(given.views))
        return given, report(refined=tuple(view.name for view in given.views))

    monkeypatch.setattr(refinement, "refine_scene", refine_scene)
    nothing = torch.zeros(truth.depth[3].shape, dtype=torch.bool)
    blank = dataclasses.replace(truth.views[3], mask=nothing)
    given = material(truth, predictions, views=(*truth.views[:3], blank))
    better, _ = refined_with_strays(scene, given, RunConfig())
    assert sizes == [3]
    assert [view.name for view in better.views] == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(("error", "warned"), [(2.6e-3, False), (5e-3, True), (math.nan, False)])
def test_cameras_that_features_fit_badly_are_warned_of(
    error: float, warned: bool, caplog: pytest.LogCaptureFixture
):
    truth = exact_scene(3)
    scene = align(truth.predictions(), truth.views, AlignConfig())
    caplog.clear()
    assert with_warnings(scene, report(error_after=error)) is scene
    assert ("fit the 3 cameras badly (5.0 thousandths" in caplog.text) is warned
    with_warnings(scene, report(improved=False, error_after=9e-3))
    assert len(caplog.records) == warned


@pytest.mark.parametrize(("parallax", "expected"), [(True, {"a"}), (None, {"a"}), (False, set())])
def test_cameras_without_parallax_are_not_exact(parallax: bool | None, expected: set[str]):
    truth = exact_scene(2)
    scene = align(truth.predictions(), truth.views, AlignConfig())
    found = exact_views(
        scene,
        report(refined=(scene.views[0].name,), parallax=parallax),
        material(truth, []),
        RunConfig(),
    )
    assert found == {scene.views[0].name for _ in expected}


@pytest.mark.parametrize("parallax", [True, False, None])
def test_without_parallax_nobody_knows_where_cameras_stand(
    parallax: bool | None, caplog: pytest.LogCaptureFixture
):
    truth = exact_scene(3)
    scene = align(truth.predictions(), truth.views, AlignConfig())
    found = with_warnings(scene, report(parallax=parallax))
    unknown = [math.isinf(verdict.position_uncertainty) for verdict in found.verdicts]
    assert unknown == [parallax is False] * 3
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == (parallax is False)
    assert all("show no parallax" in text and "\n" not in text for text in warnings)
