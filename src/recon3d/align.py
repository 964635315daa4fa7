"""Global alignment: all pair predictions into one world.

The published objective (DUSt3R, section 3.4) moves every pixel of every pair with Adam. Here each
view is one similarity and a sample of pixels: closed forms per pair and a spanning tree start it
(`align_init`), robust Gauss-Newton solves all views together (`align_refine`), and full-resolution
depth and confidence are fused once, at the end (`align_dense`).
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from recon3d.align_dense import fuse_views
from recon3d.align_focal import Lenses, lenses
from recon3d.align_given import Start, start
from recon3d.align_init import (
    Canonical,
    Edges,
    Pairs,
    canonical_views,
    combine_orders,
    groups,
    measure_edges,
    rotation_of,
    similarity_scale,
    spanning_tree,
)
from recon3d.align_refine import Solution, refine
from recon3d.align_samples import (
    Cameras,
    KeptMaps,
    Masks,
    Samples,
    base_point,
    take_samples,
)
from recon3d.align_solve import pose_uncertainty
from recon3d.config import AlignConfig
from recon3d.cycles import confirmed_edges, cycle_outliers
from recon3d.errors import DisconnectedError
from recon3d.geometry import compose, invert_rigid, rotation_angle
from recon3d.progress import Track, silent
from recon3d.types import EdgeVerdict, LeftOut, PairPrediction, Scene, Verdict, View

logger = logging.getLogger(__name__)

NOT_PLACED = "no confident overlap with any placed photo"
_CYCLE_SHARE = 0.75
"""Limit of the rotation left over around three pairs, relative to that between two orders."""
_ALONE_ROTATION_DEG, _ALONE_SCALE = 15.0, 1.5
"""Largest disagreement of the two orders of a pair that no other confirms; two random rotations
come that near once in a thousand."""
_CORRELATED = 8.0
"""By how much errors exceed those of independent pixels; measured on simulated scenes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Evidence:
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


def align(
    predictions: Iterable[PairPrediction],
    views: tuple[View, ...],
    config: AlignConfig,
    *,
    cameras: Cameras = (),
    masks: Masks = (),
    track: Track = silent,
) -> Scene:
    """Bring all pair predictions into one world frame by minimising 3D distances.

    Args:
        predictions: ordered pairs, both orders of each where possible; read once. Pixels that are
            not finite are ignored.
        views: all views that the predictions index.
        config: thresholds, sampling and the focal length if it is known.
        cameras: what is known of each view's camera; empty for nothing.
        masks: the usable pixels of each view; empty for all.
        track: called with stage "align".

    Returns:
        The scene of the largest group of photos that good pairs join, in the order of `views`;
        world = camera of its first view, scaled so that this view's median depth is 1, unless poses
        are given. Photos outside the group are in `left_out`.

    Raises:
        DisconnectedError: when no pair is good enough; names the best one and its figures.

    Source: Wang et al., DUSt3R (CVPR 2024), section 3.4; Umeyama, PAMI 1991.
    """
    return align_groups(
        predictions, views, config, cameras=cameras, masks=masks, limit=1, track=track
    )[0]


def align_groups(
    predictions: Iterable[PairPrediction],
    views: tuple[View, ...],
    config: AlignConfig,
    *,
    cameras: Cameras = (),
    masks: Masks = (),
    limit: int | None = None,
    track: Track = silent,
) -> tuple[Scene, ...]:
    """Return a scene for each group of photos that good pairs join, largest first.

    Arguments and errors as for `align`; at most `limit` scenes. Groups do not share a world.
    """
    raw, maps = take_samples(predictions, views, config, cameras=cameras, masks=masks)
    known = lenses(views, config, cameras)
    canonical, samples = canonical_views(raw, known)
    edges = measure_edges(samples, canonical)
    evidence = _Evidence(
        views=views, samples=samples, maps=maps, canonical=canonical, edges=edges,
        pairs=combine_orders(samples, edges), lenses=known, cameras=cameras, masks=masks,
    )  # fmt: skip
    track("align", 1, 3)
    reasons = _first_reasons(evidence.pairs, config)
    _judge_together(evidence.pairs, reasons, len(views), config)
    scenes: list[Scene] = []
    taken: set[int] = set()
    while limit is None or len(scenes) < limit:
        placed = _place(evidence, reasons, taken, config)
        if placed is None:
            break
        if not scenes:
            track("align", 2, 3)
        scenes.append(_scene(evidence, placed, reasons, config))
        taken |= set(placed.members)
        logger.info("aligned %d of %d photos", len(placed.members), len(views))
    if not scenes:
        raise DisconnectedError(_disconnected(evidence.pairs, views, config))
    track("align", 3, 3)
    return tuple(scenes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Placed:
    """One group of views in its world; `rows` and `pair_of_row` are the edges that hold it."""

    members: list[int]
    rows: Int64[Tensor, " row"]
    pair_of_row: Int64[Tensor, " row"]
    samples: Samples
    begin: Start
    solution: Solution
    angle_rad: Float64[Tensor, " row"]


def _place(
    evidence: _Evidence, reasons: list[str], taken: set[int], config: AlignConfig
) -> _Placed | None:
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
            used, evidence.canonical, begin.unit2world, evidence.edges.residual[rows],
            begin.anchors, evidence.lenses, config,
        )  # fmt: skip
        angle_rad = _rotation_error_rad(solution, used, evidence.edges.unit_j2unit_i[rows])
        residual, angle = (_by_pair(x, pair_of_row) for x in (solution.seen_residual, angle_rad))
        astray = (residual > 1.5 * config.max_edge_residual) | (
            torch.rad2deg(angle) > config.max_edge_rotation_deg
        )
        if not bool(astray.any()):
            return _Placed(
                members=members, rows=rows, pair_of_row=number[pair_of_row], samples=used,
                begin=begin, solution=solution, angle_rad=angle_rad,
            )  # fmt: skip
        for k in number[astray.cpu()].tolist():  # such a pair no longer holds a photo
            reasons[k] = "contradicts the other pairs"


def _by_pair(
    values: Float64[Tensor, " row"], pair_of_row: Int64[Tensor, " row"]
) -> Float64[Tensor, " pair"]:
    """Return the mean over the orders of each pair."""
    count = torch.bincount(pair_of_row)
    return values.new_zeros(len(count)).index_add_(0, pair_of_row, values) / count.clamp_min(1)


def _first_reasons(pairs: Pairs, config: AlignConfig) -> list[str]:
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


def _judge_together(pairs: Pairs, reasons: list[str], n_views: int, config: AlignConfig) -> None:
    """Add the reasons that only other pairs give: contradicted cycles, or no second witness.

    A pair that is part of no triangle which closes has its two orders as its only witnesses: they
    must agree well, unless it holds nothing but its two views.
    """
    free = [k for k, reason in enumerate(reasons) if not reason]
    rows = torch.tensor(free, dtype=torch.long)
    limit_rad = _CYCLE_SHARE * math.radians(config.max_edge_rotation_deg)
    good = pairs.take(rows)
    edges = torch.stack((good.a, good.b), dim=-1).numpy(force=True)
    rotation = rotation_of(good.unit_b2unit_a).numpy(force=True)
    score = good.score.numpy(force=True)
    outlier = cycle_outliers(n_views, edges, rotation, score, limit_rad=limit_rad)
    for k in rows[torch.from_numpy(outlier)].tolist():
        reasons[k] = "contradicts the cycles it is part of"
    kept = ~outlier
    confirmed = confirmed_edges(
        n_views, edges[kept], rotation[kept], score[kept], limit_rad=limit_rad
    )
    good, rows = good.take(torch.from_numpy(kept)), rows[torch.from_numpy(kept)]
    degree = torch.bincount(torch.cat((good.a, good.b)), minlength=n_views)
    alone = (degree[good.a] == 1) & (degree[good.b] == 1)
    loose = (good.rotation_gap_deg > _ALONE_ROTATION_DEG) | (good.scale_gap > _ALONE_SCALE)
    doubtful = loose & ~alone & ~torch.from_numpy(confirmed).to(loose.device)
    for k in rows[doubtful.cpu()].tolist():
        reasons[k] = "its two orders disagree and no other pair confirms it"


def _rotation_error_rad(
    solution: Solution, samples: Samples, unit_j2unit_i: Float64[Tensor, "edge 4 4"]
) -> Float64[Tensor, " edge"]:
    """Angle between the solved rotation of each edge and the one it votes for by itself."""
    rotation = rotation_of(solution.unit2world)
    solved = rotation[samples.i].mT @ rotation[samples.j]
    return rotation_angle(solved.mT @ rotation_of(unit_j2unit_i))


def _disconnected(pairs: Pairs, views: Sequence[View], config: AlignConfig) -> str:
    k = int(pairs.score.argmax())
    return (
        f"no two of the {len(views)} photos overlap confidently. The best pair, "
        f"{views[int(pairs.a[k])].name} and {views[int(pairs.b[k])].name}, has confidence "
        f"{float(pairs.confidence[k]):.2f} (needs {config.min_edge_confidence:g}), residual "
        f"{float(pairs.residual[k]):.2f} (at most {config.max_edge_residual:g}), and its two "
        f"orders differ by {float(pairs.rotation_gap_deg[k]):.0f} degrees (at most "
        f"{config.max_edge_rotation_deg:g}). Take photos that overlap by half."
    )


def _scene(
    evidence: _Evidence, placed: _Placed, reasons: Sequence[str], config: AlignConfig
) -> Scene:
    """Fuse depth and write everything down in the final world."""
    views, members = evidence.views, placed.members
    solution, begin = placed.solution, placed.begin
    intrinsics = [_intrinsics(evidence, solution, n) for n in members]
    fused = [
        (depth.cpu(), trust.cpu())
        for depth, trust in fuse_views(
            placed.samples, evidence.maps, members, solution.unit2world, solution.points,
            intrinsics, evidence.masks,
        )
    ]  # fmt: skip
    scale = similarity_scale(solution.unit2world).cpu()
    unit = begin.unit
    if unit is None:
        known = fused[0][0] > 0
        median = float(fused[0][0][known].median()) if bool(known.any()) else 1.0
        unit = 1 / (float(scale[members[0]]) * median)
    cam2root = solution.unit2world[members].cpu()
    cam2root[:, :3, :3] = rotation_of(cam2root)
    world = cam2root if begin.pivot is not None else compose(invert_rigid(cam2root[0]), cam2root)
    world[:, :3, 3] *= unit
    if begin.pivot is not None:
        world[:, :3, 3] += begin.pivot.cpu()
    return Scene(
        views=tuple(views[n] for n in members),
        cam2world=world.float(),
        intrinsics=torch.stack(intrinsics).float().cpu(),
        depth=tuple(d * (float(scale[n]) * unit) for n, (d, _) in zip(members, fused, strict=True)),
        confidence=tuple(c for _, c in fused),
        verdicts=_verdicts(placed, unit),
        left_out=tuple(
            LeftOut(name=view.name, reason=NOT_PLACED)
            for n, view in enumerate(views)
            if n not in members
        ),
        edges=_edge_verdicts(evidence, placed, reasons),
    )


def _intrinsics(evidence: _Evidence, solution: Solution, n: int) -> Float64[Tensor, "3 3"]:
    camera = evidence.cameras[n] if evidence.cameras else None
    centre = base_point(evidence.views[n], camera)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[[0, 1], [0, 1]] = solution.lens.focal[n].cpu()
    matrix[:2, 2] = centre + solution.lens.centre[n].cpu()
    return matrix


def _verdicts(placed: _Placed, unit: float) -> tuple[Verdict, ...]:
    """Return how far to trust each placed view."""
    solution, samples = placed.solution, placed.samples
    turn, move = pose_uncertainty(
        solution.problem, solution.unit2world, placed.begin.anchors, _CORRELATED
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


def _edge_verdicts(
    evidence: _Evidence, placed: _Placed, reasons: Sequence[str]
) -> tuple[EdgeVerdict, ...]:
    """Return what became of every pair that touches a placed view."""
    pairs, solution = evidence.pairs, placed.solution
    n_pairs = len(pairs)
    figures = [
        values.new_zeros(n_pairs).index_add_(0, placed.pair_of_row, values).cpu()
        for values in (
            solution.seen_residual, solution.inliers, torch.rad2deg(placed.angle_rad)
        )
    ]  # fmt: skip
    count = torch.bincount(placed.pair_of_row.cpu(), minlength=n_pairs)
    residual, inliers, angle = ((total / count).tolist() for total in figures)  # 0 / 0 is nan
    members = set(placed.members)
    names = [view.name for view in evidence.views]
    return tuple(
        EdgeVerdict(
            first=names[a], second=names[b], used=bool(count[k]), reason=reasons[k],
            confidence=confidence, residual=residual[k], rotation_error_deg=angle[k],
            inliers=inliers[k],
        )
        for k, (a, b, confidence) in enumerate(
            zip(pairs.a.tolist(), pairs.b.tolist(), pairs.confidence.tolist(), strict=True)
        )
        if a in members or b in members
    )  # fmt: skip
