"""True size from one known distance (`--scale-from I,J,METRES`); scenes moved and scaled."""

import logging
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.errors import UsageError
from recon3d.geometry import moved_cameras
from recon3d.photo_names import name_lookup
from recon3d.types import LeftOut, Scene

logger = logging.getLogger(__name__)

MIN_DISTANCE = 1e-4
"""Least distance of the two cameras, relative to the depths they see: below, it is all error."""

_MIN_METRES, _MAX_METRES = 1e-9, 1e9


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
    if match is None or not _MIN_METRES < metres < _MAX_METRES:
        raise UsageError(
            f"--scale-from {text!r} is not I,J,METRES. Give two photos by name or index (from 0)"
            " and the distance between their cameras, such as 0,5,2.75."
        )
    return ScaleFrom(first=match[1], second=match[2], metres=metres)


def with_names(wanted: ScaleFrom, names: Sequence[str], left_out: Iterable[LeftOut]) -> ScaleFrom:
    """Return the same distance, both photos called by their names.

    Args:
        wanted: both photos by name, by file name where only one photo has it, or by number.
        names: all photos that were given, in the order in which numbers count them.
        left_out: which of them are not used, and why.

    Raises:
        UsageError: a photo that does not exist or is left out, or twice the same.
    """
    first, second = (
        _name(photo, names, len(names), left_out) for photo in (wanted.first, wanted.second)
    )
    if first == second:
        raise UsageError(f"--scale-from: {first!r} is given twice. Give two different photos.")
    return replace(wanted, first=first, second=second)


def scale_scene(scene: Scene, i: int | str, j: int | str, metres: float) -> Scene:
    """Return the scene in metres, enlarged about its world's origin.

    Args:
        scene: what is to be scaled.
        i: a photo by its name, by its file name where only one photo has it, or by its index among
            the views of the scene.
        j: another photo.
        metres: true distance between the camera centres of both; positive.

    Raises:
        UsageError: a photo that does not exist or is not placed, twice the same, or cameras so
            near to one another that their distance tells nothing.
        ValueError: when the distance is not positive and finite.
    """
    if not 0 < metres < math.inf:
        raise ValueError(f"a distance of {metres} m")
    placed = [view.name for view in scene.views]
    names = [*placed, *(entry.name for entry in scene.left_out)]
    first, second = (
        placed.index(_name(str(photo), names, len(placed), scene.left_out)) for photo in (i, j)
    )
    centres = scene.cam2world[:, :3, 3].double()
    distance = float((centres[first] - centres[second]).norm())
    near = MIN_DISTANCE * max(_typical_depth(scene, n) for n in (first, second))
    if first == second or not distance > near:
        raise UsageError(
            f"--scale-from: the cameras of {scene.views[first].name!r} and"
            f" {scene.views[second].name!r} are in the same place ({distance:.3g} units apart)."
            " Give two photos taken from different places."
        )
    if any(math.isinf(scene.verdicts[n].position_uncertainty) for n in (first, second)):
        raise UsageError(
            "--scale-from: the photos show no parallax, so that nobody knows how far apart their"
            " cameras are. Give two photos taken from different places."
        )
    origin = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    return replace(moved_scene(scene, metres / distance, *origin), metric=True)


def moved_scene(
    scene: Scene, scale: float, rotation: Float64[Tensor, "3 3"], translation: Float64[Tensor, "3"]
) -> Scene:
    """Return the scene after its world went through x -> scale * rotation @ x + translation."""
    cam2world = moved_cameras(scene.cam2world.double().cpu(), scale, rotation, translation)
    return replace(
        scene,
        cam2world=cam2world.to(scene.cam2world),
        depth=tuple(depth * scale for depth in scene.depth),
        verdicts=tuple(
            replace(verdict, position_uncertainty=verdict.position_uncertainty * scale)
            for verdict in scene.verdicts
        ),
    )


def whole_middle(scene: Scene, fixed: Collection[int] = ()) -> Float64[Tensor, "3"]:
    """Return where most cameras are in whole numbers; 0 but for worlds with float64.

    That is the mean of the centres of the `fixed` views, which stay, else the median of all: some
    may have poses in a world that the others will only be brought to. About it products of
    coordinates keep their digits, however far away the origin of a given world is; a whole number
    taken off and added again rounds them in the last digit at most.
    """
    if scene.cam2world.dtype != torch.float64:
        return torch.zeros(3, dtype=torch.float64)
    centres = scene.cam2world[:, :3, 3].double().cpu()
    middle = centres[list(fixed)].mean(0) if fixed else centres.median(0).values
    return middle.round()


def shifted(scene: Scene, by: Float64[Tensor, "3"]) -> Scene:
    """Return the scene after its world went through x -> x + by."""
    cam2world = scene.cam2world.clone()
    cam2world[:, :3, 3] += by.to(cam2world)
    return replace(scene, cam2world=cam2world)


def scale_scenes(
    scenes: tuple[Scene, ...], known: ScaleFrom, *, with_poses: Collection[str] = ()
) -> tuple[Scene, ...]:
    """Return the scenes, that with both photos of the known distance in metres, and say so.

    The poses of the photos `with_poses` were given; that these are scaled with the world is said.
    Where no scene has both, or where their distance tells nothing, scenes stay as they are, with a
    warning: they have taken too much time to be lost.
    """
    ends = {known.first, known.second}
    held = [ends <= {view.name for view in scene.views} for scene in scenes]
    if len(scenes) > 1 and not any(held):
        logger.warning(
            "--scale-from: %s and %s are not in one group, so that no scene is in metres."
            " Give two photos of one group.",
            known.first,
            known.second,
        )
        return scenes
    try:
        scaled = tuple(
            scale_scene(scene, known.first, known.second, known.metres)
            if here or len(scenes) == 1
            else scene
            for scene, here in zip(scenes, held, strict=True)
        )
    except UsageError as error:
        logger.warning("%s No scene is in metres.", error)
        return scenes
    for before, after in zip(scenes, scaled, strict=True):
        if after.metric and len([view for view in after.views if view.name in with_poses]) > 1:
            logger.warning(
                "--scale-from: the poses of --cameras, and all else, were scaled by %.6g",
                _size(after) / _size(before),
            )
    logger.info(
        "in metres: %g m between the cameras of %s and %s",
        known.metres,
        known.first,
        known.second,
    )
    return scaled


def _size(scene: Scene) -> float:
    centres = scene.cam2world[:, :3, 3].double()
    return float((centres - centres[0]).norm(dim=-1).max())


def _name(photo: str, names: Sequence[str], n_numbered: int, left_out: Iterable[LeftOut]) -> str:
    """Return the one photo that is meant, and is used; numbers count the first `n_numbered`."""
    same = name_lookup(names, n_numbered)(photo)
    if len(same) != 1:
        problem = f"{len(same)} photos are called" if same else "there is no photo"
        raise UsageError(
            f"--scale-from: {problem} {photo[:80]!r}. Give the name of a photo, or an index from 0"
            f" to {n_numbered - 1}."
        )
    reasons = {entry.name: entry.reason for entry in left_out}
    if same[0] in reasons:
        raise UsageError(
            f"--scale-from: the photo {same[0]!r} could not be placed: {reasons[same[0]]}."
            " Give another one."
        )
    return same[0]


def _typical_depth(scene: Scene, n: int) -> float:
    known = scene.depth[n][scene.depth[n] > 0]
    return float(known.median()) if len(known) else 0.0
