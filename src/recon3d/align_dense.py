"""Depth and confidence of every pixel from all maps that show it, cameras fixed.

The similarities of the pairs have been found on the sampled pixels (`align_polish`); here every
pixel has one unknown, its depth: a small convex problem.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from recon3d.align_polish import Polished
from recon3d.align_samples import (
    TINY,
    KeptMaps,
    Map,
    Masks,
    Samples,
    edge_chunks,
    pixel_weight,
    weighted_median,
)
from recon3d.geometry import compose, dot, pixel_grid, transform_points

_PIXEL_ROUNDS = 10
_CHUNK_PIXELS = 16384
_DEVICE_CHUNK_PIXELS = 262_144
"""On a GPU: small pieces would not fill it, and memory that batches of pairs took is free again."""
_FLOOR = 1e-4
"""Least distance in a reweighting, relative to depth: an exact fit must not divide by zero."""
_MAX_DEPTH_SPREAD = 0.1
"""Largest relative distance from the depth at which a map agrees with it."""


def fuse_views(
    samples: Samples,
    maps: KeptMaps,
    members: Sequence[int],
    polished: Polished,
    intrinsics: Sequence[Float64[Tensor, "3 3"]],
    masks: Masks,
    device: torch.device | None = None,
) -> Iterator[tuple[Float32[Tensor, "height width"], Float32[Tensor, "height width"]]]:
    """Yield depth (in its unit frame) and confidence of each member.

    `samples` are what was polished, `intrinsics` those of the members. The maps of one view at a
    time go to the `device`; None leaves them where they are.
    """
    map2unit = both_sides(samples, polished.unit2world, polished.pair2world)
    typical = typical_spread(samples, map2unit, polished.depth)
    map2unit = map2unit.clone()
    map2unit[..., :3, :3] /= samples.edge_scale[:, None, None, None]
    row_of = {number: row for row, number in enumerate(samples.prediction.tolist())}
    for n, camera in zip(members, intrinsics, strict=True):
        kept = [_on(device, one) for one in maps.of(n) if one.prediction in row_of]
        if not kept:  # all that could be kept are of pairs that were refused since
            nothing = torch.zeros_like(maps.of(n)[0].confidence, dtype=torch.float32)
            yield nothing, nothing.clone()
            continue
        rows = [row_of[one.prediction] for one in kept]
        sides = [0 if one.is_own else 1 for one in kept]
        ray = _rays(kept[0].confidence, camera)
        mask = masks[n] if masks else None
        yield view_depth(kept, map2unit[rows, sides], ray, mask, float(typical[n]))


def _on(device: torch.device | None, one: Map) -> Map:
    place = one.points.device if device is None else device
    return one._replace(points=one.points.to(place), confidence=one.confidence.to(place))


def _rays(
    like: Float[Tensor, "height width"], camera: Float64[Tensor, "3 3"]
) -> Float32[Tensor, "height width 2"]:
    """Return x / z and y / z at every pixel centre."""
    grid = pixel_grid(*like.shape, device=like.device)
    camera = camera.to(grid)
    return (grid - camera[:2, 2]) / camera[[0, 1], [0, 1]]


def view_depth(
    maps: Sequence[Map],
    map2unit: Float64[Tensor, "map 4 4"],
    ray: Float32[Tensor, "height width 2"],
    mask: Bool[Tensor, "height width"] | None,
    typical: float,
) -> tuple[Float32[Tensor, "height width"], Float32[Tensor, "height width"]]:
    """Return depth and confidence of a view, both 0 where no map knows anything.

    Args:
        maps: the view's maps; `map2unit` brings their points into its unit frame.
        map2unit: one similarity each.
        ray: x / z and y / z of each pixel.
        mask: pixels that may be used.
        typical: the usual relative distance of a map to the depth.
    """
    height, width = ray.shape[:2]
    n_pixels = height * width
    depth, trust = ray.new_zeros(n_pixels), ray.new_zeros(n_pixels)
    flat = torch.cat((ray, torch.ones_like(ray[..., :1])), dim=-1).view(-1, 3)
    transform = map2unit.to(flat)
    chunk = _CHUNK_PIXELS if ray.device.type == "cpu" else _DEVICE_CHUNK_PIXELS
    for start in range(0, n_pixels, chunk):
        cut = slice(start, start + chunk)
        points = torch.stack([one.points.reshape(-1, 3)[cut].float() for one in maps])
        confidence = torch.stack([one.confidence.reshape(-1)[cut].float() for one in maps])
        weight = pixel_weight(points, confidence)
        if mask is not None:
            weight = weight * mask.to(weight.device).reshape(-1)[cut]
        points = transform_points(transform, points.nan_to_num(0, 0, 0))
        weight = torch.where(points[..., 2] > 0, weight, 0.0)
        rays = flat[cut]
        along = dot(rays, rays)
        offset = dot(points, rays) / along
        across = (points - offset[..., None] * rays).norm(dim=-1).square() / along
        depth[cut], trust[cut] = fuse_depth(offset, across, weight, confidence, typical)
    return depth.view(height, width), trust.view(height, width)


def fuse_depth(
    offset: Float[Tensor, "map pixel"],
    across: Float[Tensor, "map pixel"],
    weight: Float[Tensor, "map pixel"],
    confidence: Float[Tensor, "map pixel"],
    typical: float,
) -> tuple[Float[Tensor, " pixel"], Float[Tensor, " pixel"]]:
    """Return the depth with the least sum of weighted distances, and its confidence.

    `offset` is how far along the ray a map's point lies, as a depth, `across` its squared distance
    from the ray in the same unit; weight 0 is unknown. Confidence is 1 + (mean confidence - 1)
    times the share of the weight that lies within three times the `typical` relative distance,
    10 % at most; where no map agrees it is 1. Where nothing is known both are 0.
    """
    depth = weighted_median(offset.mT.contiguous(), weight.mT.contiguous())
    total = weight.sum(0)
    for _ in range(_PIXEL_ROUNDS if len(offset) > 1 else 0):
        least = (_FLOOR * depth).square()
        robust = weight / ((offset - depth).square() + across + least).sqrt().clamp_min(TINY)
        depth = (robust * offset).sum(0) / robust.sum(0).clamp_min(TINY)
    limit = min(max(3 * typical, 1e-4), _MAX_DEPTH_SPREAD)
    agrees = weight * ((offset - depth).abs() <= limit * depth)
    mean = (weight * confidence.nan_to_num(1, 1, 1)).sum(0) / total.clamp_min(TINY)
    share = agrees.sum(0) / total.clamp_min(TINY)
    known = (total > 0) & (depth > 0)
    trust = 1 + (mean - 1).clamp_min(1e-3) * share
    return torch.where(known, depth, 0.0), torch.where(known, trust, 0.0)


def typical_spread(
    samples: Samples,
    map2unit: Float64[Tensor, "edge 2 4 4"],
    depth: Float64[Tensor, "view sample"],
) -> Float64[Tensor, " view"]:
    """Return each view's median relative distance between a map's depth and the fused one.

    `map2unit` brings the own points of an edge into unit i and the seen ones into unit j.
    """
    gaps: list[list[Tensor]] = [[] for _ in depth]
    for side, views, points, weight in (
        (0, samples.i, samples.own, samples.own_weight),
        (1, samples.j, samples.seen, samples.seen_weight),
    ):
        for cut in edge_chunks(points):
            z = transform_points(map2unit[cut, side], points[cut])[..., 2]
            expected = depth[views[cut]]
            gap = (z - expected).abs() / expected.clamp_min(TINY)
            for view, row, known in zip(views[cut].tolist(), gap, weight[cut] > 0, strict=True):
                gaps[view].append(row[known])
    medians = [torch.cat(rows) if rows else depth.new_zeros(0) for rows in gaps]
    return torch.stack([row.median() if len(row) else row.new_zeros(()) for row in medians])


def both_sides(
    samples: Samples,
    unit2world: Float64[Tensor, "view 4 4"],
    pair2world: Float64[Tensor, "edge 4 4"],
) -> Float64[Tensor, "edge 2 4 4"]:
    """Return what brings the maps of each edge into the unit frames of views i and j."""
    world2unit = torch.linalg.inv(unit2world)
    to_i = compose(world2unit[samples.i], pair2world)
    return torch.stack((to_i, compose(world2unit[samples.j], pair2world)), dim=1)
