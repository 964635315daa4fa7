"""Refinement after the alignment: matches -> tracks -> bundle adjustment -> a better scene, or not.

Some tracks are kept aside; only if those, too, lie nearer to their points afterwards are the new
cameras taken. Depth maps are then scaled to the points of the tracks.
"""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from recon3d.bundle_scene import rebuilt_scene
from recon3d.bundle_solve import (
    UNIT,
    Problem,
    Rig,
    adjust,
    fit_tracks,
    problem_of,
    require_pycolmap,
)
from recon3d.config import RefineConfig
from recon3d.matches import Matches, select
from recon3d.progress import Track, silent
from recon3d.sharpen import RgbOf, sharpen_matches
from recon3d.tracks import Tracks, build_tracks, select_observations, select_tracks
from recon3d.types import Scene

logger = logging.getLogger(__name__)

_ROUNDS = 3  # each starts from better points and drops observations that do not fit
_MIN_SHARED = 12  # tracks between two views that hold one against the other
_MIN_HELD = 0.5  # share of the views that tracks must hold
_MIN_SUPPORT = 0.5  # share of the tracks kept aside that must fit the new cameras ...
_FITS = 0.2  # ... with an error below this share of `max_error`: coarser ones cannot judge
_MAX_FOCAL_CHANGE = 2.0  # a larger factor means that the tracks do not hold the focal length
_SIGMAS = 2.0  # standard errors by which the tracks kept aside must fit better


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineReport:
    """What became of a bundle adjustment.

    `reason` says why the scene stayed as it was; empty where it was improved. `sharp_pairs` counts
    the pairs whose matches image features made sharp, 0 where matches were used as they were.
    Errors are those of the tracks that were kept aside: the mean distance from pixel to projected
    point, bounded by `RefineConfig.max_error`, relative to the long edge of the photo; nan where it
    did not come so far. `refined` names the views that tracks hold; the others keep their cameras.
    """

    improved: bool
    reason: str
    sharp_pairs: int
    n_tracks: int
    n_held_out: int = 0
    error_before: float = math.nan
    error_after: float = math.nan
    refined: tuple[str, ...] = ()


def refine_scene(
    scene: Scene,
    matches: Sequence[Matches],
    config: RefineConfig,
    *,
    rgb_of: RgbOf | None = None,
    fixed: Collection[int] = (),
    track: Track = silent,
) -> tuple[Scene, RefineReport]:
    """Return the scene with cameras and depth that fit the matches, if that is an improvement.

    Args:
        scene: the start; focal lengths that were given stay as they are.
        matches: between the scene's views, one `Matches` per pair of views at most.
        config: what to refine, and the limits.
        rgb_of: returns the photo of a view, to sharpen the matches with image features. Matches
            are taken as they are where it is None, or where features hold too few views.
        fixed: views whose cameras stay where they are.
        track: told the stages "features" and "refine".

    Returns:
        The new scene in the world of the old one: the first fixed view, else the first view, keeps
        its camera's place and its depth (with two fixed views they set the scale). The old scene
        where the tracks kept aside show no improvement.

    Raises:
        UsageError: pycolmap is missing; says how to install it.
    """
    require_pycolmap()
    tracks, report = _tracks(scene, matches, config, rgb_of, track)
    if report.reason:
        return _unchanged(scene, report)
    problem, before = problem_of(scene, config, fixed)
    aside = _held_out(tracks, config)
    after = before
    for n_done in range(1, _ROUNDS + 1):
        after = adjust(problem, after, select_tracks(tracks, ~aside))
        track("refine", n_done, _ROUNDS)
    report = _judged(report, problem, (before, after), select_tracks(tracks, aside))
    if report.reason:
        return _unchanged(scene, report)
    logger.info(
        "bundle adjustment of %d tracks: %.2f -> %.2f thousandths of the long edge on %d others",
        tracks.n_tracks - report.n_held_out,
        1e3 * report.error_before,
        1e3 * report.error_after,
        report.n_held_out,
    )
    return rebuilt_scene(scene, problem, after, tracks), replace(report, improved=True)


def _tracks(
    scene: Scene,
    matches: Sequence[Matches],
    config: RefineConfig,
    rgb_of: RgbOf | None,
    track: Track,
) -> tuple[Tracks, RefineReport]:
    """Return the tracks of sharp matches, or where those hold too few views of coarse ones.

    Never of both: coarse ones, ten times less exact, would spoil what sharp ones say.
    """
    n_views = len(scene.views)
    report = RefineReport(improved=False, reason="", sharp_pairs=0, n_tracks=0)
    tracks = build_tracks([])
    if rgb_of is not None:
        sharp = sharpen_matches(matches, scene.views, rgb_of, config, track=track)
        tracks = _limited(_largest_group(build_tracks(sharp), n_views), config)
        report = replace(report, sharp_pairs=len(sharp))
    if _too_few(tracks, n_views, config):
        coarse = [_thinned(one, config) for one in matches]
        tracks = _limited(_largest_group(build_tracks(coarse), n_views), config)
        report = replace(report, sharp_pairs=0)
    held = sorted(set(tracks.view.tolist()))
    return tracks, replace(
        report,
        n_tracks=tracks.n_tracks,
        refined=tuple(scene.views[n].name for n in held),
        reason=_too_few(tracks, n_views, config),
    )


def _too_few(tracks: Tracks, n_views: int, config: RefineConfig) -> str:
    """Return why the tracks are not enough, or nothing."""
    n_held = len(set(tracks.view.tolist()))
    if tracks.n_tracks < config.min_tracks:
        return f"{tracks.n_tracks} tracks, at least {config.min_tracks} are needed"
    if n_held < max(2, _MIN_HELD * n_views):
        return f"tracks join only {n_held} of {n_views} photos"
    return ""


def _unchanged(scene: Scene, report: RefineReport) -> tuple[Scene, RefineReport]:
    logger.warning("bundle adjustment left the scene as it was: %s", report.reason)
    return scene, report


def _judged(
    report: RefineReport, problem: Problem, rigs: tuple[Rig, Rig], aside: Tracks
) -> RefineReport:
    """Return the report with the errors before and after, and the reason against, if any."""
    before, after = rigs
    finite = all(bool(values.isfinite().all()) for values in (after.cam2world, after.focal))
    change = float((after.focal / before.focal).log().abs().max())
    if not finite or not change < math.log(_MAX_FOCAL_CHANGE):
        return replace(report, reason="a focal length became implausible")
    bound = problem.config.max_error * UNIT
    errors = [_track_errors(problem, rig, aside, bound) for rig in rigs]
    gain = errors[0] - errors[1]
    doubt = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    support = float((errors[1] < _FITS * bound).double().mean())
    reason = ""
    if not support >= _MIN_SUPPORT:
        reason = f"only {100 * support:.0f} % of the tracks kept aside fit"
    elif not float(gain.mean()) > _SIGMAS * doubt:
        reason = "the tracks kept aside do not fit better"
    return replace(
        report,
        reason=reason,
        n_held_out=aside.n_tracks,
        error_before=float(errors[0].mean()) / UNIT,
        error_after=float(errors[1].mean()) / UNIT,
    )


def _track_errors(
    problem: Problem, rig: Rig, tracks: Tracks, bound: float
) -> Float64[Tensor, " track"]:
    """Return the mean error of each track in thousandths, each observation's at most `bound`."""
    error = fit_tracks(problem, rig, tracks).error.clamp_max(bound)
    total = torch.zeros(tracks.n_tracks, dtype=torch.float64).index_add_(0, tracks.track, error)
    return total / torch.bincount(tracks.track, minlength=tracks.n_tracks)


def _thinned(one: Matches, config: RefineConfig) -> Matches:
    """Return at most `max_coarse` matches, drawn evenly."""
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randperm(len(one.confidence), generator=generator)[: config.max_coarse]
    return select(one, drawn.sort().values)


def _limited(tracks: Tracks, config: RefineConfig) -> Tracks:
    """Return at most `max_tracks`, the longest."""
    length = torch.bincount(tracks.track, minlength=tracks.n_tracks)
    first = length.argsort(descending=True, stable=True)[: config.max_tracks]
    keep = torch.zeros(tracks.n_tracks, dtype=torch.bool)
    keep[first] = True
    return select_tracks(tracks, keep)


def _held_out(tracks: Tracks, config: RefineConfig) -> Bool[Tensor, " track"]:
    """Return which tracks are kept aside."""
    generator = torch.Generator().manual_seed(config.seed)
    return torch.rand(tracks.n_tracks, generator=generator) < config.held_out


def _largest_group(tracks: Tracks, n_views: int) -> Tracks:
    """Return the tracks among the largest group of views that enough tracks join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    place = (tracks.view.numpy(), tracks.track.numpy())
    seen = coo_array((torch.ones(len(tracks.view)).numpy(), place), (n_views, tracks.n_tracks))
    shared = (seen.tocsr() @ seen.tocsr().T).tocoo()
    strong = (shared.data >= _MIN_SHARED) & (shared.row != shared.col)
    links = coo_array((shared.data[strong], (shared.row[strong], shared.col[strong])), shared.shape)
    label = torch.from_numpy(connected_components(links, directed=False)[1]).long()
    size = torch.bincount(label)
    held = (label == size.argmax()) & (size.max() > 1)
    return select_observations(tracks, held[tracks.view])
