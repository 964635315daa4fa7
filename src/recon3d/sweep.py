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

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.geometry import compose, invert_rigid, pixel_grid

RADIUS = 3
"""Half the side of the compared windows, in pixels."""
_LEAST_CONTRAST = 0.01
"""Standard deviation of grey (0 to 1) below which a window counts as having no texture."""
_FEWEST_PLANES, _MOST_PLANES = 24, 128
_WIDEN = 1.6
"""Factor by which the range of depths exceeds that of the expected depth, at both ends."""
_SMALL_STEP, _LARGE_STEP = 0.03, 0.25
"""Cost of a change by one plane, and of any larger one, between neighbouring pixels."""
_CHUNK_PLANES = 8
_EDGE = 0.05
"""Difference of grey at which a large step costs half."""
_PULL, _PULL_RANGE = 0.06, 0.3
"""Cost of leaving the expected depth by the second, relative; bounded by the first."""


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


def sweep(shot: Shot, others: Sequence[Shot]) -> Swept:
    """Return the depth at which the other shots look most like this one.

    Args:
        shot: its `depth` gives the range, and weakly the answer where there is no texture; > 0.
        others: at least one, with overlap.
    """
    inverse = _planes(shot, others)
    scores = (_correlation(shot, other, inverse) for other in others)
    best = next(scores)
    second = torch.full_like(best, -1.0)
    for score in scores:
        second = torch.maximum(second, torch.minimum(best, score))
        best = torch.maximum(best, score)
    likeness = (best + second) / 2 if len(others) > 2 else best
    expected = (shot.depth.log() + inverse.log()[:, None, None]).abs()
    cost = 1 - likeness + _PULL * (expected / _PULL_RANGE).clamp_max(1)
    smooth = _smoothed(cost, shot.grey)
    plane = smooth.argmin(0, keepdim=True).clamp(1, len(inverse) - 2)
    low, here, high = (smooth.gather(0, plane + k)[0] for k in (-1, 0, 1))
    offset = ((low - high) / (2 * (low - 2 * here + high)).clamp_min(1e-6)).clamp(-0.5, 0.5)
    step = inverse[1] - inverse[0]
    depth = 1 / (inverse[0] + (plane[0] + offset) * step)
    return Swept(depth, likeness.gather(0, plane)[0])


def _planes(shot: Shot, others: Sequence[Shot]) -> Float[Tensor, " plane"]:
    """Return inverse depths in equal steps of about a pixel in the farthest neighbour, rising."""
    near, far = (float(shot.depth.flatten()[::7].quantile(q)) for q in (0.01, 0.99))
    inverse = torch.tensor([1 / (far * _WIDEN), _WIDEN / near]).to(shot.depth)
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


def _correlation(
    shot: Shot, other: Shot, inverse: Float[Tensor, " plane"]
) -> Float[Tensor, "plane height width"]:
    """Return the correlation of windows with the other shot on every plane; -1 outside of it.

    Greys count from their mean, so that the zeros beyond the border of a photo are grey as well.
    """
    turned, move = _epipolar(shot, other)
    grid = pixel_grid(*shot.grey.shape, device=shot.grey.device)
    rays = torch.cat((grid, torch.ones_like(grid[..., :1])), -1) @ turned.mT
    mine, theirs = (one.grey - one.grey.mean() for one in (shot, other))
    mean_a = _box(mine[None])
    floor = _LEAST_CONTRAST**2
    variance_a = (_box(mine.square()[None]) - mean_a.square()).clamp_min(0) + floor
    scores = []
    for some in inverse.split(_CHUNK_PLANES):
        warped, seen = _sample(theirs, rays[None] + some[:, None, None, None] * move)
        mean_b = _box(warped)
        variance_b = (_box(warped.square()) - mean_b.square()).clamp_min(0) + floor
        both = _box(mine * warped) - mean_a * mean_b
        scores.append(torch.where(seen, both / (variance_a * variance_b).sqrt(), -1.0))
    return torch.cat(scores)


def _sample(
    image: Float[Tensor, "h w"], at: Float[Tensor, "plane height width 3"]
) -> tuple[Float[Tensor, "plane height width"], Bool[Tensor, "plane height width"]]:
    """Return the image at homogeneous pixels, bilinear, and which of them lie inside."""
    height, width = image.shape
    size = torch.tensor([width, height], device=image.device)
    place = at[..., :2] / at[..., 2:].clamp_min(1e-6) * (2 / size) - 1
    seen = (at[..., 2] > 0) & (place.abs() < 1).all(-1)
    stack = image.expand(len(at), 1, height, width)
    found = F.grid_sample(stack, place, mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, 0], seen


def _box(values: Float[Tensor, "plane height width"]) -> Float[Tensor, "plane height width"]:
    """Return the mean over windows, zero beyond the border; sums of shifts are the fastest here."""
    for axis, pad in ((2, (RADIUS, RADIUS)), (1, (0, 0, RADIUS, RADIUS))):
        size, padded = values.shape[axis], F.pad(values, pad)
        values = padded.narrow(axis, 0, size).clone()
        for k in range(1, 2 * RADIUS + 1):
            values += padded.narrow(axis, k, size)
    return values / (2 * RADIUS + 1) ** 2


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
