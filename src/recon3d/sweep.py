"""Depth of one view from the photos of its neighbours, cameras known: a plane sweep.

Planes of equal depth carry every neighbour into the view (Collins, CVPR 1996); windows are compared
by normalised cross-correlation, which exposure and contrast do not change; of several neighbours
the better half counts, so that one where the place is hidden does no harm. The cost is then made
smooth along image rows and columns (Hirschmueller, PAMI 2008), and the best plane refined by a
parabola.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from recon3d.geometry import compose, invert_rigid, pixel_grid

Picture = Shaped[np.ndarray, "_ _"]

RADIUS = 3
"""Half the side of the compared windows, in pixels."""
_LEAST_CONTRAST = 1 / 256
"""Standard deviation of grey (0 to 1) below which a window counts as having no texture: one step of
a photo's grey."""
_FEWEST_PLANES, _MOST_PLANES = 24, 96
_SMALL_STEP, _LARGE_STEP = 0.03, 0.25
"""Cost of a change by one plane, and of any larger one, between neighbouring pixels."""
_EDGE = 0.05
"""Difference of grey at which a large step costs half."""
_PULL, _PULL_RANGE = 0.06, 0.3
"""Cost of leaving the expected depth by the second, relative; bounded by the first."""
_TO_CENTRES = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
_FROM_CENTRES = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
"""From pixels whose first centre is at 0.5 to OpenCV's, where it is at 0, and back."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """A view as the sweep sees it: grey in [0, 1], its camera, and the depth that is expected."""

    grey: Float[Tensor, "height width"]
    intrinsics: Float[Tensor, "3 3"]
    cam2world: Float[Tensor, "4 4"]
    depth: Float[Tensor, "height width"]


class Swept(NamedTuple):
    """Depth, and the correlation of the better half of the neighbours there, -1 to 1."""

    depth: Float[Tensor, "height width"]
    score: Float[Tensor, "height width"]


def sweep(shot: Shot, others: Sequence[Shot], widen: float = 1.6) -> Swept:
    """Return the depth at which the other shots look most like this one.

    Args:
        shot: its `depth` gives the range, and weakly the answer where there is no texture; > 0.
        others: at least one, with overlap.
        widen: by which factor the range exceeds that of the expected depth, at both ends.
    """
    inverse = _planes(shot, others, widen)
    likeness, cost = _likeness_and_cost(shot, others, inverse)
    smooth = _smoothed(cost, shot.grey)
    plane = smooth.argmin(0, keepdim=True).clamp(1, len(inverse) - 2)
    low, here, high = (smooth.gather(0, plane + k)[0] for k in (-1, 0, 1))
    offset = ((low - high) / (2 * (low - 2 * here + high)).clamp_min(1e-6)).clamp(-0.5, 0.5)
    step = inverse[1] - inverse[0]
    depth = 1 / (inverse[0] + (plane[0] + offset) * step)
    return Swept(depth, likeness.gather(0, plane)[0])


def _likeness_and_cost(
    shot: Shot, others: Sequence[Shot], inverse: Float[Tensor, " plane"]
) -> tuple[Float[Tensor, "plane height width"], Float[Tensor, "plane height width"]]:
    """Return the correlation of the better half of the others, and the cost of every plane."""
    compared = [_Compared(shot, other) for other in others]
    log_depth = shot.depth.log()
    likeness = torch.empty(len(inverse), *shot.grey.shape)
    cost = torch.empty_like(likeness)
    for k, w in enumerate(inverse.tolist()):
        scores = (torch.from_numpy(other.at(w)) for other in compared)
        best = next(scores)
        second = torch.full_like(best, -1.0)
        for score in scores:
            second = torch.maximum(second, torch.minimum(best, score))
            best = torch.maximum(best, score)
        likeness[k] = (best + second) / 2 if len(others) > 2 else best
        off = ((log_depth + math.log(w)).abs() / _PULL_RANGE).clamp_max(1)
        cost[k] = 1 - likeness[k] + _PULL * off
    return likeness, cost


def _planes(shot: Shot, others: Sequence[Shot], widen: float) -> Float[Tensor, " plane"]:
    """Return inverse depths in equal steps of about a pixel in the farthest neighbour, rising."""
    near, far = (float(shot.depth.flatten()[::7].quantile(q)) for q in (0.01, 0.99))
    inverse = torch.tensor([1 / (far * widen), widen / near]).to(shot.depth)
    height, width = shot.grey.shape
    grid = pixel_grid(height, width, device=shot.grey.device)[:: height // 8 + 1, :: width // 8 + 1]
    longest = 0.0
    for other in others:
        turned, move = _epipolar(shot, other)
        ends = turned @ torch.cat((grid, torch.ones_like(grid[..., :1])), -1)[..., None]
        at = ends.squeeze(-1)[None] + inverse[:, None, None, None] * move
        place = at[..., :2] / at[..., 2:].clamp_min(1e-6)
        seen = (at[..., 2] > 0).all(0)
        if bool(seen.any()):
            length = (place[1] - place[0]).norm(dim=-1)[seen]
            longest = max(longest, float(length.median().clamp_max(2 * width)))
    count = min(max(math.ceil(longest), _FEWEST_PLANES), _MOST_PLANES)
    return torch.linspace(float(inverse[0]), float(inverse[1]), count).to(shot.depth)


def _epipolar(shot: Shot, other: Shot) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3"]]:
    """Return A and b: the pixel p at inverse depth w falls on A p + w b (homogeneous)."""
    relative = compose(invert_rigid(other.cam2world.double()), shot.cam2world.double())
    lens, own = other.intrinsics.double(), shot.intrinsics.double()
    turned = lens @ relative[:3, :3] @ torch.linalg.inv(own)
    return turned.to(shot.grey), (lens @ relative[:3, 3]).to(shot.grey)


class _Compared:
    """The windows of a shot beside those of another that a plane of equal depth carries there.

    Greys count from their mean, so that the zeros beyond the border of a photo are grey as well.
    """

    def __init__(self, shot: Shot, other: Shot) -> None:
        turned, move = _epipolar(shot, other)
        # OpenCV counts pixels from the centre of the first one
        self._turned = _TO_CENTRES @ turned.double().numpy() @ _FROM_CENTRES
        self._move = _TO_CENTRES @ move.double().numpy()
        mine, theirs = ((one.grey - one.grey.mean()).contiguous().numpy() for one in (shot, other))
        self._mine, self._theirs = mine, theirs
        self._mean = _box(mine)
        self._inverse_spread = 1 / np.sqrt(_variance(mine, self._mean))
        self._everywhere = np.ones(theirs.shape, np.uint8)

    def at(self, inverse_depth: float) -> Picture:
        """Return the correlation on the plane of that depth; -1 outside of the other shot."""
        plane = self._turned.copy()
        plane[:, 2] += inverse_depth * self._move
        warped = self._warped(self._theirs, plane, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
        seen = self._warped(self._everywhere, plane, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT) > 0
        height, width = self._mine.shape
        corners = np.array([(x, y, 1) for x in (-1, width) for y in (-1, height)])
        if (corners @ plane[2]).min() <= 0:  # part of the plane lies behind the other camera
            ahead = plane[2, 0] * np.arange(width) + plane[2, 1] * np.arange(height)[:, None]
            seen &= ahead + plane[2, 2] > 0
        mean = _box(warped)
        score = _box(self._mine * warped) - self._mean * mean
        score *= self._inverse_spread
        score /= np.sqrt(_variance(warped, mean))
        return np.where(seen, score, np.float32(-1))

    def _warped(self, image: Picture, plane: Picture, method: int, border: int) -> Picture:
        height, width = self._mine.shape
        return cv2.warpPerspective(
            image, plane, (width, height), flags=method | cv2.WARP_INVERSE_MAP, borderMode=border
        )


def _box(values: Picture) -> Picture:
    """Return the mean over windows, zero beyond the border."""
    side = 2 * RADIUS + 1
    return cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_CONSTANT)


def _variance(values: Picture, mean: Picture) -> Picture:
    """Return the variance over windows, that of no texture added."""
    return np.maximum(_box(values * values) - mean * mean, 0) + np.float32(_LEAST_CONTRAST**2)


def _smoothed(
    cost: Float[Tensor, "plane height width"], grey: Float[Tensor, "height width"]
) -> Float[Tensor, "plane height width"]:
    """Return the sum of the cost along paths from left, right, above and below (ibid., eq. 13)."""
    total = torch.zeros_like(cost)
    for axis in (1, 2):
        line = grey.movedim(axis - 1, 0)
        contrast = torch.cat((torch.zeros_like(line[:1]), (line[1:] - line[:-1]).abs()))
        jump = _LARGE_STEP / (1 + contrast / _EDGE)
        along = cost.movedim(axis, 0).contiguous()
        for backward in (False, True):
            path = torch.empty_like(along)
            order = range(len(along) - 1, -1, -1) if backward else range(len(along))
            last: Tensor | None = None
            for k in order:
                if last is None:
                    last = along[k]
                else:
                    least = last.amin(0)
                    edge = k + 1 if backward else k
                    step = torch.minimum(last, (least + jump[edge]))
                    step[1:] = torch.minimum(step[1:], last[:-1] + _SMALL_STEP)
                    step[:-1] = torch.minimum(step[:-1], last[1:] + _SMALL_STEP)
                    last = along[k] + step - least
                path[k] = last
            total += path.movedim(0, axis)
    return total
