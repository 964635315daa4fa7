"""The relative pose of two views from matched pixels, intrinsics known: the essential matrix.

OpenCV maps camera 0 to camera 1; the inversion happens here.
"""

import cv2
import numpy as np
from jaxtyping import Float64

THRESHOLD_PX = 1.0
FEWEST_MATCHES = 8
"""With fewer, an essential matrix (5 points) has next to nothing left to be checked by."""
_FARTHEST = 1e4
"""In baselines, as far as points count: OpenCV's 50 leaves nothing of distant scenes."""
_SEED = 0


def line_distance(
    pixels_i: Float64[np.ndarray, "match 2"],
    pixels_j: Float64[np.ndarray, "match 2"],
    intrinsics_i: Float64[np.ndarray, "3 3"],
    intrinsics_j: Float64[np.ndarray, "3 3"],
    cam_j2cam_i: Float64[np.ndarray, "4 4"],
) -> Float64[np.ndarray, " match"]:
    """Return how far matches are from their epipolar lines, in pixels: the Sampson distance."""
    turn, (x, y, z) = cam_j2cam_i[:3, :3], cam_j2cam_i[:3, 3]
    cross = np.array([(0, -z, y), (z, 0, -x), (-y, x, 0)])
    fundamental = np.linalg.inv(intrinsics_i).T @ cross @ turn @ np.linalg.inv(intrinsics_j)
    return sampson_distance(pixels_i, pixels_j, fundamental)


def sampson_distance(
    pixels_i: Float64[np.ndarray, "match 2"],
    pixels_j: Float64[np.ndarray, "match 2"],
    fundamental: Float64[np.ndarray, "3 3"],
) -> Float64[np.ndarray, " match"]:
    """Return how far matches are from (i, 1) F (j, 1) = 0, in pixels.

    Source: Hartley and Zisserman, Multiple view geometry, 2nd edition, eq. 11.9.
    """
    one, other = (np.c_[pixels, np.ones(len(pixels))] for pixels in (pixels_i, pixels_j))
    line_i, line_j = other @ fundamental.T, one @ fundamental
    slope = (line_i[:, :2] ** 2).sum(1) + (line_j[:, :2] ** 2).sum(1)
    distance: np.ndarray = np.abs((one * line_i).sum(1)) / np.sqrt(np.maximum(slope, 1e-30))
    return distance


def essential_pose(
    pixels_i: Float64[np.ndarray, "match 2"],
    pixels_j: Float64[np.ndarray, "match 2"],
    intrinsics_i: Float64[np.ndarray, "3 3"],
    intrinsics_j: Float64[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "4 4"] | None:
    """Return cam_j2cam_i with a translation of length 1, or None where there is none to be found.

    Five-point essential matrix under MAGSAC++ (Barath et al., CVPR 2020; OpenCV's USAC_MAGSAC) at
    1 pixel, then the decomposition with the most points in front of both cameras.
    """
    if len(pixels_i) < FEWEST_MATCHES:
        return None
    # pixels of one common camera: with rays and an identity for intrinsics, OpenCV's MAGSAC scales
    # its weights as if they were pixels, and errors grow tenfold
    focal_px = float(np.mean([k[[0, 1], [0, 1]].mean() for k in (intrinsics_i, intrinsics_j)]))
    common = np.diag([focal_px, focal_px, 1.0])
    first, second = (
        np.ascontiguousarray((pixels - k[:2, 2]) / (k[0, 0], k[1, 1]) * focal_px)
        for pixels, k in ((pixels_i, intrinsics_i), (pixels_j, intrinsics_j))
    )
    cv2.setRNGSeed(_SEED)
    try:
        essential, inlier = cv2.findEssentialMat(
            first,
            second,
            common,
            method=cv2.USAC_MAGSAC,
            prob=0.99999,
            threshold=THRESHOLD_PX,
            maxIters=10_000,
        )
    except cv2.error:  # raised on degenerate input, such as matches that are all one point
        return None
    if essential is None or essential.size == 0:
        return None
    best, most = None, 0
    for candidate in essential.reshape(-1, 3, 3):
        in_front, rotation, translation, _, _ = cv2.recoverPose(
            np.ascontiguousarray(candidate),
            first,
            second,
            common,
            distanceThresh=_FARTHEST,
            mask=inlier.copy(),
        )
        if in_front > most:
            best, most = (rotation, translation), in_front
    if best is None:
        return None
    rotation, translation = best
    cam_j2cam_i = np.eye(4)
    cam_j2cam_i[:3, :3] = rotation.T
    cam_j2cam_i[:3, 3] = -(rotation.T @ translation)[:, 0]
    return cam_j2cam_i if np.isfinite(cam_j2cam_i).all() else None
