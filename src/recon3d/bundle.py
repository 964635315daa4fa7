"""Refinement after the alignment: matches -> tracks -> bundle adjustment -> a better scene, or not.

Some tracks are kept aside; only if those, too, lie nearer to their points afterwards are the new
cameras taken. Where the alignment is too poor a start, cameras are found anew from features of the
whole photos, and must pass the same check. Depth maps are then scaled to the points of the tracks.
"""

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from recon3d.bundle_centre import find_centres
from recon3d.bundle_check import (
    SURE_OF_VIEW,
    RefineReport,
    fitting,
    is_sure,
    judged,
    pays,
    support_of_views,
)
from recon3d.bundle_conflict import contradicted_view, rigs_contradict
from recon3d.bundle_doubt import camera_doubt
from recon3d.bundle_evidence import Evidence
from recon3d.bundle_focal import warn_of_focals
from recon3d.bundle_join import join_views
from recon3d.bundle_lens import lenses_of
from recon3d.bundle_map import Mapped, map_cameras
from recon3d.bundle_pair import place_pair
from recon3d.bundle_resect import resected
from recon3d.bundle_scene import rebuilt_scene
from recon3d.bundle_solve import UNIT, Problem, Rig, adjust, fit_tracks, problem_of
from recon3d.bundle_split import Split, split_tracks
from recon3d.colmap_extra import require_pycolmap
from recon3d.config import RefineConfig
from recon3d.features import RgbOf
from recon3d.matches import Matches
from recon3d.parallax import show_parallax
from recon3d.progress import Track, silent
from recon3d.scale import shifted, whole_middle
from recon3d.tracks import Tracks, select_observations, views_seeing, well_joined
from recon3d.twin_pose import find_twin, with_twin
from recon3d.types import Scene

logger = logging.getLogger(__name__)

_ROUNDS = 8  # at most; each starts from better points and drops observations that do not fit
_FALLS = 0.95  # a round that leaves more of the median error is the last ...
_EXACT = 0.01  # ... and so is one that leaves no more (thousandths)
_LOOKS = 4  # for views that stand wrong; at most
_TRACKS_PER_VIEW = 50  # fewer leave doubt ...
_CLEAR_PER_VIEW = 150  # ... as do fewer than this many ...
_CLEAR_SUPPORT = 0.9  # ... of which a smaller share fits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Attempt:
    """Adjusted cameras, the tracks that hold them, those kept aside, and what these say.

    Only `placed` views are seen by the tracks that are used, but all by those kept aside.
    """

    rig: Rig
    placed: Bool[Tensor, " view"]
    used: Tracks
    aside: Tracks
    report: RefineReport
    too_few: bool = False

    @property
    def held_out(self) -> Tracks:
        """The tracks kept aside among the views that have a place."""
        return select_observations(self.aside, self.placed[self.aside.view])


def refine_scene(
    scene: Scene,
    matches: Sequence[Matches],
    config: RefineConfig,
    *,
    rgb_of: RgbOf | None = None,
    fixed: Collection[int] = (),
    calibrated: Collection[int] = (),
    track: Track = silent,
) -> tuple[Scene, RefineReport]:
    """Return the scene with cameras and depth that fit the matches, if that is an improvement.

    Several ways are tried until one leaves no doubt, and the best of those that pass the check is
    taken: cameras placed anew from features anywhere in the photos, then from those near the
    matches as well; adjustment of the scene's cameras to features near the matches; adjustment to
    the matches as they are, only where features say too little. Without photos the scene's cameras
    are adjusted first, then placed anew from the matches.

    Args:
        scene: the start; focal lengths that were given stay as they are.
        matches: between the scene's views, one `Matches` per pair of views at most, i < j.
        config: what to refine, and the limits.
        rgb_of: returns the photo of a view, to find image features.
        fixed: views whose cameras stay where they are.
        calibrated: views whose principal points are known, too, not only their focal lengths.
        track: told the stages "features", "matching" and "refine".

    Returns:
        The new scene in the world of the old one: the first fixed view, else the first view, keeps
        its camera's place and its depth's scale (two fixed views set the scale). The old scene
        where the tracks kept aside show no improvement.

    Raises:
        UsageError: pycolmap is missing; says how to install it.
    """
    require_pycolmap()
    middle = whole_middle(scene, fixed)
    near = shifted(scene, -middle)
    evidence = Evidence(near, matches, config, rgb_of, track)
    problem_for = partial(problem_of, near, config, fixed, calibrated)
    problem, best = _solved(near, evidence, config, problem_for, track)
    while evidence.from_features and not fixed and not best.report.reason:
        odd = contradicted_view(problem, best.rig, best.used)
        if odd is None:
            break
        logger.info("others contradict what %s shows: tried without it", scene.views[odd].name)
        evidence.ignored.add(odd)
        problem, best = _solved(near, evidence, config, problem_for, track)
    tracks = best.used, best.held_out
    warn_of_focals(scene.views, problem, best.rig, tracks, best.report)
    found = find_centres(scene.views, problem, best.rig, tracks, best.report, track)
    if found is not None:
        problem, rig, report = found
        best = replace(best, rig=rig, report=report)
    firm = _firm(problem, best.used)
    held = firm.nonzero().flatten().tolist()
    report = replace(best.report, refined=tuple(scene.views[n].name for n in held))
    if evidence.from_features and not problem.constant_pose.any():
        parallax = show_parallax(evidence.anywhere, problem.centre, problem.unit / UNIT)
        report = replace(report, parallax=parallax)
    if report.reason:
        logger.warning("bundle adjustment left the scene as it was: %s", report.reason)
        return scene, report
    doubt = camera_doubt(problem, best.rig, best.used)
    twin = find_twin(problem, best.rig, best.used)
    if twin is not None:
        doubt = with_twin(doubt, best.rig, twin)
        logger.warning(
            "what the 2 photos share lies on a plane, which two arrangements of the cameras fit, "
            "%.0f degrees apart: which of them is right is a guess. Add a third photo.",
            max(twin.rotation_deg, twin.direction_deg),
        )
    better, depth_error = rebuilt_scene(near, problem, best.rig, best.used, firm, doubt)
    logger.info(
        "bundle adjustment of %d tracks%s: %.2f -> %.2f thousandths of the long edge on %d others;"
        " depth maps differ from the tracks by %s",
        best.used.n_tracks,
        ", cameras placed anew" if report.remapped else "",
        1e3 * report.error_before,
        1e3 * report.error_after,
        report.n_held_out,
        f"{100 * depth_error:.1f} %" if math.isfinite(depth_error) else "an unknown share",
    )
    return shifted(better, middle), replace(report, improved=True, depth_error=depth_error)


def _solved(
    scene: Scene,
    evidence: Evidence,
    config: RefineConfig,
    problem_for: Callable[[Int64[Tensor, " view"] | None], tuple[Problem, Rig]],
    track: Track,
) -> tuple[Problem, _Attempt]:
    """Return the best attempt: with one focal length for each lens, else with one for each view."""
    is_open = config.shared_focal is None and config.refine_focal
    lens = lenses_of(scene.views) if is_open else None
    problem, start = problem_for(lens)
    best = _best_attempt(scene, problem, start, evidence, track)
    if lens is not None and any(problem.camera(n) != n for n in range(len(scene.views))):
        others, others_start = problem_for(None)
        if best.report.reason or _would_pay(others, others_start, best, track):
            free = _best_attempt(scene, others, others_start, evidence, track)
            if pays(free.report, best.report):
                problem, start, best = others, others_start, free
    return problem, _with_second_opinion(scene, problem, start, evidence, best, track)


def _would_pay(problem: Problem, start: Rig, shared: _Attempt, track: Track) -> bool:
    """Say whether the shared solution becomes clearly better with focal lengths set free."""
    rig = _in_rounds(problem, shared.rig, shared.used, track)
    return pays(judged(shared.report, problem, start, rig, shared.held_out), shared.report)


def _best_attempt(
    scene: Scene, problem: Problem, start: Rig, evidence: Evidence, track: Track
) -> _Attempt:
    """Return the first attempt that leaves no doubt, else the best."""
    from_features = evidence.from_features
    n_heeded = len(scene.views) - len(evidence.ignored)
    best: _Attempt | None = None

    def split(matches: Sequence[Matches]) -> Split:
        return split_tracks(problem, matches, n_heeded, from_features=from_features)

    def near() -> _Attempt:
        return _adjusted(problem, start, split(evidence.near), track)

    def remapped(matches: Sequence[Matches]) -> _Attempt | None:
        return _remapped(scene, problem, start, split(matches), track)

    def anew() -> _Attempt | None:
        return remapped(evidence.anywhere)

    def anew_with_near() -> _Attempt | None:
        return remapped([*evidence.anywhere, *evidence.near])

    def anew_with_wide() -> _Attempt | None:
        wide = evidence.wide(None if best is None else _sure_places(problem, best))
        return remapped([*evidence.anywhere, *wide]) if wide else None

    # sharp matches of whole photos are enough for cameras without a start; coarse ones are not
    ways = (anew, anew_with_near, near, anew_with_wide) if from_features else (near, anew)
    too_few = False
    for way in (near,) if problem.constant_pose.all() else ways:
        found = way()
        if found is not None:
            too_few |= found.too_few
            best = found if best is None else _better(problem, best, found)
            everyone = int((best.placed & _firm(problem, best.used)).sum()) == n_heeded
            n_enough = _TRACKS_PER_VIEW * n_heeded
            if everyone and is_sure(best.report) and best.report.n_tracks > n_enough:
                break
    assert best is not None  # `near` always says something
    if best.report.reason and from_features and too_few:
        tracks = split_tracks(problem, evidence.coarse, n_heeded, from_features=False)
        best = _adjusted(problem, start, tracks, track)
    return best


def _with_second_opinion(
    scene: Scene, problem: Problem, start: Rig, evidence: Evidence, best: _Attempt, track: Track
) -> _Attempt:
    """Return the attempt, or what more tracks say where it has few, and some of them do not fit.

    Where it took features anywhere in the photos alone, there are more near the matches.
    """
    report, n_heeded = best.report, len(scene.views) - len(evidence.ignored)
    is_plain = evidence.from_features and report.sharp_pairs == len(evidence.anywhere)
    is_clear = report.support >= _CLEAR_SUPPORT or report.n_tracks > _CLEAR_PER_VIEW * n_heeded
    if report.reason or not report.remapped or not is_plain or is_clear:
        return best
    matches = [*evidence.anywhere, *evidence.near]
    tracks = split_tracks(problem, matches, n_heeded, from_features=True)
    second = _remapped(scene, problem, start, tracks, track)
    return best if second is None else _better(problem, best, second)


def _sure_places(problem: Problem, found: _Attempt) -> Bool[Tensor, " view"] | None:
    """Return which views have a place beyond doubt, None where few views are in doubt as a whole.

    Of many views some bad ones spoil the whole; each is judged by its own observations then.
    """
    if is_sure(found.report):
        return found.placed & _firm(problem, found.used)
    if found.report.reason or len(found.placed) <= problem.config.max_wide_views:
        return None
    share = support_of_views(problem, found.rig, found.held_out)
    return found.placed & (share >= SURE_OF_VIEW)


def _firm(problem: Problem, tracks: Tracks) -> Bool[Tensor, " view"]:
    """Return which views tracks hold, and not only by what they share with a single other one."""
    n_views = len(problem.unit)
    return well_joined(tracks, n_views) | (problem.constant_pose & views_seeing(tracks, n_views))


def _adjusted(problem: Problem, start: Rig, tracks: Split, track: Track) -> _Attempt:
    """Return the cameras adjusted from where they are, and what the check says of them."""
    used, aside, report, _ = tracks
    placed = views_seeing(used, len(problem.unit))
    found = _Attempt(
        rig=start, placed=placed, used=used, aside=aside, report=report, too_few=bool(report.reason)
    )
    return found if report.reason else _judged_in_rounds(problem, start, found, track)


def _remapped(
    scene: Scene, problem: Problem, start: Rig, tracks: Split, track: Track
) -> _Attempt | None:
    """Return cameras placed anew and adjusted, and what the check says; None if there are none."""
    used, aside, report, pairs = tracks
    if report.reason:
        return None
    held = views_seeing(used, len(scene.views))
    if report.sharp_pairs and int(held.sum()) == 2 and not bool(problem.constant_pose.any()):
        rig = place_pair(problem, start, used)
        mapped = None if rig is None else Mapped(rig=rig, placed=held)
        problem = replace(problem, constant_focal=problem.constant_focal | held)
    else:
        mapped = map_cameras(
            problem,
            start,
            used,
            pairs,
            trusted_focal=torch.tensor([one.focal_is_known for one in scene.verdicts]),
        )
    if mapped is None:
        return None

    def attempt(rig: Rig, placed: Bool[Tensor, " view"]) -> _Attempt:
        found = _Attempt(
            rig=rig,
            placed=placed,
            used=select_observations(used, placed[used.view]),
            aside=aside,
            report=replace(report, remapped=True),
        )
        n_tracks = found.used.n_tracks + found.held_out.n_tracks
        found = replace(found, report=replace(found.report, n_tracks=n_tracks))
        return _judged_in_rounds(problem, start, found, track)

    found = attempt(mapped.rig, mapped.placed)
    if found.report.reason or bool(mapped.placed.all()):
        return found
    rig, placed = join_views(problem, found.rig, mapped.placed, used, pairs)
    if int(placed.sum()) == int(mapped.placed.sum()):
        return found
    joined = attempt(rig, placed)
    holds = joined.report.weakest >= min(SURE_OF_VIEW, found.report.weakest)
    return _better(problem, found, joined) if holds else found


def _judged_in_rounds(problem: Problem, start: Rig, found: _Attempt, track: Track) -> _Attempt:
    """Return the attempt with its cameras adjusted, and what the check says of them.

    Where they are beyond doubt as a whole, single views may still stand wrong: these are placed
    anew, one after the other.
    """

    def settled(rig: Rig) -> _Attempt:
        rig = _in_rounds(problem, rig, found.used, track)
        return replace(
            found, rig=rig, report=judged(found.report, problem, start, rig, found.held_out)
        )

    best = last = settled(found.rig)
    tried: list[int] = []
    while len(tried) < _LOOKS and is_sure(last.report):
        moved = resected(problem, last.rig, last.used, tried)
        if moved is None:
            break
        tried.append(moved[0])
        last = settled(moved[1])
        best = _better(problem, best, last)
    return best


def _better(problem: Problem, first: _Attempt, second: _Attempt) -> _Attempt:
    """Return the attempt that passed the check; of two that did, the one that explains more.

    The judges are tracks kept aside that owe nothing to the scene's cameras: how many of their
    observations, in all views, fit. But what is beyond doubt wins over what is not and contradicts
    it, though that may hold more views.
    """
    if first.report.reason or second.report.reason:
        return first if second.report.reason else second
    sure = [one for one in (first, second) if is_sure(one.report)]
    if len(sure) == 1 and rigs_contradict(first.rig, second.rig, first.placed & second.placed):
        return sure[0]
    judges = second.aside if second.report.remapped else first.aside
    n_fitting = [
        int(fitting(problem, one.rig, select_observations(judges, one.placed[judges.view])).sum())
        for one in (first, second)
    ]
    return first if n_fitting[0] >= n_fitting[1] else second


def _in_rounds(problem: Problem, rig: Rig, tracks: Tracks, track: Track) -> Rig:
    error = math.inf
    for n_done in range(1, _ROUNDS + 1):
        track("refine", n_done, _ROUNDS)
        rig = adjust(problem, rig, tracks)
        before, error = error, float(fit_tracks(problem, rig, tracks).error.median())
        if error < _EXACT or not error < _FALLS * before:
            break
    track("refine", _ROUNDS, _ROUNDS)
    return rig
