"""What each pair says by itself: pairwise similarities, good pairs, groups, a spanning tree.

No matching is needed: `pointmap_j_in_i` of an edge and the canonical pointmap of view j live on the
same pixels, so that the similarity between them has a closed form, `unit_j2unit_i`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.align_samples import EXACT, TINY, Canonical, Samples, weighted_median
from recon3d.config import AlignConfig
from recon3d.geometry import (
    compose,
    rotation_angle,
    similarity,
    transform_points,
    umeyama,
)
from recon3d.pairs import connected_components

_MAX_SCALE_RATIO = 2.0
"""Largest disagreement between the scales that the two orders of a pair predict."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """The closed-form similarity of each ordered pair; `residual` is relative (0 is perfect)."""

    unit_j2unit_i: Float64[Tensor, "edge 4 4"]
    residual: Float64[Tensor, " edge"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two views and what both orders together say of them.

    `unit_b2unit_a` maps the second view to the first. `rotation_gap_deg` and `scale_gap` (a ratio
    >= 1) are the disagreement between the orders, none if only one was predicted.
    """

    a: int
    b: int
    unit_b2unit_a: Float64[Tensor, "4 4"]
    residual: float
    confidence: float
    rotation_gap_deg: float
    scale_gap: float

    def is_good(self, config: AlignConfig) -> bool:
        """Return whether this pair may hold a photo."""
        return (
            self.residual <= config.max_edge_residual
            and self.rotation_gap_deg <= config.max_edge_rotation_deg
            and self.scale_gap <= _MAX_SCALE_RATIO
            and self.confidence >= config.min_edge_confidence
        )

    @property
    def score(self) -> float:
        """Confidence times quality: consistent in itself and agreeing in both orders."""
        fit = 1 / (1 + (self.residual / 0.1) ** 2)
        agreement = 1 / (
            1 + (self.rotation_gap_deg / 10) ** 2 + float(math.log(self.scale_gap)) ** 2
        )
        return max(float(math.log(max(self.confidence, 1.0))), 1e-3) * fit * agreement


def similarity_scale(matrix: Float64[Tensor, "*batch 4 4"]) -> Float64[Tensor, "*batch"]:
    """Return the scale of a similarity."""
    return torch.linalg.det(matrix[..., :3, :3]).clamp_min(1e-30) ** (1 / 3)


def measure_edges(samples: Samples, canonical: Canonical) -> Edges:
    """Return the best similarity of each ordered pair between the canonical views."""
    own, seen = canonical.points[samples.j], samples.seen
    weight = samples.seen_weight * (canonical.weight[samples.j] > 0)
    robust, distance = weight, weight
    matrix = own.new_zeros(len(own), 4, 4)
    for _ in range(8):
        matrix = similarity(*umeyama(own, seen, robust))
        distance = (transform_points(matrix, own) - seen).norm(dim=-1)
        typical = weighted_median(distance, weight)[:, None]
        robust = weight / (distance + 0.1 * typical + EXACT)  # unsquared distances by IRLS
    # canonical views have median depth 1
    residual = weighted_median(distance, weight) / similarity_scale(matrix).clamp_min(TINY)
    return Edges(unit_j2unit_i=matrix, residual=residual)


def combine_orders(samples: Samples, edges: Edges) -> list[Pair]:
    """Return one measurement per unordered pair; the better order counts more."""
    order = {
        key: e for e, key in enumerate(zip(samples.i.tolist(), samples.j.tolist(), strict=True))
    }
    pairs = []
    for (i, j), e in order.items():
        back = order.get((j, i))
        if back is not None and i > j:
            continue
        matrix, both = edges.unit_j2unit_i[e], [e] if back is None else [e, back]
        scale = similarity_scale(matrix)
        rotation_gap_deg, scale_gap = 0.0, 1.0
        if back is not None:
            other = torch.linalg.inv(edges.unit_j2unit_i[back])
            other_scale = similarity_scale(other)
            turn = (matrix[:3, :3] / scale).mT @ (other[:3, :3] / other_scale)
            rotation_gap_deg = float(torch.rad2deg(rotation_angle(turn)))
            scale_gap = float((scale / other_scale).log().abs().exp())
            if edges.residual[back] < edges.residual[e]:
                matrix = other
        pairs.append(
            Pair(
                a=i, b=j, unit_b2unit_a=matrix, residual=float(edges.residual[both].mean()),
                confidence=float(samples.confidence[both].log().mean().exp()),
                rotation_gap_deg=rotation_gap_deg, scale_gap=scale_gap,
            )
        )  # fmt: skip
    return pairs


def largest_group(n_views: int, pairs: Sequence[Pair]) -> list[int]:
    """Return the most views that the pairs join, sorted; of equal groups the better scored one."""
    groups = connected_components(n_views, [(pair.a, pair.b) for pair in pairs])
    return max(groups, key=lambda g: (len(g), sum(pair.score for pair in pairs if pair.a in g)))


def spanning_tree(
    n_views: int, members: Sequence[int], pairs: Sequence[Pair]
) -> tuple[int, Float64[Tensor, "view 4 4"]]:
    """Return the best-connected view and unit2world of all members along the maximum spanning tree.

    World is the unit frame of that view, so that the order of the photos does not matter. Views
    that are no members keep the identity. Source: Prim, 1957.
    """
    strength = dict.fromkeys(members, 0.0)
    for pair in pairs:
        strength[pair.a] += pair.score
        strength[pair.b] += pair.score
    root = max(members, key=lambda n: strength[n])
    unit2world = torch.eye(4, dtype=torch.float64).repeat(n_views, 1, 1)
    placed, waiting = {root}, sorted(pairs, key=lambda pair: -pair.score)
    while len(placed) < len(members):
        pair = next(p for p in waiting if (p.a in placed) != (p.b in placed))
        if pair.a in placed:
            unit2world[pair.b] = compose(unit2world[pair.a], pair.unit_b2unit_a)
        else:
            unit2world[pair.a] = compose(unit2world[pair.b], torch.linalg.inv(pair.unit_b2unit_a))
        placed |= {pair.a, pair.b}
        waiting.remove(pair)
    return root, unit2world
