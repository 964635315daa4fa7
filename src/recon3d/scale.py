"""True size from one known distance: `--scale-from I,J,METRES`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from recon3d.errors import UsageError
from recon3d.types import Scene

MIN_DISTANCE = 1e-4
"""Least distance of the two cameras, relative to the depths they see: below, it is all error."""

_MAX_METRES = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleFrom:
    """The distance in metres between the camera centres of two photos, by name or index."""

    first: str
    second: str
    metres: float


def parse_scale_from(text: str) -> ScaleFrom:
    """Return the parts of "I,J,METRES".

    Raises:
        UsageError: when it has other than three parts, or the distance is no positive number.
    """
    match = re.fullmatch(r"\s*([^,]+?)\s*,\s*([^,]+?)\s*,\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*", text)
    try:
        metres = float(match[3]) if match is not None else 0.0
    except ValueError:  # 1.2.3
        metres = 0.0
    if match is None or not 0 < metres < _MAX_METRES:
        raise UsageError(
            f"--scale-from {text!r} is not I,J,METRES. Give two photos by name or index (from 0)"
            " and the distance between their cameras, such as 0,5,2.75."
        )
    return ScaleFrom(first=match[1], second=match[2], metres=metres)


def scale_scene(
    scene: Scene, i: int | str, j: int | str, metres: float, names: Sequence[str] | None = None
) -> Scene:
    """Return the scene in metres, enlarged about its world's origin.

    Args:
        scene: what is to be scaled.
        i: a photo by its name, by its file name where only one photo has it, or by its index.
        j: another photo.
        metres: true distance between the camera centres of both; positive.
        names: what indices count: all photos in order; None counts the placed views.

    Raises:
        UsageError: a photo that does not exist or is not placed, twice the same, or cameras so
            near to one another that their distance tells nothing.
        ValueError: when the distance is not positive and finite.
    """
    if not 0 < metres < math.inf:
        raise ValueError(f"a distance of {metres} m")
    first, second = (_view(scene, str(photo), names) for photo in (i, j))
    centres = scene.cam2world[:, :3, 3].double()
    distance = float((centres[first] - centres[second]).norm())
    near = MIN_DISTANCE * max(_typical_depth(scene, n) for n in (first, second))
    if first == second or not distance > near:
        raise UsageError(
            f"--scale-from: the cameras of {scene.views[first].name!r} and"
            f" {scene.views[second].name!r} are in the same place ({distance:.3g} units apart)."
            " Give two photos taken from different places."
        )
    factor = metres / distance
    cam2world = scene.cam2world.clone()
    cam2world[:, :3, 3] = (centres * factor).to(cam2world)
    return replace(
        scene,
        cam2world=cam2world,
        depth=tuple(depth * factor for depth in scene.depth),
        verdicts=tuple(
            replace(verdict, position_uncertainty=verdict.position_uncertainty * factor)
            for verdict in scene.verdicts
        ),
        metric=True,
    )


def _view(scene: Scene, photo: str, names: Sequence[str] | None) -> int:
    """Return the index of the placed view that `photo` names; a name comes before an index."""
    placed = [view.name for view in scene.views]
    reasons = {entry.name: entry.reason for entry in scene.left_out}
    everything = [*placed, *reasons]
    counted = placed if names is None else names
    same = [name for name in everything if name == photo]
    same = same or [name for name in everything if PurePosixPath(name).name == photo]
    if not same and re.fullmatch(r"[0-9]{1,9}", photo) and int(photo) < len(counted):
        same = [counted[int(photo)]]
    if len(same) != 1:
        problem = f"{len(same)} photos are called" if same else "there is no photo"
        raise UsageError(
            f"--scale-from: {problem} {photo[:80]!r}. Give the name of a photo, or an index from 0"
            f" to {len(counted) - 1}."
        )
    if same[0] not in placed:
        reason = reasons.get(same[0], "it is not part of the scene")
        raise UsageError(
            f"--scale-from: the photo {same[0]!r} could not be placed: {reason}. Give another one."
        )
    return placed.index(same[0])


def _typical_depth(scene: Scene, n: int) -> float:
    known = scene.depth[n][scene.depth[n] > 0]
    return float(known.median()) if len(known) else 0.0
