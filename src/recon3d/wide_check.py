"""Matches of photos from far apart, held against the other pairs: false geometry is not random.

Rows of equal windows or columns match in large numbers one row further on, with an epipolar
geometry that chance does not explain. Triangles of photos tell: their rotations must cancel.

Source: Zach et al., Disambiguating visual relations using loop constraints, CVPR 2010.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from recon3d.cycles import CYCLE_LIMIT_RAD
from recon3d.essential import essential_pose
from recon3d.geometry import rotation_angle
from recon3d.matches import Matches
from recon3d.types import Scene, View

logger = logging.getLogger(__name__)

UNIT = 1000.0
"""Long edge of every view where matches are judged."""


def without_contradicted(
    wide: Sequence[Matches], plain: Sequence[Matches], scene: Scene
) -> list[Matches]:
    """Return those of the `wide` pairs that close a triangle, or are part of none.

    Args:
        wide: to be tested, one `Matches` per pair.
        plain: other pairs, of features that both photos show alike.
        scene: whose views they are between; of its cameras only the intrinsics are used.
    """
    rotation: dict[tuple[int, int], Float[Tensor, "3 3"]] = {}
    for one in (*plain, *wide):
        found = _rotation_j2i(one, scene)
        if found is not None:
            rotation[one.i, one.j], rotation[one.j, one.i] = found, found.mT
    kept = [one for one in wide if _holds(one.i, one.j, rotation, len(scene.views))]
    if len(kept) < len(wide):
        logger.info("%d of these pairs contradict others", len(wide) - len(kept))
    return kept


def _holds(
    i: int, j: int, rotation: dict[tuple[int, int], Float[Tensor, "3 3"]], n_views: int
) -> bool:
    """Say whether some triangle with the pair closes, or there is none to test it by."""
    if (i, j) not in rotation:
        return False
    around = [
        float(rotation_angle(rotation[i, j] @ rotation[j, k] @ rotation[k, i]))
        for k in range(n_views)
        if (j, k) in rotation and (k, i) in rotation
    ]
    return not around or min(around) < CYCLE_LIMIT_RAD


def in_thousandths(
    view: View, pixels: Float[Tensor, "match 2"], intrinsics: Float[Tensor, "3 3"]
) -> tuple[Float64[np.ndarray, "match 2"], float]:
    """Return pixels of a view in thousandths of its long edge, from its principal point.

    Also the focal length in that unit, the mean of both axes; pixels are as if it were that of
    both.
    """
    unit = UNIT / max(view.image.shape[-2:])
    focal_xy = intrinsics.diagonal()[:2].double()
    focal = float(focal_xy.mean())
    from_centre = (pixels.double() - intrinsics[:2, 2].double()) * (unit * focal / focal_xy)
    return from_centre.numpy(force=True), focal * unit


def _rotation_j2i(one: Matches, scene: Scene) -> Float[Tensor, "3 3"] | None:
    sides = [
        in_thousandths(scene.views[n], pixels, scene.intrinsics[n])
        for n, pixels in ((one.i, one.pixels_i), (one.j, one.pixels_j))
    ]
    pixels_i, pixels_j = (pixels for pixels, _ in sides)
    pose = essential_pose(pixels_i, pixels_j, *(np.diag((f, f, 1.0)) for _, f in sides))
    return None if pose is None else torch.from_numpy(pose[:3, :3])
