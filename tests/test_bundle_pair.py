"""Cameras of two views from exact and noisy tracks, whatever the focal length is thought to be."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon3d.bundle_pair import place_pair
from recon3d.bundle_solve import Problem, Rig, seen_by_both
from recon3d.geometry import invert_rigid, look_at, rotation_angle, transform_points
from recon3d.tracks import Tracks
from seen_tracks import open_problem, tracks_of

FOCAL = 900.0
N_POINTS = 400


def true_rig() -> Rig:
    """Return two cameras at different distances: such tell their focal length."""
    centre = torch.tensor([[0.0, 0, 0], [2.5, -0.7, 1.2]]).double()
    target = torch.tensor([[0.3, 0.2, 4], [-0.6, 0.2, 4]]).double()
    up = torch.tensor([0.0, -1, 0]).double()
    return Rig(cam2world=look_at(centre, target, up), focal=torch.full((2,), FOCAL).double())


def problem(likely: float, spread: float = 0.2, *, constant: bool = False) -> Problem:
    return open_problem(
        2,
        likely,
        focal_spread=torch.full((2,), spread).double(),
        constant_focal=torch.full((2,), constant),
    )


def tracks(*, noise: float = 0.1, wrong: int = 0, flat: bool = False) -> Tracks:
    """Return what both cameras see of a box of points, the first `wrong` of them anywhere."""
    generator = torch.Generator().manual_seed(0)
    x, y, z = (2 * torch.rand(3, N_POINTS, generator=generator) - 1).double()
    points = torch.stack((1.3 * x, y, 4 + (0.3 * x if flat else z)), -1)
    cameras = true_rig()
    in_cam = transform_points(invert_rigid(cameras.cam2world), points.expand(2, -1, -1))
    pixels = FOCAL * in_cam[..., :2] / in_cam[..., 2:]
    pixels = pixels + noise * torch.randn(pixels.shape, generator=generator).double()
    pixels[1, :wrong] = 600 * torch.rand(wrong, 2, generator=generator).double() - 300
    return tracks_of(pixels)


def off_deg(found: Rig) -> tuple[float, float]:
    """Return the errors of the relative rotation and of the direction between the cameras."""

    def relative(rig: Rig) -> Tensor:
        return invert_rigid(rig.cam2world[0]) @ rig.cam2world[1]

    true, got = relative(true_rig()), relative(found)
    turn = rotation_angle(true[:3, :3].mT @ got[:3, :3])
    cosine = torch.nn.functional.cosine_similarity(true[:3, 3], got[:3, 3], dim=0)
    return float(torch.rad2deg(turn)), float(torch.rad2deg(cosine.clamp(-1, 1).arccos()))


@pytest.mark.parametrize("likely", [600.0, 900.0, 1400.0])
def test_the_focal_length_is_found_where_matches_tell_it(likely: float) -> None:
    found = place_pair(problem(likely), true_rig(), tracks(wrong=40))
    assert found is not None
    assert found.focal.tolist() == pytest.approx([FOCAL] * 2, rel=0.08)
    assert max(off_deg(found)) < 2


def test_where_little_tells_it_the_likely_one_stays() -> None:
    """Noise of two thousandths and a flat scene: a prior of one percent decides."""
    found = place_pair(problem(1000.0, spread=0.01), true_rig(), tracks(noise=2.0, flat=True))
    assert found is not None
    assert found.focal.tolist() == pytest.approx([1000.0] * 2, rel=0.02)


def test_a_known_focal_length_stays() -> None:
    start = replace(true_rig(), focal=torch.tensor([FOCAL, FOCAL]).double())
    found = place_pair(problem(500.0, constant=True), start, tracks(noise=0.0))
    assert found is not None
    assert found.focal.tolist() == [FOCAL, FOCAL]
    assert max(off_deg(found)) < 0.01


def test_a_flat_scene_of_known_focal_length() -> None:
    found = place_pair(problem(FOCAL, constant=True), true_rig(), tracks(flat=True))
    assert found is not None
    assert max(off_deg(found)) < 1


def test_no_pose_from_few_matches() -> None:
    few = tracks()
    few = Tracks(track=few.track[:12], view=few.view[:12], pixels=few.pixels[:12], n_tracks=6)
    assert place_pair(problem(FOCAL), true_rig(), few) is None


@pytest.mark.parametrize("kind", ["one point", "one line", "no motion", "mirrored"])
def test_degenerate_matches_do_no_harm(kind: str) -> None:
    seen = tracks()
    first = seen.pixels[::2].clone()
    if kind == "one point":
        first[:] = torch.tensor([10.0, 20.0])
    if kind == "one line":
        first[:, 1] = 2 * first[:, 0]
    second = first * torch.tensor([-1.0, 1.0]).double() if kind == "mirrored" else first
    pixels = torch.stack((first, second), 1).view(-1, 2)
    found = place_pair(problem(FOCAL), true_rig(), replace(seen, pixels=pixels))
    if found is not None:
        assert bool(found.cam2world.isfinite().all())
        assert bool(found.focal.isfinite().all())


def test_only_tracks_that_both_views_see_are_pairs() -> None:
    seen = Tracks(
        track=torch.tensor([0, 0, 1, 2, 2, 3]),
        view=torch.tensor([0, 1, 0, 1, 0, 1]),
        pixels=torch.arange(12.0).double().view(6, 2),
        n_tracks=4,
    )
    first, second = seen_by_both(problem(FOCAL), seen, 0, 1)
    assert first.tolist() == [[0, 1], [8, 9]]
    assert second.tolist() == [[2, 3], [6, 7]]


def test_a_third_view_that_no_track_sees_stays() -> None:
    focal = torch.tensor([FOCAL, 500.0, FOCAL]).double()
    three = open_problem(3, likely_focal=focal, constant_focal=torch.tensor([True, False, True]))
    start = Rig(cam2world=3 * torch.eye(4).double().repeat(3, 1, 1), focal=focal)
    seen = tracks(noise=0.0)
    found = place_pair(three, start, replace(seen, view=2 * seen.view))
    assert found is not None
    assert found.focal.tolist() == start.focal.tolist()
    assert torch.equal(found.cam2world[1], start.cam2world[1])
    assert max(off_deg(Rig(cam2world=found.cam2world[::2], focal=found.focal[::2]))) < 0.1
