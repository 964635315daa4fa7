"""The classical methods on exact matches and on rendered photos, and how they fail."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from picture_bytes import encode
from recon3d.baselines import (
    Features,
    colmap_cameras,
    match,
    require_colmap,
    sift_features,
)
from recon3d.errors import InputError, UsageError
from recon3d.essential import FEWEST_MATCHES, essential_pose
from recon3d.ground_truth import TruePhoto, read_scene
from recon3d.metrics import PoseErrors, relative_pose_errors

SAMPLES = Path(__file__).parents[1] / "sample_data"
INTRINSICS = np.array([[300.0, 0, 160], [0, 310, 120], [0, 0, 1]])
needs_colmap = pytest.mark.skipif(
    importlib.util.find_spec("pycolmap") is None, reason="needs pycolmap"
)


def picture(path: Path, pixels: np.ndarray) -> TruePhoto:
    path.write_bytes(encode(path.suffix, pixels))
    height, width = pixels.shape[:2]
    return TruePhoto(
        path=path, width=width, height=height, intrinsics=INTRINSICS, cam2world=np.eye(4)
    )


def matches(n: int, cam_j2cam_i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project random points in front of both cameras."""
    random = np.random.default_rng(0)
    in_i = random.uniform((-2, -1.5, 4), (2, 1.5, 8), (n, 3))
    in_j = (in_i - cam_j2cam_i[:3, 3]) @ cam_j2cam_i[:3, :3]
    homogeneous = [points @ INTRINSICS.T for points in (in_i, in_j)]
    first, second = (pixels[:, :2] / pixels[:, 2:] for pixels in homogeneous)
    return first, second


def a_camera() -> np.ndarray:
    camera = np.eye(4)
    camera[:3, :3] = Rotation.from_euler("xyz", (3, -14, 5), degrees=True).as_matrix()
    camera[:3, 3] = (1.2, 0.1, 0.3)
    return camera


def errors_of(found: np.ndarray, true: np.ndarray) -> PoseErrors:
    return relative_pose_errors(np.stack([np.eye(4), found]), np.stack([np.eye(4), true]))


@pytest.mark.parametrize(("wrong", "limit_deg"), [(0, 0.01), (60, 1.0)])
def test_exact_matches_give_the_camera(wrong: int, limit_deg: float) -> None:
    pixels_i, pixels_j = matches(200, a_camera())
    pixels_j[:wrong] = np.random.default_rng(1).uniform(0, 240, (wrong, 2))
    found = essential_pose(pixels_i, pixels_j, INTRINSICS, INTRINSICS)
    assert found is not None
    assert errors_of(found, a_camera()).worst_deg[0] < limit_deg
    assert np.linalg.norm(found[:3, 3]) == pytest.approx(1)


def test_each_photo_has_its_own_intrinsics() -> None:
    pixels_i, pixels_j = matches(100, a_camera())
    other = np.diag([2.0, 2.0, 1.0]) @ INTRINSICS
    found = essential_pose(pixels_i, 2 * pixels_j, INTRINSICS, other)
    assert found is not None
    assert errors_of(found, a_camera()).worst_deg[0] < 0.1


def test_a_scene_farther_than_fifty_baselines_has_a_pose() -> None:
    near = a_camera()
    near[:3, 3] *= 0.03
    pixels_i, pixels_j = matches(400, near)
    found = essential_pose(pixels_i, pixels_j, INTRINSICS, INTRINSICS)
    assert found is not None
    assert errors_of(found, near).worst_deg[0] < 0.1


def test_what_cannot_be_solved_is_none() -> None:
    few = matches(FEWEST_MATCHES - 1, a_camera())
    assert essential_pose(*few, INTRINSICS, INTRINSICS) is None
    same = np.tile([[10.0, 20.0]], (30, 1))
    found = essential_pose(same, same, INTRINSICS, INTRINSICS)
    assert found is None or np.isfinite(found).all()


def test_matches_are_mutual_and_distinct() -> None:
    a = np.eye(128, dtype=np.float32)
    first = Features(np.arange(8.0).reshape(4, 2), a[[0, 1, 2, 2]])  # two are alike
    second = Features(np.arange(6.0).reshape(3, 2) + 50, a[[2, 1, 5]])
    pixels_i, pixels_j = match(first, second)
    assert pixels_i.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert pixels_j.tolist() == [[52.0, 53.0], [50.0, 51.0]]
    none = Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    assert len(match(first, none)[0]) == len(match(none, second)[1]) == 0


def test_a_homography_is_found_again(tmp_path: Path) -> None:
    small = np.random.default_rng(2).integers(0, 255, (30, 40, 3), np.uint8)
    pixels = cv2.resize(small, (320, 240), interpolation=cv2.INTER_CUBIC)
    homography = np.array([[0.95, 0.08, 5], [-0.06, 1.02, 9], [0, 0, 1]])
    moved = cv2.warpPerspective(pixels, homography, (320, 240))
    first, second = (
        sift_features(picture(tmp_path / name, rgb))
        for name, rgb in (("a.png", pixels), ("b.png", moved))
    )
    pixels_i, pixels_j = match(first, second)
    assert len(pixels_i) > 100
    # the homography is in pixels whose top-left centre is (0, 0)
    expected = cv2.perspectiveTransform(pixels_i[None] - 0.5, homography)[0] + 0.5
    assert np.median(np.linalg.norm(expected - pixels_j, axis=1)) < 0.5


def test_a_blank_or_broken_photo(tmp_path: Path) -> None:
    blank = picture(tmp_path / "blank.png", np.full((60, 80, 3), 128, np.uint8))
    assert len(sift_features(blank).pixels) == 0
    blank.path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"blank\.png cannot be decoded"):
        sift_features(blank)


def test_sift_on_rendered_photos() -> None:
    scene = read_scene(SAMPLES / "room")
    features = [sift_features(photo) for photo in scene.photos]
    worst = []
    for i, j in scene.pairs:
        first, second = scene.photos[i], scene.photos[j]
        found = essential_pose(
            *match(features[i], features[j]), first.intrinsics, second.intrinsics
        )
        assert found is not None
        pair = np.stack([first.cam2world, second.cam2world])
        cameras = np.stack([np.eye(4), found])
        worst.append(relative_pose_errors(cameras, pair).worst_deg[0])
    assert np.median(worst) < 3


def test_noise_of_half_a_pixel_costs_less_than_a_degree() -> None:
    pixels_i, pixels_j = matches(200, a_camera())
    random = np.random.default_rng(4)
    pixels_j += random.normal(0, 0.5, pixels_j.shape)
    pixels_j[:60] = random.uniform(0, 240, (60, 2))
    found = essential_pose(pixels_i, pixels_j, INTRINSICS, INTRINSICS)
    assert found is not None
    assert errors_of(found, a_camera()).worst_deg[0] < 1


@needs_colmap
def test_colmap_on_rendered_photos(tmp_path: Path) -> None:
    room = read_scene(SAMPLES / "room").photos
    blank = picture(tmp_path / "blank.png", np.full((480, 640, 3), 128, np.uint8))
    photos = [room[0], blank, *room[2:5]]
    cameras = colmap_cameras(photos)
    assert cameras.failure is None
    assert np.isfinite(cameras.focal_px).tolist() == [True, False, True, True, True]
    assert np.isnan(cameras.cam2world[1]).all()
    true_cam2world = np.stack([photo.cam2world for photo in photos])
    errors = relative_pose_errors(
        cameras.cam2world, true_cam2world, [(0, 2), (0, 3), (0, 4), (2, 3), (2, 4), (3, 4)]
    )
    assert np.median(errors.rotation_deg) < 0.5
    assert np.median(errors.direction_deg) < 3
    true_focal_px = np.array([photo.focal_px for photo in room[2:5]])
    assert np.abs(cameras.focal_px[2:] / true_focal_px - 1).max() < 0.02


@needs_colmap
def test_colmap_says_why_there_is_nothing(tmp_path: Path) -> None:
    blank = picture(tmp_path / "blank.png", np.full((60, 80, 3), 128, np.uint8))
    other = tmp_path / "other.png"
    other.write_bytes(blank.path.read_bytes())
    cameras = colmap_cameras([blank, replace(blank, path=other)])
    assert cameras.failure is not None
    assert "\n" not in cameras.failure
    assert np.isnan(cameras.cam2world).all()
    assert np.isnan(cameras.focal_px).all()


def test_without_colmap_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(UsageError, match=r"pip install 'pycolmap>=4"):
        require_colmap()
