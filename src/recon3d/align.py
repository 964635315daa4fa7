"""Global alignment: all pair predictions into one world, by robust least squares on similarities.

The published objective (DUSt3R, section 3.4) moves every pixel of every pair with Adam. Here each
edge is first reduced to a small sample of points on shared pixels (`align_init`), Gauss-Newton with
iterative re-weighting solves for one similarity per view, and depth is fused per pixel at the end.
"""

import logging
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from recon3d.align_init import (
    Canonical,
    Edges,
    canonical,
    choose_focals,
    log_weight,
    measure_edges,
    spanning_tree,
    weighted_median,
)
from recon3d.config import AlignConfig
from recon3d.errors import DisconnectedError
from recon3d.geometry import invert_rigid, rotation_angle, similarity, so3_exp, transform_points
from recon3d.pairs import connected_components
from recon3d.progress import Track, silent
from recon3d.types import LeftOut, PairPrediction, Scene, Verdict, View

logger = logging.getLogger(__name__)

NOT_PLACED = "no confident overlap with any placed photo"
_OUTLIER = 0.15
"""Relative distance beyond which a sampled point counts less and less."""


def align(
    predictions: Iterable[PairPrediction],
    views: tuple[View, ...],
    config: AlignConfig,
    *,
    track: Track = silent,
) -> Scene:
    """Bring all pair predictions into one world frame by minimising 3D distances.

    Args:
        predictions: ordered pairs, both orders of each where possible.
        views: all views that the predictions index.

    Returns:
        The scene of the largest group of photos that good pairs join, in the order of `views`;
        world = camera of its first view, scaled so that this view's median depth is 1. Photos
        outside the group are in `left_out`.

    Raises:
        DisconnectedError: when no pair is good enough; names the best one.

    Source: Wang et al., DUSt3R (CVPR 2024), section 3.4; Umeyama, PAMI 1991.
    """
    kept = [p for p in predictions if _usable(p)]
    canonicals = [canonical(n, kept) for n in range(len(views))]
    track("align", 1, 4)
    edges = measure_edges(kept, canonicals, config)
    usable = edges.good(config)
    while True:
        members = _largest_group(edges, usable, views, config)
        inside = torch.zeros(len(views), dtype=torch.bool)
        inside[members] = True
        usable = usable & inside[edges.i] & inside[edges.j]
        root, unit2world = spanning_tree(edges, usable, members, len(views))
        unit2world = refine(edges, usable, unit2world, root, config)
        still = usable & _consistent(edges, unit2world, config)
        if bool((still == usable).all()):
            break
        usable = still  # a pair that contradicts the others no longer holds a photo
    track("align", 2, 4)
    scene = _scene(kept, [canonicals[n] for n in members], members, unit2world, views, config)
    track("align", 3, 4)
    verdicts = _verdicts(edges, usable, unit2world, members, scene[-1])
    left_out = tuple(
        LeftOut(name=view.name, reason=NOT_PLACED) for n, view in enumerate(views) if not inside[n]
    )
    track("align", 4, 4)
    cam2world, intrinsics, depth, confidence, _ = scene
    return Scene(
        views=tuple(views[n] for n in members),
        cam2world=cam2world,
        intrinsics=intrinsics,
        depth=depth,
        confidence=confidence,
        verdicts=verdicts,
        left_out=left_out,
    )


def _usable(prediction: PairPrediction) -> bool:
    maps = (prediction.pointmap_i_in_i, prediction.pointmap_j_in_i)
    if all(bool(m.isfinite().any()) for m in maps):
        return True
    logger.warning("pair (%d, %d) has no finite point: dropped", prediction.i, prediction.j)
    return False


def _largest_group(
    edges: Edges, usable: Bool[Tensor, " edge"], views: Sequence[View], config: AlignConfig
) -> list[int]:
    """Return the largest set of views joined by usable edges, sorted; ties go to the better one."""
    pairs = {
        (min(a, b), max(a, b))
        for a, b in zip(edges.i[usable].tolist(), edges.j[usable].tolist(), strict=True)
    }
    groups = connected_components(len(views), sorted(pairs))
    score = edges.score()

    def worth(group: list[int]) -> tuple[int, float]:
        inside = usable & torch.isin(edges.i, torch.tensor(group))
        return len(group), float(score[inside].sum())

    best = max(groups, key=worth, default=[])
    if len(best) >= 2:
        return sorted(best)
    advice = "Take photos that overlap by at least half."
    if len(score) == 0:
        raise DisconnectedError(f"no pair of the {len(views)} photos could be measured. {advice}")
    top = int(score.argmax())
    raise DisconnectedError(
        f"no two of the {len(views)} photos overlap confidently; the best pair, "
        f"{views[int(edges.i[top])].name} and {views[int(edges.j[top])].name}, has confidence "
        f"{float(edges.confidence[top]):.2f} (needs {config.min_edge_confidence:g}), residual "
        f"{float(edges.residual[top]):.2f} (at most {config.max_edge_residual:g}) and the two orders differ by "
        f"{float(torch.rad2deg(edges.disagreement_rad[top])):.0f} degrees "
        f"(at most {config.max_edge_rotation_deg:g}). {advice}"
    )


def _distances(
    edges: Edges, unit2world: Float64[Tensor, "view 4 4"]
) -> tuple[Tensor, Tensor, Tensor]:
    """World points of each edge from both sides, and the world length of unit depth there."""
    a = transform_points(unit2world[edges.i], edges.points_j_in_i)
    b = transform_points(unit2world[edges.j], edges.points_j_in_j)
    scale = torch.linalg.det(unit2world[:, :3, :3]).clamp_min(1e-30) ** (1 / 3)
    depth = weighted_median(edges.points_j_in_j[..., 2], edges.weight)
    return a, b, scale[edges.j] * depth


def refine(
    edges: Edges,
    usable: Bool[Tensor, " edge"],
    unit2world: Float64[Tensor, "view 4 4"],
    root: int,
    config: AlignConfig,
) -> Float64[Tensor, "view 4 4"]:
    """Return the similarities of least robust distance; view `root` stays where it is.

    Residual of a sampled pixel: the world point its edge predicts minus the one its own view says,
    relative to the depth there, so that shrinking the world gains nothing. Unsquared by IRLS,
    Gauss-Newton steps on left perturbations exp(rotation, translation, log scale), with
    Levenberg-Marquardt damping. Edges that fit badly by themselves count less.
    """
    pick = usable.nonzero().flatten()
    edges = _subset(edges, pick)
    moving = torch.zeros(len(unit2world), dtype=torch.long)
    touched = torch.unique(torch.cat((edges.i, edges.j)))
    free = touched[touched != root]
    moving[free] = torch.arange(len(free)) + 1  # 0: fixed
    quality = 1 / (1 + (edges.residual / 0.1).square())
    weight = edges.weight * (quality / edges.weight.sum(-1).clamp_min(1e-12))[:, None]
    damping = 1e-6
    cost, steps = _cost(edges, unit2world, weight), 0
    while steps < config.max_iterations:
        steps += 1
        matrix, gradient = _normal_equations(edges, unit2world, weight, moving, len(free))
        accepted = False
        for _ in range(6):
            step = _solve(matrix, gradient, damping)
            moved = _apply(unit2world, free, step)
            new_cost = _cost(edges, moved, weight)
            if new_cost <= cost:
                accepted = True
                break
            damping = max(damping, 1e-6) * 10
        if not accepted:
            break
        gain, cost = cost - new_cost, new_cost
        unit2world, damping = moved, max(damping / 10, 1e-9)
        if (
            (gain <= 1e-9 * cost
            and float(step.abs().max()) < 1e-9)
            or float(step.abs().max()) < 1e-12
        ):
            break
    logger.debug("alignment: %d steps, mean relative distance %.2e", steps, float(cost))
    return unit2world


def _subset(edges: Edges, pick: Tensor) -> Edges:
    from dataclasses import fields

    return Edges(**{f.name: getattr(edges, f.name)[pick] for f in fields(edges)})


def _robust(relative: Tensor) -> Tensor:
    """IRLS weight of rho(r) = c log(1 + r / c): absolute near 0, flat for outliers."""
    return 1 / ((relative + 1e-7) * (1 + relative / _OUTLIER))


def _cost(edges: Edges, unit2world: Tensor, weight: Tensor) -> float:
    a, b, depth = _distances(edges, unit2world)
    relative = (a - b).norm(dim=-1) / depth[:, None]
    return float((weight * _OUTLIER * torch.log1p(relative / _OUTLIER)).sum() / weight.sum())


def _normal_equations(
    edges: Edges, unit2world: Tensor, weight: Tensor, moving: Tensor, n_free: int
) -> tuple[Tensor, Tensor]:
    """Gauss-Newton matrix (7n x 7n) and gradient; each edge adds four 7x7 blocks."""
    a, b, depth = _distances(edges, unit2world)
    residual = (a - b) / depth[:, None, None]
    robust = weight * _robust(residual.norm(dim=-1))
    jacobian_i = _jacobian(a) / depth[:, None, None, None]
    jacobian_j = -_jacobian(b) / depth[:, None, None, None]
    row_i, row_j = moving[edges.i], moving[edges.j]
    blocks = torch.zeros(n_free + 1, n_free + 1, 7, 7, dtype=torch.float64)
    gradient = torch.zeros(n_free + 1, 7, dtype=torch.float64)
    sides = ((row_i, jacobian_i), (row_j, jacobian_j))
    for row, left in sides:
        weighted = (left * robust[..., None, None]).flatten(1, 2)
        gradient.index_add_(0, row, (weighted.mT @ residual.flatten(1, 2)[..., None]).squeeze(-1))
        for column, right in sides:
            product = weighted.mT @ right.flatten(1, 2)
            blocks.index_put_((row, column), product, accumulate=True)
    matrix = blocks[1:, 1:].permute(0, 2, 1, 3).reshape(7 * n_free, 7 * n_free)
    return matrix, gradient[1:].flatten()


def _jacobian(points: Float64[Tensor, "edge sample 3"]) -> Float64[Tensor, "edge sample 3 7"]:
    """Derivative of exp(rotation, translation, log scale) applied to world points, at zero."""
    x, y, z = points.unbind(-1)
    zero = torch.zeros_like(x)
    minus_skew = torch.stack((zero, z, -y, -z, zero, x, y, -x, zero), -1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=points.dtype).expand_as(minus_skew)
    return torch.cat((minus_skew, identity, points[..., None]), dim=-1)


def _solve(matrix: Tensor, gradient: Tensor, damping: float) -> Float64[Tensor, "view 7"]:
    diagonal = matrix.diagonal().clamp_min(1e-12)
    damped = matrix + torch.diag(damping * diagonal)
    return -torch.linalg.solve(damped, gradient).view(-1, 7)


def _apply(unit2world: Tensor, free: Tensor, step: Tensor) -> Tensor:
    change = similarity(step[:, 6].clamp(-1, 1).exp(), so3_exp(step[:, :3]), step[:, 3:6])
    moved = unit2world.clone()
    moved[free] = change @ unit2world[free]
    return moved


def _relative_errors(edges: Edges, unit2world: Tensor) -> tuple[Tensor, Tensor]:
    """Per edge: median distance over depth after alignment, and the angle to its own rotation."""
    a, b, depth = _distances(edges, unit2world)
    relative = weighted_median((a - b).norm(dim=-1), edges.weight) / depth
    rotation = _rotation(unit2world)
    solved = rotation[edges.i].mT @ rotation[edges.j]
    return relative, rotation_angle(solved.mT @ _rotation(edges.cam_j2cam_i))


def _rotation(matrix: Float64[Tensor, "*batch 4 4"]) -> Float64[Tensor, "*batch 3 3"]:
    scale = torch.linalg.det(matrix[..., :3, :3]).clamp_min(1e-30) ** (1 / 3)
    return matrix[..., :3, :3] / scale[..., None, None]


def _consistent(edges: Edges, unit2world: Tensor, config: AlignConfig) -> Bool[Tensor, " edge"]:
    relative, angle = _relative_errors(edges, unit2world)
    fits = relative <= 1.5 * config.max_edge_residual
    return fits & (torch.rad2deg(angle) <= config.max_edge_rotation_deg)


def _scene(
    predictions: Sequence[PairPrediction],
    canonicals: Sequence[Canonical | None],
    members: Sequence[int],
    unit2world: Tensor,
    views: Sequence[View],
    config: AlignConfig,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...], tuple[str, ...]]:
    """Cameras, intrinsics, fused depth and confidence of the members, and the focals' sources."""
    present = [c for c in canonicals if c is not None]
    focals, sources = choose_focals(present, [views[n] for n in members], config)
    scale = torch.linalg.det(unit2world[:, :3, :3]).clamp_min(1e-30) ** (1 / 3)
    rigid = unit2world.clone()
    rigid[:, :3, :3] = _rotation(unit2world)
    place = {n: k for k, n in enumerate(members)}
    depths, confidences = [], []
    for k, n in enumerate(members):
        own = present[k]
        z, weight, raw = [], [], []
        for e, prediction in enumerate(predictions):
            first = present[place[prediction.i]] if prediction.i in place else None
            if first is None or prediction.j not in place or e not in first.edge_scale:
                continue
            if prediction.i == n:
                points = prediction.pointmap_i_in_i.double() / first.edge_scale[e]
                confidence = prediction.confidence_i
                depth = points[..., 2] * scale[n]
            elif prediction.j == n:
                points = prediction.pointmap_j_in_i.double() / first.edge_scale[e]
                confidence = prediction.confidence_j
                unit_i2cam_n = invert_rigid(rigid[n]) @ unit2world[prediction.i]
                depth = transform_points(unit_i2cam_n, points.reshape(-1, 3))[:, 2]
                depth = depth.view(confidence.shape)
            else:
                continue
            usable = log_weight(points, confidence) * (depth > 0)
            z.append(torch.where(usable > 0, depth, 0.0))
            weight.append(usable)
            raw.append(confidence.double().clamp_min(1))
        depth, confidence = _fuse_depth(torch.stack(z), torch.stack(weight), torch.stack(raw))
        known = (own.weight > 0) & (depth > 0)
        depths.append(torch.where(known, depth, 0.0))
        confidences.append(torch.where(known, confidence, 1.0).float())
    world2first = invert_rigid(rigid[members[0]])
    known = depths[0] > 0
    size = float(depths[0][known].median()) if bool(known.any()) else 1.0
    cam2world = world2first @ rigid[members]
    cam2world[:, :3, 3] /= size
    intrinsics = torch.zeros(len(members), 3, 3)
    for k, n in enumerate(members):
        height, width = views[n].image.shape[-2:]
        intrinsics[k] = torch.tensor(
            [[focals[k, 0], 0, width / 2], [0, focals[k, 1], height / 2], [0, 0, 1]]
        )
    return (
        cam2world.float(),
        intrinsics,
        tuple((d / size).float() for d in depths),
        tuple(confidences),
        sources,
    )


def _fuse_depth(z: Tensor, weight: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean of the depths near their weighted median; confidence by agreement.

    Confidence is 1 + (mean confidence - 1) times the weight that agrees within 10 %.
    """
    flat_z, flat_w = z.flatten(1).mT, weight.flatten(1).mT
    median = weighted_median(flat_z, flat_w).view(z.shape[1:])
    agrees = weight * ((z - median).abs() <= 0.1 * median)
    total = weight.sum(0)
    support = agrees.sum(0)
    depth = (agrees * z).sum(0) / support.clamp_min(1e-12)
    mean = (weight * raw).sum(0) / total.clamp_min(1e-12)
    confidence = 1 + (mean - 1).clamp_min(1e-4) * support / total.clamp_min(1e-12)
    return torch.where(support > 0, depth, 0.0), confidence


def _verdicts(
    edges: Edges,
    usable: Tensor,
    unit2world: Tensor,
    members: Sequence[int],
    sources: Sequence[str],
) -> tuple[Verdict, ...]:
    relative, angle = _relative_errors(edges, unit2world)
    out = []
    for n, source in zip(members, sources, strict=True):
        mine = usable & ((edges.i == n) | (edges.j == n))
        partners = torch.unique(edges.i[mine] + edges.j[mine] - n)
        spread = angle[mine].square().mean().sqrt()
        out.append(
            Verdict(
                residual=float(relative[mine].median()),
                edges=len(partners),
                rotation_uncertainty_deg=float(torch.rad2deg(spread)),
                focal_source=source,
            )
        )
    return tuple(out)
