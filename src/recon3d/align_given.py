"""Given poses in the alignment: which views they hold, and the start in the world they define."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.align_init import rotation_of, similarity_scale
from recon3d.align_samples import TINY, Cameras
from recon3d.align_solve import Anchors
from recon3d.config import AlignConfig, CamerasAre
from recon3d.geometry import compose, similarity, umeyama
from recon3d.known_cameras import poses_of
from recon3d.scale import moved_scene
from recon3d.types import Scene

_PRIOR_ROTATION_RAD = math.radians(1.0)
_PRIOR_CENTRE = 0.01
"""Standard deviations of a prior pose; the centre's is relative to how far the centres spread."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where the joint solve starts, what holds it, and how its world maps to the final one.

    Where poses were given, final = pivot + unit * world, with `unit` None if their centres do not
    tell the scale; without any, `pivot` is None as well.
    """

    unit2world: Float64[Tensor, "view 4 4"]
    anchors: Anchors
    pivot: Float64[Tensor, "3"] | None
    unit: float | None


def start(
    unit2world: Float64[Tensor, "view 4 4"],
    members: Sequence[int],
    root: int,
    cameras: Cameras,
    config: AlignConfig,
) -> Start:
    """Return the spanning tree's placement, moved into the world of the given poses if any.

    One pose gives the world but no scale; two or more whose centres differ give everything. Fixed
    poses are taken exactly; priors pull with a standard deviation of 1 degree and of 1 % of how far
    the given centres spread, each worth as much as one pair.
    """
    no = torch.zeros(len(unit2world), dtype=torch.bool, device=unit2world.device)
    poses = poses_of(cameras, members)
    if not poses:
        locked = no.clone()
        locked[root] = True
        anchors = Anchors(locked=locked, fixed=no, prior=no, cam2world=unit2world)
        return Start(unit2world=unit2world, anchors=anchors, pivot=None, unit=None)
    known = sorted(poses)
    given, pivot, spread = _centred(torch.stack([poses[n].to(unit2world) for n in known]))
    sized = spread is not None
    unit2world = compose(_world2given(unit2world[known], given, sized), unit2world)
    target = torch.zeros_like(unit2world)
    target[known] = given
    locked, held = no.clone(), no.clone()
    if sized:
        held[known] = True
    else:
        locked[known[0]] = True
        held[known[1:]] = True
    is_exact = config.cameras_are is CamerasAre.FIXED
    exact = known if is_exact else known[:1] if not sized else []
    unit2world[exact] = similarity(
        similarity_scale(unit2world[exact]), target[exact, :3, :3], target[exact, :3, 3]
    )
    anchors = Anchors(
        locked=locked,
        fixed=held if is_exact else no,
        prior=no if is_exact else held,
        cam2world=target,
        rotation_sigma_rad=_PRIOR_ROTATION_RAD,
        centre_sigma=_PRIOR_CENTRE,
        strength=float(config.samples_per_edge),
    )
    return Start(unit2world=unit2world, anchors=anchors, pivot=pivot, unit=spread)


def brought_to(scene: Scene, given: Float64[Tensor, "known 4 4"], known: Sequence[int]) -> Scene:
    """Return the scene as a whole where its views `known` are nearest to their given poses.

    One pose, or several in one place, give the world but no scale.
    """
    unit, pivot, spread = _centred(given.clone())
    old = scene.cam2world[list(known)].double().cpu()
    small = _world2given(old, unit, spread is not None)
    length = 1.0 if spread is None else spread
    growth, turn = length * float(similarity_scale(small)), rotation_of(small)
    return moved_scene(scene, growth, turn, length * small[:3, 3] + pivot)


def _centred(
    given: Float64[Tensor, "known 4 4"],
) -> tuple[Float64[Tensor, "known 4 4"], Float64[Tensor, "3"], float | None]:
    """Return poses about the mean of their centres, that mean, and how far they spread from it.

    The poses are changed in place. They spread by 1 then; where all centres are one, the spread is
    None and they keep their size.
    """
    pivot = given[:, :3, 3].mean(0)
    given[:, :3, 3] -= pivot  # near the origin, where turning about it does little harm
    spread = float(given[:, :3, 3].norm(dim=-1).mean())
    if spread <= 1e-9 * (1 + float(pivot.norm())):
        return given, pivot, None
    given[:, :3, 3] /= spread
    return given, pivot, spread


def _world2given(
    unit2world: Float64[Tensor, "known 4 4"], given: Float64[Tensor, "known 4 4"], sized: bool
) -> Float64[Tensor, "4 4"]:
    """Return the similarity that brings placed views to their given poses, which spread by 1.

    Fitted to centres and to points ahead on the three axes, so that centres on a line do no harm;
    where the centres do not spread, the scale stays.
    """
    rotation, centre = rotation_of(unit2world), unit2world[:, :3, 3]
    ours = float((centre - centre.mean(0)).norm(dim=-1).mean())
    scale = 1 / ours if sized and ours > TINY else 1.0
    here = torch.cat((centre, *(centre + rotation[:, :, k] / scale for k in range(3))))
    there = torch.cat((given[:, :3, 3], *(given[:, :3, 3] + given[:, :3, k] for k in range(3))))
    fitted, turn, shift = umeyama(here, there, torch.ones_like(here[:, 0]))
    if not sized:
        fitted, shift = torch.ones_like(fitted), there.mean(0) - turn @ here.mean(0)
    return similarity(fitted, turn, shift)
