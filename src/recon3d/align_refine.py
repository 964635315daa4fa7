"""Joint robust refinement of all views: one similarity each, sampled depths, focals.

Two steps alternate until nothing moves. Poses: Gauss-Newton on all similarities with the points
fixed. Points: every view's sampled depths and its focal length from all maps that show it, with the
similarities fixed. Both weigh a map by its confidence and by how noisy it has proved to be.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from recon3d.align_samples import (
    EXACT,
    TINY,
    Canonical,
    Samples,
    choose_focals,
    weighted_median,
)
from recon3d.config import AlignConfig
from recon3d.geometry import compose, similarity, so3_exp, transform_points
from recon3d.types import View

logger = logging.getLogger(__name__)

_KERNEL = 2.0
"""Width of the Cauchy kernel in units of a map's median error: beyond it a point counts less."""
_NOISE_FLOOR = 0.5
"""Least noise of a map, relative to the median map: no map may win by agreeing with itself."""
_SETTLED = 1e-6
"""Change of a similarity matrix below which the alternation stops."""
_DENSE_VIEWS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """All views in one world (the unit frame of the root), and how noisy each edge's two maps are.

    `points` are the fused sampled points in unit frames. Noise is the weighted median distance of
    a map to the fused points, relative to the distance from its camera, with a floor;
    `seen_residual` is that of `seen` without the floor.
    """

    unit2world: Float64[Tensor, "view 4 4"]
    points: Float64[Tensor, "view sample 3"]
    focal: Float64[Tensor, "view 2"]
    focal_source: list[str]
    own_noise: Float64[Tensor, " edge"]
    seen_noise: Float64[Tensor, " edge"]
    seen_residual: Float64[Tensor, " edge"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """What one Gauss-Newton solve minimises: seen points of each edge in unit i, own in unit j."""

    i: Int64[Tensor, " edge"]
    j: Int64[Tensor, " edge"]
    seen: Float64[Tensor, "edge sample 3"]
    own: Float64[Tensor, "edge sample 3"]
    weight: Float64[Tensor, "edge sample"]
    noise: Float64[Tensor, "edge sample"]  # in unit i


def refine(
    samples: Samples,
    canonical: Canonical,
    unit2world: Float64[Tensor, "view 4 4"],
    noise: Float64[Tensor, " edge"],
    root: int,
    views: Sequence[View],
    config: AlignConfig,
) -> Solution:
    """Return the similarities, points and focals that explain all edges best; `root` stays.

    `noise` is the relative residual of each edge by itself. The cost of a sampled pixel is a
    Cauchy kernel of the distance between the point that its edge predicts and the one its own view
    says, in units of the edge's noise and measured in the unit frame of camera i, so that
    shrinking the world gains nothing.
    """
    i, j = samples.i, samples.j
    seen, own = samples.seen, samples.own
    seen_weight = samples.seen_weight * (canonical.weight[j] > 0)
    seen_weight = seen_weight / seen_weight.mean(-1, keepdim=True).clamp_min(TINY)
    own_weight = samples.own_weight / samples.own_weight.mean(-1, keepdim=True).clamp_min(TINY)
    seen_distance = seen.norm(dim=-1).clamp_min(TINY)
    own_distance = own.norm(dim=-1).clamp_min(TINY)
    focal, source = choose_focals(canonical.points, canonical.weight, samples.pixel, views, config)
    points = _on_rays(canonical.points[..., 2], samples.pixel, focal)
    own_noise = seen_noise = residual = noise.clamp_min(EXACT)
    steps, change = 0, 1.0
    while steps < config.max_iterations and change > _SETTLED:
        problem = _Problem(
            i=i, j=j, seen=seen, own=points[j], weight=seen_weight,
            noise=seen_noise[:, None] * seen_distance,
        )  # fmt: skip
        before, limit = unit2world, 10 if steps == 0 else 2
        unit2world = solve_similarities(problem, unit2world, root, limit)
        steps += limit
        change = float((unit2world - before).abs().max())
        # Points and focals: a robust mean over all maps of a view, then back onto its rays.
        unit_i2unit_j = compose(torch.linalg.inv(unit2world[j]), unit2world[i])
        moved = transform_points(unit_i2unit_j, seen)
        moved_distance = seen_distance * unit_i2unit_j[:, :3, 0].norm(dim=-1)[:, None]
        own_error = (own - points[i]).norm(dim=-1) / own_distance
        seen_error = (moved - points[j]).norm(dim=-1) / moved_distance
        residual = weighted_median(seen_error, seen_weight)
        own_noise = weighted_median(own_error, own_weight)
        floor = (_NOISE_FLOOR * torch.cat((own_noise, residual)).median()).clamp_min(EXACT)
        own_noise, seen_noise = torch.hypot(own_noise, floor), torch.hypot(residual, floor)
        w_own = _precision(own_weight, own_error, own_noise, own_distance)
        w_seen = _precision(seen_weight, seen_error, seen_noise, moved_distance)
        total = torch.zeros_like(canonical.weight).index_add_(0, i, w_own).index_add_(0, j, w_seen)
        mean = torch.zeros_like(points)
        mean.index_add_(0, i, w_own[..., None] * own).index_add_(0, j, w_seen[..., None] * moved)
        mean = mean / total.clamp_min(TINY)[..., None]
        relative = total * mean[..., 2].square()  # far points are as good in pixels as near ones
        focal, source = choose_focals(mean, relative, samples.pixel, views, config)
        points = _on_rays(mean[..., 2], samples.pixel, focal)
    logger.debug("alignment: %d steps, last change %.1e", steps, change)
    return Solution(
        unit2world=unit2world, points=points, focal=focal, focal_source=source,
        own_noise=own_noise, seen_noise=seen_noise, seen_residual=residual,
    )  # fmt: skip


def solve_similarities(
    problem: _Problem, unit2world: Float64[Tensor, "view 4 4"], root: int, limit: int
) -> Float64[Tensor, "view 4 4"]:
    """Return the similarities after at most `limit` Levenberg-Marquardt steps; `root` stays.

    Unknowns are left perturbations exp(rotation, translation, log scale) of each view. Views
    without an edge stay as well.
    """
    touched = torch.unique(torch.cat((problem.i, problem.j)))
    free = touched[touched != root]
    slot = torch.full((len(unit2world),), -1)
    slot[free] = torch.arange(len(free))
    damping = 1e-6
    cost = _cost(problem, unit2world)
    for _ in range(limit):
        equations = _normal_equations(problem, unit2world)
        for _ in range(6):
            step = _solve(equations, slot[problem.i], slot[problem.j], len(free), damping)
            change = similarity(step[:, 6].clamp(-1, 1).exp(), so3_exp(step[:, :3]), step[:, 3:6])
            moved = unit2world.clone()
            moved[free] = compose(change, unit2world[free])
            new_cost = _cost(problem, moved)
            if new_cost <= cost:
                break
            damping = max(damping, 1e-6) * 10
        else:
            break
        gain, cost, unit2world, damping = cost - new_cost, new_cost, moved, max(damping / 10, 1e-9)
        if gain <= 1e-9 * cost:
            break
    return unit2world


def _on_rays(
    depth: Float64[Tensor, "view sample"],
    pixel: Float64[Tensor, "view sample 2"],
    focal: Float64[Tensor, "view 2"],
) -> Float64[Tensor, "view sample 3"]:
    ray = torch.cat((pixel / focal[:, None], torch.ones_like(pixel[..., :1])), dim=-1)
    return ray * depth[..., None]


def _precision(
    weight: Float64[Tensor, "edge sample"],
    error: Float64[Tensor, "edge sample"],
    noise: Float64[Tensor, " edge"],
    distance: Float64[Tensor, "edge sample"],
) -> Float64[Tensor, "edge sample"]:
    """Weight of a point in a mean: inverse variance times the Cauchy kernel's IRLS weight."""
    kernel = 1 + (error / (_KERNEL * noise[:, None])).square()
    return weight / (noise[:, None] * distance).square() / kernel


def _gaps(
    problem: _Problem, unit2world: Float64[Tensor, "view 4 4"]
) -> tuple[Float64[Tensor, "edge sample 3"], Float64[Tensor, "edge sample 3"], Tensor]:
    """World points of both sides, and the noise of their distance in the world."""
    a = transform_points(unit2world[problem.i], problem.seen)
    b = transform_points(unit2world[problem.j], problem.own)
    return a, b, unit2world[problem.i, :3, 0].norm(dim=-1)[:, None] * problem.noise


def _cost(problem: _Problem, unit2world: Float64[Tensor, "view 4 4"]) -> float:
    a, b, noise = _gaps(problem, unit2world)
    square = ((a - b) / noise[..., None]).square().sum(-1)
    return float((problem.weight * torch.log1p(square / _KERNEL**2)).sum())


def _normal_equations(
    problem: _Problem, unit2world: Float64[Tensor, "view 4 4"]
) -> Float64[Tensor, "edge 15 15"]:
    """Gauss-Newton matrix of each edge, over its views i and j; the last column is the gradient.

    Residual and derivatives are linear in m = (a, b, 1), the world points of both sides, so the
    matrix is linear in the 7x7 moments of m: no derivative is formed per point.
    """
    a, b, noise = _gaps(problem, unit2world)
    square = ((a - b) / noise[..., None]).square().sum(-1)
    weight = problem.weight / noise.square() / (1 + square / _KERNEL**2)
    both = torch.cat((a, b, torch.ones_like(a[..., :1])), dim=-1)
    moments = (both * weight[..., None]).mT @ both
    return torch.einsum("ckl,elm,cnm->ekn", _LINEAR, moments, _LINEAR)


def _linear_map() -> Float64[Tensor, "3 15 7"]:
    """Return what m = (a, b, 1) is multiplied with to give derivatives (14) and residual (1).

    Derivatives of (a - b) / scale_i by exp(rotation, translation, log scale) of i, then of j, times
    scale_i. A larger scale of i moves a but enlarges its unit as well: together that leaves b.
    """
    linear = torch.zeros(3, 15, 7, dtype=torch.float64)
    for x, y, z in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        for view, sign in ((0, 1.0), (1, -1.0)):
            linear[z, 7 * view + x, 3 * view + y] = sign  # rotation about x moves y towards z
            linear[y, 7 * view + x, 3 * view + z] = -sign
            linear[x, 7 * view + 3 + x, 6] = sign
            linear[x, 7 * view + 6, 3 + x] = sign
            linear[x, 14, 3 * view + x] = sign
    return linear


_LINEAR = _linear_map()


def _solve(
    equations: Float64[Tensor, "edge 15 15"],
    slot_i: Int64[Tensor, " edge"],
    slot_j: Int64[Tensor, " edge"],
    n_free: int,
    damping: float,
) -> Float64[Tensor, "free 7"]:
    """Solve the damped system; slot -1 is a fixed view. Sparse above a hundred views."""
    blocks, gradients = equations[:, :14, :14], equations[:, :14, 14]
    index = torch.stack((slot_i, slot_j), dim=-1)
    place = (7 * index[..., None] + torch.arange(7)).flatten(1)  # edge 14
    kept = (index >= 0).repeat_interleave(7, dim=-1)
    size = 7 * n_free
    right = torch.zeros(size, dtype=torch.float64).index_add_(0, place[kept], gradients[kept])
    both = kept[:, :, None] & kept[:, None, :]
    row = place[:, :, None].expand_as(both)[both]
    column = place[:, None, :].expand_as(both)[both]
    diagonal = torch.zeros(size, dtype=torch.float64)
    diagonal.index_add_(0, place[kept], blocks.diagonal(dim1=1, dim2=2)[kept])
    ridge = damping * diagonal.clamp_min(1e-9 * float(diagonal.max()) + 1e-30)
    if n_free <= _DENSE_VIEWS:
        matrix = torch.diag(ridge)
        matrix.view(-1).index_add_(0, row * size + column, blocks[both])
        return -torch.linalg.solve(matrix, right).view(-1, 7)
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import spsolve

    entries = (blocks[both].numpy(), (row.numpy(), column.numpy()))
    system = coo_array(entries, shape=(size, size)).tocsc() + diags_array(ridge.numpy())
    return -torch.from_numpy(spsolve(system.tocsc(), right.numpy())).view(-1, 7)
