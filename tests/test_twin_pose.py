"""Two photos of a plane: the second arrangement of cameras that fits them."""

import math

import pytest
import torch
from torch import Tensor

from recon3d.bundle_solve import Problem, Rig
from recon3d.geometry import invert_rigid, look_at, rotation_angle, transform_points
from recon3d.tracks import Tracks
from recon3d.twin_pose import Twin, find_twin, with_twin
from seen_tracks import open_problem, tracks_of

FOCAL = 800.0
N_POINTS = 300


def rig() -> Rig:
    """Return two cameras some 30 degrees apart; the plane z = 4 is 40 degrees from facing them."""
    centre = torch.tensor([[0.0, 0, 0], [2.0, -0.4, 0.6]]).double()
    target = torch.tensor([[0.0, 0, 4], [0.1, 0.1, 4]]).double()
    up = torch.tensor([0.0, -1, 0]).double()
    return Rig(cam2world=look_at(centre, target, up), focal=torch.full((2,), FOCAL).double())


def problem(fixed: int | None = None, n_views: int = 2) -> Problem:
    pinned = torch.tensor([n == fixed for n in range(n_views)])
    return open_problem(n_views, FOCAL, constant_pose=pinned)


def points(*, depth: float, middle: tuple[float, float] = (0.4, -0.4)) -> Tensor:
    """Return points of a slanted plane, up to `depth` before and behind it."""
    generator = torch.Generator().manual_seed(0)
    x, y, off = (2 * torch.rand(3, N_POINTS, generator=generator) - 1).double()
    x, y = 0.4 * x + middle[0], 0.4 * y + middle[1]
    return torch.stack((x, y, 4 + 0.7 * x + 0.3 * y + depth * off), -1)


def tracks(world: Tensor, cameras: Rig) -> Tracks:
    """Return what the cameras see, with noise of a fifth of a thousandth."""
    in_cam = transform_points(
        invert_rigid(cameras.cam2world), world.expand(len(cameras.focal), -1, -1)
    )
    pixels = FOCAL * in_cam[..., :2] / in_cam[..., 2:]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)).double()
    return tracks_of(pixels + 0.2 * noise)


def second_normal(cameras: Rig) -> tuple[Tensor, Tensor]:
    """Return rotation and direction of the second solution, by Longuet-Higgins' symmetry.

    A homography R + t n' / d has the second solution that exchanges the roles of t and n: H = (I +
    s b a') R, and the eigenvectors of H'H span both planes (Ma et al., An invitation to 3-D vision,
    2004, theorem 5.19). Written here by those eigenvectors, without OpenCV.
    """
    cam_i2cam_j = invert_rigid(cameras.cam2world[1]) @ cameras.cam2world[0]
    normal = torch.tensor([-0.7, -0.3, 1.0]).double()
    distance = 4 / normal.norm()
    normal = normal / normal.norm()
    homography = cam_i2cam_j[:3, :3] + cam_i2cam_j[:3, 3:] @ normal[None] / distance
    homography = homography / torch.linalg.svdvals(homography)[1]
    value, vector = torch.linalg.eigh(homography.T @ homography)
    least, middle, most = vector.T
    assert value[1] == pytest.approx(1)
    solutions = []
    for sign in (1, -1):
        along = (1 - value[0]).sqrt() * most + sign * (value[2] - 1).sqrt() * least
        along = along / (value[2] - value[0]).sqrt()
        one = torch.stack((middle, along, torch.linalg.cross(middle, along)), -1)
        mapped_middle, mapped_along = homography @ middle, homography @ along
        other = torch.stack(
            (mapped_middle, mapped_along, torch.linalg.cross(mapped_middle, mapped_along)), -1
        )
        rotation = other @ one.T
        its_normal = torch.linalg.cross(middle, along)
        its_normal = its_normal * torch.sign(its_normal[2])
        move = (homography - rotation) @ its_normal
        solutions.append((rotation.T, -rotation.T @ move / move.norm()))
    true = cam_i2cam_j[:3, :3].T
    return max(solutions, key=lambda s: float(rotation_angle(s[0].T @ true)))


def test_a_plane_has_the_twin_that_theory_says() -> None:
    cameras = rig()
    found = find_twin(problem(), cameras, tracks(points(depth=0.0), cameras))
    assert found is not None
    rotation, direction = second_normal(cameras)
    cam_j2cam_i = invert_rigid(cameras.cam2world[0]) @ cameras.cam2world[1]
    turn = float(torch.rad2deg(rotation_angle(rotation.T @ cam_j2cam_i[:3, :3])))
    move = cam_j2cam_i[:3, 3] / cam_j2cam_i[:3, 3].norm()
    assert turn > 20
    assert found.rotation_deg == pytest.approx(turn, abs=1)
    expected = math.degrees(math.acos(float(direction @ move)))
    assert found.direction_deg == pytest.approx(expected, abs=1)


def test_a_twin_that_would_stand_behind_half_of_the_plane_is_none() -> None:
    cameras = rig()
    seen = tracks(points(depth=0.0, middle=(0.0, 0.0)), cameras)
    assert find_twin(problem(), cameras, seen) is None


def test_of_the_twin_the_first_is_the_twin() -> None:
    cameras = rig()
    seen = tracks(points(depth=0.0), cameras)
    rotation, direction = second_normal(cameras)
    other = torch.eye(4).double()
    other[:3, :3], other[:3, 3] = rotation, direction
    swapped = Rig(
        cam2world=torch.stack((cameras.cam2world[0], cameras.cam2world[0] @ other)),
        focal=cameras.focal,
    )
    there, back = (find_twin(problem(), one, seen) for one in (cameras, swapped))
    assert there is not None
    assert back is not None
    assert back.rotation_deg == pytest.approx(there.rotation_deg, abs=0.5)


def test_what_is_not_flat_has_none() -> None:
    cameras = rig()
    assert find_twin(problem(), cameras, tracks(points(depth=1.0), cameras)) is None
    # two thirds of a flat scene, the rest enough to tell
    world = torch.where(torch.arange(N_POINTS)[:, None] % 3 > 0, points(depth=0), points(depth=1))
    assert find_twin(problem(), cameras, tracks(world, cameras)) is None


def test_three_views_and_fixed_ones_have_none() -> None:
    cameras = rig()
    seen = tracks(points(depth=0.0), cameras)
    assert find_twin(problem(fixed=0), cameras, seen) is None
    third = torch.cat((cameras.cam2world, look_at(
        torch.tensor([[-1.0, 0.5, 0]]).double(),
        torch.tensor([[0.0, 0, 4]]).double(),
        torch.tensor([0.0, -1, 0]).double(),
    )))  # fmt: skip
    three = Rig(cam2world=third, focal=torch.full((3,), FOCAL).double())
    assert find_twin(problem(n_views=3), three, tracks(points(depth=0.0), three)) is None


def test_too_few_matches_have_none() -> None:
    cameras = rig()
    seen = tracks(points(depth=0.0), cameras)
    few = Tracks(track=seen.track[:10], view=seen.view[:10], pixels=seen.pixels[:10], n_tracks=5)
    assert find_twin(problem(), cameras, few) is None


def test_uncertainty_covers_both() -> None:
    cameras = rig()
    doubt = torch.tensor([[0.3, 0.01], [0.3, 0.01]]).double()
    twin = Twin(rotation_deg=40.0, direction_deg=60.0)
    found = with_twin(doubt, cameras, twin)
    # each camera has half of the difference; of two equal chances one is right
    assert found[:, 0].tolist() == pytest.approx([math.hypot(0.3, 40 / 2 / 2**0.5)] * 2)
    base = float((cameras.cam2world[0, :3, 3] - cameras.cam2world[1, :3, 3]).norm())
    assert found[:, 1].tolist() == pytest.approx([math.hypot(0.01, base / 2 / 2**0.5)] * 2)
    three = torch.cat((doubt[:1], torch.full((1, 2), torch.nan), doubt[1:]))
    spread = Rig(cam2world=cameras.cam2world[[0, 0, 1]], focal=cameras.focal[[0, 0, 1]])
    wider = with_twin(three, spread, twin)
    assert torch.equal(wider[[0, 2]], found)
    assert bool(wider[1].isnan().all())
    unknown = torch.full((2, 2), torch.nan).double()
    assert bool(with_twin(unknown, cameras, twin).isnan().all())
