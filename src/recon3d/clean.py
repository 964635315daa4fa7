"""Free space: a point that another camera looks through was placed wrongly."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon3d.geometry import compose, invert_rigid, pixel_grid
from recon3d.types import Scene

_NEAREST = 12

Maps = Sequence[Float[Tensor, "_ _"]]


def lower_conflicts(scene: Scene, tolerance: float) -> Scene:
    """Return the scene with confidence 0 wherever a more confident view looks through a point.

    Only views that a used pair joins are compared, those that none joins with the nearest, so the
    work grows with the number of pairs. See `conflicts`.
    """
    found = conflicts(
        scene.depth,
        scene.confidence,
        scene.intrinsics,
        scene.cam2world,
        _neighbours(scene),
        tolerance,
    )
    lowered = zip(found, scene.confidence, strict=True)
    return replace(
        scene, confidence=tuple(torch.where(lost, 0.0, trust) for lost, trust in lowered)
    )


def conflicts(
    depth: Maps,
    confidence: Maps,
    intrinsics: Float[Tensor, "view 3 3"],
    cam2world: Float[Tensor, "view 4 4"],
    neighbours: Sequence[Sequence[int]],
    tolerance: float,
    *,
    in_turn: bool = False,
) -> tuple[Bool[Tensor, "_ _"], ...]:
    """Mark the pixels whose points stand in front of what a neighbour sees more confidently.

    A point of view i conflicts with view j if it falls on a pixel of known depth there, is nearer
    than (1 - tolerance) times that depth, and its confidence is below that pixel's: a camera that
    sees a wall looks through whatever stands before it.

    Args:
        depth: of each view, 0 where unknown.
        confidence: of each view, same shapes; not finite is unknown.
        intrinsics: in pixels of the depth maps.
        cam2world: rigid.
        neighbours: the views j that each view i is compared with.
        tolerance: relative, from 0 to 1.
        in_turn: take view after view, and believe nothing that already lost; as published, but
            then the result depends on the order of the views.

    Source: Wang et al., DUSt3R (CVPR 2024), the post-processing of its published program.
    """
    known = [(d > 0) & d.isfinite() & c.isfinite() for d, c in zip(depth, confidence, strict=True)]
    depth = [torch.where(mask, d, 0.0).float() for mask, d in zip(known, depth, strict=True)]
    trust = [torch.where(mask, c, 0.0) for mask, c in zip(known, confidence, strict=True)]
    cam2world = cam2world.double()
    world2cam, lens = invert_rigid(cam2world), intrinsics.double()
    result = []
    for i, others in enumerate(neighbours):
        lost = torch.zeros_like(known[i])
        pixel = pixel_grid(*lost.shape, device=lost.device)[known[i]]
        scaled = depth[i][known[i]][:, None] * torch.nn.functional.pad(pixel, (0, 1), value=1.0)
        own_trust = trust[i][known[i]]
        seen_through = torch.zeros_like(own_trust, dtype=torch.bool)
        for j in others:
            # pixel in i times its depth -> pixel in j times the depth there
            i2j = compose(world2cam[j], cam2world[i])
            turn = lens[j] @ i2j[:3, :3] @ torch.linalg.inv(lens[i])
            x, y, z = (scaled @ turn.float().mT + (lens[j] @ i2j[:3, 3]).float()).unbind(1)
            height, width = depth[j].shape
            column, row = x / z, y / z
            inside = (z > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = row[inside].long() * width + column[inside].long()
            in_front = z[inside] < (1 - tolerance) * depth[j].flatten()[place]
            seen_through[inside] |= in_front & (own_trust[inside] < trust[j].flatten()[place])
        lost[known[i]] = seen_through
        if in_turn:
            trust[i] = torch.where(lost, 0.0, trust[i])
        result.append(lost)
    return tuple(result)


def _neighbours(scene: Scene) -> list[list[int]]:
    """Return the views that a used pair joins to each view, the nearest to one that none joins.

    No pair does where image features alone place a photo.
    """
    views = range(len(scene.views))
    place = {view.name: n for n, view in enumerate(scene.views)}
    joined: list[set[int]] = [set() for _ in views]
    for edge in scene.edges:
        if edge.used and edge.first in place and edge.second in place:
            i, j = place[edge.first], place[edge.second]
            joined[i].add(j)
            joined[j].add(i)
    centre = scene.cam2world[:, :3, 3].double()
    for i in [i for i in views if not joined[i]]:
        nearest = (centre - centre[i]).norm(dim=-1).argsort(stable=True).tolist()
        for j in [j for j in nearest if j != i][:_NEAREST]:
            joined[i].add(j)
            joined[j].add(i)
    return [sorted(others) for others in joined]
