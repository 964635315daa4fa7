"""Views that see too few known points, placed by their relative poses to two placed views or more.

Placing by points takes pixels that three views share. Where only pairs of views have pixels in
common, as in a ring of photos far apart, each pair still tells how a view is turned and in which
direction it lies from its partner; where two such directions cross, there it stands.

Source: Govindu, Combining two-view constraints for motion estimation, CVPR 2001.
"""

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from recon3d.bundle_solve import Problem, Rig, seen_by_both
from recon3d.essential import essential_pose
from recon3d.geometry import rotation_angle
from recon3d.tracks import Tracks

logger = logging.getLogger(__name__)

_LEAST_SHARED = 15  # tracks of a pair that tell its relative pose
_SAME_TURN = math.radians(10.0)  # within which partners agree on how the view is turned ...
_SAME_PLACE = math.radians(15.0)  # ... and on where it stands, as seen by each
_LEAST_CROSSING = math.radians(5.0)  # angle at which directions cross


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Word:
    """What one placed partner says of a view: its rotation, and its direction from `centre`."""

    rotation: Float64[Tensor, "3 3"]
    centre: Float64[Tensor, "3"]
    direction: Float64[Tensor, "3"]


class _Place(NamedTuple):
    """A camera, and how many partners agree on it."""

    cam2world: Float64[Tensor, "4 4"]
    n_agreeing: int


def join_views(
    problem: Problem,
    rig: Rig,
    placed: Bool[Tensor, " view"],
    tracks: Tracks,
    pairs: Collection[tuple[int, int]],
) -> tuple[Rig, Bool[Tensor, " view"]]:
    """Return the cameras with all views placed that can be, the best supported first.

    Args:
        problem: what stays; views whose place is fixed are not moved.
        rig: cameras; those of views not `placed` mean nothing, but for constant focal lengths.
        placed: whose cameras are right.
        tracks: of all views.
        pairs: of views that matched.
    """
    cam2world, focal, placed = rig.cam2world.clone(), rig.focal.clone(), placed.clone()
    for n in (~placed & ~problem.constant_focal).nonzero().flatten().tolist():
        known = placed & (problem.lens == problem.lens[n])
        if bool(known.any()):
            focal[n] = focal[known].median()
    relative: dict[tuple[int, int], Float64[np.ndarray, "4 4"] | None] = {}
    while True:
        found: dict[int, _Place] = {}
        for n in (~placed & ~problem.constant_pose).nonzero().flatten().tolist():
            words = []
            for i, j in pairs:
                other = {i: j, j: i}.get(n)
                if other is None or not placed[other]:
                    continue
                if (other, n) not in relative:
                    relative[other, n] = _relative(problem, tracks, focal, other, n)
                pose = relative[other, n]
                if pose is not None:
                    turn = cam2world[other, :3, :3]
                    here = torch.from_numpy(pose)
                    words.append(
                        _Word(
                            rotation=turn @ here[:3, :3],
                            centre=cam2world[other, :3, 3],
                            direction=turn @ here[:3, 3],
                        )
                    )
            place = _meeting(words)
            if place is not None:
                found[n] = place
        if not found:
            return Rig(cam2world=cam2world, focal=focal), placed
        best = max(found, key=lambda n: found[n].n_agreeing)
        cam2world[best], placed[best] = found[best].cam2world, True
        logger.info("relative poses to %d photos place one more", found[best].n_agreeing)


def _relative(
    problem: Problem, tracks: Tracks, focal: Float64[Tensor, " view"], i: int, j: int
) -> Float64[np.ndarray, "4 4"] | None:
    """Return cam_j2cam_i with a translation of length 1, None where too little tells it."""
    pixels_i, pixels_j = seen_by_both(problem, tracks, i, j)
    if len(pixels_i) < _LEAST_SHARED:
        return None
    lenses = [np.diag([f, f, 1.0]) for f in focal[[i, j]].tolist()]
    return essential_pose(pixels_i, pixels_j, *lenses)


def _meeting(words: list[_Word]) -> _Place | None:
    """Return the camera on which the most partners agree, None where not even two do."""
    if len(words) < 2:
        return None
    rotations = torch.stack([word.rotation for word in words])
    apart = rotation_angle(rotations[:, None].mT @ rotations[None])
    middle = int((apart < _SAME_TURN).sum(1).argmax())
    kept = (apart[middle] < _SAME_TURN).nonzero().flatten().tolist()
    while len(kept) >= 2:
        direction = torch.stack([words[k].direction for k in kept])
        centre = torch.stack([words[k].centre for k in kept])
        across = torch.eye(3).double() - direction[:, :, None] * direction[:, None, :]
        normal = across.sum(0)
        if float(torch.linalg.eigvalsh(normal)[0]) < 1 - math.cos(_LEAST_CROSSING):
            return None
        place = torch.linalg.solve(normal, (across @ centre[..., None]).sum(0))[:, 0]
        towards = torch.nn.functional.normalize(place - centre, dim=-1)
        off = (towards * direction).sum(-1).clamp(-1, 1).arccos()
        if float(off.max()) < _SAME_PLACE:
            u, _, vh = torch.linalg.svd(rotations[kept].sum(0))
            flip = torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vh))]).double()
            cam2world = torch.eye(4, dtype=torch.float64)
            cam2world[:3, :3], cam2world[:3, 3] = u @ torch.diag(flip) @ vh, place
            return _Place(cam2world, len(kept))
        del kept[int(off.argmax())]
    return None
