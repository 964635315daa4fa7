"""What classical methods make of the same photos: SIFT matches (`essential`), and COLMAP.

COLMAP's cameras come as `cam2world`, nan where it failed, so that its failures count.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from recon3d.colmap_extra import require_pycolmap
from recon3d.errors import InputError
from recon3d.ground_truth import TruePhoto

N_FEATURES = 4096
RATIO = 0.8
"""Lowe's ratio of the nearest to the second nearest descriptor, IJCV 2004."""
_SEED = 0


class Features(NamedTuple):
    """SIFT keypoints in pixels (top-left centre at (0.5, 0.5)) and their descriptors."""

    pixels: Float64[np.ndarray, "keypoint 2"]
    descriptors: Float32[np.ndarray, "keypoint 128"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cameras:
    """One camera a photo, nan where there is none, and focal lengths in pixels where estimated."""

    cam2world: Float64[np.ndarray, "photo 4 4"]
    focal_px: Float64[np.ndarray, " photo"]
    failure: str | None = None


def sift_features(photo: TruePhoto) -> Features:
    """Return the strongest keypoints of a photo as RootSIFT (Arandjelovic, CVPR 2012)."""
    sift = cv2.SIFT_create(nfeatures=N_FEATURES)  # type: ignore[attr-defined]
    keypoints, descriptors = sift.detectAndCompute(_grey(photo.path), None)
    if not keypoints:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    # OpenCV has the centre of the top-left pixel at (0, 0)
    pixels = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64) + 0.5
    share = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9)
    return Features(pixels, np.sqrt(share).astype(np.float32))


def match(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels of both photos, row by row, of mutual nearest neighbours within the ratio."""
    if min(len(first.pixels), len(second.pixels)) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    best = [-1] * len(first.pixels)
    for near, far in matcher.knnMatch(first.descriptors, second.descriptors, k=2):
        if near.distance < RATIO * far.distance:
            best[near.queryIdx] = near.trainIdx
    back = {m.queryIdx: m.trainIdx for m in matcher.match(second.descriptors, first.descriptors)}
    pairs = [(i, j) for i, j in enumerate(best) if j >= 0 and back.get(j) == i]
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return first.pixels[rows[:, 0]], second.pixels[rows[:, 1]]


def require_colmap() -> ModuleType:
    """Return pycolmap.

    Raises:
        UsageError: it is not installed; says how to install it.
    """
    return require_pycolmap("the baseline colmap")


def colmap_cameras(photos: Sequence[TruePhoto], *, known_intrinsics: bool = False) -> Cameras:
    """Return the cameras of COLMAP's largest model of the photos.

    Its defaults, but for what the photos ask for: a pinhole camera for each photo, since they have
    no distortion, of unknown focal length or exactly the true one; models of two photos are let
    stand, and two photos alone may use points that only two photos see. World is COLMAP's.
    `failure` says in words why there are no cameras at all.
    """
    pycolmap = require_colmap()
    # COLMAP's own faults, also those of its checks, come as these
    faults = (RuntimeError, ValueError, IndexError, OSError)
    nothing = Cameras(
        cam2world=np.full((len(photos), 4, 4), np.nan), focal_px=np.full(len(photos), np.nan)
    )
    with tempfile.TemporaryDirectory(prefix="recon3d-colmap-") as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        names = [f"{n:05d}{photo.path.suffix.lower()}" for n, photo in enumerate(photos)]
        for name, photo in zip(names, photos, strict=True):
            (folder / "images" / name).symlink_to(photo.path.resolve())
        database = folder / "database.db"
        options = pycolmap.IncrementalPipelineOptions()
        options.min_model_size = 2
        options.extract_colors = False
        options.random_seed = _SEED
        options.ba_refine_focal_length = not known_intrinsics
        options.triangulation.ignore_two_view_tracks = len(photos) > 2
        pycolmap.set_random_seed(_SEED)
        try:
            for name, photo in zip(names, photos, strict=True):
                reader = pycolmap.ImageReaderOptions()
                reader.camera_model = "PINHOLE" if known_intrinsics else "SIMPLE_PINHOLE"
                if known_intrinsics:  # COLMAP's pixels are ours
                    (fx, _, cx), (_, fy, cy), _ = photo.intrinsics.tolist()
                    reader.camera_params = f"{fx},{fy},{cx},{cy}"
                pycolmap.extract_features(
                    database,
                    folder / "images",
                    image_names=[name],
                    camera_mode=pycolmap.CameraMode.PER_IMAGE,
                    reader_options=reader,
                )
            pycolmap.match_exhaustive(database)
            models = pycolmap.incremental_mapping(
                database, folder / "images", folder, options=options
            )
        except faults as error:
            return Cameras(
                cam2world=nothing.cam2world,
                focal_px=nothing.focal_px,
                failure=f"COLMAP stopped: {' '.join(str(error).split())[:200]}",
            )
        if not models:
            return Cameras(
                cam2world=nothing.cam2world,
                focal_px=nothing.focal_px,
                failure="COLMAP found no model",
            )
        model = max(models.values(), key=lambda model: model.num_reg_images())
        for image in model.images.values():
            if not image.has_pose:
                continue
            n = names.index(image.name)
            cam2world = np.eye(4)
            cam2world[:3] = image.cam_from_world().inverse().matrix()
            nothing.cam2world[n] = cam2world
            nothing.focal_px[n] = image.camera.mean_focal_length()
    return nothing


def _grey(path: Path) -> UInt8[np.ndarray, "height width"]:
    grey = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise InputError(f"{path} cannot be decoded. Replace it by a whole photograph.")
    return np.asarray(grey, np.uint8)
