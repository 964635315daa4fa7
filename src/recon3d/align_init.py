"""What each pair says by itself: canonical pointmaps, pairwise similarities, focals, a spanning tree.

No matching is needed: `pointmap_j_in_i` of an edge and the canonical pointmap of view j live on the
same pixels, so that their similarity is closed-form. Canonical pointmaps have median depth 1 ("unit"
frames); a similarity here maps unit camera j to unit camera i. Everything is float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from recon3d.config import AlignConfig
from recon3d.geometry import pixel_grid, rotation_angle, similarity, transform_points, umeyama
from recon3d.types import PairPrediction, View

_IRLS_ROUNDS = 8
_MIN_WEIGHT = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Canonical:
    """One view by itself: its own-frame pointmap fused over its pairs, scaled to median depth 1.

    `edge_scale` holds, per prediction whose first view this is, the factor from unit to that
    prediction. `weight` is the mean log-confidence, 0 where nothing valid was predicted.
    """

    points: Float64[Tensor, "height width 3"]
    weight: Float64[Tensor, "height width"]
    edge_scale: dict[int, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """All ordered pairs, sampled: points of j seen from i, in unit camera i, and in unit camera j.

    `cam_j2cam_i` is the best similarity, `residual` its weighted median distance over the median
    depth, `confidence` the geometric mean confidence of view j's map, `disagreement_rad` the angle
    between the rotations that the two orders of the pair predict (0 if only one was predicted).
    """

    i: Int64[Tensor, " edge"]
    j: Int64[Tensor, " edge"]
    points_j_in_i: Float64[Tensor, "edge sample 3"]
    points_j_in_j: Float64[Tensor, "edge sample 3"]
    weight: Float64[Tensor, "edge sample"]
    cam_j2cam_i: Float64[Tensor, "edge 4 4"]
    residual: Float64[Tensor, " edge"]
    confidence: Float64[Tensor, " edge"]
    disagreement_rad: Float64[Tensor, " edge"]

    def good(self, config: AlignConfig) -> Bool[Tensor, " edge"]:
        """Return which edges may hold a photo."""
        return (
            (self.residual <= config.max_edge_residual)
            & (torch.rad2deg(self.disagreement_rad) <= config.max_edge_rotation_deg)
            & (self.confidence >= config.min_edge_confidence)
        )

    def score(self) -> Float64[Tensor, " edge"]:
        """Return the quality of each edge: confident, self-consistent, agreeing in both orders."""
        fit = 1 / (1 + (self.residual / 0.1).square())
        agreement = 1 / (1 + (torch.rad2deg(self.disagreement_rad) / 10).square())
        return self.confidence.log().clamp_min(1e-3) * fit * agreement


def weighted_median(
    values: Float64[Tensor, "*batch sample"], weights: Float64[Tensor, "*batch sample"]
) -> Float64[Tensor, "*batch"]:
    """Return the value at which half of the weight lies below."""
    ordered, index = values.sort(dim=-1)
    cumulative = weights.gather(-1, index).cumsum(-1)
    half = (cumulative < cumulative[..., -1:] / 2).sum(-1, keepdim=True)
    return ordered.gather(-1, half.clamp_max(values.shape[-1] - 1)).squeeze(-1)


def log_weight(
    points: Float[Tensor, "*pixel 3"], confidence: Float[Tensor, "*pixel"]
) -> Float64[Tensor, "*pixel"]:
    """Return log-confidence as a weight, 0 where the point or its confidence is not finite."""
    valid = points.isfinite().all(-1) & confidence.isfinite()
    weight = confidence.double().clamp_min(1).log() + 1e-3
    return torch.where(valid, weight, 0.0)


def canonical(n: int, predictions: Sequence[PairPrediction]) -> Canonical | None:
    """Return the canonical pointmap of view n, or None if no usable prediction starts at it."""
    own = [e for e, p in enumerate(predictions) if p.i == n]
    maps, weights, edges = [], [], []
    for e in own:
        points = predictions[e].pointmap_i_in_i.double()
        weight = log_weight(points, predictions[e].confidence_i)
        weight = torch.where(points[..., 2] > 0, weight, 0.0)
        if (weight > 0).sum() >= 16:
            maps.append(torch.where(weight[..., None] > 0, points, 0.0))
            weights.append(weight)
            edges.append(e)
    if not maps:
        return None
    stack, weight = torch.stack(maps), torch.stack(weights)
    step = max(1, round((weight[0].numel() / 4096) ** 0.5))  # medians need no more pixels
    z, w = stack[:, ::step, ::step, 2].flatten(1), weight[:, ::step, ::step].flatten(1)
    if bool((w.sum(-1) <= 0).any()):
        z, w = stack[..., 2].flatten(1), weight.flatten(1)
    scale = weighted_median(z, w)
    for _ in range(3):
        unit = z / scale[:, None]
        mean = (w * unit).sum(0) / w.sum(0).clamp_min(_MIN_WEIGHT)
        scale = scale * weighted_median(unit / mean.clamp_min(1e-9), w * (mean > 0))
    total = weight.sum(0)
    fused = (weight[..., None] * stack / scale[:, None, None, None]).sum(0)
    fused = fused / total.clamp_min(_MIN_WEIGHT)[..., None]
    median = weighted_median(fused[..., 2].flatten(), total.flatten())
    return Canonical(
        points=fused / median,
        weight=total / len(maps),
        edge_scale={e: float(s * median) for e, s in zip(edges, scale, strict=True)},
    )


def sample_pixels(height: int, width: int, count: int, seed: int) -> Int64[Tensor, " sample"]:
    """Return `count` flat pixel indices, one from each of equal runs of a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.arange(count, dtype=torch.float64) * (height * width / count)
    jitter = torch.rand(count, generator=generator, dtype=torch.float64) * (height * width / count)
    return (start + jitter).long().clamp_max(height * width - 1)


def measure_edges(
    predictions: Sequence[PairPrediction],
    canonicals: Sequence[Canonical | None],
    config: AlignConfig,
) -> Edges:
    """Return every usable ordered pair with its closed-form similarity and its quality."""
    rows: list[tuple[int, int, Tensor, Tensor, Tensor, float]] = []
    for e, prediction in enumerate(predictions):
        first, second = canonicals[prediction.i], canonicals[prediction.j]
        if first is None or second is None or e not in first.edge_scale:
            continue
        height, width = prediction.confidence_j.shape
        index = sample_pixels(height, width, config.samples_per_edge, config.seed)
        seen = prediction.pointmap_j_in_i.reshape(-1, 3)[index].double() / first.edge_scale[e]
        own = second.points.reshape(-1, 3)[index]
        confidence = prediction.confidence_j.reshape(-1)[index]
        weight = log_weight(seen, confidence) * (second.weight.reshape(-1)[index] > 0)
        if (weight > 0).sum() < 16:
            continue
        seen = torch.where(weight[:, None] > 0, seen, 0.0)
        # over all pixels: a small overlap must not pass for a confident pair
        logs = prediction.confidence_j.double().clamp_min(1).log().nan_to_num(0, 0, 0)
        rows.append((prediction.i, prediction.j, seen, own, weight, float(logs.mean().exp())))
    if not rows:
        empty = torch.zeros(0, dtype=torch.float64)
        return Edges(
            i=empty.long(), j=empty.long(), points_j_in_i=empty.view(0, 1, 3),
            points_j_in_j=empty.view(0, 1, 3), weight=empty.view(0, 1),
            cam_j2cam_i=empty.view(0, 4, 4), residual=empty, confidence=empty,
            disagreement_rad=empty,
        )  # fmt: skip
    i, j = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    seen, own = torch.stack([row[2] for row in rows]), torch.stack([row[3] for row in rows])
    weight = torch.stack([row[4] for row in rows])
    matrix, distance = robust_similarity(own, seen, weight)
    depth = weighted_median(own[..., 2], weight)
    scale = torch.linalg.det(matrix[:, :3, :3]).clamp_min(1e-30) ** (1 / 3)
    residual = weighted_median(distance, weight) / (scale * depth).clamp_min(1e-12)
    rotation = matrix[:, :3, :3] / scale[:, None, None]
    place = {(int(a), int(b)): e for e, (a, b) in enumerate(zip(i, j, strict=True))}
    disagreement = torch.zeros(len(rows), dtype=torch.float64)
    for (a, b), e in place.items():
        if (b, a) in place:
            disagreement[e] = rotation_angle(rotation[e] @ rotation[place[(b, a)]])
    return Edges(
        i=i, j=j, points_j_in_i=seen, points_j_in_j=own, weight=weight, cam_j2cam_i=matrix,
        residual=residual, confidence=torch.tensor([row[5] for row in rows], dtype=torch.float64),
        disagreement_rad=disagreement,
    )  # fmt: skip


def robust_similarity(
    points_in_a: Float64[Tensor, "edge sample 3"],
    points_in_b: Float64[Tensor, "edge sample 3"],
    weight: Float64[Tensor, "edge sample"],
) -> tuple[Float64[Tensor, "edge 4 4"], Float64[Tensor, "edge sample"]]:
    """Return the similarities a2b of least unsquared distances (IRLS) and the distances."""
    robust = weight
    matrix, distance = points_in_a.new_zeros(len(weight), 4, 4), weight
    for _ in range(_IRLS_ROUNDS):
        matrix = similarity(*umeyama(points_in_a, points_in_b, robust))
        distance = (transform_points(matrix, points_in_a) - points_in_b).norm(dim=-1)
        typical = weighted_median(distance, weight)[:, None]
        robust = weight / (distance + 0.1 * typical + 1e-9)
    return matrix, distance


def weiszfeld_focal(
    points: Float64[Tensor, "height width 3"], weight: Float64[Tensor, "height width"]
) -> float:
    """Return the focal length in pixels that best projects the points onto their own pixels.

    The principal point is the image centre. Weiszfeld's iteration minimises the unsquared
    reprojection distance (DUSt3R, section 3.3).
    """
    height, width = weight.shape
    pixel = pixel_grid(height, width).double() - torch.tensor([width / 2, height / 2])
    usable = (weight > 0) & (points[..., 2] > 1e-6)
    ray = points[..., :2][usable] / points[..., 2:][usable]
    pixel, w = pixel[usable], weight[usable]
    robust = w
    focal = torch.tensor(float(max(height, width)), dtype=torch.float64)
    for _ in range(12):
        numerator = (robust * (ray * pixel).sum(-1)).sum()
        focal = numerator / (robust * ray.square().sum(-1)).sum().clamp_min(1e-12)
        robust = w / ((pixel - focal * ray).norm(dim=-1) + 1e-3)
    long_edge = max(height, width)
    return float(focal.nan_to_num(long_edge).clamp(0.35 * long_edge, 4.0 * long_edge))


def choose_focals(
    canonicals: Sequence[Canonical], views: Sequence[View], config: AlignConfig
) -> tuple[Float64[Tensor, "view 2"], tuple[str, ...]]:
    """Return (fx, fy) in pixels of each view, and where they come from.

    A given focal length wins; then EXIF, unless it contradicts the estimate by more than half;
    then the estimate. `shared_focal` takes the median of the estimates in photo pixels.
    """
    focals, sources = [], []
    estimates = [weiszfeld_focal(c.points, c.weight) for c in canonicals]
    to_view = [view.photo2view.double()[[0, 1], [0, 1]] for view in views]
    photo_focals = [f / float(m.mean()) for f, m in zip(estimates, to_view, strict=True)]
    if config.shared_focal:
        # relative to the photo's long edge, so that photos of several sizes may share a lens
        relative = [
            f / max(v.photo_width, v.photo_height) for f, v in zip(photo_focals, views, strict=True)
        ]
        median = float(torch.tensor(relative, dtype=torch.float64).median())
        photo_focals = [median * max(v.photo_width, v.photo_height) for v in views]
    for view, scale, estimate in zip(views, to_view, photo_focals, strict=True):
        focal, source = estimate, "estimated"
        if config.focal_px is not None:
            focal, source = config.focal_px, "given"
        elif view.focal_px is not None and 2 / 3 < view.focal_px / estimate < 3 / 2:
            focal, source = view.focal_px, "exif"
        focals.append(focal * scale)
        sources.append(source)
    return torch.stack(focals), tuple(sources)


def spanning_tree(
    edges: Edges, usable: Bool[Tensor, " edge"], members: Sequence[int], n_views: int
) -> tuple[int, Float64[Tensor, "view 4 4"]]:
    """Return the best-connected view and unit2world of all members along the maximum spanning tree.

    World is the unit camera of that view. Views that are no members keep the identity.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    score = edges.score()
    pick = usable.nonzero().flatten().tolist()
    best: dict[tuple[int, int], float] = {}
    strength = torch.zeros(n_views, dtype=torch.float64)
    for e in pick:
        key = tuple(sorted((int(edges.i[e]), int(edges.j[e]))))
        best[key] = best.get(key, 0.0) + float(score[e])
        strength[list(key)] += float(score[e])
    root = max(members, key=lambda n: (float(strength[n]), -n))
    rows, columns = np.array(list(best)).T
    cost = 1 / np.maximum(np.array(list(best.values())), 1e-9)
    tree = minimum_spanning_tree(coo_array((cost, (rows, columns)), shape=(n_views, n_views)))
    order, parent = breadth_first_order(tree, root, directed=False)
    place = {(int(edges.i[e]), int(edges.j[e])): e for e in pick}
    unit2world = torch.eye(4, dtype=torch.float64).repeat(n_views, 1, 1)
    for child in order[1:]:
        up = int(parent[child])
        forward, backward = place.get((up, int(child))), place.get((int(child), up))
        if backward is None or (
            forward is not None and edges.residual[forward] <= edges.residual[backward]
        ):
            step = edges.cam_j2cam_i[forward]
        else:
            step = torch.linalg.inv(edges.cam_j2cam_i[backward])
        unit2world[child] = unit2world[up] @ step
    return root, unit2world
