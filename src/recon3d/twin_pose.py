"""The other arrangement of two cameras that fits what they see, where that lies on a plane.

Matches on one plane have two epipolar geometries, and often the plane is in front of both cameras
in either. No adjustment sees that: each is a sharp minimum of its own.

Source: Longuet-Higgins, The reconstruction of a plane surface from two perspective projections,
Proc. R. Soc. Lond. B 227, 1986; Malis and Vargas, Deeper understanding of the homography
decomposition, INRIA 2007 (OpenCV's decomposeHomographyMat).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.bundle_solve import Problem, Rig
from recon3d.essential import FEWEST_MATCHES, line_distance
from recon3d.geometry import invert_rigid
from recon3d.tracks import Tracks

_ON_PLANE = 3.0  # thousandths of the long edge
_LEAST_FLAT = 0.5  # share of the matches that must lie on one plane
_BAND = 2.0  # thousandths from its epipolar line, where a match counts for nothing
_AS_WELL = 0.9  # of what the one explains, that the other must explain
_APART_DEG = 8.0  # in rotation or in direction; nearer ones are the same, not fully adjusted
_MAX_EVALUATIONS = 40
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Twin:
    """How far the other arrangement is away: its rotation, and the direction between cameras."""

    rotation_deg: float
    direction_deg: float


def find_twin(problem: Problem, rig: Rig, tracks: Tracks) -> Twin | None:
    """Return the arrangement that fits the tracks of two views about as well as `rig`, if any.

    None where tracks hold more views than two, or a view's place is fixed.
    """
    held = tracks.view.unique().tolist()
    if len(held) != 2 or bool(problem.constant_pose[held].any()):
        return None
    pixels, number = problem.image(tracks).numpy(), tracks.track.numpy()
    own = [(tracks.view == n).numpy() for n in held]
    _, row_i, row_j = np.intersect1d(number[own[0]], number[own[1]], return_indices=True)
    focal = rig.focal[held].tolist()
    pair = _Pair(
        pixels_i=pixels[own[0]][row_i] / focal[0],
        pixels_j=pixels[own[1]][row_j] / focal[1],
        focal=sum(focal) / 2,
    )
    cam_j2cam_i = (invert_rigid(rig.cam2world[held[0]]) @ rig.cam2world[held[1]]).numpy()
    cam_j2cam_i[:3, 3] /= max(float(np.linalg.norm(cam_j2cam_i[:3, 3])), 1e-12)
    needed = _AS_WELL * pair.explained(cam_j2cam_i)
    best, most = None, needed
    for start in pair.of_plane():
        other = pair.fitted(start)
        apart = _apart(cam_j2cam_i, other)
        explained = pair.explained(other)
        if max(apart.rotation_deg, apart.direction_deg) > _APART_DEG and explained >= most:
            best, most = apart, explained
    return best


def with_twin(doubt: Float64[Tensor, "view 2"], rig: Rig, twin: Twin) -> Float64[Tensor, "view 2"]:
    """Return the standard deviations of rotation (degrees) and centre, if either may be right.

    Args:
        doubt: those of the one arrangement, nan for views that no tracks hold.
        rig: its cameras.
        twin: the other.
    """
    held = (~doubt[:, 0].isnan()).nonzero().flatten()
    centre = rig.cam2world[held, :3, 3]
    apart = float((centre[0] - centre[1]).norm())
    # one of the two by chance, and half of what they differ by to each camera
    share = 0.5 / math.sqrt(2)
    moved = 2 * math.sin(math.radians(twin.direction_deg) / 2) * apart
    more = share * torch.tensor([twin.rotation_deg, moved], dtype=torch.float64)
    widened = doubt.clone()
    widened[held] = torch.hypot(doubt[held], more.expand(2, 2))
    return widened


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pair:
    """Matches of two views as tangents from the optical axis, and the focal length of both.

    That is in thousandths of the long edge; distances are judged in these.
    """

    pixels_i: Float64[np.ndarray, "match 2"]
    pixels_j: Float64[np.ndarray, "match 2"]
    focal: float

    @property
    def lens(self) -> Float64[np.ndarray, "3 3"]:
        return np.diag((self.focal, self.focal, 1.0))

    def off(self, cam_j2cam_i: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, " match"]:
        """Return how far matches are from their epipolar lines, in thousandths."""
        scaled = self.focal * self.pixels_i, self.focal * self.pixels_j
        return line_distance(*scaled, self.lens, self.lens, cam_j2cam_i)

    def explained(self, cam_j2cam_i: Float64[np.ndarray, "4 4"]) -> float:
        """Return how many matches lie on their lines and in front of both cameras.

        A match counts the less the farther it is off. Rays that are parallel within a thousandth
        meet wherever one likes.
        """
        ray_i, ray_j = (_directions(pixels) for pixels in (self.pixels_i, self.pixels_j))
        ray_j = ray_j @ cam_j2cam_i[:3, :3].T
        move = cam_j2cam_i[:3, 3]
        cosine = (ray_i * ray_j).sum(1)
        along_i, along_j = ray_i @ move, ray_j @ move
        # signs of the distances along the rays to where these are nearest to each other
        in_front = (along_i > cosine * along_j) & (cosine * along_i > along_j)
        parallel = cosine > 1 - 0.5 / self.focal**2
        near = np.maximum(0, 1 - (self.off(cam_j2cam_i) / _BAND) ** 2)
        return float((near * (in_front | parallel)).sum())

    def of_plane(self) -> list[Float64[np.ndarray, "4 4"]]:
        """Return the poses that the homography of a plane allows, none where few matches fit it."""
        if len(self.pixels_i) < FEWEST_MATCHES:
            return []
        first, second = (
            np.ascontiguousarray(self.focal * pixels) for pixels in (self.pixels_i, self.pixels_j)
        )
        cv2.setRNGSeed(_SEED)
        try:
            homography, on_plane = cv2.findHomography(first, second, cv2.USAC_MAGSAC, _ON_PLANE)
        except cv2.error:  # raised on degenerate input
            return []
        if homography is None or float(on_plane.mean()) < _LEAST_FLAT:
            return []
        _, rotations, moves, _ = cv2.decomposeHomographyMat(homography, self.lens)
        return [
            _pose(rotation.T, -rotation.T @ move[:, 0])
            for rotation, move in zip(rotations, moves, strict=True)
            if np.linalg.norm(move) > 1e-9
        ]

    def fitted(self, cam_j2cam_i: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
        """Return the pose moved to where the matches are nearest to their lines."""
        from scipy.optimize import least_squares
        from scipy.spatial.transform import Rotation

        def pose(values: Float64[np.ndarray, "6"]) -> Float64[np.ndarray, "4 4"]:
            return _pose(Rotation.from_rotvec(values[:3]).as_matrix(), values[3:])

        turn = Rotation.from_matrix(cam_j2cam_i[:3, :3]).as_rotvec()
        best = least_squares(
            lambda values: self.off(pose(values)),
            np.concatenate((turn, cam_j2cam_i[:3, 3])),
            loss="cauchy",
            max_nfev=_MAX_EVALUATIONS,
        )
        return pose(best.x)


def _pose(
    rotation: Float64[np.ndarray, "3 3"], move: Float64[np.ndarray, "3"]
) -> Float64[np.ndarray, "4 4"]:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, move / max(float(np.linalg.norm(move)), 1e-12)
    return pose


def _directions(pixels: Float64[np.ndarray, "match 2"]) -> Float64[np.ndarray, "match 3"]:
    rays = np.c_[pixels, np.ones(len(pixels))]
    found: np.ndarray = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    return found


def _apart(one: Float64[np.ndarray, "4 4"], other: Float64[np.ndarray, "4 4"]) -> Twin:
    cosine = (np.trace(one[:3, :3].T @ other[:3, :3]) - 1) / 2, one[:3, 3] @ other[:3, 3]
    turn, direction = np.degrees(np.arccos(np.clip(cosine, -1, 1))).tolist()
    return Twin(rotation_deg=turn, direction_deg=direction)
