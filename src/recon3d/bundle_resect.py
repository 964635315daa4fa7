"""A view that stands where few of its points fit is placed anew by the points that others hold.

An adjustment goes to the next minimum. Where that is a wrong one for a single view, what the others
say of its points tells.

Source: Fischler and Bolles, Random sample consensus, 1981; Ke and Roumeliotis, An efficient
algebraic solution to the perspective-three-point problem, CVPR 2017 (AP3P).
"""

from collections.abc import Collection
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.bundle_check import fit_bound, support_of_views
from recon3d.bundle_solve import Problem, Rig, fit_tracks, well_seen
from recon3d.geometry import invert_rigid
from recon3d.tracks import Tracks, count_by_track, select_observations, select_tracks

_MOST_VIEWS = 50  # that are looked at, those whose observations fit worst
_LEAST_POINTS = 15
_MORE, _MANY = 1.1, 3  # times as many points and as many more must fit the new place
_TRIALS = 300


def resected(
    problem: Problem, rig: Rig, tracks: Tracks, tried: Collection[int] = ()
) -> tuple[int, Rig] | None:
    """Return a view, and the rig with it placed anew, where more of its points fit; None if none.

    The points are those that two other views or more see alike. Of several views it is the one that
    gains the largest share of its points: in what follows the others may come right. Fixed views
    stay, and those already `tried`.
    """
    share = support_of_views(problem, rig, tracks)
    share[problem.constant_pose] = torch.nan
    share[list(tried)] = torch.nan
    worst = share.argsort()[: int((~share.isnan()).sum())][:_MOST_VIEWS]
    found = {n: place for n in worst.tolist() if (place := _placed(problem, rig, tracks, n))}
    if not found:
        return None
    best = max(found, key=lambda n: found[n].gain)
    cam2world = rig.cam2world.clone()
    cam2world[best] = found[best].cam2world
    return best, Rig(cam2world=cam2world, focal=rig.focal)


class _Place(NamedTuple):
    """A camera, and which share of its points fits it but not the one it had."""

    cam2world: Float64[Tensor, "4 4"]
    gain: float


def _placed(problem: Problem, rig: Rig, tracks: Tracks, n: int) -> _Place | None:
    """Return where view n should be, None where it may stay."""
    bound = fit_bound(problem)
    by_own, by_others = (count_by_track(tracks, of) for of in (tracks.view == n, tracks.view != n))
    tracks = select_tracks(tracks, (by_own > 0) & (by_others >= 2))
    others = select_observations(tracks, tracks.view != n)  # of the same tracks
    fit = fit_tracks(problem, rig, others)
    good = well_seen(rig, others, fit, bound)
    is_known = count_by_track(others, good) >= 2
    own = (tracks.view == n) & is_known[tracks.track]
    if int(own.sum()) < _LEAST_POINTS:
        return None
    points, image = fit.points[tracks.track[own]].numpy(), problem.image(tracks)[own].numpy()
    focal = float(rig.focal[n])
    try:
        found, turn, shift, _ = cv2.solvePnPRansac(
            points,
            image,
            np.diag([focal, focal, 1.0]),
            None,
            iterationsCount=_TRIALS,
            reprojectionError=bound,
            flags=cv2.SOLVEPNP_AP3P,
        )
    except cv2.error:  # points on a line, or all but one at one place
        return None
    if not found:
        return None
    world2cam = torch.eye(4, dtype=torch.float64)
    world2cam[:3] = torch.from_numpy(np.hstack((cv2.Rodrigues(turn)[0], shift)))
    cam2world = invert_rigid(world2cam)
    n_before, n_after = (
        int((_off(pose, points, image, focal) < bound).sum())
        for pose in (rig.cam2world[n], cam2world)
    )
    if not n_after > _MORE * n_before + _MANY:
        return None
    return _Place(cam2world, (n_after - n_before) / len(points))


def _off(
    cam2world: Float64[Tensor, "4 4"],
    points: Float64[np.ndarray, "point 3"],
    image: Float64[np.ndarray, "point 2"],
    focal: float,
) -> Float64[np.ndarray, " point"]:
    """Return how far points are from where the camera sees them; inf behind it."""
    world2cam = invert_rigid(cam2world).numpy()
    in_cam = points @ world2cam[:3, :3].T + world2cam[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.linalg.norm(focal * in_cam[:, :2] / in_cam[:, 2:] - image, axis=1)
    return np.where(in_cam[:, 2] > 0, off, np.inf)
