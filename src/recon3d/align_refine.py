"""Joint robust refinement of all views: one similarity each, sampled depths, focals.

Two steps alternate until nothing moves. Poses: Gauss-Newton on all similarities with the points
fixed. Points: every view's sampled depths and its focal length from all maps that show it, with the
similarities fixed. Both weigh a map by its confidence and by how noisy it has proved to be.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.align_focal import Focals, Lenses, choose_focals
from recon3d.align_init import Canonical, Edges
from recon3d.align_samples import EXACT, TINY, Samples, edge_chunks, weighted_median
from recon3d.align_solve import KERNEL, Anchors, Problem, robust_cost, solve_similarities
from recon3d.config import AlignConfig
from recon3d.geometry import compose, transform_points

logger = logging.getLogger(__name__)

_NOISE_FLOOR = 0.5
"""Least noise of a map, relative to the median map: no map may win by agreeing with itself."""
_SETTLED = 1e-5
"""Typical change of the similarity between the views of a pair at which the alternation stops.

Neither the place of a view in a long walk nor the one pair in thousands that settles last counts.
"""
_FEW = 32
"""Pixels of a view that stand for a similarity."""
_NO_KERNEL = 1e6
_INLIER = 3.0
"""Distance, in units of the median residual, up to which a pixel agrees with the scene."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """All views in one world, and how well each edge fits.

    `points` are the fused sampled points in unit frames. A residual is the weighted median distance
    of a map to the fused points, relative to the distance from its camera;
    `seen_residual` is that of `seen`, `inliers` the weighted share of its pixels
    that agree with the scene. `problem` is the one that its similarities solve.
    """

    unit2world: Float64[Tensor, "view 4 4"]
    points: Float64[Tensor, "view sample 3"]
    lens: Focals
    seen_residual: Float64[Tensor, " edge"]
    inliers: Float64[Tensor, " edge"]
    problem: Problem


def refine(
    samples: Samples,
    canonical: Canonical,
    unit2world: Float64[Tensor, "view 4 4"],
    edges: Edges,
    anchors: Anchors,
    known: Lenses,
    config: AlignConfig,
) -> Solution:
    """Return the similarities, points and focals that explain all edges best.

    `edges` are what each edge says by itself. The cost of a sampled pixel is a
    Cauchy kernel of the distance between the point that its edge predicts and the one its own view
    says, in units of the edge's noise and measured in the unit frame of camera i, so that
    shrinking the world gains nothing.
    """
    seen_weight = samples.seen_weight * (canonical.weight[samples.j] > 0)
    seen_weight = seen_weight / seen_weight.mean(-1, keepdim=True).clamp_min(TINY)
    own_weight = samples.own_weight / samples.own_weight.mean(-1, keepdim=True).clamp_min(TINY)
    lens = choose_focals(canonical.points, canonical.weight, samples.pixel, known, config)
    points = _on_rays(canonical.points[..., 2], samples.pixel, lens)
    noise = edges.residual.clamp_min(EXACT)
    maps = _Maps(noise, noise, edges.residual)
    distance = samples.seen.norm(dim=-1).clamp_min(TINY)

    def problem_now() -> Problem:
        return Problem(
            i=samples.i, j=samples.j, seen=samples.seen, own=points,
            weight=seen_weight, noise=maps.seen_noise[:, None] * distance,
        )  # fmt: skip

    mean = averaged(samples, points, seen_weight, unit2world, edges, anchors)
    if robust_cost(problem_now(), mean, anchors) < robust_cost(problem_now(), unit2world, anchors):
        unit2world = mean
    steps, change, i, j = 0, 1.0, samples.i, samples.j
    between = torch.full((len(i), 4, 4), 1e6).to(unit2world)
    while steps < config.max_iterations and change > _SETTLED:
        limit = 10 if steps == 0 else 1
        unit2world = solve_similarities(problem_now(), unit2world, anchors, limit)
        steps += limit
        before, between = between, compose(torch.linalg.inv(unit2world)[i], unit2world[j])
        change = float((between - before).square().mean().sqrt())
        maps = _measure(samples, own_weight, seen_weight, points, unit2world)
        fused, total = _mean_points(samples, own_weight, seen_weight, points, unit2world, maps)
        relative = total * fused[..., 2].square()  # far points are as good in pixels as near ones
        lens = choose_focals(fused, relative, samples.pixel, known, config)
        points = _on_rays(fused[..., 2], samples.pixel, lens)
    logger.debug("alignment: %d steps, last change %.1e", steps, change)
    solution = Solution(
        unit2world=unit2world, points=points, lens=lens, seen_residual=maps.residual,
        inliers=maps.residual, problem=problem_now(),
    )  # fmt: skip
    return replace(solution, inliers=judge(samples, canonical, solution)[1])


def averaged(
    samples: Samples,
    points: Float64[Tensor, "view sample 3"],
    weight: Float64[Tensor, "edge sample"],
    unit2world: Float64[Tensor, "view 4 4"],
    edges: Edges,
    anchors: Anchors,
) -> Float64[Tensor, "view 4 4"]:
    """Return the similarities that fit those of the edges by plain least squares.

    Along a spanning tree errors add up until, in a long loop, its ends are so far apart that a
    robust kernel takes the pairs between them for wrong: this spreads the gap over all pairs.
    """
    few = slice(None, None, max(1, points.shape[1] // _FEW))
    seen = transform_points(edges.unit_j2unit_i, points[samples.j, few])
    noise = edges.residual.clamp_min(EXACT)[:, None] * seen.norm(dim=-1).clamp_min(TINY)
    problem = Problem(
        i=samples.i, j=samples.j, seen=seen, own=points[:, few],
        weight=(weight[:, few] > 0).to(weight), noise=noise, kernel=_NO_KERNEL,
    )  # fmt: skip
    return solve_similarities(problem, unit2world, anchors, 10)


def judge(
    samples: Samples, canonical: Canonical, solution: Solution
) -> tuple[Float64[Tensor, " edge"], Float64[Tensor, " edge"]]:
    """Return residual and inliers (see `Solution`) of any edges between views of a solution."""
    limit = _INLIER * max(float(solution.seen_residual.median()), EXACT)
    weight = samples.seen_weight * (canonical.weight[samples.j] > 0)
    residual, inliers = [], []
    for part in _compare(samples, solution.points, solution.unit2world):
        here, error = weight[part.rows], part.seen_error
        residual.append(weighted_median(error, here))
        inliers.append((here * (error <= limit)).sum(-1) / here.sum(-1).clamp_min(TINY))
    return torch.cat(residual), torch.cat(inliers)


class _Maps(NamedTuple):
    """How noisy the two maps of each edge are: medians, and those with a floor."""

    own_noise: Float64[Tensor, " edge"]
    seen_noise: Float64[Tensor, " edge"]
    residual: Float64[Tensor, " edge"]


class _Part(NamedTuple):
    """Some edges: their rows, the seen points in unit j, both relative errors and distances."""

    rows: slice
    moved: Float64[Tensor, "edge sample 3"]
    own_error: Float64[Tensor, "edge sample"]
    own_distance: Float64[Tensor, "edge sample"]
    seen_error: Float64[Tensor, "edge sample"]
    seen_distance: Float64[Tensor, "edge sample"]


def _compare(
    samples: Samples,
    points: Float64[Tensor, "view sample 3"],
    unit2world: Float64[Tensor, "view 4 4"],
) -> Iterator[_Part]:
    """Yield, for some edges at a time, how far their maps are from the points of the views."""
    for rows in edge_chunks(samples.seen):
        i, j = samples.i[rows], samples.j[rows]
        own, seen = samples.own[rows], samples.seen[rows]
        unit_i2unit_j = compose(torch.linalg.inv(unit2world[j]), unit2world[i])
        moved = transform_points(unit_i2unit_j, seen)
        scale = unit_i2unit_j[:, :3, 0].norm(dim=-1)[:, None]
        seen_distance = seen.norm(dim=-1).clamp_min(TINY) * scale
        own_distance = own.norm(dim=-1).clamp_min(TINY)
        yield _Part(
            rows, moved,
            (own - points[i]).norm(dim=-1) / own_distance, own_distance,
            (moved - points[j]).norm(dim=-1) / seen_distance, seen_distance,
        )  # fmt: skip


def _measure(
    samples: Samples,
    own_weight: Float64[Tensor, "edge sample"],
    seen_weight: Float64[Tensor, "edge sample"],
    points: Float64[Tensor, "view sample 3"],
    unit2world: Float64[Tensor, "view 4 4"],
) -> _Maps:
    """Return the noise of each map against the points of the views."""
    own, seen = [], []
    for part in _compare(samples, points, unit2world):
        own.append(weighted_median(part.own_error, own_weight[part.rows]))
        seen.append(weighted_median(part.seen_error, seen_weight[part.rows]))
    own_noise, residual = torch.cat(own), torch.cat(seen)
    floor = (_NOISE_FLOOR * torch.cat((own_noise, residual)).median()).clamp_min(EXACT)
    return _Maps(torch.hypot(own_noise, floor), torch.hypot(residual, floor), residual)


def _mean_points(
    samples: Samples,
    own_weight: Float64[Tensor, "edge sample"],
    seen_weight: Float64[Tensor, "edge sample"],
    points: Float64[Tensor, "view sample 3"],
    unit2world: Float64[Tensor, "view 4 4"],
    maps: _Maps,
) -> tuple[Float64[Tensor, "view sample 3"], Float64[Tensor, "view sample"]]:
    """Return the robust mean over all maps of each view in its unit frame, and its weight."""
    mean, total = torch.zeros_like(points), torch.zeros_like(points[..., 0])
    for part in _compare(samples, points, unit2world):
        rows = part.rows
        for views, weight, error, noise, distance, values in (
            (samples.i, own_weight, part.own_error, maps.own_noise, part.own_distance, samples.own),
            (samples.j, seen_weight, part.seen_error, maps.seen_noise, part.seen_distance, None),
        ):
            here = part.moved if values is None else values[rows]
            robust = _precision(weight[rows], error, noise[rows], distance)
            total.index_add_(0, views[rows], robust)
            mean.index_add_(0, views[rows], robust[..., None] * here)
    return mean / total.clamp_min(TINY)[..., None], total


def _on_rays(
    depth: Float64[Tensor, "view sample"], pixel: Float64[Tensor, "view sample 2"], lens: Focals
) -> Float64[Tensor, "view sample 3"]:
    ray = (pixel - lens.centre[:, None]) / lens.focal[:, None]
    return torch.cat((ray, torch.ones_like(depth[..., None])), dim=-1) * depth[..., None]


def _precision(
    weight: Float64[Tensor, "edge sample"],
    error: Float64[Tensor, "edge sample"],
    noise: Float64[Tensor, " edge"],
    distance: Float64[Tensor, "edge sample"],
) -> Float64[Tensor, "edge sample"]:
    """Weight of a point in a mean: inverse variance times the Cauchy kernel's IRLS weight."""
    kernel = 1 + (error / (KERNEL * noise[:, None])).square()
    return weight / (noise[:, None] * distance).square() / kernel
