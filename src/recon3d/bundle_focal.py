"""Whether features contradict focal lengths that were given."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from recon3d.bundle_check import RefineReport, gained, judged
from recon3d.bundle_solve import UNIT, Problem, Rig, adjust
from recon3d.tracks import Tracks
from recon3d.types import View

logger = logging.getLogger(__name__)

_N_ROUNDS = 6  # at most
_SETTLED = 0.01  # change of the logarithm of a focal length that ends them
_OFF = 0.1  # of that logarithm: with true focal lengths features of 14 scenes are at most 0.13 off
_SIGMAS = 3.0  # ... and 1.8 standard errors better; with wrong ones 3.5 to 7


def warn_of_focals(
    views: Sequence[View],
    problem: Problem,
    rig: Rig,
    used_and_aside: tuple[Tracks, Tracks],
    report: RefineReport,
) -> None:
    """Warn of given focal lengths, where others make tracks kept aside fit beyond doubt better.

    Args:
        views: of the scene.
        problem: in which given focal lengths are constant.
        rig: adjusted cameras.
        used_and_aside: tracks that adjust cameras, and those that judge them.
        report: what these say of the cameras; nothing is asked of those that failed.
    """
    used, aside = used_and_aside
    held = used.view.unique()
    given = held[problem.constant_focal[held]]
    if report.reason or len(held) < 3 or not len(given) or not problem.config.refine_focal:
        return
    free = replace(problem, constant_focal=torch.zeros_like(problem.constant_focal))
    new = rig
    for _ in range(_N_ROUNDS):
        before, new = new, adjust(free, new, used)
        if float((new.focal / before.focal).log().abs().max()) < _SETTLED:
            break
    off = (new.focal / rig.focal)[given].log()
    worst = int(given[off.abs().argmax()])
    if float(off.abs().max()) < _OFF or not gained(problem, rig, new, aside) > _SIGMAS:
        return
    found = judged(replace(report, remapped=True), problem, rig, new, aside)
    if found.reason:
        return
    long_edge = max(views[worst].photo_width, views[worst].photo_height)
    wrong, fitting = (float(one.focal[worst]) * long_edge / UNIT for one in (rig, new))
    n_off = int((off.abs() >= _OFF).sum())
    logger.warning(
        "the given focal length of %s does not fit the photos: image features of %s speak for"
        " about %.0f pixels, not %.0f (they are %.1f instead of %.1f thousandths of the long edge"
        " off). Check --focal or the intrinsics in --cameras.",
        views[worst].name if n_off == 1 else f"{n_off} photos",
        views[worst].name,
        fitting,
        wrong,
        1e3 * found.error_after,
        1e3 * report.error_after,
    )
