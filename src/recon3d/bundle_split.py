"""Matches -> tracks: most adjust the cameras, the others are kept aside for the check."""

from collections.abc import Sequence
from typing import NamedTuple

from recon3d.bundle_check import RefineReport, held_out
from recon3d.bundle_solve import Problem
from recon3d.config import RefineConfig
from recon3d.matches import Matches
from recon3d.tracks import Tracks, build_tracks, largest_group, longest_tracks, select_tracks

_MIN_HELD = 0.5  # share of the views that tracks must hold


class Split(NamedTuple):
    """Tracks to use, tracks to keep aside, and a report with the reason against, if any.

    `pairs` are the pairs of views that matched: tracks are not believed to join others.
    """

    used: Tracks
    aside: Tracks
    report: RefineReport
    pairs: set[tuple[int, int]]


def split_tracks(
    problem: Problem, matches: Sequence[Matches], n_heeded: int, *, from_features: bool
) -> Split:
    """Return the tracks that matches make, of which half of the `n_heeded` views need be part.

    Never of sharp and coarse matches both: coarse ones, ten times less exact, would spoil what
    sharp ones say.
    """
    config = problem.config
    joined = largest_group(build_tracks(matches), len(problem.unit))
    tracks = longest_tracks(joined, config.max_tracks)
    aside = held_out(tracks, config)
    report = RefineReport(
        improved=False,
        reason=_too_few(tracks, n_heeded, config),
        sharp_pairs=len(matches) if from_features else 0,
        n_tracks=tracks.n_tracks,
    )
    return Split(
        used=select_tracks(tracks, ~aside),
        aside=select_tracks(tracks, aside),
        report=report,
        pairs={(one.i, one.j) for one in matches},
    )


def _too_few(tracks: Tracks, n_views: int, config: RefineConfig) -> str:
    """Return why the tracks are not enough, or nothing."""
    n_held = len(set(tracks.view.tolist()))
    if tracks.n_tracks < config.min_tracks:
        return f"{tracks.n_tracks} tracks, at least {config.min_tracks} are needed"
    if n_held < max(2, _MIN_HELD * n_views):
        return f"tracks join only {n_held} of {n_views} photos"
    return ""
