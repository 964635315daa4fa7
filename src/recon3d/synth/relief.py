"""Recesses in flat faces: windows, panels, shelves, joints. Exact, and the same from everywhere.

A face holds a grid of rectangular holes. A ray that enters a hole goes on to its back or to one of
its four sides; holes are closed, so that a ray never comes out behind the face.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MARGIN = 1.1
"""A hole keeps this many times its depth away from the edges of its face."""


class Carved(NamedTuple):
    """What the recesses change: the way further along the ray, where it ends, and which cell."""

    further: Tensor
    inside: Tensor
    side_u: Tensor
    side_v: Tensor
    cell: Tensor


def carve(
    u: Tensor,
    v: Tensor,
    ray_u: Tensor,
    ray_v: Tensor,
    ray_inward: Tensor,
    half_u: Tensor,
    half_v: Tensor,
    cell: tuple[Tensor, Tensor],
    hole: tuple[Tensor, Tensor],
    depth: Tensor,
) -> Carved:
    """Return where rays end that meet a face at (u, v) metres from its middle.

    The grid is centred; `hole` is the share of the cell. `ray_inward` is positive. `side_u` and
    `side_v` tell that the ray ends on a side of the hole across u or v, else `inside` is the back.
    """
    in_cell, hole_half, in_hole = [], [], depth > 0
    number = torch.zeros_like(u)
    for at, half, size, share in ((u, half_u, cell[0], hole[0]), (v, half_v, cell[1], hole[1])):
        index = (at / size).round()
        middle = index * size
        opening = size * share / 2
        in_cell.append(at - middle)
        hole_half.append(opening)
        in_hole = in_hole & ((at - middle).abs() < opening)
        in_hole = in_hole & (middle.abs() + opening + depth * MARGIN < half)
        number = number * 57.0 + index
    to_back = depth / ray_inward.clamp_min(1e-6)
    ends = []
    for at, ray, opening in ((in_cell[0], ray_u, hole_half[0]), (in_cell[1], ray_v, hole_half[1])):
        safe = torch.where(ray.abs() < 1e-7, 1e-7, ray)
        ends.append((torch.where(safe > 0, opening, -opening) - at) / safe)
    further = torch.minimum(to_back, torch.minimum(ends[0], ends[1])).clamp_min(0)
    side_u = in_hole & (ends[0] < to_back) & (ends[0] <= ends[1])
    side_v = in_hole & (ends[1] < to_back) & ~side_u
    zero = torch.zeros_like(u)
    return Carved(torch.where(in_hole, further, zero), in_hole, side_u, side_v, number)
