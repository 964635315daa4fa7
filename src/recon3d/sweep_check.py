"""Which swept depths other views confirm.

A depth is believed where the neighbour that it falls on says the same and leads back to the same
pixel.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.geometry import (
    compose,
    invert_rigid,
    pixel_grid,
    project,
    transform_points,
    unproject,
)
from recon3d.sweep import RADIUS, Shot, Swept
from recon3d.views import RIM

_LEAST_SCORE, _LEAST_ALONE = 0.4, 0.7
"""Correlation below which nothing is believed, and below which no neighbour is believed alone."""
_MOST_PIXELS, _MOST_DEPTH = 1.0, 0.02
"""How far from its pixel, and how much in depth, a point may come back from a neighbour."""
_COMPANY = 0.5
"""Share of the 5x5 pixels around that must be believed as well: specks are chance."""


def confirmations(
    shots: Sequence[Shot], swept: Mapping[int, Swept], view: int, neighbours: Sequence[int]
) -> Int64[Tensor, "height width"]:
    """Return how many neighbours confirm each depth of a view."""
    shot, depth = shots[view], swept[view].depth
    points = unproject(depth, shot.intrinsics).reshape(-1, 3)
    start = pixel_grid(*depth.shape, device=depth.device).reshape(-1, 2)
    count = torch.zeros(len(points), dtype=torch.int64, device=depth.device)
    for n in neighbours:
        other, there = shots[n], swept[n].depth
        to_other = compose(invert_rigid(other.cam2world.double()), shot.cam2world.double())
        moved = transform_points(to_other.to(points), points)
        place = project(moved, other.intrinsics)
        height, width = there.shape
        column, row = place[:, 0].floor(), place[:, 1].floor()
        seen = (moved[:, 2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = torch.where(seen, row * width + column, 0.0).long()
        found = there.flatten()[index]
        agrees = seen & ((found / moved[:, 2] - 1).abs() < _MOST_DEPTH)
        back = transform_points(
            invert_rigid(to_other).to(points),
            unproject(there, other.intrinsics).reshape(-1, 3)[index],
        )
        # the nearest pixel was taken: what it leads back to may differ by its rounding
        missed = (project(back, shot.intrinsics) - start).norm(dim=-1)
        count += agrees & (missed < _MOST_PIXELS + _rounding(to_other, shot, other))
    return count.view(depth.shape)


def _rounding(to_other: Tensor, shot: Shot, other: Shot) -> float:
    """Return by how many pixels half a pixel's diagonal of the other view is here, at most."""
    return 0.71 * float(shot.intrinsics[0, 0] / other.intrinsics[0, 0])


def believed(
    swept: Swept, confirmed: Int64[Tensor, "height width"], n_neighbours: int
) -> Bool[Tensor, "height width"]:
    """Return the pixels whose swept depth holds.

    With three neighbours or more, one that stands alone must look very much alike.
    """
    alone = confirmed < 2 if n_neighbours > 2 else torch.zeros_like(confirmed, dtype=torch.bool)
    good = (confirmed >= 1) & (swept.score > torch.where(alone, _LEAST_ALONE, _LEAST_SCORE))
    inside = torch.zeros_like(good)
    margin = RADIUS + math.ceil(RIM * max(good.shape))
    inside[margin:-margin, margin:-margin] = True
    good = good & inside  # windows that reach beyond the photo are compared with nothing
    company = F.avg_pool2d(good[None].float(), 5, 1, 2, count_include_pad=False)[0]
    return good & (company >= _COMPANY)
