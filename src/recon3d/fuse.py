"""Scene -> PointCloud: unproject every view, keep what can be trusted, thin out."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from recon3d.clean import lower_conflicts
from recon3d.config import GUESS, FuseConfig
from recon3d.errors import ReconstructionError, UsageError
from recon3d.geometry import transform_points, unproject
from recon3d.sky import sky_pixels
from recon3d.types import PointCloud, Scene

logger = logging.getLogger(__name__)

_COARSE = 1e-4
"""Step between neighbouring float32 coordinates, relative to the median depth, above which points
have float64: a tenth of a pixel's width."""


def fuse(scene: Scene, config: FuseConfig) -> PointCloud:
    """Return the coloured points of all views whose confidence and depth can be trusted.

    A pixel is dropped if its depth is unknown, its confidence too low (`FuseConfig`, the
    percentile is over all known pixels of the scene), or its depth differs from that of one of
    its four neighbours by more than `depth_edge` (relative to the nearer one; 0 is off): there the
    network smears points between near and far. So is a point that another view looks through
    (`recon3d.clean`), and, with `sky`, what looks like sky (`recon3d.sky`). Then the most confident
    point of each voxel is kept and, above `max_points`, a random subset with a fixed seed, so that
    no region vanishes. Points come in the order of the views, row by row.

    Raises:
        ReconstructionError: no point is left; says how many there were.
        UsageError: a setting out of its range.
    """
    _check(config)
    if config.free_space > 0:
        scene = lower_conflicts(scene, config.free_space)
    known = [_known(depth, conf) for depth, conf in zip(scene.depth, scene.confidence, strict=True)]
    if config.sky:
        known = [
            mask & ~sky_pixels(view.image) for mask, view in zip(known, scene.views, strict=True)
        ]
    n_known = sum(int(mask.sum()) for mask in known)
    least = _confidence_threshold(scene, known, config)
    dtype = _type_of_points(scene, known)
    parts = [
        _fuse_view(scene, index, mask, least, config, dtype) for index, mask in enumerate(known)
    ]
    if sum(len(part.confidence) for part in parts) == 0:
        lower = "Lower --min-confidence, or give"
        if config.min_confidence is None:
            lower = f"Lower --confidence-percentile ({config.confidence_percentile:g}), or give"
        raise ReconstructionError(
            f"no point is left of {n_known} pixels with known depth (least confidence {least:.3g}, "
            f"largest depth step {config.depth_edge:g}). {lower if n_known else 'Give'} photos "
            "that overlap more."
        )
    points, normals, rgb, confidence = (
        np.concatenate(arrays) for arrays in zip(*parts, strict=True)
    )
    keep = np.arange(len(points))
    if config.voxel > 0:
        keep = best_per_voxel(points, confidence, config.voxel)
    if len(keep) > config.max_points:
        chosen = np.random.default_rng(0).choice(len(keep), config.max_points, replace=False)
        keep = keep[np.sort(chosen)]
    logger.info("%d points of %d pixels with known depth", len(keep), n_known)
    return PointCloud(
        points_in_world=points[keep],
        normals_in_world=normals[keep],
        rgb=rgb[keep],
        confidence=confidence[keep],
    )


def fuse_each(
    scenes: Sequence[Scene], config: FuseConfig
) -> tuple[list[PointCloud | None], dict[int, ReconstructionError]]:
    """Return the cloud of each scene, None where no point is left, and there the reason.

    Raises:
        UsageError: a setting out of its range.
    """
    clouds: list[PointCloud | None] = []
    faults: dict[int, ReconstructionError] = {}
    for n, scene in enumerate(scenes):
        try:
            clouds.append(fuse(scene, config))
        except ReconstructionError as error:
            clouds.append(None)
            faults[n] = error
    return clouds, faults


def depth_edges(
    depth: Float[Tensor, "height width"], known: Bool[Tensor, "height width"], limit: float
) -> Bool[Tensor, "height width"]:
    """Mark pixels whose depth jumps to a known 4-neighbour by more than `limit`, relatively."""
    edges = torch.zeros_like(known)
    for axis in (0, 1):
        size = depth.shape[axis] - 1
        near, far = depth.narrow(axis, 0, size), depth.narrow(axis, 1, size)
        both = known.narrow(axis, 0, size) & known.narrow(axis, 1, size)
        jump = both & ((near - far).abs() > limit * torch.minimum(near, far))
        edges.narrow(axis, 0, size).logical_or_(jump)
        edges.narrow(axis, 1, size).logical_or_(jump)
    return edges


def surface_normals(
    points: Float[Tensor, "height width 3"],
    usable: Bool[Tensor, "height width"],
    camera_centre: Float[Tensor, "3"],
) -> Float[Tensor, "height width 3"]:
    """Return unit normals that face the camera, from the cross product of the two grid steps.

    A step is the sum of the steps to the usable neighbours on either side; a pixel without
    usable neighbours along an axis, or seen exactly edge-on, faces the camera.
    """
    to_camera = torch.nn.functional.normalize(camera_centre - points, dim=-1)
    cross = torch.linalg.cross(_step(points, usable, 1), _step(points, usable, 0), dim=-1)
    length = cross.norm(dim=-1, keepdim=True)
    normals = torch.where(length > 0, cross / length.clamp_min(1e-300), to_camera)
    facing = (normals * to_camera).sum(-1, keepdim=True)
    return torch.where(facing < 0, -normals, normals)


def best_per_voxel(
    points: Float[np.ndarray, "point 3"], confidence: Float32[np.ndarray, " point"], voxel: float
) -> Int64[np.ndarray, " kept"]:
    """Return, in ascending order, the index of the most confident point of every voxel.

    Equal confidences: the first one. A real point is kept, not a mean, so no colour or normal
    is invented.
    """
    # cells as floats: no overflow however small the voxel
    cells = np.floor(points.astype(np.float64) / voxel)
    order = np.lexsort((-confidence, cells[:, 2], cells[:, 1], cells[:, 0]))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = np.any(np.diff(cells[order], axis=0) != 0, axis=1)
    return np.sort(order[is_first])


class _Part(NamedTuple):
    """The points of one view."""

    points_in_world: Float[np.ndarray, "point 3"]
    normals_in_world: Float32[np.ndarray, "point 3"]
    rgb: UInt8[np.ndarray, "point 3"]
    confidence: Float32[np.ndarray, " point"]


def _type_of_points(scene: Scene, known: list[Bool[Tensor, "_ _"]]) -> torch.dtype:
    """Return float32, or float64 where the cameras are so far from the origin that it is coarse."""
    if scene.cam2world.dtype != torch.float64:  # as coarse as points are, and mostly near
        return torch.float32
    depth = torch.cat([depth[mask] for depth, mask in zip(scene.depth, known, strict=True)])
    if not len(depth):
        return torch.float32
    rounding = float(scene.cam2world[:, :3, 3].abs().max()) * torch.finfo(torch.float32).eps
    return torch.float64 if rounding > _COARSE * float(depth.median()) else torch.float32


def _fuse_view(
    scene: Scene, index: int, known: Bool[Tensor, "h w"], least: float, config: FuseConfig,
    dtype: torch.dtype,
) -> _Part:  # fmt: skip
    depth = torch.where(known, scene.depth[index].double(), 1.0)
    points_in_cam = unproject(depth, scene.intrinsics[index].double())
    cam2world = scene.cam2world[index].double()
    points_in_world = transform_points(cam2world, points_in_cam.flatten(0, 1)).view_as(
        points_in_cam
    )
    usable = known & points_in_world.isfinite().all(-1)
    if config.depth_edge > 0:
        usable &= ~depth_edges(depth, known, config.depth_edge)
    keep = usable & (scene.confidence[index].double() >= least)
    normals = surface_normals(points_in_world, usable, cam2world[:3, 3])
    image = scene.views[index].image.movedim(0, -1)
    rgb = ((image[keep].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return _Part(
        points_in_world[keep].to(dtype).numpy(force=True),
        normals[keep].float().numpy(force=True),
        rgb.numpy(force=True),
        scene.confidence[index][keep].float().numpy(force=True),
    )


def _known(depth: Float[Tensor, "h w"], confidence: Float[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    # confidence is above 1; 0 says that another view contradicts, so it takes part in no percentile
    return depth.isfinite() & (depth > 0) & confidence.isfinite() & (confidence > 0)


def _confidence_threshold(
    scene: Scene, known: list[Bool[Tensor, "_ _"]], config: FuseConfig
) -> float:
    """Return the least confidence of a kept pixel."""
    if config.min_confidence is not None:
        return config.min_confidence
    values = [conf[mask].double() for conf, mask in zip(scene.confidence, known, strict=True)]
    if sum(len(part) for part in values) == 0:
        return 0.0
    every = torch.cat(values).numpy(force=True)
    least = float(np.percentile(every, config.confidence_percentile))
    above = every[every > GUESS]
    all_wanted = config.confidence_percentile == 0 or not len(above)
    return least if all_wanted else max(least, float(above.min()))


def _step(
    points: Float[Tensor, "height width 3"], usable: Bool[Tensor, "height width"], axis: int
) -> Float[Tensor, "height width 3"]:
    """Return the sum of the steps along `axis` between usable neighbours that touch a pixel."""
    size = points.shape[axis] - 1
    both = usable.narrow(axis, 0, size) & usable.narrow(axis, 1, size)
    steps = torch.where(both[..., None], points.diff(dim=axis), 0.0)
    total = torch.zeros_like(points)
    total.narrow(axis, 0, size).add_(steps)
    total.narrow(axis, 1, size).add_(steps)
    return total


def _check(config: FuseConfig) -> None:
    if not 0 <= config.confidence_percentile <= 100:
        raise UsageError(
            f"the confidence percentile {config.confidence_percentile:g} must be from 0 to 100."
        )
    if config.min_confidence is not None and config.min_confidence < 1:
        raise UsageError(
            f"the least confidence {config.min_confidence:g} must be at least 1, which keeps all."
        )
    if config.max_points < 1:
        raise UsageError(f"the number of points {config.max_points} must be at least 1.")
    settings = {
        "voxel size": config.voxel,
        "depth edge": config.depth_edge,
        "free space": config.free_space,
    }
    for name, value in settings.items():
        if not value >= 0:
            raise UsageError(f"the {name} {value:g} must be 0 (off) or more.")
