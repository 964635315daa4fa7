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
    found: dict[int, int] = {}
    for members in _of_one_shape(views):
        order = sorted(members, key=lambda n: -views[n].photo_width * views[n].photo_height)
        small = torch.stack([_small(views[n]) for n in order])
        slope = torch.tensor([_mean_slope(picture) for picture in small])
        flat = small.flatten(1).double()
        apart = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
        limit = _MAX_SHIFT * torch.minimum(slope[:, None], slope)
        same = (apart < limit) & (limit >= _MAX_SHIFT * _MIN_EDGE)
        for n, twins in enumerate(same):
            earlier = [k for k in twins[:n].nonzero().flatten().tolist() if order[k] not in found]
            if earlier:
                found[order[n]] = order[earlier[0]]
    return found


def _of_one_shape(views: Sequence[View]) -> list[list[int]]:
    groups: dict[torch.Size, list[int]] = {}
    for n, view in enumerate(views):
        groups.setdefault(view.image.shape, []).append(n)
    return list(groups.values())


def _small(view: View) -> torch.Tensor:
    return functional.avg_pool2d(view.image.float().mean(0)[None], _SHRINK)[0]


def _mean_slope(picture: torch.Tensor) -> float:
    """Return by how much a picture changes from a pixel to its neighbour, root mean square."""
    slopes = torch.cat([picture.diff(dim=axis).flatten() for axis in (0, 1)])
    return float(slopes.square().mean().sqrt())
