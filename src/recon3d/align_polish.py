"""The published objective itself, minimised from the robust solution.

Unsquared distances, weighted by log-confidence, between the points of the views and the predictions
of each pair moved by a similarity of its own, whose geometric mean scale is fixed (Wang et al.,
DUSt3R, CVPR 2024, section 3.4). Reweighted squares, one block after the other: pairs and depths in
closed form, cameras by a Gauss-Newton step; a dozen rounds settle it.

The minimum alone has worse cameras than the robust solution, since gross errors pull without limit:
cameras are therefore tied loosely to where they come from.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from recon3d.align_focal import Focals
from recon3d.align_init import rotation_of
from recon3d.align_samples import TINY, Samples, edge_chunks
from recon3d.geometry import dot, similarity, so3_exp, transform_points, umeyama

_ROUNDS = 15
_STILL_ROUNDS = 3
"""Rounds before the first camera moves: pairs and depths must fit before they may pull."""
_TIE = 1.0
"""What it costs that a camera moves by the typical depth, as a share of the objective; squared."""
_LOOSE = 0.01
"""The same for turning by a radian and for a focal length that grows by a factor of e."""
_FLOOR = 1e-4
"""Least distance in a reweighting, relative to depth: an exact fit must not divide by zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Polished:
    """Cameras, the similarity of each pair (unit i to world), and depths in the unit frames."""

    unit2world: Float64[Tensor, "view 4 4"]
    lens: Focals
    pair2world: Float64[Tensor, "edge 4 4"]
    depth: Float64[Tensor, "view sample"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Freedom:
    """Which views may move, and which may change their focal length."""

    pose: Bool[Tensor, " view"]
    focal: Bool[Tensor, " view"]


def polish(
    samples: Samples, unit2world: Float64[Tensor, "view 4 4"], lens: Focals, free: Freedom
) -> Polished:
    """Return cameras, pairs and depths of a lower objective.

    With the geometric mean of the scales fixed, the scale of each pair takes its share of the
    gauge: dL/dlog(scale) = L / number of pairs (Lagrange).
    """
    i, j = samples.i, samples.j
    n_views, n_samples = samples.pixel.shape[:2]
    start, start_lens = unit2world, lens
    pair2world = unit2world[i].clone()
    depth = _first_depth(samples)
    gauge = 0.0
    moving = bool((free.pose | free.focal).any())
    for k in range(_ROUNDS):
        ray = _rays(samples, lens)
        direction = ray @ unit2world[:, :3, :3].mT
        centre = unit2world[:, None, :3, 3]
        along = dot(direction, direction)
        world = centre + depth[..., None] * direction
        floor = (_FLOOR * depth * along.sqrt()).clamp_min(TINY)
        pull = world.new_zeros(n_views, n_samples)
        mean = torch.zeros_like(world)
        total = 0.0
        for cut in edge_chunks(samples.own):
            a, b = i[cut], j[cut]
            source = torch.cat((samples.own[cut], samples.seen[cut]), dim=1)
            weight = torch.cat((samples.own_weight[cut], samples.seen_weight[cut]), dim=1)
            target = torch.cat((world[a], world[b]), dim=1)
            least = torch.cat((floor[a], floor[b]), dim=1)
            gap = (transform_points(pair2world[cut], source) - target).norm(dim=-1)
            robust = weight / torch.maximum(gap, least)
            pair2world[cut] = _fit(source, target, robust, gauge)
            moved = transform_points(pair2world[cut], source)
            gap = (moved - target).norm(dim=-1)
            total += float((weight * gap).sum())
            robust = weight / torch.maximum(gap, least)
            for views, half in ((a, slice(n_samples)), (b, slice(n_samples, None))):
                pull.index_add_(0, views, robust[:, half])
                mean.index_add_(0, views, robust[:, half, None] * moved[:, half])
        gauge = total / len(i)
        mean = mean / pull.clamp_min(TINY)[..., None]
        if moving and k >= _STILL_ROUNDS:
            step = _camera_step(mean, pull, unit2world, lens, ray, start, start_lens, total, free)
            unit2world = unit2world.clone()
            unit2world[:, :3, :3] = so3_exp(step[:, :3]) @ unit2world[:, :3, :3]
            unit2world[:, :3, 3] += step[:, 3:6]
            lens = replace(lens, focal=lens.focal * step[:, 6:].exp())
            direction = _rays(samples, lens) @ unit2world[:, :3, :3].mT
            along = dot(direction, direction)
        offset = dot(mean - unit2world[:, None, :3, 3], direction) / along
        depth = torch.where(pull > 0, offset, depth)
    return Polished(unit2world=unit2world, lens=lens, pair2world=pair2world, depth=depth)


def _rays(samples: Samples, lens: Focals) -> Float64[Tensor, "view sample 3"]:
    """Return (x / z, y / z, 1) at the sample pixels."""
    ray = (samples.pixel - lens.centre[:, None]) / lens.focal[:, None]
    return torch.cat((ray, torch.ones_like(ray[..., :1])), dim=-1)


def _first_depth(samples: Samples) -> Float64[Tensor, "view sample"]:
    """Return the weighted mean depth that the views give themselves; 1, its unit, without any."""
    n_views, n_samples = samples.pixel.shape[:2]
    total = samples.own.new_zeros(n_views, n_samples)
    top = torch.zeros_like(total)
    total.index_add_(0, samples.i, samples.own_weight)
    top.index_add_(0, samples.i, samples.own_weight * samples.own[..., 2])
    return torch.where(total > 0, top / total.clamp_min(TINY), 1.0)


def _fit(
    source: Float64[Tensor, "edge point 3"],
    target: Float64[Tensor, "edge point 3"],
    weight: Float64[Tensor, "edge point"],
    gauge: float,
) -> Float64[Tensor, "edge 4 4"]:
    """Return the similarity of least squares minus `gauge` times its log-scale."""
    scale, rotation, _ = umeyama(source, target, weight)
    share = weight / weight.sum(-1, keepdim=True).clamp_min(TINY)
    mean_source = (share[:, None] @ source).squeeze(1)
    mean_target = (share[:, None] @ target).squeeze(1)
    apart = (source - mean_source[:, None]).norm(dim=-1)
    spread = (weight * apart.square()).sum(-1).clamp_min(TINY)
    scale = (scale + (scale.square() + 4 * gauge / spread).sqrt()) / 2
    shift = mean_target - scale[:, None] * (rotation @ mean_source[..., None]).squeeze(-1)
    return similarity(scale, rotation, shift)


def _camera_step(
    mean: Float64[Tensor, "view sample 3"],
    pull: Float64[Tensor, "view sample"],
    unit2world: Float64[Tensor, "view 4 4"],
    lens: Focals,
    ray: Float64[Tensor, "view sample 3"],
    start: Float64[Tensor, "view 4 4"],
    start_lens: Focals,
    total: float,
    free: Freedom,
) -> Float64[Tensor, "view 7"]:
    """Return each camera's turn (about its centre), move, and change of log focal length."""
    parts = [
        _camera_system(mean[cut], pull[cut], unit2world[cut], ray[cut])
        for cut in edge_chunks(mean, vectors=7)
    ]
    matrix, gradient, reach = (torch.cat(values) for values in zip(*parts, strict=True))
    size = reach.sum() / pull.sum().clamp_min(TINY)
    turn = rotation_of(unit2world) @ rotation_of(start).mT
    skew = (turn - turn.mT) / 2
    away = torch.cat(
        (
            torch.stack((skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]), dim=-1),
            unit2world[:, :3, 3] - start[:, :3, 3],
            (lens.focal / start_lens.focal)[:, :1].log(),
        ),
        dim=-1,
    )
    tie = torch.full_like(away, 2 * _LOOSE * total)
    tie[:, 3:6] = 2 * _TIE * total / size.square()
    may = torch.cat((free.pose[:, None].expand(-1, 6), free.focal[:, None]), dim=-1)
    matrix = matrix + torch.diag_embed(tie)
    both = may[:, :, None] & may[:, None, :]
    matrix = torch.where(both, matrix, torch.eye(7).to(matrix))
    gradient = torch.where(may, gradient + tie * away, 0.0)
    return -torch.linalg.solve(matrix, gradient[..., None]).squeeze(-1)


def _camera_system(
    mean: Float64[Tensor, "view sample 3"],
    pull: Float64[Tensor, "view sample"],
    unit2world: Float64[Tensor, "view 4 4"],
    ray: Float64[Tensor, "view sample 3"],
) -> tuple[Float64[Tensor, "view 7 7"], Float64[Tensor, "view 7"], Float64[Tensor, " view"]]:
    """Return the normal equations of some cameras, and the weighted sum of their distances.

    With its depth free, a pixel wants its ray to pass through the mean of what the pairs predict.
    """
    direction = ray @ unit2world[:, :3, :3].mT
    length = direction.norm(dim=-1)
    toward = mean - unit2world[:, None, :3, 3]
    depth = (dot(toward, direction) / length.square())[..., None]
    residual = depth * direction - toward
    x, y, z = (depth * direction).unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    flat = torch.cat((-ray[..., :2], zero[..., None]), dim=-1) @ unit2world[:, :3, :3].mT
    derivative = torch.stack(
        (
            torch.stack((zero, -z, y), dim=-1), torch.stack((z, zero, -x), dim=-1),
            torch.stack((-y, x, zero), dim=-1), torch.stack((one, zero, zero), dim=-1),
            torch.stack((zero, one, zero), dim=-1), torch.stack((zero, zero, one), dim=-1),
            depth * flat,
        ),
        dim=-2,
    )  # fmt: skip
    unit = (direction / length[..., None])[..., None, :]
    derivative = derivative - dot(derivative, unit)[..., None] * unit
    weighted = derivative * pull[..., None, None]
    matrix = torch.einsum("vskx,vslx->vkl", weighted, derivative)
    gradient = torch.einsum("vskx,vsx->vk", weighted, residual)
    return matrix, gradient, (pull * depth[..., 0] * length).sum(-1)
