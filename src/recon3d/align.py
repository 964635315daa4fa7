"""Global alignment: all pair predictions into one world.

The published objective (DUSt3R, section 3.4) moves every pixel of every pair with Adam. Here each
view is one similarity and a sample of pixels: closed forms per pair and a spanning tree start it
(`align_init`), robust Gauss-Newton solves all views together (`align_refine`), and
full-resolution depth and confidence are fused once, at the end.
"""

import logging
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from recon3d.align_init import (
    Pair,
    combine_orders,
    largest_group,
    measure_edges,
    similarity_scale,
    spanning_tree,
)
from recon3d.align_refine import Solution, refine
from recon3d.align_samples import (
    TINY,
    Samples,
    canonical_views,
    pixel_weight,
    take_samples,
    weighted_median,
)
from recon3d.config import AlignConfig
from recon3d.errors import DisconnectedError
from recon3d.geometry import compose, invert_rigid, rotation_angle
from recon3d.progress import Track, silent
from recon3d.types import LeftOut, PairPrediction, Scene, Verdict, View

logger = logging.getLogger(__name__)

NOT_PLACED = "no confident overlap with any placed photo"
_MAX_DEPTH_SPREAD = 0.1
"""Largest relative distance from the median at which a depth is taken into the mean."""


def align(
    predictions: Iterable[PairPrediction],
    views: tuple[View, ...],
    config: AlignConfig,
    *,
    track: Track = silent,
) -> Scene:
    """Bring all pair predictions into one world frame by minimising 3D distances.

    Args:
        predictions: ordered pairs, both orders of each where possible. Pixels that are not finite
            are ignored.
        views: all views that the predictions index.
        config: thresholds, sampling and the focal length if it is known.
        track: called with stage "align".

    Returns:
        The scene of the largest group of photos that good pairs join, in the order of `views`;
        world = camera of its first view, scaled so that this view's median depth is 1. Photos
        outside the group are in `left_out`.

    Raises:
        DisconnectedError: when no pair is good enough; names the best one and its figures.

    Source: Wang et al., DUSt3R (CVPR 2024), section 3.4; Umeyama, PAMI 1991.
    """
    kept = list(predictions)
    raw = take_samples(kept, views, config)
    canonical, samples = canonical_views(raw, views, config)
    edges = measure_edges(samples, canonical)
    pairs = combine_orders(samples, edges)
    good = [pair for pair in pairs if pair.is_good(config)]
    track("align", 1, 3)
    while True:
        members = largest_group(len(views), good)
        if len(members) < 2:
            raise DisconnectedError(_disconnected(pairs, views, config))
        good = [pair for pair in good if pair.a in members]
        root, unit2world = spanning_tree(len(views), members, good)
        use = _edges_of(good, samples)
        used = samples.where(use)
        solution = refine(used, canonical, unit2world, edges.residual[use], root, views, config)
        angle = _rotation_error_rad(solution, used, edges.unit_j2unit_i[use])
        consistent = [pair for pair in good if _is_consistent(pair, used, solution, angle, config)]
        if len(consistent) == len(good):
            break
        good = consistent  # a pair that contradicts the others no longer holds a photo
    track("align", 2, 3)
    scene = _scene(kept, used, solution, angle, members, views)
    track("align", 3, 3)
    logger.info("aligned %d of %d photos on %d pairs", len(members), len(views), len(good))
    return scene


def fuse_depth(
    depth: Float[Tensor, "map pixel"],
    weight: Float[Tensor, "map pixel"],
    confidence: Float[Tensor, "map pixel"],
) -> tuple[Float[Tensor, " pixel"], Float[Tensor, " pixel"]]:
    """Return depth and confidence of one view from several maps; weight 0 is unknown.

    Depth is the weighted mean of what lies near the weighted median, within three times the typical
    spread of the view and 10 % at most. Confidence is 1 + (mean confidence - 1) times the share of
    the weight that agreed. Where nothing is known both are 0.
    """
    median = weighted_median(depth.mT.contiguous(), weight.mT.contiguous())
    spread = (depth - median).abs() / median.clamp_min(TINY)
    known = weight > 0
    typical = float(spread[known].median()) if bool(known.any()) else 0.0
    agrees = weight * (spread <= min(max(3 * typical, 1e-4), _MAX_DEPTH_SPREAD))
    total, support = weight.sum(0), agrees.sum(0)
    fused = (agrees * depth).sum(0) / support.clamp_min(TINY)
    mean = (weight * confidence).sum(0) / total.clamp_min(TINY)
    share = support / total.clamp_min(TINY)
    trust = 1 + (mean - 1).clamp_min(1e-3) * share
    return fused, torch.where(support > 0, trust, 0.0)


def _edges_of(pairs: Sequence[Pair], samples: Samples) -> Tensor:
    wanted = {(pair.a, pair.b) for pair in pairs}
    both = zip(samples.i.tolist(), samples.j.tolist(), strict=True)
    return torch.tensor([(i, j) in wanted or (j, i) in wanted for i, j in both])


def _rotation(matrix: Float64[Tensor, "*batch 4 4"]) -> Float64[Tensor, "*batch 3 3"]:
    return matrix[..., :3, :3] / similarity_scale(matrix)[..., None, None]


def _rotation_error_rad(
    solution: Solution, samples: Samples, unit_j2unit_i: Float64[Tensor, "edge 4 4"]
) -> Float64[Tensor, " edge"]:
    """Angle between the solved rotation of each edge and the one it votes for by itself."""
    rotation = _rotation(solution.unit2world)
    solved = rotation[samples.i].mT @ rotation[samples.j]
    return rotation_angle(solved.mT @ _rotation(unit_j2unit_i))


def _is_consistent(
    pair: Pair,
    samples: Samples,
    solution: Solution,
    angle: Float64[Tensor, " edge"],
    config: AlignConfig,
) -> bool:
    mine = _edges_of([pair], samples)
    return (
        float(solution.seen_residual[mine].mean()) <= 1.5 * config.max_edge_residual
        and float(torch.rad2deg(angle[mine]).mean()) <= config.max_edge_rotation_deg
    )


def _disconnected(pairs: Sequence[Pair], views: Sequence[View], config: AlignConfig) -> str:
    best = max(pairs, key=lambda pair: pair.score)
    return (
        f"no two of the {len(views)} photos overlap confidently. The best pair, "
        f"{views[best.a].name} and {views[best.b].name}, has confidence {best.confidence:.2f} "
        f"(needs {config.min_edge_confidence:g}), residual {best.residual:.2f} (at most "
        f"{config.max_edge_residual:g}), and its two orders differ by {best.rotation_gap_deg:.0f} "
        f"degrees (at most {config.max_edge_rotation_deg:g}). Take photos that overlap by half."
    )


def _scene(
    predictions: Sequence[PairPrediction],
    samples: Samples,
    solution: Solution,
    angle: Float64[Tensor, " edge"],
    members: Sequence[int],
    views: Sequence[View],
) -> Scene:
    """Fuse depth and write everything down in the frame of the first member."""
    scale = similarity_scale(solution.unit2world)
    fused = [_view_depth(n, predictions, samples, solution) for n in members]
    known = fused[0][0] > 0
    size = float(scale[members[0]])
    if bool(known.any()):
        size *= float(fused[0][0][known].median())
    cam2root = solution.unit2world[members]
    cam2root[:, :3, :3] = _rotation(cam2root)
    cam2world = compose(invert_rigid(cam2root[0]), cam2root)
    cam2world[:, :3, 3] /= size
    intrinsics = torch.zeros(len(members), 3, 3)
    verdicts = []
    for k, n in enumerate(members):
        height, width = views[n].image.shape[-2:]
        fx, fy = solution.focal[n].tolist()
        intrinsics[k] = torch.tensor([[fx, 0, width / 2], [0, fy, height / 2], [0, 0, 1]])
        mine = (samples.i == n) | (samples.j == n)
        partners = torch.unique(torch.cat((samples.i[mine], samples.j[mine])))
        verdicts.append(
            Verdict(
                residual=float(solution.seen_residual[mine].median()),
                edges=len(partners) - 1,
                rotation_uncertainty_deg=float(torch.rad2deg(angle[mine].square().mean().sqrt())),
                focal_source=solution.focal_source[n],
            )
        )
    return Scene(
        views=tuple(views[n] for n in members),
        cam2world=cam2world.float(),
        intrinsics=intrinsics,
        depth=tuple(d * (float(scale[n]) / size) for n, (d, _) in zip(members, fused, strict=True)),
        confidence=tuple(c for _, c in fused),
        verdicts=tuple(verdicts),
        left_out=tuple(
            LeftOut(name=view.name, reason=NOT_PLACED)
            for n, view in enumerate(views)
            if n not in members
        ),
    )


def _view_depth(
    n: int,
    predictions: Sequence[PairPrediction],
    samples: Samples,
    solution: Solution,
) -> tuple[Float32[Tensor, "height width"], Float32[Tensor, "height width"]]:
    """Fuse the depth of view n, in its unit frame, over all maps that show it."""
    depths, weights, confidences = [], [], []
    world2unit = torch.linalg.inv(solution.unit2world[n])
    shape = torch.Size()
    for e, (i, j) in enumerate(zip(samples.i.tolist(), samples.j.tolist(), strict=True)):
        if n not in (i, j):
            continue
        prediction = predictions[int(samples.prediction[e])]
        unit_i2unit_n = compose(world2unit, solution.unit2world[i])
        if i == n:
            points, confidence = prediction.pointmap_i_in_i, prediction.confidence_i
            noise = solution.own_noise[e]
        else:
            points, confidence = prediction.pointmap_j_in_i, prediction.confidence_j
            noise = solution.seen_noise[e]
        shape = confidence.shape
        row = (unit_i2unit_n[2, :3] / samples.edge_scale[e]).float()
        depth = points.reshape(-1, 3).float() @ row + float(unit_i2unit_n[2, 3])
        weight = pixel_weight(points.float(), confidence.float()).flatten()
        weight = torch.where(depth > 0, weight, 0.0)  # not finite: weight 0 already
        depths.append(torch.where(weight > 0, depth, 0.0))
        weights.append(weight * float((solution.own_noise.min() / noise).square()))
        confidences.append(torch.where(weight > 0, confidence.float().flatten(), 1.0))
    depth, trust = fuse_depth(torch.stack(depths), torch.stack(weights), torch.stack(confidences))
    return depth.view(shape), trust.view(shape)
