"""What each pair says by itself: canonical views, similarities, good pairs, a spanning tree.

No matching is needed: `pointmap_j_in_i` of an edge and the canonical pointmap of view j live on the
same pixels, so that the similarity between them has a closed form, `unit_j2unit_i`. A canonical
pointmap is a view's own-frame pointmap fused over its pairs, with median depth 1; the camera frame
in those units is called `unit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from recon3d.align_focal import Lenses, focal_range, resect
from recon3d.align_samples import EXACT, TINY, Samples, edge_chunks, weighted_median
from recon3d.config import AlignConfig
from recon3d.geometry import compose, rotation_angle, similarity, transform_points, umeyama
from recon3d.pairs import connected_components

_MAX_SCALE_RATIO = 2.0
"""Largest disagreement between the scales that the two orders of a pair predict."""
_ROUNDS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Canonical:
    """Every view by itself at its sample pixels, median depth 1; weight 0 is unknown."""

    points: Float64[Tensor, "view sample 3"]
    weight: Float64[Tensor, "view sample"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """The closed-form similarity of each ordered pair; `residual` is relative (0 is perfect)."""

    unit_j2unit_i: Float64[Tensor, "edge 4 4"]
    residual: Float64[Tensor, " edge"]

    def take(self, rows: Int64[Tensor, " row"]) -> "Edges":
        """Return only these edges."""
        return Edges(unit_j2unit_i=self.unit_j2unit_i[rows], residual=self.residual[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Two views each, and what both orders together say of them.

    `edge` and `back` are the rows of the order (a, b) and of the other one, -1 if it was not
    predicted. `unit_b2unit_a` maps the second view to the first. `rotation_gap_deg` and `scale_gap`
    (a ratio >= 1) are the disagreement between the orders, none if only one was predicted.
    """

    a: Int64[Tensor, " pair"]
    b: Int64[Tensor, " pair"]
    edge: Int64[Tensor, " pair"]
    back: Int64[Tensor, " pair"]
    unit_b2unit_a: Float64[Tensor, "pair 4 4"]
    residual: Float64[Tensor, " pair"]
    confidence: Float64[Tensor, " pair"]
    rotation_gap_deg: Float64[Tensor, " pair"]
    scale_gap: Float64[Tensor, " pair"]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.a)

    def take(self, rows: Int64[Tensor, " row"] | Bool[Tensor, " pair"]) -> "Pairs":
        """Return only these pairs."""
        return Pairs(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    def is_good(self, config: AlignConfig) -> Bool[Tensor, " pair"]:
        """Return which pairs may hold a photo."""
        return (
            (self.residual <= config.max_edge_residual)
            & (self.rotation_gap_deg <= config.max_edge_rotation_deg)
            & (self.scale_gap <= _MAX_SCALE_RATIO)
            & (self.confidence >= config.min_edge_confidence)
        )

    @property
    def score(self) -> Float64[Tensor, " pair"]:
        """Confidence times quality: consistent in itself and agreeing in both orders."""
        fit = 1 / (1 + (self.residual / 0.1).square())
        agreement = 1 / (1 + (self.rotation_gap_deg / 10).square() + self.scale_gap.log().square())
        return self.confidence.clamp_min(1).log().clamp_min(1e-3) * fit * agreement

    def rows(self) -> tuple[Int64[Tensor, " row"], Int64[Tensor, " row"]]:
        """Return the edges of all pairs in their order, and the pair that each belongs to."""
        number = torch.arange(len(self), device=self.a.device)
        edge, pair = torch.cat((self.edge, self.back)), torch.cat((number, number))
        edge, pair = edge[edge >= 0], pair[edge >= 0]
        order = edge.argsort()
        return edge[order], pair[order]


def canonical_views(samples: Samples, known_lenses: Lenses) -> tuple[Canonical, Samples]:
    """Return every view's own-frame pointmap fused over its pairs, and the samples in its units.

    Alternates a robust mean over the pairs of a view with a closed-form scale per pair. A view that
    is never first in a pair has no own-frame map: its camera is resected from what one pair sees.
    """
    n_views, n_samples = samples.pixel.shape[:2]
    i, weight, chunks = samples.i, samples.own_weight, list(edge_chunks(samples.own))
    scale = weighted_median(samples.own[..., 2], weight)
    robust, points = weight.clone(), samples.own.new_zeros(n_views, n_samples, 3)
    gap = torch.zeros_like(weight)
    for _ in range(6):
        total, mean = torch.zeros_like(points[..., 0]), torch.zeros_like(points)
        for cut in chunks:
            own = samples.own[cut] / scale[cut, None, None]
            total.index_add_(0, i[cut], robust[cut])
            mean.index_add_(0, i[cut], robust[cut, :, None] * own)
        points = mean / total.clamp_min(TINY)[..., None]
        for cut in chunks:
            own = samples.own[cut] / scale[cut, None, None]
            gap[cut] = (own - points[i[cut]]).norm(dim=-1)
        noise = weighted_median(gap, weight)
        noise = torch.hypot(noise, 0.5 * noise.median() + EXACT)[:, None]
        for cut in chunks:
            depth, wide = points[i[cut], :, 2], 2 * noise[cut]
            robust[cut] = weight[cut] / noise[cut].square() / (1 + (gap[cut] / wide).square())
            ratio = samples.own[cut, :, 2] / depth.clamp_min(TINY)
            scale[cut] = weighted_median(ratio, robust[cut] * (depth > 0))
    counts = torch.bincount(i, minlength=n_views).clamp_min(1)
    known = torch.zeros_like(points[..., 2]).index_add_(0, i, weight) / counts[:, None]
    for n in sorted(set(samples.j.tolist()) - set(i.tolist())):
        pick = (samples.j == n).nonzero().flatten()
        best = int(pick[samples.confidence[pick].argmax()])
        seen, seen_weight = samples.seen[best], samples.seen_weight[best]
        points[n] = resect(seen, samples.pixel[n], seen_weight, *focal_range(known_lenses, n))
        known[n] = torch.where(points[n, :, 2] > 0, seen_weight, 0.0)
    median = weighted_median(points[..., 2], known).clamp_min(TINY)
    scale = scale * median[i]
    in_units = replace(
        samples,
        own=samples.own / scale[:, None, None],
        seen=samples.seen / scale[:, None, None],
        edge_scale=samples.edge_scale * scale,
    )
    return Canonical(points=points / median[:, None, None], weight=known), in_units


def similarity_scale(matrix: Float64[Tensor, "*batch 4 4"]) -> Float64[Tensor, "*batch"]:
    """Return the scale of a similarity."""
    return torch.linalg.det(matrix[..., :3, :3]).clamp_min(1e-30) ** (1 / 3)


def rotation_of(matrix: Float64[Tensor, "*batch 4 4"]) -> Float64[Tensor, "*batch 3 3"]:
    """Return the rotation of a similarity."""
    return matrix[..., :3, :3] / similarity_scale(matrix)[..., None, None]


def measure_edges(samples: Samples, canonical: Canonical) -> Edges:
    """Return the best similarity of each ordered pair between the canonical views."""
    matrices, residuals = [], []
    for cut in edge_chunks(samples.seen):
        own, seen = canonical.points[samples.j[cut]], samples.seen[cut]
        weight = samples.seen_weight[cut] * (canonical.weight[samples.j[cut]] > 0)
        robust, distance = weight, weight
        matrix = own.new_zeros(len(own), 4, 4)
        for _ in range(_ROUNDS):
            matrix = similarity(*umeyama(own, seen, robust))
            distance = (transform_points(matrix, own) - seen).norm(dim=-1)
            typical = weighted_median(distance, weight)[:, None]
            robust = weight / (distance + 0.1 * typical + EXACT)  # unsquared distances by IRLS
        matrices.append(matrix)
        # canonical views have median depth 1
        residuals.append(
            weighted_median(distance, weight) / similarity_scale(matrix).clamp_min(TINY)
        )
    return Edges(unit_j2unit_i=torch.cat(matrices), residual=torch.cat(residuals))


def combine_orders(samples: Samples, edges: Edges) -> Pairs:
    """Return one measurement per unordered pair; the better order counts more."""
    n_views = len(samples.pixel)
    key = samples.i * n_views + samples.j
    ordered, place = key.sort()
    opposite = samples.j * n_views + samples.i
    found = torch.searchsorted(ordered, opposite).clamp_max(len(key) - 1)
    back = torch.where(ordered[found] == opposite, place[found], -1)
    first = (back < 0) | (samples.i < samples.j)
    edge, back = first.nonzero().flatten(), back[first]
    both = back >= 0
    back_or_edge = torch.where(both, back, edge)
    forward = edges.unit_j2unit_i[edge]
    backward = torch.where(
        both[:, None, None], torch.linalg.inv(edges.unit_j2unit_i[back_or_edge]), forward
    )
    gap = rotation_angle(rotation_of(forward).mT @ rotation_of(backward))
    ratio = similarity_scale(forward) / similarity_scale(backward)
    residual, other = edges.residual[edge], edges.residual[back_or_edge]
    logs = samples.confidence.log()
    return Pairs(
        a=samples.i[edge], b=samples.j[edge], edge=edge, back=back,
        unit_b2unit_a=torch.where((other < residual)[:, None, None], backward, forward),
        residual=(residual + other) / 2,
        confidence=((logs[edge] + logs[back_or_edge]) / 2).exp(),
        rotation_gap_deg=torch.rad2deg(gap) * both,
        scale_gap=ratio.log().abs().exp(),
    )  # fmt: skip


def groups(n_views: int, pairs: Pairs) -> list[list[int]]:
    """Return the groups of views that the pairs join; most views first, then the better scored."""
    both = list(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
    found = connected_components(n_views, both)
    total = torch.zeros(n_views, dtype=torch.float64)
    total.index_add_(0, pairs.a.cpu(), pairs.score.cpu())
    return sorted(found, key=lambda group: (-len(group), -float(total[group].sum())))


def spanning_tree(
    n_views: int, members: Sequence[int], pairs: Pairs
) -> tuple[int, Float64[Tensor, "view 4 4"]]:
    """Return the best-connected view and unit2world of all members along the maximum spanning tree.

    World is the unit frame of that view, so that the order of the photos does not matter. Views
    that are no members keep the identity.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    score, a, b = (t.numpy(force=True) for t in (pairs.score, pairs.a, pairs.b))
    strength = np.bincount(a, score, n_views) + np.bincount(b, score, n_views)
    root = max(members, key=lambda n: strength[n])
    tree = minimum_spanning_tree(coo_array((1 / score, (a, b)), shape=(n_views, n_views)).tocsr())
    order, parent = breadth_first_order(tree, root, directed=False)
    row = {key: k for k, key in enumerate(zip(a.tolist(), b.tolist(), strict=True))}
    matrix = pairs.unit_b2unit_a.cpu()
    inverse = torch.linalg.inv(matrix)
    unit2world = torch.eye(4, dtype=torch.float64).repeat(n_views, 1, 1)
    for n in order[1:].tolist():
        up = int(parent[n])
        step = matrix[row[up, n]] if (up, n) in row else inverse[row[n, up]]
        unit2world[n] = compose(unit2world[up], step)
    return root, unit2world.to(pairs.unit_b2unit_a.device)
