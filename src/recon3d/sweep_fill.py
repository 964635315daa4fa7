"""Depth where no other view confirms one: smooth surfaces through the believed pixels.

Inverse depth of a plane is linear in the pixel, so its second differences are what a smooth surface
keeps small (Woodford et al., PAMI 2009), except across edges of the photo. The expected depth,
moved as its surroundings are, holds what is far from any believed pixel.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

_FADE = 0.02
"""Weight of what a coarser level says, where a finer one has believed pixels of its own."""
_SMOOTH = 4.0
"""Weight of a second difference of 1 against a believed pixel that is off by 1."""
HOLD = 0.003
"""Weight of the expected depth against a believed one."""
_EDGE = 0.03
"""Difference of grey over two pixels at which a surface bends half as willingly."""
_CREASE = 0.01
"""Second difference, relative to inverse depth, at which a crease is taken for one."""
_LEVELS, _ROUNDS, _STEPS = 4, 3, 30


def moved_expectation(
    expected: Float[Tensor, "height width"],
    swept: Float[Tensor, "height width"],
    good: Bool[Tensor, "height width"],
) -> Float[Tensor, "height width"]:
    """Return the expected depth times the ratio of swept to expected depth around each pixel.

    Pull-push over a pyramid (Gortler et al., SIGGRAPH 1996) of the logarithm of the ratio, near
    good pixels counting more.
    """
    ratio = torch.where(good, (swept / expected).log(), 0.0)
    pyramid = [torch.stack((ratio, good.to(ratio)))[None]]
    while min(pyramid[-1].shape[-2:]) > 1:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, 2, ceil_mode=True))
    top, total = pyramid[-1].unbind(1)
    value = (top.sum() / total.sum().clamp_min(1e-9)).expand_as(top)
    for level in reversed(pyramid):
        top, total = level.unbind(1)
        value = F.interpolate(value[None], top.shape[-2:], mode="bilinear")[0]
        value = (top + _FADE * value) / (total + _FADE)
    return expected * value[0].exp()


def fill(
    expected: Float[Tensor, "height width"],
    swept: Float[Tensor, "height width"],
    good: Bool[Tensor, "height width"],
    grey: Float[Tensor, "height width"],
) -> Float[Tensor, "height width"]:
    """Return the swept depth where it is good, elsewhere the surface that goes on from there.

    Coarse to fine; at every level reweighted least squares by conjugate gradients.
    """
    unit = float(expected.median())
    seed = torch.where(good, unit / swept, 0.0)
    prior, weight = unit / expected, good.to(grey)
    fields = torch.stack((seed * weight, weight, prior, grey))[None]
    pyramid = [fields]
    while len(pyramid) < _LEVELS and min(pyramid[-1].shape[-2:]) >= 16:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, 2, ceil_mode=True))
    answer: Tensor | None = None
    for level in reversed(pyramid):
        top, total, hold, light = level[0]
        start = (
            hold
            if answer is None
            else F.interpolate(answer[None, None], hold.shape, mode="bilinear")[0, 0]
        )
        answer = _solve(start, top, total, hold, light)
    smooth = unit / cast(Tensor, answer).clamp_min(1e-3)
    return torch.where(good, swept, smooth)


def bend_weights(
    values: Float[Tensor, "height width"], light: Float[Tensor, "height width"]
) -> list[Float[Tensor, "_ _"]]:
    """Return the weights of second differences along columns and rows: low at edges and creases.

    Args:
        values: inverse depth.
        light: grey, from 0 to 1.
    """
    weights = []
    for axis in (0, 1):
        edge = _SMOOTH / (1 + (_outer(light, axis).abs() / _EDGE).square())
        bend = _second(values, axis) / _middle(values, axis).abs().clamp_min(1e-3)
        weights.append(edge / (1 + (bend / _CREASE).square()))
    return weights


def normal_matrix(v: Tensor, diagonal: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the product of the normal matrix and v, of which the first two axes are pixels.

    Args:
        v: one number per pixel, or several along a third axis.
        diagonal: weights of believed and expected depth; broadcasts against v.
        weights: those of second differences, with as many axes as v.
    """
    out = diagonal * v
    for axis in (0, 1):
        _spread(out, weights[axis] * _second(v, axis), axis)
    return out


def _solve(start: Tensor, top: Tensor, total: Tensor, hold: Tensor, light: Tensor) -> Tensor:
    """Minimise believed pixels, expectation and second differences over one level."""
    right = top + HOLD * hold
    diagonal = total + HOLD
    values = start
    for _ in range(_ROUNDS):
        weights = bend_weights(values, light)

        def matrix(v: Tensor, weights: list[Tensor] = weights) -> Tensor:
            return normal_matrix(v, diagonal, weights)

        scale = diagonal.clone()
        for axis in (0, 1):
            n = weights[axis].shape[axis]
            for k, square in ((0, 1.0), (1, 4.0), (2, 1.0)):
                scale.narrow(axis, k, n).add_(weights[axis], alpha=square)
        values = _conjugate_gradients(matrix, right, values, scale)
    return values


def _second(v: Tensor, axis: int) -> Tensor:
    n = v.shape[axis] - 2
    return v.narrow(axis, 0, n) - 2 * v.narrow(axis, 1, n) + v.narrow(axis, 2, n)


def _middle(v: Tensor, axis: int) -> Tensor:
    return v.narrow(axis, 1, v.shape[axis] - 2)


def _outer(v: Tensor, axis: int) -> Tensor:
    n = v.shape[axis] - 2
    return v.narrow(axis, 2, n) - v.narrow(axis, 0, n)


def _spread(out: Tensor, bend: Tensor, axis: int) -> None:
    """Add the transpose of the second difference."""
    n = bend.shape[axis]
    out.narrow(axis, 0, n).add_(bend)
    out.narrow(axis, 1, n).add_(bend, alpha=-2)
    out.narrow(axis, 2, n).add_(bend)


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, scale: Tensor
) -> Tensor:
    values = start
    left = right - matrix(values)
    ahead = left / scale
    direction, slope = ahead, (left * ahead).sum()
    for _ in range(_STEPS):
        image = matrix(direction)
        length = slope / (direction * image).sum().clamp_min(1e-30)
        values = values + length * direction
        left = left - length * image
        ahead = left / scale
        new = (left * ahead).sum()
        direction, slope = ahead + new / slope.clamp_min(1e-30) * direction, new
    return values
