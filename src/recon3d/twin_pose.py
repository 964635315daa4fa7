"""The other arrangement of two cameras that fits what they see, where that lies on a plane.

Matches on one plane have two epipolar geometries, and often the plane is in front of both cameras
in either. No adjustment sees that: each is a sharp minimum of its own.

Source: Longuet-Higgins, The reconstruction of a plane surface from two perspective projections,
Proc. R. Soc. Lond. B 227, 1986.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.bundle_solve import Problem, Rig, seen_by_both
from recon3d.geometry import invert_rigid
from recon3d.metrics import direction_error_deg, rotation_error_deg
from recon3d.pair_geometry import PairGeometry, plane_homography
from recon3d.tracks import Tracks

_AS_WELL = 0.9  # of what the one explains, that the other must explain
_APART_DEG = 8.0  # in rotation or in direction; nearer ones are the same, not fully adjusted


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
    i, j = held
    pixels_i, pixels_j = seen_by_both(problem, tracks, i, j)
    plane = plane_homography(pixels_i, pixels_j)
    if plane is None:
        return None
    pair = PairGeometry(
        pixels_i=pixels_i,
        pixels_j=pixels_j,
        focal_i=float(rig.focal[i]),
        focal_j=float(rig.focal[j]),
    )
    cam_j2cam_i = (invert_rigid(rig.cam2world[i]) @ rig.cam2world[j]).numpy()
    cam_j2cam_i[:3, 3] /= max(float(np.linalg.norm(cam_j2cam_i[:3, 3])), 1e-12)
    best, most = None, _AS_WELL * pair.explained(cam_j2cam_i)
    for start in pair.of_plane(plane):
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
    if len(held) != 2:  # nothing is known of them anyway
        return doubt
    centre = rig.cam2world[held, :3, 3]
    apart = float((centre[0] - centre[1]).norm())
    # one of the two by chance, and half of what they differ by to each camera
    share = 0.5 / math.sqrt(2)
    moved = 2 * math.sin(math.radians(twin.direction_deg) / 2) * apart
    more = share * torch.tensor([twin.rotation_deg, moved], dtype=torch.float64)
    widened = doubt.clone()
    widened[held] = torch.hypot(doubt[held], more.expand(2, 2))
    return widened


def _apart(one: Float64[np.ndarray, "4 4"], other: Float64[np.ndarray, "4 4"]) -> Twin:
    return Twin(
        rotation_deg=float(rotation_error_deg(other[:3, :3], one[:3, :3])),
        direction_deg=float(direction_error_deg(other[:3, 3], one[:3, 3])),
    )
