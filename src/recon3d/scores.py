"""What was found beside what is true -> named figures: cameras, depth, cloud, confidence."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from recon3d.config import FuseConfig
from recon3d.errors import ReconstructionError
from recon3d.fuse import fuse
from recon3d.geometry import pixel_grid, transform_points, unproject
from recon3d.ground_truth import TruePhoto, read_depth
from recon3d.metrics import (
    PoseErrors,
    area_under_curve,
    ate_pct,
    cloud_errors,
    depth_errors,
    error_by_confidence,
    extent_of,
    mean_average_accuracy,
    relative_pose_errors,
    share_within,
    similarity_between,
)
from recon3d.types import Scene, View

Figures = dict[str, float | int]

AUC_DEG = (5, 10, 20, 30)
WITHIN_DEG = 15
N_DECILES = 10
_MAX_FITTED, _MAX_COMPARED = 20_000, 100_000
"""Most points that a similarity is fitted to, and most points of a cloud that are compared."""
_ROBUST_ROUNDS = 10


def pose_figures(errors: PoseErrors) -> Figures:
    """Return medians, RRA, RTA, AUC and mAA of the pairs; those that failed count as wrong.

    A median is infinite where at least half of the pairs failed.
    """
    rotation_deg, direction_deg, worst_deg = (
        errors.rotation_deg,
        errors.direction_deg,
        errors.worst_deg,
    )
    n = len(worst_deg)
    return {
        "pairs": n,
        "failed": int(np.isinf(worst_deg).sum()),
        "rotation_deg": float(np.median(rotation_deg)) if n else np.nan,
        "direction_deg": float(np.median(direction_deg)) if n else np.nan,
        f"rra_{WITHIN_DEG}": share_within(rotation_deg, float(WITHIN_DEG)),
        f"rta_{WITHIN_DEG}": share_within(direction_deg, float(WITHIN_DEG)),
        **{f"auc_{limit}": area_under_curve(worst_deg, float(limit)) for limit in AUC_DEG},
        "maa_30": mean_average_accuracy(worst_deg, 30),
    }


def pair_figures(
    cam2world: Float64[np.ndarray, "pair 2 4 4"],
    photos: Sequence[TruePhoto],
    pairs: Sequence[tuple[int, int]],
) -> Figures:
    """Return the figures of pairs that were solved one by one, each in a world of its own."""
    true = np.stack([photos[n].cam2world for pair in pairs for n in pair])
    ends = [(2 * k, 2 * k + 1) for k in range(len(pairs))]
    return pose_figures(relative_pose_errors(cam2world.reshape(-1, 4, 4), true, ends))


def camera_figures(
    cam2world: Float64[np.ndarray, "photo 4 4"], photos: Sequence[TruePhoto]
) -> Figures:
    """Return the figures of all pairs of cameras of one world, and the ATE of those placed."""
    true = np.stack([photo.cam2world for photo in photos])
    placed = np.isfinite(cam2world).all((1, 2))
    centres, true_centres = cam2world[placed, :3, 3], true[placed, :3, 3]
    return {
        **pose_figures(relative_pose_errors(cam2world, true)),
        "ate_pct": ate_pct(centres, true_centres),
    }


class Surface(NamedTuple):
    """Figures of what lies in front of the cameras."""

    depth: Figures
    cloud: Figures
    error_by_decile: tuple[float, ...]


def surface_figures(
    scene: Scene,
    placed: Sequence[int],
    photos: Sequence[TruePhoto],
    views: Sequence[View],
    config: FuseConfig,
) -> Surface | None:
    """Return how well depth, cloud and confidence of a scene agree with the true depth maps.

    Depth: mean over the placed views with true depth, each scaled by its median; `abs_rel_by_ratio`
    is scaled by the median of the ratios instead, which does not flip between the near and the far
    half of a photo; `coverage` is the share of the pixels of known depth that have one in the
    scene. Cloud: the fused points of the
    pixels with true depth, moved by the similarity that fits the scene's points best to the true
    ones (robust, so that a wrong view does not spoil the rest), against the true points of all
    photos, placed or not. Confidence: mean relative depth error of each tenth of all pixels, after
    the scale that makes the median of the ratios 1: that of the medians follows the worst pixels.

    Args:
        scene: what was found.
        placed: for each view of the scene, its place in `photos`.
        photos: the truth.
        views: the views of all photos.
        config: how the cloud is fused.

    Returns:
        None where no pixel can be compared.
    """
    true_depth = {
        n: depth_in_view(read_depth(photo), views[n])
        for n, photo in enumerate(photos)
        if photo.depth_path is not None
    }
    per_view: list[Figures] = []
    confidence, relative, ours, true = [], [], [], []
    masked = []
    for k, n in enumerate(placed):
        known = torch.zeros_like(scene.depth[k], dtype=torch.bool)
        if n in true_depth:
            there = true_depth[n] > 0
            known = there & scene.depth[k].isfinite() & (scene.depth[k] > 0)
            errors = depth_errors(scene.depth[k].numpy(), true_depth[n].numpy(), known.numpy())
            if errors is not None:
                per_view.append(
                    {
                        "abs_rel": errors.abs_rel,
                        "abs_rel_by_ratio": float(errors.spread.mean()),
                        "delta_125": errors.delta_125,
                        "coverage": float(known.sum() / there.sum()),
                    }
                )
                confidence.append(scene.confidence[k][known].double().numpy())
                relative.append(errors.spread)
                in_scene = unproject(scene.depth[k].double(), scene.intrinsics[k].double())
                ours.append(_world(scene.cam2world[k].double(), in_scene[known]))
                in_truth = unproject(true_depth[n].double(), _intrinsics(photos[n], views[n]))
                true.append(_world(torch.from_numpy(photos[n].cam2world), in_truth[known]))
        masked.append(torch.where(known, scene.depth[k], 0.0))
    if not per_view:
        return None
    error = np.concatenate(relative)
    return Surface(
        depth={name: float(np.mean([f[name] for f in per_view])) for name in per_view[0]},
        cloud=_cloud_figures(
            replace(scene, depth=tuple(masked)),
            np.concatenate(ours),
            np.concatenate(true),
            np.concatenate(
                [_true_points(photos[n], views[n], depth) for n, depth in true_depth.items()]
            ),
            config,
        ),
        error_by_decile=tuple(error_by_confidence(np.concatenate(confidence), error, N_DECILES))
        if len(error) >= N_DECILES
        else (),
    )


def depth_in_view(
    depth: Float[np.ndarray, "photo_height photo_width"], view: View
) -> Float[Tensor, "height width"]:
    """Return the depth of a photo at the pixel centres of its view, nearest pixel; 0 is unknown."""
    height, width = view.image.shape[-2:]
    view2photo = torch.linalg.inv(view.photo2view.double())
    pixels = pixel_grid(height, width).double() @ view2photo[:2, :2].mT + view2photo[:2, 2]
    column = pixels[..., 0].floor().long().clamp(0, depth.shape[1] - 1)
    row = pixels[..., 1].floor().long().clamp(0, depth.shape[0] - 1)
    return torch.from_numpy(depth)[row, column]


def _cloud_figures(
    scene: Scene,
    points: Float64[np.ndarray, "pixel 3"],
    true_points: Float64[np.ndarray, "pixel 3"],
    reference: Float64[np.ndarray, "reference 3"],
    config: FuseConfig,
) -> Figures:
    """Return accuracy and completeness, or nothing where the scene gives no cloud."""
    try:
        cloud = fuse(scene, config)
    except ReconstructionError:
        return {}
    few = _spread(len(points), _MAX_FITTED)
    fitted = similarity_between(points[few], true_points[few], robust_rounds=_ROBUST_ROUNDS)
    found = cloud.points_in_world[_spread(len(cloud.points_in_world), _MAX_COMPARED)]
    compared = reference[_spread(len(reference), _MAX_COMPARED)]
    if extent_of(compared) == 0:  # as where true depth is known in one pixel alone
        return {}
    return dict(cloud_errors(fitted.apply(found), compared)._asdict())


def _true_points(
    photo: TruePhoto, view: View, depth: Float[Tensor, "height width"]
) -> Float64[np.ndarray, "point 3"]:
    in_camera = unproject(depth.double(), _intrinsics(photo, view))[depth > 0]
    return _world(torch.from_numpy(photo.cam2world), in_camera)


def _world(
    cam2world: Float64[Tensor, "4 4"], points: Float64[Tensor, "point 3"]
) -> Float64[np.ndarray, "point 3"]:
    return np.asarray(transform_points(cam2world, points).numpy())


def _intrinsics(photo: TruePhoto, view: View) -> Float64[Tensor, "3 3"]:
    """Return the true intrinsics in pixels of the view."""
    return view.photo2view.double() @ torch.from_numpy(photo.intrinsics)


def _spread(n: int, limit: int) -> np.ndarray:
    """Return at most `limit` of the first n numbers at random, the same ones every time."""
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, limit, replace=False))
