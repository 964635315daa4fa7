"""Laws of cameras and similarities, with random batch shapes, and figures worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from recon3d import geometry

BATCHES = [(), (3,), (2, 4)]


def random_rotation(*batch: int) -> torch.Tensor:
    return geometry.so3_exp(torch.randn(*batch, 3, dtype=torch.float64))


def random_rigid(*batch: int) -> torch.Tensor:
    one = torch.ones(batch, dtype=torch.float64)
    return geometry.similarity(
        one, random_rotation(*batch), torch.randn(*batch, 3, dtype=torch.float64)
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_inverse_after_transform_is_identity(batch: tuple[int, ...]) -> None:
    cam2world = random_rigid(*batch)
    points = torch.randn(*batch, 7, 3, dtype=torch.float64)
    there = geometry.transform_points(cam2world, points)
    back = geometry.transform_points(geometry.invert_rigid(cam2world), there)
    torch.testing.assert_close(back, points)
    both = geometry.compose(geometry.invert_rigid(cam2world), cam2world)
    torch.testing.assert_close(both, torch.eye(4, dtype=torch.float64).expand_as(both))


def test_compose_applies_the_right_one_first() -> None:
    a2b, b2c = random_rigid(), random_rigid()
    points = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(
        geometry.transform_points(geometry.compose(b2c, a2b), points),
        geometry.transform_points(b2c, geometry.transform_points(a2b, points)),
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_project_after_unproject_is_the_pixel_grid(batch: tuple[int, ...]) -> None:
    intrinsics = torch.tensor([[50.0, 0, 4.2], [0, 60, 3.1], [0, 0, 1]], dtype=torch.float64)
    intrinsics = intrinsics.expand(*batch, 3, 3)
    depth = torch.rand(*batch, 6, 8, dtype=torch.float64) + 0.5
    points = geometry.unproject(depth, intrinsics)
    pixels = geometry.project(points, intrinsics[..., None, None, :, :])
    torch.testing.assert_close(pixels, geometry.pixel_grid(6, 8).double().expand_as(pixels))
    torch.testing.assert_close(points[..., 2], depth)


def test_top_left_pixel_by_hand() -> None:
    assert geometry.pixel_grid(2, 3)[0, 0].tolist() == [0.5, 0.5]
    assert geometry.pixel_grid(2, 3)[1, 2].tolist() == [2.5, 1.5]
    intrinsics = torch.tensor([[10.0, 0, 1.5], [0, 10, 1], [0, 0, 1]])
    point = geometry.unproject(torch.full((2, 3), 2.0), intrinsics)[0, 0]
    assert point.tolist() == pytest.approx([-0.2, -0.1, 2.0])


@pytest.mark.parametrize("batch", BATCHES)
def test_umeyama_recovers_a_similarity(batch: tuple[int, ...]) -> None:
    scale = torch.rand(batch, dtype=torch.float64) * 3 + 0.2
    a2b = geometry.similarity(
        scale, random_rotation(*batch), torch.randn(*batch, 3, dtype=torch.float64)
    )
    points = torch.randn(*batch, 9, 3, dtype=torch.float64)
    weights = torch.rand(*batch, 9, dtype=torch.float64)
    found = geometry.umeyama(points, geometry.transform_points(a2b, points), weights)
    torch.testing.assert_close(geometry.similarity(*found), a2b, atol=1e-9, rtol=1e-9)


def test_umeyama_ignores_weight_zero_and_never_reflects() -> None:
    points = torch.randn(8, 3, dtype=torch.float64)
    target = points.clone()
    target[0] += 100
    weights = torch.ones(8, dtype=torch.float64)
    weights[0] = 0
    scale, rotation, shift = geometry.umeyama(points, target, weights)
    assert float(scale) == pytest.approx(1)
    torch.testing.assert_close(rotation, torch.eye(3, dtype=torch.float64))
    assert float(shift.norm()) < 1e-9
    mirrored = points * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    _, rotation, _ = geometry.umeyama(points, mirrored, torch.ones(8, dtype=torch.float64))
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)


def test_umeyama_rotation_is_that_of_scipy() -> None:
    a, b = torch.randn(2, 12, 3, dtype=torch.float64)
    weights = torch.rand(12, dtype=torch.float64)
    _, rotation, _ = geometry.umeyama(a, b, weights)
    mean = [(weights[:, None] * x).sum(0) / weights.sum() for x in (a, b)]
    twin, _ = Rotation.align_vectors(
        (b - mean[1]).numpy(), (a - mean[0]).numpy(), weights=weights.numpy()
    )
    np.testing.assert_allclose(rotation.numpy(), twin.as_matrix(), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, math.pi - 1e-6])
def test_rotation_angle_is_that_of_the_axis_angle(angle: float) -> None:
    axis = torch.nn.functional.normalize(torch.randn(3, dtype=torch.float64), dim=0)
    found = float(geometry.rotation_angle(geometry.so3_exp(axis * angle)))
    assert found == pytest.approx(angle, abs=1e-12, rel=1e-6)


def test_so3_exp_is_that_of_scipy() -> None:
    vectors = torch.randn(5, 3, dtype=torch.float64)
    twin = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    np.testing.assert_allclose(geometry.so3_exp(vectors).numpy(), twin, atol=1e-12)


def test_look_at_by_hand() -> None:
    """From (0, -2, 0) towards the origin with z up: right is +x, down is -z, forward is +y."""
    cam2world = geometry.look_at(
        torch.tensor([0.0, -2, 0]), torch.zeros(3), torch.tensor([0.0, 0, 1])
    )
    expected = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, -2], [0, -1, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(cam2world, expected)


def test_seen_from_by_hand() -> None:
    intrinsics = torch.tensor([[[4.0, 0, 2], [0, 4, 2], [0, 0, 1]]])
    depth = torch.full((1, 4, 4), 2.0)
    depth[0, 0, 0] = 0.0  # unknown
    depth[0, 3, 3] = 1.0  # something nearer
    points = torch.tensor(
        [
            [0.1, 0.1, 2.0],  # column 2, row 2: seen
            [0.1, 0.1, 2.2],  # behind what is seen there
            [-0.9, -0.9, 2.0],  # where depth is unknown
            [0.9, 0.9, 2.0],  # hidden by the nearer thing
            [9.0, 0.0, 2.0],  # outside the image
            [0.1, 0.1, -2.0],  # behind the camera
        ]
    )[None]
    seen, row, column = geometry.seen_from(points, depth, intrinsics)
    assert seen[0].tolist() == [True, False, False, False, False, False]
    assert (int(row[0, 0]), int(column[0, 0])) == (2, 2)
