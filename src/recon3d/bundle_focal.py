"""Whether features contradict focal lengths that were given."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from recon3d.bundle_check import RefineReport, judged
from recon3d.bundle_lens import of_one_size
from recon3d.bundle_solve import UNIT, Problem, Rig, adjust
from recon3d.tracks import Tracks
from recon3d.types import View

logger = logging.getLogger(__name__)

_N_ROUNDS = 6  # at most
_SETTLED = 0.01  # change of the logarithm of a focal length that ends them
_OFF = 0.1
"""Of that logarithm. With true focal lengths features of 11 scenes are at most 0.13 off ..."""
_SIGMAS = 3.0
"""... and, where more than 0.1, at most 1.6 standard errors better; with wrong ones 3.5 to 7."""


def warn_of_focals(
    views: Sequence[View],
    problem: Problem,
    rig: Rig,
    used_and_aside: tuple[Tracks, Tracks],
    report: RefineReport,
) -> None:
    """Warn of given focal lengths, where others make tracks kept aside fit beyond doubt better.

    Nothing is said where something else may be wrong that looks much alike: given poses, or
    principal points of photos of several sizes, which may be cropped.

    Args:
        views: of the scene.
        problem: in which given focal lengths are constant, and their lenses those of one value.
        rig: adjusted cameras.
        used_and_aside: tracks that adjust cameras, and those that judge them.
        report: what these say of the cameras; nothing is asked of those that failed.
    """
    used, aside = used_and_aside
    held = used.view.unique()
    given = held[problem.constant_focal[held]]
    tells = len(held) >= 3 and problem.config.refine_focal and not problem.constant_pose[held].any()
    if report.reason or not len(given) or not tells:
        return
    if problem.centre_spread[given].any() and not of_one_size([views[n] for n in held.tolist()]):
        return
    free = replace(problem, constant_focal=torch.zeros_like(problem.constant_focal))
    new = rig
    for _ in range(_N_ROUNDS):
        before, new = new, adjust(free, new, used)
        if float((new.focal / before.focal).log().abs().max()) < _SETTLED:
            break
    off = (new.focal / rig.focal)[given].log()
    worst = int(given[off.abs().argmax()])
    found = judged(replace(report, remapped=True), problem, rig, new, aside)
    if float(off.abs().max()) < _OFF or found.reason or not found.gain > _SIGMAS:
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
