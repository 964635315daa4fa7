"""Adjusted cameras -> the scene: in its old world, with depth that meets the tracks."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from recon3d.bundle_solve import UNIT, Problem, Rig, depth_in_camera, fit_tracks, well_seen
from recon3d.depth_warp import MIN_POINTS, bend_depth
from recon3d.geometry import moved_cameras, rotation_angle, umeyama
from recon3d.tracks import Tracks, views_seeing
from recon3d.types import Scene, Verdict


def rebuilt_scene(
    scene: Scene,
    problem: Problem,
    rig: Rig,
    tracks: Tracks,
    firm: Bool[Tensor, " view"],
    doubt: Float64[Tensor, "view 2"],
) -> tuple[Scene, float]:
    """Return the scene with the cameras of `rig`, and depth maps bent to the points of tracks.

    Also returned is how far the depth maps still are from points that their bending (`bend_depth`)
    has not seen: the median over the views of the median relative difference. `doubt` is the
    uncertainty of each camera of `rig` (rotation in degrees, centre), for the verdicts. Those of
    views that are not `firm`, which no tracks hold or only those shared with a single other view,
    say no less than how far off the others were.

    The first fixed view, else the first view, keeps its camera's place and the scale of its depth;
    two fixed views or more keep their places alone. Views without tracks keep their place among the
    others.
    """
    held = views_seeing(tracks, len(scene.views))
    growth, common = _depth_growth(scene, problem, rig, tracks)
    old, new = scene.cam2world.double().cpu(), rig.cam2world
    fixed = problem.constant_pose.nonzero().flatten().tolist()
    pinned = [n for n in fixed if held[n]]
    if len(pinned) < 2:
        # the views that tracks hold go back to where they were, as one; the others never left
        turn = torch.eye(3, dtype=torch.float64)
        if not pinned:
            ends = _ends(new[held], common)
            weights = torch.ones(len(ends), dtype=torch.float64)
            _, turn, _ = umeyama(ends, _ends(old[held], 1.0), weights)
        near = pinned or held.nonzero().flatten().tolist()
        shift = (old[near, :3, 3] - new[near, :3, 3] @ turn.mT / common).mean(0)
        new = torch.where(held[:, None, None], moved_cameras(new, 1 / common, turn, shift), old)
        growth = torch.where(held, growth / common, growth)
    if len(fixed) < 2:
        # then all of them together, so that one camera and its depth stay exactly as they were
        anchor = fixed[0] if fixed else 0
        scale = float(1 / growth[anchor])
        turn = old[anchor, :3, :3] @ new[anchor, :3, :3].mT
        shift = old[anchor, :3, 3] - scale * turn @ new[anchor, :3, 3]
        new, growth = moved_cameras(new, scale, turn, shift), growth * scale
        new[anchor] = old[anchor]
    intrinsics = scene.intrinsics.double().cpu().clone()
    intrinsics[held, 0, 0] = (rig.focal / problem.unit[:, 0])[held]
    intrinsics[held, 1, 1] = (rig.focal / problem.unit[:, 1])[held]
    intrinsics[held, :2, 2] = problem.centre[held]
    depth, depth_error = _bent_depth(
        [depth * float(factor) for depth, factor in zip(scene.depth, growth, strict=True)],
        problem,
        Rig(cam2world=new, focal=rig.focal),
        tracks,
    )
    better = replace(
        scene,
        cam2world=new.to(scene.cam2world),
        intrinsics=intrinsics.to(scene.intrinsics),
        depth=depth,
        verdicts=_verdicts(scene, problem, (rig.cam2world, new), firm, doubt),
    )
    return better, depth_error


def _bent_depth(
    depth: Sequence[Float[Tensor, "_ _"]], problem: Problem, rig: Rig, tracks: Tracks
) -> tuple[tuple[Float[Tensor, "_ _"], ...], float]:
    """Return depth maps bent to the points of tracks, and the median relative error left there."""
    fit = fit_tracks(problem, rig, tracks)
    z = depth_in_camera(fit.points, rig, tracks)[:, 2]
    good = well_seen(rig, tracks, fit, problem.config.max_error * UNIT)
    bent, errors = list(depth), []
    for n, own in enumerate(depth):
        mine = good & (tracks.view == n)
        warp = bend_depth(own, tracks.pixels[mine], z[mine])
        if warp is not None:
            bent[n] = warp.depth
            errors.append(warp.error)
    middle = sorted(errors)[len(errors) // 2] if errors else math.nan
    return tuple(bent), middle


def _verdicts(
    scene: Scene,
    problem: Problem,
    rig_and_new: tuple[Float64[Tensor, "view 4 4"], Float64[Tensor, "view 4 4"]],
    held: Bool[Tensor, " view"],
    doubt: Float64[Tensor, "view 2"],
) -> tuple[Verdict, ...]:
    """Return the verdicts with the uncertainty of the cameras that tracks hold.

    The others are at least as uncertain as the held ones turned out to have been wrong, but for
    those whose place is fixed.
    """
    (rig, new), old = (some[held] for some in rig_and_new), scene.cam2world[held].double().cpu()
    spread = (float((some[:, :3, 3] - some[:, :3, 3].mean(0)).norm()) for some in (rig, new))
    growth = 1 / next(spread) * next(spread)
    length = float((new[:, :3, 3] - new[:, :3, 3].mean(0)).norm(dim=-1).mean())
    ends = _ends(old, length), _ends(new, length)
    scale, turn, shift = umeyama(*ends, torch.ones(len(ends[0]), dtype=torch.float64))
    moved = moved_cameras(old, float(scale), turn, shift)
    angle = rotation_angle(moved[:, :3, :3].mT @ new[:, :3, :3])
    wrong_deg = math.degrees(float(angle.square().mean().sqrt()))
    wrong = float((moved[:, :3, 3] - new[:, :3, 3]).square().sum(-1).mean().sqrt())
    verdicts = []
    for n, verdict in enumerate(scene.verdicts):
        rotation_deg, position = verdict.rotation_uncertainty_deg, verdict.position_uncertainty
        if held[n]:
            rotation_deg, position = float(doubt[n, 0]), growth * float(doubt[n, 1])
        elif not problem.constant_pose[n]:
            rotation_deg = max(wrong_deg, rotation_deg)  # in this order, where one is nan the other
            position = max(wrong, position)
        verdicts.append(
            replace(verdict, rotation_uncertainty_deg=rotation_deg, position_uncertainty=position)
        )
    return tuple(verdicts)


def _depth_growth(
    scene: Scene, problem: Problem, rig: Rig, tracks: Tracks
) -> tuple[Float64[Tensor, " view"], float]:
    """Return by which factor each view's depth grows to meet the tracks, and that of all together.

    Views without enough tracks grow like all together, views without any not at all.
    """
    fit = fit_tracks(problem, rig, tracks)
    z = depth_in_camera(fit.points, rig, tracks)[:, 2]
    good = well_seen(rig, tracks, fit, problem.config.max_error * UNIT)
    column, row = tracks.pixels.floor().long().T
    known = torch.zeros(len(z), dtype=torch.float64)
    for n, depth in enumerate(scene.depth):
        mine = tracks.view == n
        height, width = depth.shape
        inside = row[mine].clamp(0, height - 1), column[mine].clamp(0, width - 1)
        known[mine] = depth.double().cpu()[inside]
    good &= (known > 0) & (z > 0)
    ratio = (z[good] / known[good]).log()
    common = float(ratio.median().exp()) if len(ratio) else 1.0
    growth = torch.ones(len(scene.views), dtype=torch.float64)
    for n in set(tracks.view.tolist()):
        mine = ratio[tracks.view[good] == n]
        growth[n] = mine.median().exp() if len(mine) >= MIN_POINTS else common
    return growth, common


def _ends(cam2world: Float64[Tensor, "view 4 4"], length: float) -> Float64[Tensor, "point 3"]:
    """Return the camera centres and the ends of their axes."""
    centre, axes = cam2world[:, :3, 3], cam2world[:, :3, :3].mT
    return torch.cat((centre, (centre[:, None] + length * axes).flatten(0, 1)))
