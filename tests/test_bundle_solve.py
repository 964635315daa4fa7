"""The solver's units and limits: what a track's error means, and when nothing is adjusted."""

from dataclasses import replace

import pytest
import torch

from exact_scene import ExactScene, exact_scene
from recon3d.bundle_solve import Problem, Rig, adjust, fit_tracks, problem_of, well_seen
from recon3d.config import RefineConfig
from recon3d.geometry import invert_rigid, project, so3_exp, transform_points
from recon3d.tracks import Tracks
from recon3d.types import Scene, Verdict
from seen_tracks import open_problem

CONFIG = RefineConfig()


def as_scene(truth: ExactScene) -> Scene:
    n_views = len(truth.views)
    verdict = Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="estimated")
    return Scene(
        views=truth.views,
        cam2world=truth.cam2world,
        intrinsics=torch.stack([truth.intrinsics(n) for n in range(n_views)]),
        depth=truth.depth,
        confidence=tuple(2 * torch.ones_like(d) for d in truth.depth),
        verdicts=(verdict,) * n_views,
    )


def exact_tracks(scene: Scene, n_tracks: int = 200) -> Tracks:
    """Return points between the cameras, seen by all of them, also where walls hide them."""
    points = torch.rand(n_tracks, 3).double() - 0.5
    pixels = [
        project(transform_points(invert_rigid(cam2world), points), intrinsics)
        for cam2world, intrinsics in zip(scene.cam2world, scene.intrinsics, strict=True)
    ]
    n_views = len(scene.views)
    return Tracks(
        track=torch.arange(n_tracks).repeat_interleave(n_views),
        view=torch.arange(n_views).repeat(n_tracks),
        pixels=torch.stack(pixels, dim=1).flatten(0, 1),
        n_tracks=n_tracks,
    )


def test_an_exact_scene_fits_exactly() -> None:
    scene = as_scene(exact_scene(4))
    tracks = exact_tracks(scene)
    problem, rig = problem_of(scene, CONFIG, ())
    fit = fit_tracks(problem, rig, tracks)
    assert float(fit.error.max()) < 1e-2
    assert well_seen(rig, tracks, fit, 1.0).all()
    about = rig.cam2world @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])).double()
    assert torch.isinf(fit_tracks(problem, replace(rig, cam2world=about), tracks).error).any()


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_errors_are_thousandths_of_the_long_edge(scale: float) -> None:
    """One pixel off in two views of 64 pixels, whatever the photo's size."""
    truth = exact_scene(2, shapes=((48, 64),))
    views = tuple(
        replace(
            view,
            photo2view=torch.diag(torch.tensor([scale, scale, 1.0])),
            photo_width=int(64 / scale),
            photo_height=int(48 / scale),
        )
        for view in truth.views
    )
    scene = replace(as_scene(truth), views=views)
    tracks = exact_tracks(scene)
    problem, rig = problem_of(scene, CONFIG, ())
    assert torch.allclose(rig.focal, 1000 * truth.focal / 64)
    # the two cameras differ by a turn about y alone, nearly: a pixel up cannot be met
    up = torch.where(tracks.view == 0, 0.5, -0.5).double()
    moved = replace(tracks, pixels=tracks.pixels + torch.stack((0 * up, up), dim=-1))
    error = fit_tracks(problem, rig, moved).error
    assert float(error.median()) == pytest.approx(0.5 * 1000 / 64, rel=0.15)


def test_pixels_that_are_not_square() -> None:
    """Views squeezed in y: the same rays, so the same errors and the same adjusted cameras."""
    scene = as_scene(exact_scene(3))
    squeeze = torch.diag(torch.tensor([1.0, 0.7, 1.0])).double()
    squeezed = replace(scene, intrinsics=squeeze @ scene.intrinsics)
    tracks = exact_tracks(scene)
    also = replace(tracks, pixels=tracks.pixels * torch.tensor([1.0, 0.7]).double())
    for one, seen in ((scene, tracks), (squeezed, also)):
        problem, rig = problem_of(one, CONFIG, ())
        assert float(fit_tracks(problem, rig, seen).error.max()) < 1e-2
    problems = [problem_of(one, CONFIG, ())[0] for one in (scene, squeezed)]
    assert torch.allclose(problems[0].image(tracks), problems[1].image(also))


def spoilt(rig: Rig) -> Rig:
    turn = so3_exp(0.01 * torch.randn(len(rig.focal), 3).double())
    cam2world = rig.cam2world.clone()
    cam2world[:, :3, :3] = turn @ cam2world[:, :3, :3]
    return Rig(cam2world=cam2world, focal=rig.focal * 1.03)


def solved(problem: Problem, rig: Rig, tracks: Tracks) -> float:
    """Return the largest error of a track after adjusting thrice."""
    for _ in range(3):
        rig = adjust(problem, rig, tracks)
    return float(fit_tracks(problem, rig, tracks).error.max())


def test_spoilt_cameras_are_adjusted_until_they_fit() -> None:
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    scene = as_scene(exact_scene(4))
    tracks = exact_tracks(scene)
    problem, rig = problem_of(scene, CONFIG, ())
    start = spoilt(rig)
    before = float(fit_tracks(problem, start, tracks).error.max())
    assert solved(problem, start, tracks) < 1e-2 * before
    # one observation in ten is nonsense: the rest still comes to fit
    wrong = torch.rand(len(tracks.track)) < 0.1
    pixels = torch.where(wrong[:, None], 60 * torch.rand(len(wrong), 2).double(), tracks.pixels)
    adjusted = start
    for _ in range(3):
        adjusted = adjust(problem, adjusted, replace(tracks, pixels=pixels))
    assert float(fit_tracks(problem, adjusted, tracks).error.median()) < 0.02 * before


def test_views_without_tracks_and_fixed_ones_stay() -> None:
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    scene = as_scene(exact_scene(4))
    tracks = exact_tracks(scene)
    seen = tracks.view != 3
    some = replace(
        tracks, track=tracks.track[seen], view=tracks.view[seen], pixels=tracks.pixels[seen]
    )
    problem, rig = problem_of(scene, CONFIG, fixed=(1,))
    start = spoilt(rig)
    after = adjust(problem, start, some)
    assert torch.equal(after.cam2world[3], start.cam2world[3])
    assert torch.equal(after.focal[3], start.focal[3])
    assert torch.allclose(after.cam2world[1], start.cam2world[1], atol=1e-12)
    assert not torch.allclose(after.cam2world[2], start.cam2world[2], atol=1e-6)


def test_too_few_tracks_adjust_nothing() -> None:
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    scene = as_scene(exact_scene(3))
    problem, rig = problem_of(scene, CONFIG, ())
    start = spoilt(rig)
    assert adjust(problem, start, exact_tracks(scene, CONFIG.min_tracks - 1)) is start


def test_given_and_shared_focal_lengths() -> None:
    scene = as_scene(exact_scene(3))
    given = replace(scene.verdicts[0], focal_source="given")
    scene = replace(scene, verdicts=(given, *scene.verdicts[1:]))
    problem, own = problem_of(scene, CONFIG, ())
    assert problem.constant_focal.tolist() == [True, False, False]
    _, shared = problem_of(scene, replace(CONFIG, shared_focal=True), ())
    assert float(shared.focal[0]) == float(own.focal[0])
    assert float(shared.focal[1]) == float(shared.focal[2]) in own.focal[1:].tolist()
    constant, _ = problem_of(scene, replace(CONFIG, refine_focal=False), ())
    assert constant.constant_focal.all()
    # a focal length alone does not tell the principal point
    calibrated, _ = problem_of(scene, CONFIG, (), calibrated=(0,))
    assert float(problem.centre_spread.min()) > 0
    assert (calibrated.centre_spread > 0).tolist() == [False, True, True]


def test_a_shared_lens_is_what_exif_says_of_it() -> None:
    scene = as_scene(exact_scene(3))
    exif = replace(scene.verdicts[0], focal_source="exif")
    scene = replace(scene, verdicts=(exif, *scene.verdicts[1:]))
    scene.intrinsics[0, [0, 1], [0, 1]] *= 1.25  # what the network takes the others for is wrong
    own, rig = problem_of(scene, CONFIG, ())
    shared, start = problem_of(scene, replace(CONFIG, shared_focal=True), ())
    assert shared.likely_focal.tolist() == start.focal.tolist() == [float(rig.focal[0])] * 3
    assert shared.focal_spread.tolist() == [float(own.focal_spread[0])] * 3
    assert float(own.focal_spread[0]) < float(own.focal_spread[1])


def test_views_with_one_number_share_a_focal_length_unless_it_is_given() -> None:
    scene = as_scene(exact_scene(5))
    given = replace(scene.verdicts[0], focal_source="given")
    exif = replace(scene.verdicts[0], focal_source="exif")
    own = scene.verdicts[0]
    scene = replace(scene, verdicts=(given, own, own, exif, own))
    scene.intrinsics[:, [0, 1], [0, 1]] *= torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4])[:, None]
    _, rig = problem_of(scene, CONFIG, ())
    problem, start = problem_of(scene, CONFIG, (), lens=torch.tensor([7, 7, 3, 3, 7]))
    assert problem.lens.tolist() == [0, 1, 2, 2, 1]
    assert [problem.camera(n) for n in range(5)] == [0, 1, 2, 2, 1]
    assert start.focal[[0, 3]].tolist() == rig.focal[[0, 3]].tolist()
    assert float(start.focal[2]) == float(rig.focal[3])  # EXIF knows better
    assert float(start.focal[1]) == float(start.focal[4]) in rig.focal[[1, 4]].tolist()


def test_given_focal_lengths_are_of_one_lens_where_they_are_the_same() -> None:
    scene = as_scene(exact_scene(5))
    given = replace(scene.verdicts[0], focal_source="given")
    scene = replace(scene, verdicts=(given,) * 4 + (scene.verdicts[0],))
    known = torch.tensor([50.0, 60.0, 50.0, 50.0, 50.0]).double()
    scene.intrinsics[:, [0, 1], [0, 1]] = known[:, None]
    square = [replace(view, photo_width=64, photo_height=64) for view in scene.views]
    views = [replace(view, photo2view=torch.eye(3)) for view in square]
    problem, start = problem_of(
        replace(scene, views=tuple(views)), CONFIG, (), lens=torch.tensor([0, 0, 0, 3, 0])
    )
    assert problem.lens.tolist() == [0, 1, 0, 3, 4]
    assert [problem.camera(n) for n in range(5)] == [0, 1, 2, 3, 4]
    assert start.focal.tolist() == (known * 1000 / 64).tolist()


def seen_by(rig: Rig, noise: float) -> Tracks:
    """Return 200 points about ten units away, seen by all, in thousandths."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator).double() * 4 + torch.tensor([-2.0, -2, 8])
    in_cam = transform_points(invert_rigid(rig.cam2world), points)
    image = rig.focal[:, None, None] * in_cam[..., :2] / in_cam[..., 2:]
    image = image + noise * torch.randn(image.shape, generator=generator).double()
    n_views = len(rig.focal)
    return Tracks(
        track=torch.arange(200).repeat_interleave(n_views),
        view=torch.arange(n_views).repeat(200),
        pixels=image.transpose(0, 1).flatten(0, 1),
        n_tracks=200,
    )


def row_of_cameras(turns_rad: list[float]) -> tuple[Problem, Rig]:
    """Return cameras side by side that share a focal length of 1000, likely 1300."""
    n_views = len(turns_rad)
    cam2world = torch.eye(4).double().repeat(n_views, 1, 1)
    cam2world[:, 0, 3] = torch.arange(n_views)
    axis = torch.tensor([0.0, 1.0, 0.0]).double()
    cam2world[:, :3, :3] = so3_exp(torch.tensor(turns_rad)[:, None].double() * axis)
    problem = open_problem(
        n_views,
        1300.0,
        focal_spread=torch.full((n_views,), 0.2).double(),
        lens=torch.zeros(n_views).long(),
        config=CONFIG,
    )
    return problem, Rig(cam2world=cam2world, focal=torch.full((n_views,), 1000.0).double())


def test_a_focal_length_that_nothing_holds_stays_near_the_likely_one() -> None:
    """Two parallel cameras say nothing of it; three that turn say all, whatever is likely."""
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    for turns_rad, low, high in (([0.0, 0.0], 1100, 1500), ([0.1, -0.1, -0.3], 990, 1010)):
        problem, rig = row_of_cameras(turns_rad)
        tracks = seen_by(rig, noise=0.2)
        adjusted = replace(rig, focal=problem.likely_focal)
        for _ in range(3):
            adjusted = adjust(problem, adjusted, tracks)
        assert len(set(adjusted.focal.tolist())) == 1
        assert low < float(adjusted.focal[0]) < high
        assert float(fit_tracks(problem, adjusted, tracks).error.median()) < 0.4
