"""Errors against hand-computed values, slow twins, scipy and COLMAP."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from recon3d.metrics import (
    PoseErrors,
    area_under_curve,
    ate_pct,
    cloud_errors,
    depth_errors,
    direction_error_deg,
    error_by_confidence,
    falls_monotonically,
    focal_error_pct,
    mean_average_accuracy,
    relative_pose_errors,
    rotation_error_deg,
    share_within,
    similarity_between,
)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


def cameras(n: int, random: np.random.Generator) -> np.ndarray:
    matrices = np.tile(np.eye(4), (n, 1, 1))
    matrices[:, :3, :3] = Rotation.random(n, random_state=1).as_matrix()
    matrices[:, :3, 3] = random.normal(size=(n, 3))
    return matrices


def about(axis: str, degrees: float) -> np.ndarray:
    return np.asarray(Rotation.from_euler(axis, degrees, degrees=True).as_matrix())


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 179.999, 180.0])
def test_rotation_error_is_the_angle_between(degrees: float) -> None:
    first = about("z", 20.0)
    assert rotation_error_deg(first @ about("x", degrees), first) == pytest.approx(
        degrees, abs=1e-9, rel=1e-9
    )


def test_rotation_error_agrees_with_scipy() -> None:
    a, b = Rotation.random(50, random_state=5), Rotation.random(50, random_state=6)
    expected = np.degrees((b.inv() * a).magnitude())
    assert np.allclose(rotation_error_deg(a.as_matrix(), b.as_matrix()), expected, atol=1e-9)


def test_a_missing_rotation_is_infinitely_wrong() -> None:
    missing = np.stack([np.full((3, 3), np.nan), np.eye(3)])
    assert rotation_error_deg(missing, np.eye(3)).tolist() == [np.inf, 0.0]


@pytest.mark.parametrize(
    ("estimated", "true", "degrees"),
    [
        ([2.0, 0, 0], [5.0, 0, 0], 0.0),  # lengths do not matter
        ([1.0, 1, 0], [1.0, 0, 0], 45.0),
        ([0.0, 0, 1], [1.0, 0, 0], 90.0),
        ([-1.0, 0, 0], [1.0, 0, 0], 180.0),  # the sign does
        ([0.0, 0, 0], [1.0, 0, 0], np.inf),
        ([np.nan, 0, 0], [1.0, 0, 0], np.inf),
        ([1.0, 2, 3], [0.0, 0, 0], 0.0),  # a camera that only turned has no direction to miss
        ([np.nan, 0, 0], [0.0, 0, 0], np.inf),
    ],
)
def test_direction_error(estimated: list[float], true: list[float], degrees: float) -> None:
    error = direction_error_deg(np.array([estimated]), np.array([true]))
    assert error[0] == pytest.approx(degrees)


def test_relative_errors_are_free_of_world_and_scale(random: np.random.Generator) -> None:
    true = cameras(5, random)
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = about("y", 71.0), (3.0, -2.0, 9.0)
    moved = world @ true
    moved[:, :3, 3] *= 4.2
    errors = relative_pose_errors(moved, true)
    assert len(errors.rotation_deg) == 10
    assert errors.worst_deg.max() < 1e-6


def test_relative_errors_agree_with_a_loop(random: np.random.Generator) -> None:
    ours, true = cameras(4, random), cameras(4, random)[::-1].copy()
    pairs = [(2, 0), (1, 3)]
    errors = relative_pose_errors(ours, true, pairs)
    for k, (i, j) in enumerate(pairs):
        a = np.linalg.inv(ours[i]) @ ours[j]
        b = np.linalg.inv(true[i]) @ true[j]
        angle = Rotation.from_matrix(b[:3, :3].T @ a[:3, :3]).magnitude()
        cosine = a[:3, 3] @ b[:3, 3] / np.linalg.norm(a[:3, 3]) / np.linalg.norm(b[:3, 3])
        assert errors.rotation_deg[k] == pytest.approx(np.degrees(angle))
        assert errors.direction_deg[k] == pytest.approx(np.degrees(np.arccos(cosine)))


def test_every_pair_of_a_missing_camera_fails(random: np.random.Generator) -> None:
    true = cameras(4, random)
    ours = true.copy()
    ours[1] = np.nan
    errors = relative_pose_errors(ours, true)  # (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)
    assert np.isinf(errors.worst_deg).tolist() == [True, False, False, True, True, False]
    assert np.isinf(errors.rotation_deg).sum() == np.isinf(errors.direction_deg).sum() == 3


def test_worst_is_the_larger_of_the_two() -> None:
    errors = PoseErrors(np.array([1.0, 7.0]), np.array([4.0, 2.0]))
    assert errors.worst_deg.tolist() == [4.0, 7.0]


def test_area_under_curve_by_hand() -> None:
    # recall steps to 1/3 at 0, to 2/3 at 5 and stays there up to 10: (5 * 1/3 + 5 * 2/3) / 10
    assert area_under_curve(np.array([5.0, 0.0, np.inf]), 10.0) == pytest.approx(0.5)
    assert area_under_curve(np.array([np.inf]), 5.0) == 0.0
    assert math.isnan(area_under_curve(np.array([]), 5.0))


def test_area_under_curve_is_the_integral_of_recall(random: np.random.Generator) -> None:
    error = random.exponential(15.0, 40)
    at = (np.arange(200_000) + 0.5) * 20.0 / 200_000
    recall = np.searchsorted(np.sort(error), at, side="right") / 40
    assert area_under_curve(error, 20.0) == pytest.approx(recall.mean(), abs=1e-5)


def test_shares_and_mean_average_accuracy_by_hand() -> None:
    error = np.array([0.5, 14.9, 15.0, np.inf])
    assert share_within(error, 15.0) == 0.5
    assert math.isnan(share_within(np.array([]), 15.0))
    # below t = 1..30: 30 times, 16 times (15..30), 15 times (16..30), never; over 4 pairs
    assert mean_average_accuracy(error) == pytest.approx((30 + 16 + 15 + 0) / 30 / 4)
    assert math.isnan(mean_average_accuracy(np.array([])))


def test_ate_is_zero_after_any_similarity(random: np.random.Generator) -> None:
    true = random.normal(size=(6, 3))
    ours = 0.3 * true @ about("y", 40.0).T + (1.0, 2.0, 3.0)
    assert ate_pct(ours, true) == pytest.approx(0.0, abs=1e-6)


def test_ate_by_hand() -> None:
    # two straight lines at right angles in plane and height: the best similarity leaves
    # the corners of the square (extent sqrt 8) 0.1 above and below their places
    true = np.array([[1.0, 1, 0], [1.0, -1, 0], [-1.0, -1, 0], [-1.0, 1, 0]])
    ours = true + np.array([[0, 0, 0.1], [0, 0, -0.1], [0, 0, 0.1], [0, 0, -0.1]])
    scale = 8 / (8 + 4 * 0.01)  # <ours, true> / |ours|^2
    rest = math.sqrt(2 * (1 - scale) ** 2 + (scale * 0.1) ** 2)
    assert ate_pct(ours, true) == pytest.approx(100 * rest / math.sqrt(8))


def test_ate_without_meaning_is_nan() -> None:
    assert math.isnan(ate_pct(np.eye(3)[:2], np.eye(3)[:2]))
    assert math.isnan(ate_pct(np.eye(3), np.ones((3, 3))))


def test_similarity_agrees_with_scipy(random: np.random.Generator) -> None:
    source, target = random.normal(size=(20, 3)), random.normal(size=(20, 3))
    found = similarity_between(source, target)
    a, b = source - source.mean(0), target - target.mean(0)
    rotation, _ = Rotation.align_vectors(b, a)
    assert np.allclose(found.rotation, rotation.as_matrix(), atol=1e-7)
    scale = (rotation.apply(a) * b).sum() / np.square(a).sum()
    assert found.scale == pytest.approx(scale)
    assert np.allclose(found.apply(source).mean(0), target.mean(0))


def test_relative_errors_agree_with_colmap(random: np.random.Generator) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra colmap")
    found, true = (np.tile(np.eye(4), (5, 1, 1)) for _ in range(2))
    for cameras in (found, true):
        cameras[:, :3, :3] = Rotation.random(5, random_state=random).as_matrix()
        cameras[:, :3, 3] = random.normal(size=(5, 3))
    errors = relative_pose_errors(found, true)
    expected = []
    for i, j in zip(*np.triu_indices(5, k=1), strict=True):
        ours, theirs = (
            pycolmap.Rigid3d(c[i, :3]).inverse() * pycolmap.Rigid3d(c[j, :3]) for c in (found, true)
        )
        cosine = ours.translation @ theirs.translation
        cosine /= np.linalg.norm(ours.translation) * np.linalg.norm(theirs.translation)
        expected.append(
            (np.degrees(ours.rotation.angle_to(theirs.rotation)), np.degrees(np.arccos(cosine)))
        )
    rotation_deg, direction_deg = np.array(expected).T
    assert np.allclose(errors.rotation_deg, rotation_deg, atol=1e-6)
    assert np.allclose(errors.direction_deg, direction_deg, atol=1e-6)


def test_ate_agrees_with_colmap(random: np.random.Generator) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra colmap")
    true = random.normal(size=(7, 3))
    found = 2 * true @ about("y", 50.0).T + 1 + random.normal(0, 0.3, size=(7, 3))
    moved = np.array([pycolmap.estimate_sim3d(found, true) * centre for centre in found])
    extent = np.linalg.norm(true[:, None] - true[None], axis=-1).max()
    rms = np.sqrt(np.square(moved - true).sum(-1).mean())
    assert 1 < 100 * rms / extent < 30
    assert ate_pct(found, true) == pytest.approx(100 * rms / extent, rel=1e-9)


def test_robust_similarity_ignores_a_few_wild_points(random: np.random.Generator) -> None:
    source = random.normal(size=(100, 3))
    target = 2 * source @ about("x", 30.0).T + 1
    target[:20] += random.normal(size=(20, 3)) * 50
    plain, robust = (similarity_between(source, target, robust_rounds=n) for n in (0, 15))
    assert abs(plain.scale - 2) > 0.1
    assert robust.scale == pytest.approx(2, abs=1e-3)
    assert np.allclose(robust.rotation, about("x", 30.0), atol=1e-3)


def test_focal_error_by_hand() -> None:
    assert np.allclose(focal_error_pct(np.array([90.0, 120, 100]), np.full(3, 100.0)), [10, 20, 0])


def test_depth_errors_by_hand() -> None:
    depth = np.array([[1.0, 2, 3], [9.0, 0, 5]])
    true = np.array([[2.0, 4, 9], [0.0, 7, 5]])
    known = np.array([[True, True, True], [False, False, True]])
    # medians of (2, 4, 9, 5) and (1, 2, 3, 5): 4.5 / 2.5 = 1.8
    errors = depth_errors(depth, true, known)
    assert errors is not None
    assert errors.scale == pytest.approx(1.8)
    assert np.allclose(errors.relative, [0.1, 0.1, 0.4, 0.8])
    # ratios 0.9, 0.9, 0.6, 1.8, their median 0.9
    assert np.allclose(errors.spread, [0, 0, 1 / 3, 1])
    assert errors.abs_rel == pytest.approx(0.35)
    assert errors.delta_125 == 0.5  # 5.4 of 9 and 9 of 5 are both off by more than 1.25


def test_depth_errors_do_not_see_the_scale(random: np.random.Generator) -> None:
    true = random.uniform(1, 5, (8, 9))
    depth = true * random.uniform(0.8, 1.2, (8, 9))
    everywhere = np.ones((8, 9), dtype=bool)
    one, other = (depth_errors(k * depth, true, everywhere) for k in (1.0, 17.0))
    assert one is not None
    assert other is not None
    assert one.abs_rel == pytest.approx(other.abs_rel)
    assert one.delta_125 == other.delta_125


def test_depth_errors_of_nothing_and_of_nonsense() -> None:
    none = np.zeros((2, 2), dtype=bool)
    assert depth_errors(np.ones((2, 2)), np.ones((2, 2)), none) is None
    with pytest.raises(ValueError, match="positive"):
        depth_errors(np.zeros((2, 2)), np.ones((2, 2)), ~none)


def test_cloud_errors_agree_with_a_loop(random: np.random.Generator) -> None:
    points, reference = random.normal(size=(30, 3)), random.normal(size=(40, 3))
    there = [min(np.linalg.norm(reference - point, axis=1)) for point in points]
    back = [min(np.linalg.norm(points - point, axis=1)) for point in reference]
    low, high = np.quantile(reference, (0.02, 0.98), axis=0)
    extent = np.linalg.norm(high - low)
    errors = cloud_errors(points, reference)
    expected = [np.mean(there), np.median(there), np.mean(back), np.median(back)]
    assert np.allclose(errors, 100 * np.array(expected) / extent)


def test_half_a_cloud_is_accurate_but_not_complete() -> None:
    line = np.stack([np.arange(101.0), np.zeros(101), np.zeros(101)], axis=1)
    errors = cloud_errors(line[:51], line)
    assert errors.accuracy_pct == 0.0
    assert errors.completeness_pct == pytest.approx(100 * (50 * 51 / 2) / 101 / 96)


def test_clouds_without_points_or_extent_are_refused() -> None:
    for points, reference in ((np.zeros((0, 3)), np.eye(3)), (np.eye(3), np.ones((2, 3)))):
        with pytest.raises(ValueError, match=r"points|extent"):
            cloud_errors(points, reference)


def test_error_by_confidence_by_hand() -> None:
    confidence = np.array([5.0, 1, 3, 2, 4, 6])
    error = np.array([0.2, 0.9, 0.4, 0.7, 0.4, 0.0])
    by_bin = error_by_confidence(confidence, error, 3)  # (1, 2) (3, 4) (5, 6)
    assert np.allclose(by_bin, [0.8, 0.4, 0.1])
    assert falls_monotonically(by_bin)
    assert not falls_monotonically(by_bin[::-1])
    with pytest.raises(ValueError, match="bins"):
        error_by_confidence(confidence, error, 7)
