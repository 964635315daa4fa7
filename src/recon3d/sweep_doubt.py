"""How wrong the depth of dense stereo may be, pixel by pixel.

Four things are told apart, because each misses errors that the others see: how far the depth is
from what the network says, how far from what photos of half the size say, how little the believed
pixels around hold it, and how steep it is.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.sweep_fill import HOLD, bend_weights, moved_expectation, normal_matrix

_NOISE = 0.1
"""Error of a believed inverse depth, relative to the typical one, that the doubt reckons with."""
_MISPLACED = 4
"""Pixels by which an edge may be misplaced: about the radius of the windows that were compared."""
_COARSE = 40
"""Most pixels along the sides of the level on which the deviation is told."""


def doubt(
    depth: Float[Tensor, "height width"],
    good: Bool[Tensor, "height width"],
    grey: Float[Tensor, "height width"],
    *,
    coarse: Float[Tensor, "height width"],
    network: Float[Tensor, "height width"],
) -> Float[Tensor, "height width"]:
    """Return the relative error of depth that is to be reckoned with, above 0.

    Args:
        depth: swept where it is good, filled elsewhere; > 0.
        good: the pixels that other photos confirm.
        grey: the photo, from 0 to 1.
        coarse: depth from photos of half the size.
        network: depth from the network; it is moved to the good depth around.
    """
    moved = moved_expectation(network, depth, good)
    parts = (
        (depth / moved).log(),
        (depth / coarse).log(),
        _NOISE * deviation(depth, good, grey),
        _MISPLACED * _steepness(depth),
    )
    return torch.stack(parts).norm(dim=0)


def deviation(
    depth: Float[Tensor, "height width"],
    good: Bool[Tensor, "height width"],
    grey: Float[Tensor, "height width"],
) -> Float[Tensor, "height width"]:
    """Return the standard deviation of a filled inverse depth, in units of that of a good one.

    What `fill` minimises is the negative logarithm of a Gaussian, and its variance the diagonal of
    the inverse of the normal matrix: it grows with the distance from good pixels, faster beyond the
    last of them than between them, and at once across edges of the photo. Told at few pixels.
    """
    level = torch.stack((float(depth.median()) / depth, good.to(grey), grey))[None]
    while max(level.shape[-2:]) > _COARSE:
        level = F.avg_pool2d(level, 2, 2, ceil_mode=True)
    values, total, light = level[0].double()
    size = values.numel()
    units = torch.eye(size, dtype=values.dtype).view(*values.shape, size)
    weights = [weight[..., None] for weight in bend_weights(values, light)]
    matrix = normal_matrix(units, (total + HOLD)[..., None], weights).view(size, size)
    variance = torch.cholesky_inverse(torch.linalg.cholesky(matrix)).diagonal()
    log_deviation = 0.5 * variance.view(1, 1, *values.shape).log()
    return F.interpolate(log_deviation, depth.shape, mode="bilinear")[0, 0].exp().to(depth)


def _steepness(depth: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Return by how much the logarithm of depth changes from pixel to pixel, in the mean around."""
    log_depth = F.pad(depth.log()[None], (0, 1, 0, 1), mode="replicate")[0]
    steps = log_depth[:-1].diff(dim=1).abs() + log_depth[:, :-1].diff(dim=0).abs()
    side = 2 * _MISPLACED + 1
    return F.avg_pool2d(steps[None], side, 1, _MISPLACED, count_include_pad=False)[0]
