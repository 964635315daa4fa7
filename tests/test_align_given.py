"""Alignment with cameras that are known: fixed or as a prior, some or all."""

import pytest
import torch

from exact_scene import ExactScene, exact_scene
from recon3d.align import align
from recon3d.config import AlignConfig, CamerasAre
from recon3d.errors import DisconnectedError
from recon3d.geometry import compose, rotation_angle, similarity, so3_exp
from recon3d.types import KnownCamera, Scene

FIXED, PRIOR = AlignConfig(), AlignConfig(cameras_are=CamerasAre.PRIOR)
FAR = similarity(
    torch.tensor(25.0), so3_exp(torch.tensor([0.4, 2.0, -0.7])), torch.tensor([5e5, 4e6, 300.0])
).double()
"""A world in metres, as a surveyor has it."""


def in_world(truth: ExactScene, world: torch.Tensor) -> torch.Tensor:
    """Return the true cameras in another world."""
    moved = compose(world, truth.cam2world)
    moved[:, :3, :3] /= torch.linalg.det(world[:3, :3]) ** (1 / 3)
    return moved


def poses(cam2world: torch.Tensor, *known: int) -> list[KnownCamera | None]:
    return [
        KnownCamera(intrinsics=None, cam2world=pose) if n in known else None
        for n, pose in enumerate(cam2world)
    ]


def worst(scene: Scene, cam2world: torch.Tensor) -> tuple[float, float]:
    """Return the largest errors of rotations (radians) and of centres."""
    angle = rotation_angle(scene.cam2world[:, :3, :3].double().mT @ cam2world[:, :3, :3])
    move = (scene.cam2world[:, :3, 3].double() - cam2world[:, :3, 3]).norm(dim=-1)
    return float(angle.max()), float(move.max())


@pytest.mark.parametrize("config", [FIXED, PRIOR])
@pytest.mark.parametrize("known", [(0, 2), (1, 2, 4), (0, 1, 2, 3, 4)])
def test_exact_poses_put_the_scene_into_their_world(config: AlignConfig, known: tuple[int, ...]):
    truth = exact_scene(5)
    wanted = in_world(truth, FAR)
    scene = align(truth.predictions(), truth.views, config, cameras=poses(wanted, *known))
    turn, move = worst(scene, wanted)
    assert turn < 1e-3
    assert move < 0.01  # 4,000,000 from the origin, where float32 has steps of 0.25
    for found, true in zip(scene.depth, truth.depth, strict=True):
        torch.testing.assert_close(found.double(), 25 * true, rtol=1e-3, atol=0)


def test_one_pose_gives_the_world_and_leaves_the_scale():
    truth = exact_scene(3)
    wanted = in_world(truth, FAR)
    scene = align(truth.predictions(), truth.views, FIXED, cameras=poses(wanted, 1))
    torch.testing.assert_close(scene.cam2world[1], wanted[1], rtol=1e-12, atol=1e-6)
    turn, _ = worst(scene, wanted)
    assert turn < 1e-3
    assert float(scene.depth[0].median()) == pytest.approx(1, abs=1e-4)


def test_fixed_poses_stay_though_they_are_wrong_and_priors_give_way():
    truth = exact_scene(5)
    given = truth.cam2world.clone()
    given[2, :3, :3] = so3_exp(torch.tensor([0.0, 0.02, 0.0]).double()) @ given[2, :3, :3]
    given[2, :3, 3] += 0.05
    cameras = poses(given, 0, 1, 2, 3, 4)
    fixed = align(truth.predictions(), truth.views, FIXED, cameras=cameras)
    torch.testing.assert_close(fixed.cam2world.double(), given, rtol=1e-5, atol=1e-5)
    prior = align(truth.predictions(), truth.views, PRIOR, cameras=cameras)
    turn, move = worst(prior, truth.cam2world)
    assert turn < 0.01  # 0.02 was given
    assert move < 0.03  # 0.087 was given


@pytest.mark.parametrize("mistake", ["away", "turned", "swapped"])
def test_a_wrong_prior_moves_no_other_camera(mistake: str, caplog: pytest.LogCaptureFixture):
    truth = exact_scene(6)
    wanted = in_world(truth, FAR)
    given = wanted.clone()
    if mistake == "away":
        given[2, :3, 3] += 400.0
    elif mistake == "turned":
        given[2, :3, :3] = given[2, :3, :3] @ so3_exp(torch.tensor([0.0, 3.0, 0.0]).double())
    else:
        given[[1, 4]] = given[[4, 1]]
    found = align(truth.predictions(), truth.views, PRIOR, cameras=poses(given, *range(6)))
    turn, move = worst(found, wanted)
    assert turn < 2e-3
    assert move < 0.05  # metres; the cameras are 38 to 121 apart


def test_pairs_that_are_bad_by_themselves_say_so():
    truth = exact_scene(4)
    strict = AlignConfig(min_edge_confidence=100.0)
    with pytest.raises(DisconnectedError, match=r"refused: low confidence\..* overlap by half\.$"):
        align(truth.predictions(), truth.views, strict)
    with pytest.raises(DisconnectedError, match=r"by half\. Check the given cameras"):
        align(truth.predictions(), truth.views, strict, cameras=poses(truth.cam2world, 0))


def test_pairs_that_all_contradict_the_given_cameras_say_so():
    truth = exact_scene(4)
    given = truth.cam2world.clone()
    for n in range(4):
        given[n, :3, :3] = so3_exp(torch.tensor([0.0, 1.7 * n, 0.0]).double()) @ given[n, :3, :3]
    with pytest.raises(DisconnectedError) as caught:
        align(truth.predictions(), truth.views, FIXED, cameras=poses(given, 0, 1, 2, 3))
    text = str(caught.value)
    assert "no two of the 4 photos could be used" in text
    assert "was refused: contradicts the other pairs or the given cameras. Check" in text
    assert text.endswith("Check the given cameras (--cameras, --focal), or run without them.")
    assert "overlap by half" not in text
    assert {edge.reason for edge in caught.value.edges} == {
        "contradicts the other pairs or the given cameras"
    }


def test_given_intrinsics_and_poses_together():
    truth = exact_scene(3)
    cameras = [
        KnownCamera(intrinsics=truth.intrinsics(n).float(), cam2world=truth.cam2world[n])
        for n in range(3)
    ]
    scene = align(truth.predictions(noise=0.03), truth.views, FIXED, cameras=cameras)
    assert [verdict.focal_source for verdict in scene.verdicts] == ["given"] * 3
    expected = torch.stack([truth.intrinsics(n) for n in range(3)])
    torch.testing.assert_close(scene.intrinsics.double(), expected)
    torch.testing.assert_close(scene.cam2world.double(), truth.cam2world, atol=1e-5, rtol=1e-5)
    for found, true in zip(scene.depth, truth.depth, strict=True):
        assert float((found / true - 1).abs().median()) < 0.03


def test_a_pose_of_a_photo_that_is_left_out_is_of_no_use():
    truth = exact_scene(4)
    pairs = [(0, 1), (1, 2), (0, 2)]
    scene = align(truth.predictions(pairs), truth.views, FIXED, cameras=poses(truth.cam2world, 3))
    assert len(scene.views) == 3
    torch.testing.assert_close(scene.cam2world[0], torch.eye(4))
