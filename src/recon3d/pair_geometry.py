"""What matches of two views say of their relative pose: residuals, candidates, the best fit.

All poses are cam_j2cam_i with a translation of length 1.

Source: Hartley and Zisserman, Multiple view geometry, 2nd edition, section 11.4.3 (Sampson
distance); Malis and Vargas, Deeper understanding of the homography decomposition, INRIA 2007
(OpenCV's decomposeHomographyMat).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float64

from recon3d.essential import FEWEST_MATCHES, essential_pose, line_distance

_ON_PLANE = 3.0  # thousandths of the long edge
_LEAST_FLAT = 0.5  # share of the matches that must lie on one plane
_BAND = 2.0  # thousandths from its epipolar line, where a match counts for nothing
_MAX_EVALUATIONS, _ENOUGH = 40, 1e-5  # of a fit, and the gain that ends it
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairGeometry:
    """Matches of two views and their focal lengths, in thousandths of the long edge.

    Pixels count from the principal point.
    """

    pixels_i: Float64[np.ndarray, "match 2"]
    pixels_j: Float64[np.ndarray, "match 2"]
    focal_i: float
    focal_j: float

    @property
    def _lenses(self) -> tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3 3"]]:
        return (
            np.diag((self.focal_i, self.focal_i, 1.0)),
            np.diag((self.focal_j, self.focal_j, 1.0)),
        )

    def off(self, pose: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, " match"]:
        """Return how far matches are from their epipolar lines, in thousandths."""
        return line_distance(self.pixels_i, self.pixels_j, *self._lenses, pose)

    def in_front(self, pose: Float64[np.ndarray, "4 4"]) -> Bool[np.ndarray, " match"]:
        """Return which matches are in front of both cameras.

        Rays that are parallel within a thousandth meet wherever one likes.
        """
        ray_i = _directions(self.pixels_i / self.focal_i)
        ray_j = _directions(self.pixels_j / self.focal_j) @ pose[:3, :3].T
        cosine = (ray_i * ray_j).sum(1)
        along_i, along_j = ray_i @ pose[:3, 3], ray_j @ pose[:3, 3]
        # signs of the distances along the rays to where these are nearest to each other
        meet = (along_i > cosine * along_j) & (cosine * along_i > along_j)
        found: np.ndarray = meet | (cosine > 1 - 0.5 / max(self.focal_i, self.focal_j) ** 2)
        return found

    def explained(self, pose: Float64[np.ndarray, "4 4"]) -> float:
        """Return how many matches lie on their lines and in front; less for those farther off."""
        near = np.maximum(0, 1 - (self.off(pose) / _BAND) ** 2)
        return float((near * self.in_front(pose)).sum())

    def essential(self) -> Float64[np.ndarray, "4 4"] | None:
        """Return the pose of the essential matrix that most matches fit, if any."""
        return essential_pose(self.pixels_i, self.pixels_j, *self._lenses)

    def of_plane(self, homography: Float64[np.ndarray, "3 3"]) -> list[Float64[np.ndarray, "4 4"]]:
        """Return the poses, four at most, that the homography of a plane allows."""
        lens_i, lens_j = self._lenses
        between_rays = np.linalg.inv(lens_j) @ homography @ lens_i
        _, rotations, moves, _ = cv2.decomposeHomographyMat(between_rays, np.eye(3))
        return [
            _pose(rotation.T, -rotation.T @ move[:, 0])
            for rotation, move in zip(rotations, moves, strict=True)
            if np.linalg.norm(move) > 1e-9 and np.isfinite(rotation).all()
        ]

    def fitted(self, pose: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
        """Return the pose moved to where the matches are nearest to their lines."""
        from scipy.optimize import least_squares
        from scipy.spatial.transform import Rotation

        def posed(values: Float64[np.ndarray, "6"]) -> Float64[np.ndarray, "4 4"]:
            return _pose(Rotation.from_rotvec(values[:3]).as_matrix(), values[3:])

        turn = Rotation.from_matrix(pose[:3, :3]).as_rotvec()
        best = least_squares(
            lambda values: self.off(posed(values)),
            np.concatenate((turn, pose[:3, 3])),
            loss="cauchy",
            ftol=_ENOUGH,
            max_nfev=_MAX_EVALUATIONS,
        )
        return posed(best.x)


def plane_homography(
    pixels_i: Float64[np.ndarray, "match 2"], pixels_j: Float64[np.ndarray, "match 2"]
) -> Float64[np.ndarray, "3 3"] | None:
    """Return the map of a plane from view i to view j, None where it holds no half of the matches.

    Pixels are in thousandths of the long edge.
    """
    if len(pixels_i) < FEWEST_MATCHES:
        return None
    first, second = (np.ascontiguousarray(pixels) for pixels in (pixels_i, pixels_j))
    cv2.setRNGSeed(_SEED)
    try:
        homography, on_plane = cv2.findHomography(first, second, cv2.USAC_MAGSAC, _ON_PLANE)
    except cv2.error:  # raised on degenerate input
        return None
    if homography is None or float(on_plane.mean()) < _LEAST_FLAT:
        return None
    found: np.ndarray = homography
    return found


def _pose(
    rotation: Float64[np.ndarray, "3 3"], move: Float64[np.ndarray, "3"]
) -> Float64[np.ndarray, "4 4"]:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, move / max(float(np.linalg.norm(move)), 1e-12)
    return pose


def _directions(tangents: Float64[np.ndarray, "match 2"]) -> Float64[np.ndarray, "match 3"]:
    rays = np.c_[tangents, np.ones(len(tangents))]
    found: np.ndarray = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    return found
