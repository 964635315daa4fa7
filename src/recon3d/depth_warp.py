"""Depth maps bent smoothly so that they meet points whose depth is known better.

A network's depth is right up to a slow warp: too flat, tilted, or compressed far away. The
logarithm of the correction is a low polynomial of the pixel and of the logarithm of the depth.
How many of its terms the points of a view can tell is decided on points that were kept aside.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

MIN_POINTS = 10
"""Below, a view keeps its depth."""
_TERMS_OF = ((1, MIN_POINTS), (4, 40), (7, 100))  # number of terms, and the points it takes
_FOLDS = 5
_ROUNDS = 10
_RIDGE = 4.0  # points that say "no bend": errors of neighbouring points are alike
_GAIN = 0.95  # more terms must lower the error on points kept aside at least to this share
_MOST = math.log(1.5)  # largest bend, relative to the plain scale


class Warp(NamedTuple):
    """A depth map and the median of what is left of its relative error at the points."""

    depth: Float[Tensor, "height width"]
    error: float


def bend_depth(
    depth: Float[Tensor, "height width"],
    pixels: Float64[Tensor, "point 2"],
    z: Float64[Tensor, " point"],
) -> Warp | None:
    """Return the depth map that meets the points; None where too few have a known pixel.

    Robust against wrong points. The error is that of points which a fit has not seen.

    Args:
        depth: 0 where unknown; stays unknown.
        pixels: where the points lie in the map, centre of the first pixel at (0.5, 0.5).
        z: their depths, in the unit of the map; all that are not positive are ignored.
    """
    height, width = depth.shape
    column = pixels[:, 0].long().clamp(0, width - 1)
    row = pixels[:, 1].long().clamp(0, height - 1)
    here = depth.double().cpu()[row, column]
    usable = (here > 0) & (z > 0) & z.isfinite()
    if int(usable.sum()) < MIN_POINTS:
        return None
    row, column, here = row[usable], column[usable], here[usable]
    wanted = (z[usable] / here).log()
    middle = float(here.log().median())
    terms = _terms(column, row, here.log() - middle, height, width)
    fold = torch.arange(len(wanted)) % _FOLDS
    best: tuple[float, int] | None = None
    for n_terms, n_points in _TERMS_OF:
        if len(wanted) < n_points:
            break
        left = torch.empty_like(wanted)
        for k in range(_FOLDS):
            known = fold != k
            solution = _fit(terms[known, :n_terms], wanted[known])
            left[~known] = wanted[~known] - _bounded(terms[~known, :n_terms], solution)
        error = float(left.abs().median())
        if best is None or error < _GAIN * best[0]:
            best = error, n_terms
    assert best is not None  # a scale can always be fitted
    error, n_terms = best
    solution = _fit(terms[:, :n_terms], wanted)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    known = depth.cpu() > 0
    level = torch.where(known, depth.cpu(), 1.0).double().log() - middle
    every = _terms(columns.flatten(), rows.flatten(), level.flatten(), height, width)
    change = _bounded(every[:, :n_terms], solution).view(height, width).exp()
    bent = torch.where(known, depth.cpu() * change, 0.0)
    return Warp(bent.to(depth), math.expm1(error))


def _terms(
    column: Tensor, row: Tensor, level: Float64[Tensor, " point"], height: int, width: int
) -> Float64[Tensor, "point 7"]:
    """Return 1; x, y and the logarithm of depth; squares and product of x and y."""
    long_edge = max(height, width)
    x = (2 * column.double() + 1 - width) / long_edge
    y = (2 * row.double() + 1 - height) / long_edge
    return torch.stack((torch.ones_like(x), x, y, level.clamp(-2, 2), x * x, x * y, y * y), dim=1)


def _fit(
    terms: Float64[Tensor, "point term"], wanted: Float64[Tensor, " point"]
) -> Float64[Tensor, " term"]:
    """Return the coefficients of least unsquared error, all but the first held small."""
    n_terms = terms.shape[1]
    ridge = torch.full((n_terms,), _RIDGE, dtype=torch.float64)
    ridge[0] = 0.0
    solution = torch.zeros(n_terms, dtype=torch.float64)
    solution[0] = wanted.median()
    for _ in range(_ROUNDS):
        left = (wanted - terms @ solution).abs()
        typical = float(left.median()) + 1e-6
        weight = (typical / left.clamp_min(typical)).clamp_max(1.0)
        scaled = terms * weight[:, None]
        solution = torch.linalg.solve(scaled.mT @ terms + torch.diag(ridge), scaled.mT @ wanted)
    return solution


def _bounded(
    terms: Float64[Tensor, "point term"], solution: Float64[Tensor, " term"]
) -> Float64[Tensor, " point"]:
    """Return the logarithm of the correction, its bend bounded where points are far away."""
    bend = terms[:, 1:] @ solution[1:]
    return solution[0] + bend.clamp(-_MOST, _MOST)
