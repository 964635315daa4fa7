"""Matches of what moves with the camera: watermarks, time stamps, a bonnet, a drone's display.

They lie at the same pixel of both photos, agree with one another, and say that the camera stood
still. Of a camera that moves, hardly any point of the world stays at its pixel.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from recon3d.matches import Matches, select
from recon3d.types import View

logger = logging.getLogger(__name__)

_STILL = 1e-3  # of the long edge: as far as features of the same pixel are apart
_RING = 3.0  # times that: what moves a little lies here, eight times as often
_FEWEST = 8  # matches that make an overlay
_ENOUGH = 20  # matches of a pair that is asked whether the camera moved


def without_overlays(found: Sequence[Matches], views: Sequence[View]) -> list[Matches]:
    """Return the matches without those that stay at their pixel, where the camera moved.

    A pair has an overlay if more of its matches stay within a thousandth of the long edge than move
    by up to three. Overlays are dropped where most pairs have more matches that move: photos from a
    tripod keep theirs.
    """
    still = [_still(one, views) for one in found]
    asked = [mask for mask in still if len(mask) >= _ENOUGH]
    n_moved = sum(2 * int(mask.sum()) <= len(mask) for mask in asked)
    n_pairs = sum(bool(mask.any()) for mask in still)
    if not n_pairs or 2 * n_moved <= len(asked):
        return list(found)
    logger.info("what stays at its pixel in %d pairs of photos is no part of the scene", n_pairs)
    return [
        select(one, (~mask).nonzero().flatten()) for one, mask in zip(found, still, strict=True)
    ]


def _still(one: Matches, views: Sequence[View]) -> Bool[Tensor, " match"]:
    """Say which matches belong to an overlay; none where photos differ in size."""
    first, second = views[one.i], views[one.j]
    size = first.photo_width, first.photo_height
    if size != (second.photo_width, second.photo_height):
        return torch.zeros(len(one.confidence), dtype=torch.bool)
    moved = (_in_photo(one.pixels_j, second) - _in_photo(one.pixels_i, first)).norm(dim=-1)
    still = moved < _STILL * max(size)
    n_still, n_near = int(still.sum()), int((moved < _RING * _STILL * max(size)).sum())
    return still if n_still >= max(_FEWEST, n_near - n_still + 1) else torch.zeros_like(still)


def _in_photo(pixels: Tensor, view: View) -> Float64[Tensor, "pixel 2"]:
    view2photo = torch.from_numpy(np.linalg.inv(view.photo2view.double().numpy(force=True)))
    return pixels.double().cpu() @ view2photo[:2, :2].mT + view2photo[:2, 2]
