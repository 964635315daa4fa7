"""Which view the others contradict: what it shares with two of them or more is not where they say.

Also whether two placements of the same views contradict each other.

Two views always fit some epipolar geometry, of towers that look alike, too, or of rows of equal
windows. A third view of the same point leaves no such freedom: where points that others agree on do
not fit the view, its matches show other things than it seems.

Source: Zach et al., Disambiguating visual relations using loop constraints, CVPR 2010 (the idea:
what is inferred from some views must be found in the others).
"""

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from recon3d.bundle_check import fit_bound
from recon3d.bundle_solve import Fit, Problem, Rig, fit_tracks
from recon3d.metrics import relative_pose_errors
from recon3d.tracks import Tracks, count_by_track, ray_angle, select_observations

_LEAST_COMMON = 20  # points that a view and two others or more share; fewer do not judge it
_LEAST_FITTING = 0.55  # share of them that must fit
_WEAK = 0.6  # of the observations of others that fit, what the one that is to go has at most
_AGREE = 1.5  # thousandths that others may be off from a point on which they agree ...
_LEAST_ANGLE_DEG = 0.5  # ... and the angle at which their rays meet
_TURNED_DEG = 5.0  # relative rotations of two placements that differ by more contradict each other


def contradicted_view(problem: Problem, rig: Rig, tracks: Tracks) -> int | None:
    """Return the view that is to go where some contradict each other, None where none do.

    Of those that see most of what does not fit, it is the one of which the fewest observations do,
    clearly fewer than of the others: a pattern that repeats can spoil what three views share where
    each two of them share enough.
    """
    fit = fit_tracks(problem, rig, tracks)
    fits = _worst(tracks, fit) < fit_bound(problem)
    odd, named, least = None, 0, _LEAST_FITTING
    for view in tracks.view.unique().tolist():
        common = _agreed_without(view, problem, rig, tracks)
        share = float(fits[common].double().mean()) if len(common) >= _LEAST_COMMON else 1.0
        if share < least:
            odd, named, least = common[~fits[common]], view, share
    if odd is None:
        return None
    n_views = len(rig.focal)
    is_odd = torch.isin(tracks.track, odd)
    # the others do agree on those, without the view that is named
    good = (fit.error < fit_bound(problem)) | (is_odd & (tracks.view != named))
    n_good = torch.bincount(tracks.view[good], minlength=n_views)
    n_odd = torch.bincount(tracks.view[is_odd], minlength=n_views)
    party = (2 * n_odd >= len(odd)).nonzero().flatten()
    weakest = int(party[n_good[party].argmin()])
    others = tracks.view.unique()
    usual = float(n_good[others[others != weakest]].double().median())
    return weakest if n_good[weakest] < _WEAK * usual else None


def rigs_contradict(one: Rig, other: Rig, both: Bool[Tensor, " view"]) -> bool:
    """Say whether views that `both` place, three or more, are turned otherwise to each other."""
    if int(both.sum()) < 3:  # two views always fit some geometry
        return False
    first, second = (rig.cam2world[both].numpy() for rig in (one, other))
    return float(np.median(relative_pose_errors(first, second).rotation_deg)) > _TURNED_DEG


def _agreed_without(
    view: int, problem: Problem, rig: Rig, tracks: Tracks
) -> Int64[Tensor, " common"]:
    """Return the tracks of the view on whose points two other views or more agree."""
    others = tracks.view != view
    kept = others & (count_by_track(tracks, ~others) > 0)[tracks.track]
    count = count_by_track(tracks, kept)
    number = (count >= 2).nonzero().flatten()
    rest = select_observations(tracks, kept)
    fit = fit_tracks(problem, rig, rest)
    angle = ray_angle(fit.points, rig.cam2world[rest.view, :3, 3], rest.track)
    return number[(_worst(rest, fit) < _AGREE) & (torch.rad2deg(angle) > _LEAST_ANGLE_DEG)]


def _worst(tracks: Tracks, fit: Fit) -> Float64[Tensor, " track"]:
    """Return the largest error of each track."""
    worst = torch.zeros(tracks.n_tracks, dtype=torch.float64)
    return worst.scatter_reduce_(0, tracks.track, fit.error, "amax")
