"""Which pairs hold which photos: reasons against pairs, groups, and the joint solve of one group.

Every pair has a reason why it may not hold a photo, empty if it may. Reasons come from the pair
itself, from the cycles it is part of, and from the solution that it contradicts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from recon3d.align_focal import Lenses
from recon3d.align_given import Start, start
from recon3d.align_init import Canonical, Edges, Pairs, groups, rotation_of, spanning_tree
from recon3d.align_refine import Solution, refine
from recon3d.align_samples import Cameras, KeptMaps, Masks, Samples
from recon3d.config import AlignConfig
from recon3d.cycles import confirmed_edges, cycle_outliers
from recon3d.geometry import rotation_angle
from recon3d.pairs_extra import bridges
from recon3d.types import View

_CYCLE_SHARE = 0.75
"""Limit of the rotation left over around three pairs, relative to that between two orders."""
_ALONE_ROTATION_DEG, _ALONE_SCALE = 15.0, 1.5
"""Largest disagreement of the two orders of a pair that no other confirms; two random rotations
come that near once in a thousand."""
_GROUP = 3
"""So many views joined by pairs whose orders agree are a group; fewer may hang on others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """All that the predictions say, before any photo is placed."""

    views: tuple[View, ...]
    samples: Samples
    maps: KeptMaps
    canonical: Canonical
    edges: Edges
    pairs: Pairs
    lenses: Lenses
    cameras: Cameras
    masks: Masks


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """One group of views in its world; `rows` and `pair_of_row` are the edges that hold it."""

    members: list[int]
    rows: Int64[Tensor, " row"]
    pair_of_row: Int64[Tensor, " row"]
    samples: Samples
    begin: Start
    solution: Solution
    angle_rad: Float64[Tensor, " row"]


def place(
    evidence: Evidence, reasons: list[str], taken: set[int], config: AlignConfig
) -> Placed | None:
    """Return the largest group of views that are not taken yet, None if there is none.

    Solves, drops the pairs that contradict the solution, giving their `reasons`, and solves again
    until none does.
    """
    pairs = evidence.pairs
    while True:
        free = [
            k for k, (a, reason) in enumerate(zip(pairs.a.tolist(), reasons, strict=True))
            if not reason and a not in taken
        ]  # fmt: skip
        good = pairs.take(torch.tensor(free, dtype=torch.long))
        members = groups(len(evidence.views), good)[0]
        if len(members) < 2:
            return None
        inside = torch.isin(good.a.cpu(), torch.tensor(members)).nonzero().flatten()
        good, number = good.take(inside), torch.tensor(free)[inside]
        root, tree = spanning_tree(len(evidence.views), members, good)
        begin = start(tree, members, root, evidence.cameras, config)
        rows, pair_of_row = good.rows()
        used = evidence.samples.take(rows)
        solution = refine(
            used, evidence.canonical, begin.unit2world, evidence.edges.take(rows), begin.anchors,
            evidence.lenses, config,
        )  # fmt: skip
        angle_rad = rotation_error_rad(solution, used, evidence.edges.unit_j2unit_i[rows])
        residual, angle = (_by_pair(x, pair_of_row) for x in (solution.seen_residual, angle_rad))
        astray = (residual > 1.5 * config.max_edge_residual) | (
            torch.rad2deg(angle) > config.max_edge_rotation_deg
        )
        if not bool(astray.any()):
            return Placed(
                members=members, rows=rows, samples=used,
                pair_of_row=number.to(pair_of_row.device)[pair_of_row],
                begin=begin, solution=solution, angle_rad=angle_rad,
            )  # fmt: skip
        given = begin.pivot is not None or bool(evidence.lenses.given.isfinite().any())
        for k in number[astray.cpu()].tolist():  # such a pair no longer holds a photo
            reasons[k] = "contradicts the other pairs" + (" or the given cameras" if given else "")


def _by_pair(
    values: Float64[Tensor, " row"], pair_of_row: Int64[Tensor, " row"]
) -> Float64[Tensor, " pair"]:
    """Return the mean over the orders of each pair."""
    count = torch.bincount(pair_of_row)
    return values.new_zeros(len(count)).index_add_(0, pair_of_row, values) / count.clamp_min(1)


def reasons_of_their_own(pairs: Pairs, config: AlignConfig) -> list[str]:
    """Return why each pair may not hold a photo, as far as it says so itself; empty if it may."""
    reasons = []
    for good, confidence, residual, gap in zip(
        pairs.is_good(config).tolist(), pairs.confidence.tolist(), pairs.residual.tolist(),
        pairs.rotation_gap_deg.tolist(), strict=True,
    ):  # fmt: skip
        if good:
            reasons.append("")
        elif confidence < config.min_edge_confidence:
            reasons.append("low confidence")
        elif residual > config.max_edge_residual:
            reasons.append("its pointmaps do not fit")
        elif gap > config.max_edge_rotation_deg:
            reasons.append("its two orders disagree about the rotation")
        else:
            reasons.append("its two orders disagree about the scale")
    return reasons


def judge_together(pairs: Pairs, reasons: list[str], n_views: int, config: AlignConfig) -> None:
    """Add the reasons that only other pairs give: contradicted cycles, or no second witness.

    A pair that is part of no triangle which closes has its two orders as its only witnesses: they
    must agree well, unless it holds nothing but its two views. So must those of a pair that joins
    two groups, even if triangles close: photos of two places that look alike make several pairs
    that are wrong in much the same way. And where a single pair joins two parts, it must agree the
    better the more pairs across were refused.
    """
    good, rows = _still_good(pairs, reasons)
    limit_rad = _CYCLE_SHARE * math.radians(config.max_edge_rotation_deg)
    outlier = cycle_outliers(n_views, *_graph(good), limit_rad=limit_rad)
    _refuse(reasons, rows, outlier, "contradicts the cycles it is part of")
    good, rows = _still_good(pairs, reasons)
    confirmed = confirmed_edges(n_views, *_graph(good), limit_rad=limit_rad)
    degree = torch.bincount(torch.cat((good.a, good.b)), minlength=n_views)
    alone = ((degree[good.a] == 1) & (degree[good.b] == 1)).numpy(force=True)
    loose = _is_loose(good)
    _refuse(
        reasons, rows, loose & ~alone & ~confirmed,
        "its two orders disagree and no other pair confirms it",
    )  # fmt: skip
    good, rows = _still_good(pairs, reasons)
    found = groups(n_views, good.take(torch.from_numpy(~_is_loose(good)).to(good.a.device)))
    group, size = np.empty(n_views, dtype=np.int64), np.array([len(members) for members in found])
    for number, members in enumerate(found):
        group[members] = number
    one, other = (group[ends.numpy(force=True)] for ends in (good.a, good.b))
    joins = (one != other) & (np.minimum(size[one], size[other]) >= _GROUP)
    _refuse(reasons, rows, joins, "its two orders disagree and no better pair joins its groups")
    good, rows = _still_good(pairs, reasons)
    chance = _by_chance(n_views, pairs, good, config)
    _refuse(
        reasons, rows, chance, "the only pair of several across that does not contradict itself"
    )


def _by_chance(n_views: int, pairs: Pairs, good: Pairs, config: AlignConfig) -> np.ndarray:
    """Return which bridges of the graph may hold by chance.

    Of n pairs between random rotations the best agrees within an angle that falls with the cube
    root of n (the volume of a small ball of rotations): so must a bridge, n being all pairs across
    the same cut in which the network was confident.
    """
    ends, number = _graph(good)[0], {}
    for k, (a, b) in enumerate(ends.tolist()):
        number[min(a, b), max(a, b)] = k
    every, sure = _graph(pairs)[0], pairs.confidence.numpy(force=True)
    every = every[sure >= config.min_edge_confidence]
    gap = good.rotation_gap_deg.numpy(force=True)
    result = np.zeros(len(good), dtype=bool)
    for bridge, side in bridges(n_views, number):
        inside = np.zeros(n_views, dtype=bool)
        inside[side] = True
        n_across = int((inside[every[:, 0]] != inside[every[:, 1]]).sum())
        k = number[bridge]
        result[k] = n_across > 1 and gap[k] > _ALONE_ROTATION_DEG / n_across ** (1 / 3)
    return result


def _still_good(pairs: Pairs, reasons: Sequence[str]) -> tuple[Pairs, list[int]]:
    """Return the pairs that nothing speaks against, and their numbers."""
    rows = [k for k, reason in enumerate(reasons) if not reason]
    return pairs.take(torch.tensor(rows, dtype=torch.long, device=pairs.a.device)), rows


def _graph(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ends, rotations and weights of the pairs."""
    edges = torch.stack((pairs.a, pairs.b), dim=-1)
    parts = edges, rotation_of(pairs.unit_b2unit_a), pairs.score
    first, second, third = (part.numpy(force=True) for part in parts)
    return first, second, third


def _is_loose(pairs: Pairs) -> np.ndarray:
    """Return which pairs their two orders alone cannot vouch for."""
    loose = (pairs.rotation_gap_deg > _ALONE_ROTATION_DEG) | (pairs.scale_gap > _ALONE_SCALE)
    return loose.numpy(force=True)


def _refuse(reasons: list[str], rows: Sequence[int], bad: np.ndarray, reason: str) -> None:
    for k in np.flatnonzero(bad).tolist():
        reasons[rows[k]] = reason


def rotation_error_rad(
    solution: Solution, samples: Samples, unit_j2unit_i: Float64[Tensor, "edge 4 4"]
) -> Float64[Tensor, " edge"]:
    """Angle between the solved rotation of each edge and the one it votes for by itself."""
    rotation = rotation_of(solution.unit2world)
    solved = rotation[samples.i].mT @ rotation[samples.j]
    return rotation_angle(solved.mT @ rotation_of(unit_j2unit_i))


def why_disconnected(evidence: Evidence, reasons: Sequence[str], config: AlignConfig) -> str:
    """Return the sentence for photos of which no pair could be used: the best, and why not.

    Best is a pair that is good by itself, where there is one: then others speak against it.
    """
    pairs, views = evidence.pairs, evidence.views
    good = pairs.is_good(config)
    score = torch.where(good, pairs.score, -torch.inf) if bool(good.any()) else pairs.score
    k = int(score.argmax())
    what = "could be used" if bool(good[k]) else "overlap confidently"
    advice = "Take photos that overlap by half."
    if any(evidence.cameras) or config.focal_px is not None:
        check = "Check the given cameras (--cameras, --focal), or run without them."
        advice = check if bool(good[k]) else f"{advice} {check}"
    return (
        f"no two of the {len(views)} photos {what}. The best pair, {views[int(pairs.a[k])].name}"
        f" and {views[int(pairs.b[k])].name}, has confidence"
        f" {float(pairs.confidence[k]):.2f} (needs {config.min_edge_confidence:g}), residual"
        f" {float(pairs.residual[k]):.2f} (at most {config.max_edge_residual:g}), and its two"
        f" orders differ by {float(pairs.rotation_gap_deg[k]):.0f} degrees (at most"
        f" {config.max_edge_rotation_deg:g}). It was refused: {reasons[k]}. {advice}"
    )
