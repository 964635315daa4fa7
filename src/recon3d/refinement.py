"""The refinement stage of a run: which photos take part, what stays fixed, and who is adopted."""

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from recon3d.adopt import strays_alone, with_strays, without_unplaced
from recon3d.align_given import brought_to, far_priors
from recon3d.align_samples import Cameras
from recon3d.bundle import refine_scene
from recon3d.bundle_check import RefineReport, is_poor
from recon3d.config import CamerasAre, RunConfig
from recon3d.errors import DisconnectedError
from recon3d.features import RgbOf
from recon3d.given_check import warn_of_cameras
from recon3d.known_cameras import is_calibrated, is_exact, poses_of
from recon3d.masks import is_blank
from recon3d.matches import Matches, renumber
from recon3d.metrics import relative_pose_errors
from recon3d.progress import Track, silent
from recon3d.types import LeftOut, PairPrediction, Scene, View

logger = logging.getLogger(__name__)

_TURNED_DEG, _ASIDE_DEG = 10.0, 20.0
"""Errors of the network's relative rotations, and of the directions between its cameras, that make
its other cameras worthless."""
_N_NAMED = 5  # photos that one line of warning holds
REFINED_BY_ITSELF = 200
"""Most photos whose cameras are refined without being asked for: features take time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What the refinement of a scene needs besides the scene.

    `views` are all readable photos and `matches` those between them, `own` predicts a pair of which
    the given view is the first, `rgb_of` reads a photo again.
    """

    views: Sequence[View]
    matches: Sequence[Matches]
    cameras: Cameras
    own: Callable[[int], PairPrediction]
    rgb_of: RgbOf


def is_refining(config: RunConfig, n_views: int) -> bool:
    """Return whether there is a bundle adjustment: as asked for, else where it can be had."""
    if config.refine is not None:
        return config.refine
    if importlib.util.find_spec("pycolmap") is None:
        logger.info("cameras are not refined: pip install 'pycolmap>=4.0' makes them more exact")
        return False
    return n_views <= REFINED_BY_ITSELF


def posed_names(material: Material) -> set[str]:
    """Return the names of the photos whose place was given."""
    poses = poses_of(material.cameras, range(len(material.cameras)))
    return {material.views[n].name for n in poses}


def _given_in_full(material: Material, config: RunConfig) -> set[str]:
    """Return the names of the photos whose cameras were given in full, and stay."""
    return {
        view.name
        for view, camera in zip(material.views, material.cameras, strict=False)
        if is_exact(camera, config.align)
    }


def _members(scene: Scene, material: Material) -> list[int]:
    """Return for each view of the scene its number among all photos."""
    number = {view.name: n for n, view in enumerate(material.views)}
    return [number[view.name] for view in scene.views]


def exact_views(
    scene: Scene, report: RefineReport | None, material: Material, config: RunConfig
) -> frozenset[str]:
    """Return the names of the views with exact cameras: refined, or given in full and fixed.

    Without parallax refinement tells no positions.
    """
    tells = report is not None and report.improved and report.parallax is not False
    names = set(report.refined) if report is not None and tells else set()
    names |= _given_in_full(material, config)
    return frozenset(view.name for view in scene.views if view.name in names)


def refined(
    scene: Scene, material: Material, config: RunConfig, *, track: Track = silent
) -> tuple[Scene, RefineReport]:
    """Return the scene after a bundle adjustment, the same where that does not improve it.

    Poses that are priors are where it starts, and the world that the result is brought back to.
    """
    members = _members(scene, material)
    if material.cameras and all(is_exact(material.cameras[n], config.align) for n in members):
        reason = "its cameras were given"
        return scene, RefineReport(improved=False, reason=reason, sharp_pairs=0, n_tracks=0)
    new = {n: k for k, n in enumerate(members)}
    poses = {new[n]: pose for n, pose in poses_of(material.cameras, members).items()}
    are_fixed = config.align.cameras_are is CamerasAre.FIXED
    bundle = (
        replace(config.bundle, shared_focal=True) if config.align.shared_focal else config.bundle
    )
    better, report = refine_scene(
        scene,
        renumber(material.matches, new),
        bundle,
        rgb_of=material.rgb_of,
        fixed=list(poses) if are_fixed else [],
        calibrated=[
            new[n] for n in members if material.cameras and is_calibrated(material.cameras[n])
        ],
        track=track,
    )
    placed = [
        k for k in poses if scene.verdicts[k].edges > 0 or scene.views[k].name in report.refined
    ]
    if report.improved and placed and not are_fixed:
        # the adjustment knows nothing of priors, nor of the size of the world that they span
        given = torch.stack([poses[k].double().cpu() for k in placed])
        better = brought_to(better, given, placed)
    return better, report


def from_features_alone(
    doubt: DisconnectedError, material: Material, config: RunConfig, *, track: Track = silent
) -> tuple[Scene, RefineReport]:
    """Return the scene that image features make of photos which the network could not join.

    Args:
        doubt: why it could not; photos that features do not place either are left out.
        material: the photos, of which none may have a pose.
        config: all settings.
        track: as for `refined`.

    Raises:
        DisconnectedError: `doubt`, where features tell nothing either.
    """
    numbers = range(len(material.views))
    alone = strays_alone(
        {n: material.own(n) for n in numbers}, material.views, config.align, material.cameras
    )
    better, report = refined(alone, material, config, track=track)
    if not report.improved:
        raise doubt
    better = without_unplaced(better, 0, report.refined, material.views, keep_world=False)
    placed = {view.name for view in better.views}
    logger.info("image features alone placed %d of %d photos", len(placed), len(numbers))
    left_out = tuple(
        LeftOut(name=view.name, reason="neither confident pairs nor image features place it")
        for view in material.views
        if view.name not in placed
    )
    return replace(better, left_out=left_out, edges=doubt.edges), report


def without_doubtful(
    before: Scene, after: Scene, report: RefineReport, material: Material
) -> Scene:
    """Return the refined scene without views that a network holds which was wrong about others.

    Image features tell how far off it was: where the relative poses of the refined views changed
    by more than `_TURNED_DEG` or `_ASIDE_DEG` in the middle, those of the others are no better.

    Args:
        before: the scene that was refined.
        after: what became of it.
        report: which views features hold.
        material: the photos; where any has a pose nothing is left out.
    """
    held = [n for n, view in enumerate(after.views) if view.name in report.refined]
    if not report.improved or len(held) == len(after.views) or posed_names(material):
        return after
    place = {view.name: n for n, view in enumerate(before.views)}
    known = [n for n in held if after.views[n].name in place]
    if len(known) < 2:
        return after
    old = before.cam2world[[place[after.views[n].name] for n in known]]
    off = relative_pose_errors(old.numpy(force=True), after.cam2world[known].numpy(force=True))
    turned_deg, aside_deg = (float(np.median(e)) for e in (off.rotation_deg, off.direction_deg))
    if turned_deg < _TURNED_DEG and aside_deg < _ASIDE_DEG:
        return after
    reason = (
        "image features do not place it; where they do the network is "
        f"{max(turned_deg, aside_deg):.0f} deg off"
    )
    left_out = tuple(
        LeftOut(name=view.name, reason=reason)
        for view in after.views
        if view.name not in report.refined
    )
    kept = without_unplaced(after, 0, report.refined, material.views, keep_world=False)
    return replace(kept, left_out=after.left_out + left_out)


def warn_of_given(
    scene: Scene, material: Material, config: RunConfig, *, track: Track = silent
) -> None:
    """Warn of given cameras that the photos contradict: priors by where the scene has them.

    Those that are fixed by features, unless the user does without these (`--no-refine`).
    """
    if config.align.cameras_are is CamerasAre.PRIOR:
        _warn_of_priors(scene, material)
        return
    exact = _given_in_full(material, config)
    if config.refine is not False and len(exact & {view.name for view in scene.views}) > 1:
        warn_of_cameras(scene, exact, material.rgb_of, config.bundle, track=track)


def _warn_of_priors(scene: Scene, material: Material) -> None:
    members = _members(scene, material)
    poses = poses_of(material.cameras, members)
    known = [k for k, n in enumerate(members) if n in poses]
    if len(known) < 2:
        return
    given = torch.stack([poses[members[k]].double().cpu() for k in known])
    far = far_priors(scene, given, known)
    if far:
        shown = ", ".join(
            f"{scene.views[k].name} by {turned_deg:.0f} deg and {moved:.3g}"
            for k, turned_deg, moved in far[:_N_NAMED]
        )
        logger.warning(
            "the photos contradict %d of %d given poses (%s%s): check that they are those of these"
            " photos",
            len(far),
            len(known),
            shown,
            " and more" if len(far) > _N_NAMED else "",
        )


def with_warnings(scene: Scene, report: RefineReport) -> Scene:
    """Warn of missing parallax and of a poor fit; positions are marked as unknown in the former."""
    if is_poor(report):
        logger.warning(
            "image features fit the %d cameras badly (%.1f thousandths of the long edge, where 0.3"
            " to 2 are usual): do not rely on them. Does something move with the camera or in the"
            " photos (--masks), or is a given lens wrong?",
            len(scene.views),
            1e3 * report.error_after,
        )
    if report.parallax is not False:
        return scene
    logger.warning(
        "the %d photos show no parallax, as if turned or zoomed on the spot: where their cameras"
        " stand, and how far anything is, are guesses. Take photos from different places.",
        len(scene.views),
    )
    verdicts = tuple(replace(one, position_uncertainty=math.inf) for one in scene.verdicts)
    return replace(scene, verdicts=verdicts)


def refined_with_strays(
    scene: Scene, material: Material, config: RunConfig, *, track: Track = silent
) -> tuple[Scene, RefineReport]:
    """Return the scene after a bundle adjustment that may also place photos that were left out."""
    placed = {view.name for view in scene.views}
    strays = [
        n
        for n, view in enumerate(material.views)
        if view.name not in placed and not is_blank(view.mask)
    ]
    if not strays or len(strays) > len(placed):
        return refined(scene, material, config, track=track)
    extended = with_strays(
        scene, {n: material.own(n) for n in strays}, material.views, config.align, material.cameras
    )
    better, report = refined(extended, material, config, track=track)
    if not report.improved:
        return refined(scene, material, config, track=track)
    held = placed | set(report.refined)
    better = without_unplaced(
        better,
        len(scene.views),
        report.refined,
        material.views,
        keep_world=bool(posed_names(material) & held),
    )
    adopted = [view.name for view in better.views if view.name not in placed]
    if adopted:
        logger.info("image features placed %s as well", ", ".join(adopted))
    names = {view.name for view in better.views}
    return better, replace(report, refined=tuple(n for n in report.refined if n in names))
