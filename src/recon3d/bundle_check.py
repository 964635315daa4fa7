"""Whether adjusted cameras are better: by tracks that took no part in the adjustment."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from recon3d.bundle_solve import FOCAL_RANGE, UNIT, Problem, Rig, fit_tracks
from recon3d.config import RefineConfig
from recon3d.tracks import Tracks, count_by_track

_MIN_SUPPORT = 0.5  # share of the tracks kept aside that must fit the new cameras
_FITS = 0.2  # share of `max_error` below which an observation fits: coarser ones cannot judge
_SURE_SUPPORT = 0.8  # share that leaves no wish for a better start
SURE_OF_VIEW = 0.5
"""Share of the observations of a view that must fit, to leave no doubt about it."""
_MAX_FOCAL_CHANGE = 2.0  # a larger factor means that the tracks do not hold the focal length
_PAYS = 0.8  # of the error of lenses with less freedom
_SIGMAS = 2.0  # standard errors by which the tracks kept aside must fit better
_POOR = 3.5e-3
"""Of the long edge, of tracks kept aside. Where the scene stands still it is 0.3e-3 to 2.7e-3, with
a watermark or people in front of the camera 3.9e-3 to 6.7e-3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineReport:
    """What became of a bundle adjustment.

    `reason` says why the scene stayed as it was; empty where it was improved. `remapped` says that
    the old cameras were no start, and new ones were found from features of the whole photos.
    `sharp_pairs` counts the pairs with matched image features, 0 where the network's matches were
    used as they were. Errors are those of the tracks that were kept aside: the mean distance from
    pixel to projected point, bounded by `RefineConfig.max_error`, relative to the long edge of the
    photo; `gain` is by how many standard errors they became less, `support` the share of the tracks
    that fits well, `weakest` that of the observations of the view that fits worst; nan where it did
    not come so far.
    `refined` names the views that tracks hold. `parallax` says whether the photos were taken from
    more places than one, without which positions are guesses; None where features do not tell.
    `depth_error` is the median relative difference between the depth maps, each scaled to the
    tracks, and the points of the tracks.
    """

    improved: bool
    reason: str
    sharp_pairs: int
    n_tracks: int
    n_held_out: int = 0
    error_before: float = math.nan
    error_after: float = math.nan
    gain: float = math.nan
    refined: tuple[str, ...] = ()
    remapped: bool = False
    support: float = math.nan
    weakest: float = math.nan
    depth_error: float = math.nan
    parallax: bool | None = None


def held_out(tracks: Tracks, config: RefineConfig) -> Bool[Tensor, " track"]:
    """Return which tracks are kept aside."""
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(tracks.n_tracks, generator=generator) < config.held_out


def judged(
    report: RefineReport, problem: Problem, before: Rig, after: Rig, aside: Tracks
) -> RefineReport:
    """Return the report with the errors before and after, and the reason against, if any."""
    if not _plausible(before, after, remapped=report.remapped):
        return replace(report, reason="a focal length became implausible")
    bound = problem.config.max_error * UNIT
    errors = [_track_errors(problem, rig, aside, bound) for rig in (before, after)]
    gain = _in_sigmas(errors[0] - errors[1])
    support = float((errors[1] < fit_bound(problem)).double().mean())
    reason = ""
    if not support >= _MIN_SUPPORT:
        reason = f"only {100 * support:.0f} % of the tracks kept aside fit"
    elif not gain > _SIGMAS:
        reason = "the tracks kept aside do not fit better"
    return replace(
        report,
        reason=reason,
        n_held_out=aside.n_tracks,
        error_before=float(errors[0].mean()) / UNIT,
        error_after=float(errors[1].mean()) / UNIT,
        gain=gain,
        support=support,
        weakest=_weakest(problem, after, aside),
    )


def is_poor(report: RefineReport) -> bool:
    """Say whether features fit the refined cameras badly: far worse than in any usual photos."""
    return report.improved and report.error_after > _POOR


def pays(free: RefineReport, held: RefineReport) -> bool:
    """Say whether it pays to set free more of the lenses: they always fit a little better."""
    if free.reason or held.reason:
        return bool(held.reason) and not free.reason
    return free.error_after < _PAYS * held.error_after


def is_sure(report: RefineReport) -> bool:
    """Say whether the tracks kept aside fit so well that no other start need be tried."""
    return report.support >= _SURE_SUPPORT and report.weakest >= SURE_OF_VIEW


def fit_bound(problem: Problem) -> float:
    """Return the error, in thousandths, below which an observation fits."""
    return _FITS * problem.config.max_error * UNIT


def fitting(problem: Problem, rig: Rig, tracks: Tracks) -> Bool[Tensor, " observation"]:
    """Return the observations that fit the cameras, of tracks in which two or more do."""
    fits = fit_tracks(problem, rig, tracks).error < fit_bound(problem)
    return fits & (count_by_track(tracks, fits) >= 2)[tracks.track]


def support_of_views(problem: Problem, rig: Rig, tracks: Tracks) -> Float64[Tensor, " view"]:
    """Return the share of the observations of each view that fit; nan for those without any."""
    fits = fitting(problem, rig, tracks)
    n_views = len(rig.focal)
    seen = torch.bincount(tracks.view, minlength=n_views)
    good = torch.bincount(tracks.view[fits], minlength=n_views)
    return good.double() / seen


def _weakest(problem: Problem, rig: Rig, tracks: Tracks) -> float:
    """Return the least share of all views that tracks see."""
    share = support_of_views(problem, rig, tracks)
    return float(share[~share.isnan()].min()) if len(tracks.view) else math.nan


def _plausible(before: Rig, after: Rig, *, remapped: bool) -> bool:
    if not all(bool(values.isfinite().all()) for values in (after.cam2world, after.focal)):
        return False
    same = after.focal == before.focal
    if remapped:
        low, high = FOCAL_RANGE  # where the start is not believed
        return bool((same | ((after.focal > low) & (after.focal < high))).all())
    return float((after.focal / before.focal).log().abs().max()) < math.log(_MAX_FOCAL_CHANGE)


def _track_errors(
    problem: Problem, rig: Rig, tracks: Tracks, bound: float
) -> Float64[Tensor, " track"]:
    """Return the mean error of each track in thousandths, each observation's at most `bound`."""
    error = fit_tracks(problem, rig, tracks).error.clamp_max(bound)
    total = torch.zeros(tracks.n_tracks, dtype=torch.float64).index_add_(0, tracks.track, error)
    return total / torch.bincount(tracks.track, minlength=tracks.n_tracks)


def _in_sigmas(gain: Float64[Tensor, " track"]) -> float:
    """Return the mean in standard errors; nan for fewer than two."""
    if len(gain) < 2:
        return math.nan
    return float(gain.mean() / gain.std() * math.sqrt(len(gain)))
