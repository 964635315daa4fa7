"""Cameras of two views from tracks alone, all focal lengths that they may have tried in turn.

Two views often fit one focal length little better than another, and for each the best pose is a
minimum of its own, so that an adjustment stays near the focal length it began with. Here the best
pose is found for each of a row of focal lengths, also as it follows from those beside, and what
counts is how well the tracks fit it and how likely the focal length is.

Source: Hartley and Silpa-Anan, Reconstruction from two views using approximate calibration, ACCV
2002 (a prior of the focal length instead of its bare estimate).
"""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.bundle_solve import INDEPENDENT, Problem, Rig, seen_by_both
from recon3d.pair_geometry import PairGeometry, plane_homography
from recon3d.tracks import Tracks

_STEP, _STEPS = 0.8, 5  # standard deviations of the focal length, and how many to either side
_NOISE = 0.5  # thousandths, where the loss bends
_BEHIND = 5.0  # thousandths that a match behind a camera is off at least
_MOST = 600  # matches that are looked at


def place_pair(problem: Problem, start: Rig, tracks: Tracks) -> Rig | None:
    """Return the rig with the two views that tracks hold placed anew; None where no pose is found.

    The first of them is at the origin. Their focal lengths are final: an adjustment would follow
    the distortion of the lens.

    Args:
        problem: neither of the two has a fixed place.
        start: the other cameras, and the focal lengths that stay.
        tracks: of image features, seen by two views alone.
    """
    i, j = tracks.view.unique().tolist()
    pixels_i, pixels_j = seen_by_both(problem, tracks, i, j)
    step = max(1, -(-len(pixels_i) // _MOST))
    pixels_i, pixels_j = pixels_i[::step], pixels_j[::step]
    free = ~problem.constant_focal[[i, j]]
    deviations = np.arange(-_STEPS, _STEPS + 1) * _STEP if bool(free.any()) else np.zeros(1)

    def focal_at(by: float) -> Float64[Tensor, "2"]:
        grown = problem.likely_focal[[i, j]] * (by * problem.focal_spread[[i, j]]).exp()
        return torch.where(free, grown, start.focal[[i, j]])

    def pair_at(by: float) -> PairGeometry:
        focal_i, focal_j = focal_at(by).tolist()
        return PairGeometry(pixels_i=pixels_i, pixels_j=pixels_j, focal_i=focal_i, focal_j=focal_j)

    pairs = [pair_at(by) for by in deviations.tolist()]
    plane = plane_homography(pixels_i, pixels_j)
    best = [_of_one_focal(pair, plane) for pair in pairs]
    numbers = list(range(len(pairs)))
    for row in (numbers, numbers[::-1]):
        for before, n in pairwise(row):
            neighbour = best[before]
            if neighbour is not None:
                best[n] = _better(pairs[n], best[n], pairs[n].fitted(neighbour))
    cost = np.array(
        [
            np.inf if pose is None else _cost(pair, pose) + by**2 / 2 / INDEPENDENT
            for pair, pose, by in zip(pairs, best, deviations.tolist(), strict=True)
        ]
    )
    n = int(cost.argmin())
    pose = best[n]
    if pose is None:
        return None
    by = deviations[n] + _to_lowest(cost[n - 1 : n + 2]) * _STEP
    pose = pair_at(by).fitted(pose)
    cam2world, focal = start.cam2world.clone(), start.focal.clone()
    cam2world[i] = torch.eye(4, dtype=torch.float64)
    cam2world[j], focal[[i, j]] = torch.from_numpy(pose), focal_at(by)
    return Rig(cam2world=cam2world, focal=focal)


def _to_lowest(cost: Float64[np.ndarray, " three"]) -> float:
    """Return where the parabola through three values is lowest, in steps from the middle one."""
    if len(cost) < 3 or not np.isfinite(cost).all():
        return 0.0
    bend = cost[0] - 2 * cost[1] + cost[2]
    return float((cost[0] - cost[2]) / (2 * bend)) if bend > 0 else 0.0


def _of_one_focal(
    pair: PairGeometry, plane: Float64[np.ndarray, "3 3"] | None
) -> Float64[np.ndarray, "4 4"] | None:
    candidates = [] if plane is None else pair.of_plane(plane)
    essential = pair.essential()
    if essential is not None:
        candidates.append(essential)
    return pair.fitted(max(candidates, key=pair.explained)) if candidates else None


def _better(
    pair: PairGeometry, one: Float64[np.ndarray, "4 4"] | None, other: Float64[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "4 4"]:
    return other if one is None or _cost(pair, other) < _cost(pair, one) else one


def _cost(pair: PairGeometry, pose: Float64[np.ndarray, "4 4"]) -> float:
    """Return the negative logarithm of the likelihood of the matches, but for a constant."""
    off = pair.off(pose)
    off = np.where(pair.in_front(pose), off, np.maximum(off, _BEHIND))
    return float(np.log1p((off / _NOISE) ** 2).sum())
