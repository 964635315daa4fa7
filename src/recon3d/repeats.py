"""Which photos show the same picture: copies that were saved anew, resized, or taken at rest."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from recon3d.types import View

_SHRINK = 4  # of views, so that what compression did to single pixels is gone
_MAX_SHIFT = 0.15  # pixels of the small picture, a few thousandths of the photo
_MIN_EDGE = 0.02  # mean slope per pixel, of -1 to 1: a blank picture is like any other


def find_repeats(views: Sequence[View]) -> dict[int, int]:
    """Return, for every photo that shows the same picture as a larger or earlier one, which one.

    Two pictures are the same if they differ by less than if one were moved by some thousandths of
    its width. What is kept repeats no other.
    """
    order = sorted(range(len(views)), key=lambda n: -views[n].photo_width * views[n].photo_height)
    kept: list[int] = []
    found: dict[int, int] = {}
    small = [functional.avg_pool2d(view.image.float().mean(0)[None], _SHRINK)[0] for view in views]
    edge = [_mean_slope(picture) for picture in small]
    for n in order:
        for other in kept:
            limit = _MAX_SHIFT * min(edge[n], edge[other])
            if small[n].shape != small[other].shape or limit < _MAX_SHIFT * _MIN_EDGE:
                continue
            if float((small[n] - small[other]).square().mean().sqrt()) < limit:
                found[n] = other
                break
        else:
            kept.append(n)
    return found


def _mean_slope(picture: torch.Tensor) -> float:
    """Return by how much a picture changes from a pixel to its neighbour, root mean square."""
    slopes = torch.cat([picture.diff(dim=axis).flatten() for axis in (0, 1)])
    return float(slopes.square().mean().sqrt())
