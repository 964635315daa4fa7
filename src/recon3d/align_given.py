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
from recon3d.geometry import compose, rotation_angle, similarity, transform_points, umeyama
from recon3d.known_cameras import poses_of
from recon3d.scale import moved_scene
from recon3d.types import Scene

_PRIOR_ROTATION_RAD = math.radians(1.0)
_PRIOR_CENTRE = 0.01
"""Standard deviations of a prior pose; the centre's is relative to how far the centres spread."""
_FAR_DEG, _FAR_SHARE = 15.0, 0.3
_AGREES = 0.03  # of the spread of given centres, or radians: how exact poses may be expected to be
_ROUNDS = 30
_MOST_STEPS, _MOST_TRIED = 64, 512


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


def far_priors(
    scene: Scene, given: Float64[Tensor, "known 4 4"], known: Sequence[int]
) -> list[tuple[int, float, float]]:
    """Return the views `known` that are far from their given poses: degrees, and world units.

    Far is more than 15 degrees, or 30 % of how far the given centres spread.
    """
    found = scene.cam2world[list(known)].double().cpu()
    turned_deg = torch.rad2deg(rotation_angle(found[:, :3, :3].mT @ given[:, :3, :3]))
    moved = (found[:, :3, 3] - given[:, :3, 3]).norm(dim=-1)
    _, _, spread = _centred(given.clone())
    far = (turned_deg > _FAR_DEG) | (moved > (math.inf if spread is None else _FAR_SHARE * spread))
    return [
        (known[k], float(turned_deg[k]), float(moved[k])) for k in far.nonzero().flatten().tolist()
    ]


def _centred(
    given: Float64[Tensor, "known 4 4"],
) -> tuple[Float64[Tensor, "known 4 4"], Float64[Tensor, "3"], float | None]:
    """Return poses about the median of their centres, that median, and how far they are from it.

    The poses are changed in place. They spread by 1 then, as a median, so that a wrong pose does
    not count; where all centres are one, the spread is None and they keep their size.
    """
    pivot = given[:, :3, 3].quantile(0.5, dim=0)
    given[:, :3, 3] -= pivot  # near the origin, where turning about it does little harm
    distance = given[:, :3, 3].norm(dim=-1)
    distance = distance[distance > 1e-9 * (1 + float(pivot.norm()))]
    if not len(distance):
        return given, pivot, None
    spread = float(distance.median())
    given[:, :3, 3] /= spread
    return given, pivot, spread


def _world2given(
    unit2world: Float64[Tensor, "known 4 4"], given: Float64[Tensor, "known 4 4"], sized: bool
) -> Float64[Tensor, "4 4"]:
    """Return the similarity that brings placed views to their given poses, which spread by 1.

    Fitted to centres and to points ahead on the three axes, so that centres on a line do no harm;
    where the centres do not spread, the scale stays. It starts from the two views that most others
    agree with, and weighs by Cauchy's loss at twice the median error, so that wrong poses, as long
    as they are the fewer, do not move the others.
    """
    rotation, centre = rotation_of(unit2world), unit2world[:, :3, 3]
    best = _agreed(unit2world, given, sized)
    scale = float(similarity_scale(best))
    here = torch.cat((centre, *(centre + rotation[:, :, k] / scale for k in range(3))))
    there = torch.cat((given[:, :3, 3], *(given[:, :3, 3] + given[:, :3, k] for k in range(3))))
    for _ in range(_ROUNDS):
        off = (transform_points(best, here) - there).norm(dim=-1).view(4, -1).mean(0)
        share = (1 / (off.square() + 4 * off.median().square() + 1e-18)).repeat(4)
        fitted, turn, shift = umeyama(here, there, share)
        if not sized:
            fitted = torch.ones_like(fitted)
            shift = (share[:, None] * (there - here @ turn.mT)).sum(0) / share.sum()
        best = similarity(fitted, turn, shift)
    return best


def _agreed(
    unit2world: Float64[Tensor, "known 4 4"], given: Float64[Tensor, "known 4 4"], sized: bool
) -> Float64[Tensor, "4 4"]:
    """Return the similarity by which two of the views, or one, fit that fits most of all best.

    Of many views not all pairs are tried.
    """
    n = len(given)
    steps = torch.linspace(1, n - 1, min(n - 1, _MOST_STEPS)).long() if sized else torch.zeros(1)
    first = torch.arange(n).repeat(len(steps))
    second = (first + steps.long().repeat_interleave(n)) % n
    some = slice(None, None, -(-len(first) // _MOST_TRIED))
    first, second = first[some], second[some]
    rotation, centre = rotation_of(unit2world), unit2world[:, :3, 3]
    scale = torch.ones_like(centre[first, 0])
    if sized:
        ours, wanted = ((p[first] - p[second]).norm(dim=-1) for p in (centre, given[:, :3, 3]))
        scale = torch.where((ours > TINY) & (wanted > TINY), wanted / ours.clamp_min(TINY), scale)
    turn = given[first, :3, :3] @ rotation[first].mT
    shift = given[first, :3, 3] - scale[:, None] * (turn @ centre[first, :, None]).squeeze(-1)
    tried = similarity(scale, turn, shift)
    seen = slice(None, None, -(-n // _MOST_TRIED))
    moved = transform_points(tried, centre[seen].expand(len(tried), -1, -1))
    off = (moved - given[seen, :3, 3]).square().sum(-1)
    turned = turn[:, None] @ rotation[seen] - given[seen, :3, :3]
    off = off + turned.square().sum((-2, -1))
    return tried[int(torch.log1p(off / _AGREES**2).sum(-1).argmin())]
