"""The uncertainty of adjusted cameras against the scatter of many adjustments."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon3d import bundle_doubt, bundle_solve
from recon3d.bundle_doubt import MAX_VIEWS, camera_doubt
from recon3d.bundle_solve import Problem, Rig, adjust, adjust_centres
from recon3d.config import RefineConfig
from recon3d.geometry import so3_exp
from recon3d.tracks import Tracks
from seen_tracks import open_problem, ring, seen_by, tracks_of

N_VIEWS, N_POINTS = 5, 60
DISTANCE = 4.0  # of the points, about
BEND = 0.01  # deviation of the radial distortion


def problem(
    *, fixed: tuple[int, ...] = (), config: RefineConfig | None = None, off_centre: float = 0.0
) -> Problem:
    return open_problem(
        N_VIEWS,
        centre_spread=torch.full((N_VIEWS,), off_centre).double(),
        constant_pose=torch.tensor([n in fixed for n in range(N_VIEWS)]),
        config=config or RefineConfig(),
    )


def true_rig() -> Rig:
    return ring(N_VIEWS)


def observed(noise: float, seed: int, *, off_centre: float = 0.0) -> Tracks:
    """Return every point in every view, in thousandths with noise of that deviation.

    Principal points are `off_centre` from the middle; then lenses bend as well.
    """
    pixels = seen_by(true_rig(), N_POINTS, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    pixels = pixels + noise * torch.randn(pixels.shape, generator=generator).double()
    centre = torch.randn(N_VIEWS, 1, 2, generator=generator).double()
    if off_centre:
        bend = BEND * torch.randn(N_VIEWS, 1, 1, generator=generator).double()
        pixels = pixels * (1 + bend * (pixels / 900).square().sum(-1, keepdim=True))
    pixels = pixels + off_centre * centre
    return tracks_of(pixels)


def off(rig: Rig, *, free: bool) -> Tensor:
    """Return each view's rotation (degrees) and centre error, if asked without what all share."""
    true, found = true_rig().cam2world, rig.cam2world
    relative = true[:, :3, :3].mT @ found[:, :3, :3]
    skew = (relative - relative.mT) / 2
    turned = torch.stack((skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]), -1)
    error = torch.cat((turned, (found - true)[:, :3, 3] / DISTANCE), -1).flatten()
    if free:  # all may turn, move and grow together
        common = []
        for axis in torch.eye(3).double():
            moved = torch.linalg.cross(axis.expand(N_VIEWS, 3), true[:, :3, 3]) / DISTANCE
            turned = (true[:, :3, :3].mT @ axis[:, None])[..., 0]
            common.append(torch.cat((turned, moved), -1).flatten())
            common.append(torch.cat((torch.zeros(N_VIEWS, 3), axis.expand(N_VIEWS, 3)), -1))
        common.append(torch.cat((torch.zeros(N_VIEWS, 3), true[:, :3, 3]), -1))
        basis = torch.stack([one.flatten().double() for one in common], -1)
        error = error - basis @ torch.linalg.lstsq(basis, error[:, None]).solution[:, 0]
    rotation, centre = error.view(N_VIEWS, 2, 3).norm(dim=-1).unbind(-1)
    return torch.stack((torch.rad2deg(rotation), DISTANCE * centre), -1)


@pytest.mark.parametrize(
    ("fixed", "off_centre", "focal_given"),
    [((), 0.0, False), ((0, 4), 0.0, False), ((), 7.0, False), ((), 7.0, True)],
)
def test_predicted_and_real_scatter_agree(
    fixed: tuple[int, ...], off_centre: float, focal_given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    monkeypatch.setattr(bundle_doubt, "INDEPENDENT", 1.0)  # as the noise is here
    monkeypatch.setattr(bundle_doubt, "_BEND_SPREAD", BEND)
    task = problem(fixed=fixed, off_centre=off_centre)
    task = replace(task, constant_focal=torch.full((N_VIEWS,), focal_given))
    said, real = [], []
    for seed in range(25):
        tracks = observed(0.5, seed, off_centre=off_centre)
        rig = adjust(task, true_rig(), tracks)
        said.append(camera_doubt(task, rig, tracks))
        real.append(off(rig, free=not fixed))
    expected = torch.stack(said).square().mean(0).sqrt()
    scatter = torch.stack(real).square().mean(0).sqrt()
    free = [n for n in range(N_VIEWS) if n not in fixed]
    ratio = expected[free] / scatter[free]
    assert float(ratio.min()) > 0.75
    assert float(ratio.max()) < 1.33
    assert (expected[list(fixed)] == 0).all()


def test_predicted_and_real_scatter_agree_with_free_principal_points(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is told of principal points weighs as much in the adjustment as in the prediction."""
    pytest.importorskip("pycolmap", reason="needs the extra colmap")
    monkeypatch.setattr(bundle_doubt, "INDEPENDENT", 1.0)
    monkeypatch.setattr(bundle_solve, "INDEPENDENT", 1.0)
    monkeypatch.setattr(bundle_doubt, "_BEND_SPREAD", 1e-9)
    task, spread = problem(off_centre=3.0), torch.full((N_VIEWS, 2), 3.0).double()
    said, real = [], []
    for seed in range(25):
        tracks = observed(0.5, seed)
        centre = 3.0 * torch.randn(N_VIEWS, 2, generator=torch.Generator().manual_seed(seed))
        tracks = replace(tracks, pixels=tracks.pixels + centre.double()[tracks.view])
        moved, rig = task, true_rig()
        for _ in range(4):
            moved, rig = adjust_centres(moved, rig, tracks, task.centre, spread)
        said.append(camera_doubt(replace(moved, free_centre=True), rig, tracks))
        real.append(off(rig, free=True))
    expected = torch.stack(said).square().mean(0).sqrt()
    scatter = torch.stack(real).square().mean(0).sqrt()
    ratio = expected / scatter
    assert float(ratio.min()) > 0.75
    assert float(ratio.max()) < 1.33


def test_errors_that_neighbours_share_count_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    tracks = observed(0.2, 1)
    said = camera_doubt(problem(), true_rig(), tracks)
    monkeypatch.setattr(bundle_doubt, "INDEPENDENT", 1.0)
    alone = camera_doubt(problem(), true_rig(), tracks)
    torch.testing.assert_close(said / alone, torch.full_like(said, 10**0.5), rtol=0.02, atol=0)


def test_twice_the_noise_twice_the_doubt() -> None:
    one, two = (camera_doubt(problem(), true_rig(), observed(e, 1)) for e in (0.2, 0.4))
    assert torch.allclose(two / one, torch.full((N_VIEWS, 2), 2.0).double(), rtol=0.15)


def test_the_world_does_not_matter() -> None:
    """Turned, shifted and three times as large: rotations as before, centres three times."""
    rig = true_rig()
    turn = so3_exp(torch.tensor([0.3, -1.0, 0.5]).double())
    moved = rig.cam2world.clone()
    moved[:, :3, :3] = turn @ moved[:, :3, :3]
    moved[:, :3, 3] = 3 * moved[:, :3, 3] @ turn.mT + torch.tensor([5.0, -2.0, 1.0]).double()
    tracks = observed(0.5, 2)
    here = camera_doubt(problem(), rig, tracks)
    there = camera_doubt(problem(), replace(rig, cam2world=moved), tracks)
    assert torch.allclose(there[:, 0], here[:, 0], rtol=1e-4)
    assert torch.allclose(there[:, 1], 3 * here[:, 1], rtol=1e-4)


def test_a_shared_focal_length_holds_cameras_better() -> None:
    tracks = observed(0.5, 3)
    own = camera_doubt(problem(), true_rig(), tracks)
    one_lens = replace(problem(), lens=torch.zeros(N_VIEWS).long())
    shared = camera_doubt(one_lens, true_rig(), tracks)
    assert (shared[:, 1] < own[:, 1]).all()


def test_two_views_do_not_tell_their_focal_length() -> None:
    """However exact the tracks, rotations are as doubtful as the focal length: in proportion."""
    exact = observed(0.02, 5)
    keep = exact.view < 2
    two = replace(exact, track=exact.track[keep], view=exact.view[keep], pixels=exact.pixels[keep])
    shared = replace(problem(), lens=torch.zeros(N_VIEWS).long())
    doubt = {
        spread: camera_doubt(
            replace(shared, focal_spread=torch.full((N_VIEWS,), spread).double()), true_rig(), two
        )[:2, 0]
        for spread in (0.05, 0.2)
    }
    torch.testing.assert_close(
        doubt[0.2] / doubt[0.05], torch.full((2,), 4.0).double(), rtol=0.05, atol=0
    )
    known = replace(shared, constant_focal=torch.ones(N_VIEWS, dtype=torch.bool))
    assert (doubt[0.05] > 10 * camera_doubt(known, true_rig(), two)[:2, 0]).all()


def test_views_without_tracks_and_sets_too_large_are_unknown() -> None:
    tracks = observed(0.5, 4)
    keep = tracks.view != 2
    some = Tracks(
        track=tracks.track[keep],
        view=tracks.view[keep],
        pixels=tracks.pixels[keep],
        n_tracks=N_POINTS,
    )
    doubt = camera_doubt(problem(), true_rig(), some)
    assert doubt[2].isnan().all()
    assert doubt[[0, 1, 3, 4]].isfinite().all()
    rig = true_rig()
    many = Rig(
        cam2world=rig.cam2world[:1].expand(MAX_VIEWS + 1, 4, 4),
        focal=rig.focal[:1].expand(MAX_VIEWS + 1),
    )
    assert camera_doubt(problem(), many, some).isnan().all()


def test_tracks_that_lost_their_observations_change_nothing():
    """Of some tracks one observation is good, of some none: they tell nothing, and do no harm."""
    tracks = observed(0.3, 1)
    far = tracks.pixels.clone()
    for point in range(6):
        rows = (tracks.track == point).nonzero().flatten()
        far[rows[point % 2 :]] += 500.0  # all, or all but the first
    spoilt = camera_doubt(problem(), true_rig(), replace(tracks, pixels=far))
    keep = tracks.track >= 6
    fewer = Tracks(
        track=tracks.track[keep] - 6,
        view=tracks.view[keep],
        pixels=tracks.pixels[keep],
        n_tracks=N_POINTS - 6,
    )
    clean = camera_doubt(problem(), true_rig(), fewer)
    assert bool(spoilt.isfinite().all())
    torch.testing.assert_close(spoilt, clean, rtol=0.15, atol=0)


def test_an_angle_is_never_more_uncertain_than_half_a_turn():
    few = observed(30.0, 0)
    keep = few.track < 3  # less than the cameras need, and noisy
    tracks = Tracks(track=few.track[keep], view=few.view[keep], pixels=few.pixels[keep], n_tracks=3)
    doubt = camera_doubt(problem(), true_rig(), tracks)
    known = doubt[doubt[:, 0].isfinite(), 0]
    assert len(known) > 0
    assert float(known.max()) == 180.0
