"""How far to trust each placed view, and what became of every pair that was predicted."""

import math
from collections.abc import Sequence

import torch

from recon3d.align_init import Pairs
from recon3d.align_place import Evidence, Placed, rotation_error_rad
from recon3d.align_refine import judge
from recon3d.align_solve import pose_uncertainty, rotation_sigma
from recon3d.types import EdgeVerdict, Verdict

ELSEWHERE = "holds only photos that are not in the scene"
NOTHING_FINITE = "too few finite points"


def view_verdicts(placed: Placed, unit: float) -> tuple[Verdict, ...]:
    """Return how far to trust each placed view."""
    solution, samples = placed.solution, placed.samples
    factor = _error_factor(placed)
    turn, move = pose_uncertainty(
        solution.problem, solution.unit2world, placed.begin.anchors, factor
    )
    verdicts = []
    both = torch.cat((samples.i, samples.j)).cpu()
    order = both.argsort(stable=True)
    ends = torch.bincount(both, minlength=len(samples.pixel)).cumsum(0).tolist()
    for n in placed.members:
        rows = order[ends[n - 1] if n else 0 : ends[n]] % len(samples.i)
        verdicts.append(
            Verdict(
                residual=float(solution.seen_residual[rows].median()),
                edges=len(torch.unique(placed.pair_of_row[rows])),
                rotation_uncertainty_deg=float(torch.rad2deg(turn[n])),
                focal_source=solution.lens.source[n],
                inliers=float(solution.inliers[rows].mean()),
                position_uncertainty=float(move[n]) * unit,
            )
        )
    return tuple(verdicts)


def _error_factor(placed: Placed) -> float:
    """Return by how much the pairs disagree with the scene more than independent pixels would.

    Neighbouring pixels err together, so pairs are the independent measurements (their a-posteriori
    variance, reduced by what the poses took). nan where there are no more pairs than poses. Errors
    that all pairs share cannot be seen this way.
    """
    expected = rotation_sigma(placed.solution.problem, placed.solution.unit2world)
    n_edges, spare = len(expected), len(expected) - (len(placed.members) - 1)
    if spare < 1:
        return math.nan
    ratio = placed.angle_rad.square().sum() / expected.square().sum()
    return math.sqrt(float(ratio) * n_edges / spare)


def edge_verdicts(
    evidence: Evidence, placed: Placed, reasons: Sequence[str]
) -> tuple[EdgeVerdict, ...]:
    """Return what became of every pair that touches a placed view.

    Pairs between placed views that were refused are measured against the scene as well.
    """
    pairs, solution = evidence.pairs, placed.solution
    members = set(placed.members)
    held = torch.bincount(placed.pair_of_row.cpu(), minlength=len(pairs)) > 0
    inside = [a in members and b in members for a, b in _ends(pairs)]
    refused = (torch.tensor(inside) & ~held).nonzero().flatten()
    rows, of_refused = pairs.take(refused.to(pairs.a.device)).rows()
    figures = torch.stack((solution.seen_residual, solution.inliers, placed.angle_rad))
    pair_of_row = placed.pair_of_row
    if len(rows):
        samples = evidence.samples.take(rows)
        angle = rotation_error_rad(solution, samples, evidence.edges.unit_j2unit_i[rows])
        other = torch.stack((*judge(samples, evidence.canonical, solution), angle))
        figures = torch.cat((figures, other), dim=1)
        pair_of_row = torch.cat((pair_of_row, refused.to(rows.device)[of_refused]))
    total = figures.new_zeros(3, len(pairs)).index_add_(1, pair_of_row, figures)
    mean = (total / torch.bincount(pair_of_row, minlength=len(pairs))).tolist()  # 0 / 0 is nan
    names, confidence = [view.name for view in evidence.views], pairs.confidence.tolist()
    return tuple(
        EdgeVerdict(
            first=names[a], second=names[b], used=bool(held[k]), reason=reasons[k],
            confidence=confidence[k], residual=mean[0][k], inliers=mean[1][k],
            rotation_error_deg=math.degrees(mean[2][k]),
        )
        for k, (a, b) in enumerate(_ends(pairs))
        if a in members or b in members
    )  # fmt: skip


def verdicts_elsewhere(
    evidence: Evidence, taken: set[int], reasons: Sequence[str], predicted: set[tuple[int, int]]
) -> tuple[EdgeVerdict, ...]:
    """Return what became of the pairs that touch no placed view, or that say nothing at all."""
    pairs, names = evidence.pairs, [view.name for view in evidence.views]
    confidence = pairs.confidence.tolist()
    nothing = predicted - {tuple(sorted(ends)) for ends in _ends(pairs)}
    return tuple(
        EdgeVerdict(
            first=names[a], second=names[b], used=False, reason=reasons[k] or ELSEWHERE,
            confidence=confidence[k],
        )
        for k, (a, b) in enumerate(_ends(pairs))
        if a not in taken and b not in taken
    ) + tuple(
        EdgeVerdict(
            first=names[a], second=names[b], used=False, reason=NOTHING_FINITE, confidence=math.nan
        )
        for a, b in sorted(nothing)
    )  # fmt: skip


def _ends(pairs: Pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
