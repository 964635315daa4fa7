"""Global alignment: all pair predictions into one world.

The published objective (DUSt3R, section 3.4) moves every pixel of every pair with Adam. Here each
view is one similarity and a sample of pixels: closed forms per pair and a spanning tree start it
(`align_init`), pairs that contradict others are found (`align_place`), robust Gauss-Newton solves
all views together (`align_refine`), the published objective is minimised from there
(`align_polish`), and full-resolution depth and confidence are fused once, at the end
(`align_dense`).
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.align_dense import fuse_views
from recon3d.align_focal import lenses
from recon3d.align_init import (
    canonical_views,
    combine_orders,
    measure_edges,
    rotation_of,
    similarity_scale,
)
from recon3d.align_place import (
    Evidence,
    Placed,
    judge_together,
    place,
    reasons_of_their_own,
    why_disconnected,
)
from recon3d.align_polish import Freedom, polish
from recon3d.align_refine import Solution
from recon3d.align_samples import Cameras, Masks, base_point, denser_samples, take_samples
from recon3d.align_verdicts import edge_verdicts, verdicts_elsewhere, view_verdicts
from recon3d.config import AlignConfig
from recon3d.errors import DisconnectedError
from recon3d.geometry import compose, invert_rigid
from recon3d.masks import is_blank
from recon3d.progress import Track, silent
from recon3d.types import LeftOut, PairPrediction, Scene, View

logger = logging.getLogger(__name__)

NOT_PLACED = "no confident overlap with any placed photo"
BLANK = "masked or transparent everywhere"


def align(
    predictions: Iterable[PairPrediction],
    views: tuple[View, ...],
    config: AlignConfig,
    *,
    cameras: Cameras = (),
    masks: Masks = (),
    device: torch.device | None = None,
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
        device: where to compute, with float64; None is where the predictions are.
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
        predictions, views, config, cameras=cameras, masks=masks, limit=1, device=device,
        track=track,
    )[0]  # fmt: skip


def align_groups(
    predictions: Iterable[PairPrediction],
    views: tuple[View, ...],
    config: AlignConfig,
    *,
    cameras: Cameras = (),
    masks: Masks = (),
    limit: int | None = None,
    device: torch.device | None = None,
    track: Track = silent,
) -> tuple[Scene, ...]:
    """Return a scene for each group of photos that good pairs join, largest first.

    Arguments and errors as for `align`; at most `limit` scenes. Groups do not share a world. Every
    pair has its verdict in the scenes that it touches, else in the first.
    """
    predicted: set[tuple[int, int]] = set()
    raw, maps = take_samples(
        _noted(predictions, predicted), views, config, cameras=cameras, masks=masks
    )
    if device is not None:
        raw = raw.on(device)
    known = lenses(views, config, cameras)
    canonical, samples = canonical_views(raw, known)
    edges = measure_edges(samples, canonical)
    evidence = Evidence(
        views=views, samples=samples, maps=maps, canonical=canonical, edges=edges,
        pairs=combine_orders(samples, edges), lenses=known, cameras=cameras, masks=masks,
    )  # fmt: skip
    track("align", 1, 3)
    reasons = reasons_of_their_own(evidence.pairs, config)
    judge_together(evidence.pairs, reasons, len(views), config)
    scenes: list[Scene] = []
    taken: set[int] = set()
    while limit is None or len(scenes) < limit:
        placed = place(evidence, reasons, taken, config)
        if placed is None:
            break
        if not scenes:
            track("align", 2, 3)
        scenes.append(_scene(evidence, placed, reasons, config, device))
        taken |= set(placed.members)
        logger.info("aligned %d of %d photos", len(placed.members), len(views))
    elsewhere = verdicts_elsewhere(evidence, taken, reasons, predicted)
    if not scenes:
        error = DisconnectedError(why_disconnected(evidence, reasons, config))
        error.edges = elsewhere
        raise error
    scenes[0] = replace(scenes[0], edges=scenes[0].edges + elsewhere)
    track("align", 3, 3)
    return tuple(scenes)


def _noted(
    predictions: Iterable[PairPrediction], pairs: set[tuple[int, int]]
) -> Iterator[PairPrediction]:
    """Pass on the predictions, adding their pairs (lower view first) to a set."""
    for prediction in predictions:
        pairs.add((min(prediction.i, prediction.j), max(prediction.i, prediction.j)))
        yield prediction


def _scene(
    evidence: Evidence, placed: Placed, reasons: Sequence[str], config: AlignConfig,
    device: torch.device | None,
) -> Scene:  # fmt: skip
    """Fuse depth and write everything down in the final world."""
    views, members, begin = evidence.views, placed.members, placed.begin
    dense = denser_samples(
        placed.samples, evidence.maps, views, evidence.cameras, evidence.masks, config
    )
    polished = polish(
        dense, placed.solution.unit2world, placed.solution.lens, _freedom(placed, config)
    )
    solution = replace(placed.solution, unit2world=polished.unit2world, lens=polished.lens)
    placed = replace(placed, solution=solution)
    intrinsics = [_intrinsics(evidence, solution, n) for n in members]
    fused = [
        (depth.cpu(), trust.cpu())
        for depth, trust in fuse_views(
            dense, evidence.maps, members, polished, intrinsics, evidence.masks, device
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
    else:
        world = world.float()
    return Scene(
        views=tuple(views[n] for n in members),
        cam2world=world,
        intrinsics=torch.stack(intrinsics).float().cpu(),
        depth=tuple(d * (float(scale[n]) * unit) for n, (d, _) in zip(members, fused, strict=True)),
        confidence=tuple(c for _, c in fused),
        verdicts=view_verdicts(placed, unit),
        left_out=tuple(
            LeftOut(
                name=view.name,
                reason=BLANK if evidence.masks and is_blank(evidence.masks[n]) else NOT_PLACED,
            )
            for n, view in enumerate(views)
            if n not in members
        ),
        edges=edge_verdicts(evidence, placed, reasons),
    )


def _freedom(placed: Placed, config: AlignConfig) -> Freedom:
    """Return what the published objective may move: nothing that was given or is shared."""
    solution = placed.solution
    n_views, device = len(solution.unit2world), solution.unit2world.device
    no_poses = placed.begin.pivot is None
    estimated = [source == "estimated" for source in solution.lens.source]
    focal = torch.tensor(estimated, device=device) & (no_poses and not config.shared_focal)
    return Freedom(pose=torch.full((n_views,), no_poses, device=device), focal=focal)


def _intrinsics(evidence: Evidence, solution: Solution, n: int) -> Float64[Tensor, "3 3"]:
    camera = evidence.cameras[n] if evidence.cameras else None
    centre = base_point(evidence.views[n], camera)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[[0, 1], [0, 1]] = solution.lens.focal[n].cpu()
    matrix[:2, 2] = centre + solution.lens.centre[n].cpu()
    return matrix
