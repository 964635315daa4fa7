"""Gauss-Newton on the similarities of all views: cost, normal equations, linear solvers.

Unknowns are left perturbations exp(rotation, translation, log scale) of each view, seven numbers.
What holds views in place (a root, given poses) narrows or pulls them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from recon3d.align_init import rotation_of
from recon3d.align_samples import TINY, edge_chunks
from recon3d.geometry import compose, similarity, so3_exp, transform_points

KERNEL = 2.0
"""Width of the Cauchy kernel in units of a map's median error: beyond it a point counts less."""
_PRIOR_KERNEL = 3.0
"""The same for given poses, in standard deviations: one that is wrong must not move the others."""
_BANDED_VIEWS = 128
"""Widest band, in views, that is solved directly; wider systems are solved iteratively."""
_LEAST_DAMPING = 1e-12
"""Relative to the diagonal. A ring of 1,000 views bends 1e-9 times as stiffly as one pair holds:
damping above that makes as slow a descent of it as steepest descent is."""
_DENSE_VIEWS = 150
"""Most views whose uncertainty is computed from the whole system."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What one solve minimises: seen points of each edge in unit i against own points in unit j.

    `noise` is the expected distance, in unit i; beyond `kernel` times that a point counts less.
    """

    i: Int64[Tensor, " edge"]
    j: Int64[Tensor, " edge"]
    seen: Float64[Tensor, "edge sample 3"]
    own: Float64[Tensor, "view sample 3"]
    weight: Float64[Tensor, "edge sample"]
    noise: Float64[Tensor, "edge sample"]
    kernel: float = KERNEL


@dataclass(frozen=True, kw_only=True, eq=False)
class Anchors:
    """What holds views in place.

    A `locked` view does not move at all; one with a `fixed` pose changes only its scale about its
    centre; one with a `prior` is pulled towards `cam2world` with `strength`, the number of samples
    that its pull is worth, at the given standard deviations.
    """

    locked: Bool[Tensor, " view"]
    fixed: Bool[Tensor, " view"]
    prior: Bool[Tensor, " view"]
    cam2world: Float64[Tensor, "view 4 4"]
    rotation_sigma_rad: float = 1.0
    centre_sigma: float = 1.0
    strength: float = 1.0


class Blocks(NamedTuple):
    """The normal equations: a block per view, its gradient, and a block per edge (i, j)."""

    diagonal: Float64[Tensor, "view 7 7"]
    gradient: Float64[Tensor, "view 7"]
    across: Float64[Tensor, "edge 7 7"]


def solve_similarities(
    problem: Problem, unit2world: Float64[Tensor, "view 4 4"], anchors: Anchors, limit: int
) -> Float64[Tensor, "view 4 4"]:
    """Return the similarities after at most `limit` Levenberg-Marquardt steps.

    Views without an edge stay. The cost never rises.
    """
    solver = _Solver(problem.i, problem.j, len(unit2world))
    damping = _LEAST_DAMPING
    cost = robust_cost(problem, unit2world, anchors)
    for _ in range(limit):
        basis = _basis(unit2world, anchors)
        blocks = _narrow(normal_equations(problem, unit2world, anchors), basis, problem)
        for _ in range(6):
            step = torch.einsum("vkl,vl->vk", basis, solver.step(blocks, damping))
            change = similarity(step[:, 6].clamp(-1, 1).exp(), so3_exp(step[:, :3]), step[:, 3:6])
            moved = compose(change, unit2world)
            moved[anchors.fixed, :3, 3] = unit2world[anchors.fixed, :3, 3]
            moved[anchors.locked] = unit2world[anchors.locked]
            new_cost = robust_cost(problem, moved, anchors)
            if new_cost <= cost:
                break
            damping = max(damping, 1e-6) * 10
        else:
            break
        gain, cost, unit2world, damping = (
            cost - new_cost,
            new_cost,
            moved,
            max(damping / 10, _LEAST_DAMPING),
        )
        if gain <= 1e-9 * cost:
            break
    return unit2world


def normal_equations(
    problem: Problem, unit2world: Float64[Tensor, "view 4 4"], anchors: Anchors
) -> Blocks:
    """Return the Gauss-Newton system at these similarities, robust weights held.

    Residual and derivatives are linear in m = (a, b, 1), the world points of both sides, so the
    matrix is linear in the 7x7 moments of m: no derivative is formed per point.
    """
    n_views = len(unit2world)
    diagonal = unit2world.new_zeros(n_views, 7, 7)
    gradient = unit2world.new_zeros(n_views, 7)
    across = [unit2world.new_zeros(0, 7, 7)]
    for whole, i, j in _edge_systems(problem, unit2world):
        diagonal.index_add_(0, i, whole[:, :7, :7]).index_add_(0, j, whole[:, 7:14, 7:14])
        gradient.index_add_(0, i, whole[:, :7, 14]).index_add_(0, j, whole[:, 7:14, 14])
        across.append(whole[:, :7, 7:14])
    if bool(anchors.prior.any()):
        residual, derivative = _pull(unit2world, anchors)
        square = residual.square().sum(-1)[:, None, None]
        weighted = derivative.mT * (anchors.strength / (1 + square / _PRIOR_KERNEL**2))
        diagonal[anchors.prior] += weighted @ derivative
        gradient[anchors.prior] += (weighted @ residual[..., None]).squeeze(-1)
    return Blocks(diagonal, gradient, torch.cat(across))


def pose_uncertainty(
    problem: Problem, unit2world: Float64[Tensor, "view 4 4"], anchors: Anchors, factor: float
) -> tuple[Float64[Tensor, " view"], Float64[Tensor, " view"]]:
    """Return the standard deviations of each rotation (radians) and camera centre (world units).

    They come from the inverse of the normal equations, times `factor` because neighbouring pixels
    err together. Without given poses they are relative to all views as a whole (the motion of all
    together is held at zero); above 150 views each is that of a view against its partners alone.
    Views that cannot move have 0.
    """
    basis = _basis(unit2world, anchors)
    if not bool((anchors.fixed | anchors.prior).any()):
        basis = torch.eye(7, dtype=basis.dtype, device=basis.device).expand_as(basis)
    blocks = normal_equations(problem, unit2world, anchors)
    used = torch.unique(torch.cat((problem.i, problem.j)))
    narrow = _narrow(blocks, basis, problem)
    covariance = torch.zeros_like(blocks.diagonal)
    if len(used) <= _DENSE_VIEWS:
        slot = torch.full((len(unit2world),), -1, device=used.device)
        slot[used] = torch.arange(len(used), device=used.device)
        n = len(used)
        whole = unit2world.new_zeros(n, n, 7, 7)
        whole.view(n * n, 7, 7).index_add_(0, slot[problem.i] * n + slot[problem.j], narrow.across)
        whole = whole + whole.transpose(0, 1).mT
        whole[torch.arange(n), torch.arange(n)] += narrow.diagonal[used]
        matrix = whole.permute(0, 2, 1, 3).reshape(7 * n, 7 * n)
        if not bool((anchors.fixed | anchors.prior).any()):
            # exp(step) of all views at once changes nothing: hold it, at the scale of the system
            together = torch.eye(7, dtype=matrix.dtype, device=matrix.device).repeat(n, 1)
            size = matrix.view(n, 7, n, 7).diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1).mean(0)
            matrix = matrix + (together * size) @ together.mT
        ridge = 1e-12 * matrix.diagonal().mean()
        inverse = torch.linalg.inv(matrix + ridge * torch.eye(7 * n).to(matrix))
        covariance[used] = inverse.view(n, 7, n, 7)[torch.arange(n), :, torch.arange(n)]
    else:
        ridge = 1e-12 * narrow.diagonal[used].diagonal(dim1=1, dim2=2).mean(-1)
        eye = torch.eye(7, dtype=ridge.dtype, device=ridge.device)
        covariance[used] = torch.linalg.inv(narrow.diagonal[used] + ridge[:, None, None] * eye)
    covariance = basis @ covariance @ basis.mT
    turn = covariance[:, :3, :3].diagonal(dim1=1, dim2=2).sum(-1)
    shift = _centre_derivative(unit2world)
    move = (shift @ covariance @ shift.mT).diagonal(dim1=1, dim2=2).sum(-1)
    return factor * turn.clamp_min(0).sqrt(), factor * move.clamp_min(0).sqrt()


def rotation_sigma(
    problem: Problem, unit2world: Float64[Tensor, "view 4 4"]
) -> Float64[Tensor, " edge"]:
    """Return the standard deviation (radians) that the rotation of each edge has by itself.

    As if all its pixels erred independently, by its noise.
    """
    sigma = [unit2world.new_zeros(0)]
    for whole, _, _ in _edge_systems(problem, unit2world):
        block = whole[:, :7, :7]
        size = block.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        eye = torch.eye(7, dtype=block.dtype, device=block.device)
        inverse = torch.linalg.inv(block + 1e-12 * size * eye)
        sigma.append(inverse.diagonal(dim1=1, dim2=2)[:, :3].sum(-1).clamp_min(0).sqrt())
    return torch.cat(sigma)


def _edge_systems(
    problem: Problem, unit2world: Float64[Tensor, "view 4 4"]
) -> Iterator[tuple[Float64[Tensor, "edge 15 15"], Int64[Tensor, " edge"], Int64[Tensor, " edge"]]]:
    """Yield, for some edges at a time, the system of unknowns of i, of j, and gradient; i; j."""
    linear = _LINEAR.to(unit2world.device)
    for a, b, noise, weight, i, j in _gaps(problem, unit2world):
        square = ((a - b).norm(dim=-1) / noise).square()
        weight = weight / noise.square() / (1 + square / problem.kernel**2)
        both = torch.cat((a, b, torch.ones_like(a[..., :1])), dim=-1)
        moments = (both * weight[..., None]).mT @ both
        yield torch.einsum("ckl,elm,cnm->ekn", linear, moments, linear), i, j


class _Gap(NamedTuple):
    """Some edges: world points of both sides, noise there, weight, and the views."""

    a: Float64[Tensor, "edge sample 3"]
    b: Float64[Tensor, "edge sample 3"]
    noise: Float64[Tensor, "edge sample"]
    weight: Float64[Tensor, "edge sample"]
    i: Int64[Tensor, " edge"]
    j: Int64[Tensor, " edge"]


def _gaps(problem: Problem, unit2world: Float64[Tensor, "view 4 4"]) -> Iterator[_Gap]:
    """Yield the world points of both sides for some edges at a time."""
    scale = unit2world[:, :3, 0].norm(dim=-1)
    for cut in edge_chunks(problem.seen):
        i, j = problem.i[cut], problem.j[cut]
        a = transform_points(unit2world[i], problem.seen[cut])
        b = transform_points(unit2world[j], problem.own[j])
        yield _Gap(a, b, scale[i][:, None] * problem.noise[cut], problem.weight[cut], i, j)


def robust_cost(
    problem: Problem, unit2world: Float64[Tensor, "view 4 4"], anchors: Anchors
) -> float:
    """Return what `solve_similarities` minimises."""
    total = 0.0
    for a, b, noise, weight, _, _ in _gaps(problem, unit2world):
        square = ((a - b).norm(dim=-1) / noise).square()
        kernel = problem.kernel**2
        total += float((weight * torch.log1p(square / kernel)).sum()) * kernel
    if bool(anchors.prior.any()):
        square = _pull(unit2world, anchors)[0].square().sum(-1)
        kernel = _PRIOR_KERNEL**2
        total += anchors.strength * float(torch.log1p(square / kernel).sum()) * kernel
    return total


def _pull(
    unit2world: Float64[Tensor, "view 4 4"], anchors: Anchors
) -> tuple[Float64[Tensor, "prior 6"], Float64[Tensor, "prior 6 7"]]:
    """Return what the priors feel, in standard deviations, and its derivatives."""
    mine, given = unit2world[anchors.prior], anchors.cam2world[anchors.prior]
    turn = rotation_of(mine) @ given[:, :3, :3].mT
    skew = (turn - turn.mT) / 2
    axis = torch.stack((skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]), dim=-1)
    # of twice the sine of half the angle: that of all of it falls again beyond a right one
    half_cosine = (1 + turn.diagonal(dim1=1, dim2=2).sum(-1)).clamp_min(TINY).sqrt() / 2
    axis = axis / half_cosine[:, None]
    residual = torch.cat(
        (
            axis / anchors.rotation_sigma_rad,
            (mine[:, :3, 3] - given[:, :3, 3]) / anchors.centre_sigma,
        ),
        dim=-1,
    )
    derivative = mine.new_zeros(len(mine), 6, 7)
    derivative[:, :3, :3] = torch.eye(3, dtype=mine.dtype) / anchors.rotation_sigma_rad
    derivative[:, 3:] = _centre_derivative(mine) / anchors.centre_sigma
    return residual, derivative


def _centre_derivative(unit2world: Float64[Tensor, "view 4 4"]) -> Float64[Tensor, "view 3 7"]:
    """Return the derivative of the camera centre by the seven unknowns of its view."""
    x, y, z = unit2world[:, :3, 3].unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack(
        (
            torch.stack((zero, z, -y, one, zero, zero, x), dim=-1),
            torch.stack((-z, zero, x, zero, one, zero, y), dim=-1),
            torch.stack((y, -x, zero, zero, zero, one, z), dim=-1),
        ),
        dim=1,
    )


def _basis(
    unit2world: Float64[Tensor, "view 4 4"], anchors: Anchors
) -> Float64[Tensor, "view 7 7"]:
    """Return the directions in which each view may move, one per column, 0 where it may not."""
    eye = torch.eye(7, dtype=unit2world.dtype, device=unit2world.device)
    basis = eye.repeat(len(unit2world), 1, 1)
    swell = torch.zeros_like(basis)
    swell[:, 3:6, 6], swell[:, 6, 6] = -unit2world[:, :3, 3], 1.0
    basis = torch.where(anchors.fixed[:, None, None], swell, basis)
    return torch.where(anchors.locked[:, None, None], 0.0, basis)


def _narrow(blocks: Blocks, basis: Float64[Tensor, "view 7 7"], problem: Problem) -> Blocks:
    """Return the system in the directions of the basis; where there is none, unknowns are 0."""
    diagonal = basis.mT @ blocks.diagonal @ basis
    still = diagonal.diagonal(dim1=1, dim2=2) <= 0
    return Blocks(
        diagonal + torch.diag_embed(still.to(diagonal)),
        torch.einsum("vlk,vl->vk", basis, blocks.gradient),
        basis[problem.i].mT @ blocks.across @ basis[problem.j],
    )


class _Solver:
    """Solves the damped system: by Cholesky where the views can be ordered in a narrow band."""

    def __init__(self, i: Int64[Tensor, " edge"], j: Int64[Tensor, " edge"], n_views: int) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import reverse_cuthill_mckee

        self.i, self.j, self.n_views = i, j, n_views
        a, b = i.numpy(force=True), j.numpy(force=True)
        graph = coo_array((np.ones(len(a)), (a, b)), shape=(n_views, n_views)).tocsr()
        order = reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)
        self.position = np.empty(n_views, dtype=np.int64)
        self.position[order] = np.arange(n_views)
        self.band = int(np.abs(self.position[a] - self.position[b]).max(initial=0))
        if self.band > _BANDED_VIEWS:
            return
        # where each number of the blocks goes in the band: [row - column, column], flat
        views = np.arange(n_views)
        ends = np.stack((np.concatenate((views, a)), np.concatenate((views, b))))
        rows, columns = 7 * self.position[ends][..., None] + np.arange(7)
        below = rows[:, :, None] - columns[:, None, :]
        place = below * 7 * n_views + columns[:, None, :]
        mirrored = -below * 7 * n_views + rows[:, :, None]  # of a block above the diagonal
        across = np.arange(len(below))[:, None, None] >= n_views
        self.keep = (below >= 0) | across
        self.place = np.where(below >= 0, place, mirrored)[self.keep]

    def step(self, blocks: Blocks, damping: float) -> Float64[Tensor, "view 7"]:
        """Return the step that the system asks for."""
        extent = blocks.diagonal.diagonal(dim1=1, dim2=2)
        ridge = damping * extent.clamp_min(1e-9 * float(extent.max()) + 1e-30)
        damped = blocks._replace(diagonal=blocks.diagonal + torch.diag_embed(ridge))
        if self.band <= _BANDED_VIEWS:
            return self._direct(damped)
        return conjugate_gradients(damped, self.i, self.j)

    def _direct(self, blocks: Blocks) -> Float64[Tensor, "view 7"]:
        from scipy.linalg import solveh_banded

        n = 7 * self.n_views
        values = torch.cat((blocks.diagonal, blocks.across)).numpy(force=True)
        band = np.bincount(self.place, values[self.keep], minlength=7 * (self.band + 1) * n)
        right = np.zeros((self.n_views, 7))
        right[self.position] = blocks.gradient.numpy(force=True)
        solved = solveh_banded(
            band.reshape(-1, n), right.ravel(), lower=True, overwrite_ab=True, check_finite=False
        )
        step = -solved.reshape(-1, 7)[self.position]
        return torch.from_numpy(step).to(blocks.gradient.device)


def conjugate_gradients(
    blocks: Blocks, i: Int64[Tensor, " edge"], j: Int64[Tensor, " edge"], limit: int = 1000
) -> Float64[Tensor, "view 7"]:
    """Return minus the solution, by conjugate gradients preconditioned with the views' blocks.

    Wide graphs are well conditioned: it takes few rounds there, each linear in the edges.
    """
    inverse = torch.linalg.inv(blocks.diagonal)

    def times(vector: Tensor) -> Tensor:
        out = torch.einsum("vkl,vl->vk", blocks.diagonal, vector)
        out.index_add_(0, i, torch.einsum("ekl,el->ek", blocks.across, vector[j]))
        out.index_add_(0, j, torch.einsum("elk,el->ek", blocks.across, vector[i]))
        return out

    residual = -blocks.gradient
    solution = torch.zeros_like(residual)
    direction = ahead = torch.einsum("vkl,vl->vk", inverse, residual)
    slope = (residual * ahead).sum()
    enough = 1e-18 * slope
    for _ in range(limit):
        if bool(slope <= enough):
            break
        image = times(direction)
        length = slope / (direction * image).sum().clamp_min(TINY * 1e-200)
        solution = solution + length * direction
        residual = residual - length * image
        ahead = torch.einsum("vkl,vl->vk", inverse, residual)
        new_slope = (residual * ahead).sum()
        direction, slope = ahead + new_slope / slope * direction, new_slope
    return solution


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
