"""Cropped photos: principal points that are not in the middle of their photos.

That a camera turns and that its photo was cropped look much alike; only many features in more than
two photos tell them apart. So principal points are first held loosely, then the more firmly the
less they moved: few photos are cropped, and those a lot.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.bundle_check import RefineReport, judged, pays
from recon3d.bundle_solve import Problem, Rig, adjust_centres
from recon3d.progress import Track, silent
from recon3d.tracks import Tracks
from recon3d.types import View

logger = logging.getLogger(__name__)

# standard deviations of principal points, in thousandths
_LOOSE = 60.0  # before anything is known; a tenth cut off one side is 50
_PLAIN, _LEAST = 15.0, 7.0  # of a photo that seems not to be cropped
_IN_DOUBT = 25.0
_HINTS = 0.97  # of the error of principal points in the middle
_N_LOOSE, _N_ROUNDS = 2, 6


def find_centres(
    views: Sequence[View],
    problem: Problem,
    rig: Rig,
    used_and_aside: tuple[Tracks, Tracks],
    report: RefineReport,
    track: Track = silent,
) -> tuple[Problem, Rig, RefineReport] | None:
    """Return all three with principal points where tracks want them, None if in the middle.

    Tried where photos of unlike sizes were taken with lenses that are not known, and cameras passed
    the check. Tracks kept aside must fit clearly better; where they fit a little better, all stays
    but `centre_spread`.
    """
    used, aside = used_and_aside
    held = used.view.unique().tolist()
    if report.reason or len(held) < 3 or not _may_be_cropped(views, held, problem):
        return None
    moved, new, found = problem, rig, report
    spread = torch.full_like(rig.focal, _LOOSE)
    for n_done in range(1, _N_ROUNDS + 1):
        moved, new = adjust_centres(moved, new, used, problem.centre, spread)
        track("refine", n_done, _N_ROUNDS)
        if n_done < _N_LOOSE:
            continue
        found = judged(replace(report, remapped=True), moved, rig, new, aside)
        if not found.error_after < _HINTS * report.error_after:
            track("refine", _N_ROUNDS, _N_ROUNDS)
            return None
        off = ((moved.centre - problem.centre) * problem.unit).norm(dim=-1)
        spread = ((_PLAIN**2 + off.square()) / 2).sqrt().clamp(_LEAST, _LOOSE)
    if not pays(found, report):
        return _with_spread(problem, torch.full_like(spread, _IN_DOUBT)), rig, report
    names = [views[n].name for n in held if off[n] > 2 * _PLAIN]
    logger.info("cropped, by what features show: %s", ", ".join(names) or "none by much")
    found = replace(found, remapped=report.remapped, error_before=report.error_before)
    return replace(_with_spread(moved, spread), free_centre=True), new, found


def _may_be_cropped(views: Sequence[View], held: Sequence[int], problem: Problem) -> bool:
    """Say whether photos whose lenses are not known have unlike sizes, upright or not."""
    free = [views[n] for n in held if not problem.constant_focal[n]]
    sizes = {tuple(sorted((view.photo_width, view.photo_height))) for view in free}
    return len(sizes) > 1 and not problem.config.shared_focal


def _with_spread(problem: Problem, spread: Float64[Tensor, " view"]) -> Problem:
    """Return the problem with that spread of principal points, where they are not known."""
    return replace(problem, centre_spread=torch.where(problem.centre_spread > 0, spread, 0.0))
