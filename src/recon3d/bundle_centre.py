"""Cropped photos: principal points that are not in the middle of their photos.

That a camera turns and that its photo was cropped look much alike; only many features in more than
two photos tell them apart. So principal points are held as sizes say: of the photos of a camera,
those of full size are not cropped, and others only along the sides that are short; these have
lenses of their own. Where sizes say nothing, they are held loosely. All are held the more firmly
the less they moved, then: few photos are cropped, and those a lot.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from recon3d.bundle_check import RefineReport, judged, pays
from recon3d.bundle_lens import first_of_each, of_one_size
from recon3d.bundle_solve import Problem, Rig, adjust, adjust_centres
from recon3d.progress import Track, silent
from recon3d.tracks import Tracks, count_by_track, select_tracks
from recon3d.types import View

logger = logging.getLogger(__name__)

# standard deviations of principal points, in thousandths
_LOOSE = 60.0  # where sizes say nothing; a tenth cut off one side is 50
_PLAIN = 15.0  # of a photo that seems not to be cropped
_LEAST = 7.0  # of a photo of full size
_KNOWN = 1e-3
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

    Tried where photos have unlike sizes, not all lenses are known, and cameras passed the check.
    What photos that may be cropped see of tracks kept aside must fit better; where sizes say
    nothing of who is cropped, clearly so, else all stays but `centre_spread`.
    """
    used, aside = used_and_aside
    held = used.view.unique().tolist()
    is_open = not problem.config.shared_focal and not problem.constant_focal[held].all()
    if report.reason or len(held) < 3 or not is_open or of_one_size([views[n] for n in held]):
        return None
    at_most = torch.full_like(problem.centre, _LOOSE)
    missing = _missing({n: (views[n].photo_width, views[n].photo_height) for n in held})
    for n, lack in missing.items():
        at_most[n] = (lack * problem.unit[n] * views[n].photo2view.diagonal()[:2] / 2).double()
    is_known = (problem.centre_spread == 0)[:, None]
    at_most = torch.where(is_known, _KNOWN, at_most.clamp_min(_LEAST))
    whole = [n for n, lack in missing.items() if not lack.any()]
    moved, new, spread = replace(problem, lens=_lenses(views, whole, problem)), rig, at_most
    by_open = (at_most.amax(-1) > _LEAST)[aside.view]
    judges = select_tracks(aside, count_by_track(aside, by_open) > 0)
    if not judges.n_tracks:
        return None
    plain = replace(report, remapped=True)
    in_middle = _without_centres(moved, rig, used, judges, plain)
    for n_done in range(1, _N_ROUNDS + 1):
        moved, new = adjust_centres(moved, new, used, problem.centre, spread)
        track("refine", n_done, _N_ROUNDS)
        off = ((moved.centre - problem.centre) * problem.unit).norm(dim=-1, keepdim=True)
        if n_done >= _N_LOOSE:
            spread = at_most.minimum(((_PLAIN**2 + off.square()) / 2).sqrt())
    found = judged(plain, moved, rig, new, judges)
    if found.reason or not found.error_after < _HINTS * in_middle.error_after:
        return None
    if not missing and not pays(found, in_middle):
        return _with_spread(problem, torch.full_like(rig.focal, _IN_DOUBT)), rig, report
    names = [views[n].name for n in held if off[n] > 2 * _PLAIN]
    logger.info("cropped, by what features show: %s", ", ".join(names) or "none by much")
    found = replace(
        judged(plain, moved, rig, new, aside),
        reason="",
        remapped=report.remapped,
        error_before=report.error_before,
    )
    return replace(_with_spread(moved, spread.amax(-1)), free_centre=True), new, found


def _lenses(
    views: Sequence[View], whole: Sequence[int], problem: Problem
) -> Int64[Tensor, " view"]:
    """Return each view's lens where only whole photos share one, and with it a principal point.

    Upright photos do not share it with those that lie: the camera was turned.
    """
    is_whole = torch.zeros(len(views), dtype=torch.bool)
    is_whole[list(whole)] = True
    is_upright = torch.tensor([view.photo_height > view.photo_width for view in views])
    lens = torch.where(is_whole, problem.lens, -1 - torch.arange(len(views)))
    return first_of_each(torch.stack((lens, is_upright.long()), dim=1))


def _without_centres(
    problem: Problem, rig: Rig, used: Tracks, judges: Tracks, report: RefineReport
) -> RefineReport:
    """Return the report where lenses are as free, but principal points stay in the middle."""
    free = rig
    for _ in range(_N_LOOSE):
        free = adjust(problem, free, used)
    found = judged(report, problem, rig, free, judges)
    return replace(report, error_after=min(found.error_before, found.error_after))


def _missing(sizes: Mapping[int, tuple[int, int]]) -> dict[int, Float64[Tensor, "2"]]:
    """Return what photos lack of the full size of the camera, in pixels, as far as sizes tell.

    That is the size of which most of the others lack something along one side only. Others that are
    smaller lack something along both, or were scaled down.
    """
    explained = [
        (full, {n: lack for n, size in sizes.items() if (lack := _lack(size, full)) is not None})
        for full in sorted(set(sizes.values()), reverse=True)
    ]
    full, best = max(explained, key=lambda one: len(one[1]))
    if 2 * len(best) <= len(sizes):
        return {}
    return best | {
        n: lack
        for n, size in sizes.items()
        if n not in best and (lack := _lack(size, full, sides=2)) is not None
    }


def _lack(
    size: tuple[int, int], full: tuple[int, int], sides: int = 1
) -> Float64[Tensor, "2"] | None:
    """Return what a photo lacks of the full size, lying or upright; None if along more sides."""
    lacks = [(frame[0] - size[0], frame[1] - size[1]) for frame in (full, full[::-1])]
    lacks = [lack for lack in lacks if min(lack) >= 0 and (sides == 2 or min(lack) == 0)]
    return torch.tensor(min(lacks, key=sum), dtype=torch.float64) if lacks else None


def _with_spread(problem: Problem, spread: Float64[Tensor, " view"]) -> Problem:
    """Return the problem with that spread of principal points, where they are not known."""
    return replace(problem, centre_spread=torch.where(problem.centre_spread > 0, spread, 0.0))
