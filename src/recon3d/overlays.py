"""Matches of what moves with the camera: watermarks, time stamps, a bonnet, a drone's display.

They lie at the same pixel of both photos, agree with one another, and say that the camera stood
still. Of a camera that moves, hardly any point of the world stays at its pixel.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from recon3d.matches import Matches
from recon3d.types import View
from recon3d.views import in_photo

_STILL = 1e-3  # of the long edge: as far as features of the same pixel are apart
_RING = 3.0  # times that: what moves a little lies here, eight times as often
_FEWEST = 8  # matches that make an overlay
_SPREAD = 0.12  # of the size of the photo, as a standard deviation; 0.29 is all over it


def overlay_matches(one: Matches, views: Sequence[View]) -> Bool[Tensor, " match"]:
    """Say which matches stay at their pixel; none where photos differ in size.

    None either where they are no more than move by up to three times as far, as points of the world
    do that are far away.
    """
    first, second = views[one.i], views[one.j]
    size = first.photo_width, first.photo_height
    if size != (second.photo_width, second.photo_height):
        return torch.zeros(len(one.confidence), dtype=torch.bool)
    shift = in_photo(one.pixels_j, second) - in_photo(one.pixels_i, first)
    moved = torch.from_numpy(np.linalg.norm(shift, axis=1))
    still = moved < _STILL * max(size)
    n_still, n_near = int(still.sum()), int((moved < _RING * _STILL * max(size)).sum())
    return still if n_still >= max(_FEWEST, n_near - n_still + 1) else torch.zeros_like(still)


def is_spread(one: Matches, views: Sequence[View]) -> bool:
    """Say whether matches lie all over the first photo, unlike those of one thing that moves."""
    if len(one.confidence) < 2:
        return False
    view = views[one.i]
    deviation = in_photo(one.pixels_i, view).std(axis=0, ddof=1)
    area = view.photo_width * view.photo_height
    return float(np.sqrt(deviation.prod() / area)) > _SPREAD
