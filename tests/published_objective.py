"""The objective of DUSt3R (CVPR 2024), section 3.4, as slowly and plainly as it is written."""

import torch
from torch import Tensor

from recon3d.geometry import transform_points, unproject
from recon3d.types import PairPrediction, Scene

MEAN_SCALE = 0.5
"""Geometric mean of the scales of all pairs: the gauge, without which shrinking would win."""


def objective(world: list[Tensor], predictions: list[PairPrediction], pair2world: Tensor) -> float:
    """Return the mean weighted distance of all pixels of all pairs, both sides added.

    Args:
        world: world points of each view, one row a pixel.
        predictions: ordered pairs; their weight is the logarithm of the confidence.
        pair2world: a similarity for each, whose scales have the geometric mean `MEAN_SCALE`.
    """
    total_i = total_j = 0.0
    n_pixels_i = n_pixels_j = 0
    for p, matrix in zip(predictions, pair2world, strict=True):
        for points, confidence, target, is_i in (
            (p.pointmap_i_in_i, p.confidence_i, world[p.i], True),
            (p.pointmap_j_in_i, p.confidence_j, world[p.j], False),
        ):
            moved = points.reshape(-1, 3).double() @ matrix[:3, :3].T + matrix[:3, 3]
            distance = (moved - target).norm(dim=-1)
            value = float((confidence.flatten().double().log() * distance).sum())
            if is_i:
                total_i, n_pixels_i = total_i + value, n_pixels_i + len(distance)
            else:
                total_j, n_pixels_j = total_j + value, n_pixels_j + len(distance)
    return total_i / n_pixels_i + total_j / n_pixels_j


def best_pairs(world: list[Tensor], predictions: list[PairPrediction], rounds: int = 60) -> Tensor:
    """Return the similarities with the least objective for these points; scales `world` to fit.

    Reweighted least squares. Where the mean log scale is held, the derivative of the objective by
    each log scale is the same for all pairs, namely the objective over their number (Lagrange).
    """
    matrices = torch.eye(4).double().repeat(len(predictions), 1, 1)
    pull = 0.0
    gaps: list[Tensor | None] = [None] * len(predictions)
    for _ in range(rounds):
        total = 0.0
        for k, p in enumerate(predictions):
            source = torch.cat((p.pointmap_i_in_i.reshape(-1, 3), p.pointmap_j_in_i.reshape(-1, 3)))
            target = torch.cat((world[p.i], world[p.j]))
            weight = torch.cat((p.confidence_i.flatten(), p.confidence_j.flatten())).double().log()
            source = source.double()
            gap = gaps[k]
            robust = weight if gap is None else weight / gap.clamp_min(1e-9)
            share = (robust / robust.sum())[:, None]
            a, b = source - (share * source).sum(0), target - (share * target).sum(0)
            u, s, vt = torch.linalg.svd((share * b).T @ a)
            sign = torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt).sign())]).double()
            rotation = u @ torch.diag(sign) @ vt
            spread = (share * a.square()).sum()
            scale = (s * sign).sum() / spread
            scale = (scale + (scale**2 + 4 * pull / float(robust.sum()) / spread).sqrt()) / 2
            matrices[k, :3, :3] = scale * rotation
            matrices[k, :3, 3] = (share * target).sum(0) - scale * rotation @ (share * source).sum(
                0
            )
            gap = (source @ matrices[k, :3, :3].T + matrices[k, :3, 3] - target).norm(dim=-1)
            gaps[k] = gap
            total += float((weight * gap).sum())
        pull = total / len(predictions)
    scales = torch.linalg.det(matrices[:, :3, :3]) ** (1 / 3)
    factor = float(MEAN_SCALE / scales.log().mean().exp())
    matrices[:, :3] *= factor
    for points in world:
        points *= factor
    return matrices


def scene_objective(scene: Scene, predictions: list[PairPrediction]) -> float:
    """Return the published objective at a scene, its pairs placed as well as they can be."""
    world = [
        transform_points(pose.double(), unproject(depth.double(), k.double()).reshape(-1, 3))
        for pose, depth, k in zip(scene.cam2world, scene.depth, scene.intrinsics, strict=True)
    ]
    pairs = best_pairs(world, predictions)
    return objective(world, predictions, pairs)
