"""Where rays meet solids: exact intervals in closed form, the nearest of all solids in one sweep.

Rays of one group (one camera, one light) share their origin, so that what depends on origin and
solid alone is worked out once, in a table. The sweep then is one fused reduction over solids.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon3d.synth.world import Solids

FAR = 1e4
NEAR = 0.02
N_CUT = 32
"""Only so many solids of a scene, the first, may be cut."""
_TINY = 1e-9
_BEFORE_END = 1 - 1e-4

Triple = tuple[Tensor, Tensor, Tensor]


def interval(
    origin: Triple, ray: Triple, weight: Triple, linear: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (enter, leave) of rays in one shape, in its own units; empty where enter > leave.

    The quadric along the ray is a t^2 + 2 b t + c <= 0 with c = `constant`; `linear` is l / 2.
    """
    a = weight[0] * ray[0] * ray[0] + weight[1] * ray[1] * ray[1] + weight[2] * ray[2] * ray[2]
    b = (
        weight[0] * origin[0] * ray[0]
        + weight[1] * origin[1] * ray[1]
        + weight[2] * origin[2] * ray[2]
        + linear * ray[2]
    )
    discriminant = b * b - a * constant
    root = discriminant.clamp_min(0).sqrt()
    q = -(b + torch.copysign(root + _TINY, b))  # the sum without cancellation, never zero
    a = a + _TINY
    first, second = q / a, constant / q
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    # A ray steeper than a cone meets two cones: the one below the apex counts.
    opens, down = a < 0, ray[2] < 0
    enter = torch.where(opens, torch.where(down, high, -FAR), low)
    leave = torch.where(opens, torch.where(down, FAR, low), high)
    leave = torch.where(discriminant < 0, -FAR, leave)
    for axis in range(3):
        inverse = 1 / (ray[axis] + _TINY)  # of a ray along a side, too large to matter
        middle, reach = -origin[axis] * inverse, inverse.abs()
        enter = torch.maximum(enter, middle - reach)
        leave = torch.minimum(leave, middle + reach)
    return enter, leave


def _value(quadric: Tensor, point: Tensor) -> Tensor:
    """Left side minus right side of the quadrics at points: negative inside."""
    squares = (quadric[..., :3] * point * point).sum(-1)
    return squares + quadric[..., 3] * point[..., 2] - quadric[..., 4]


def table_of(
    solids: Solids, origin: Float[Tensor, "group 3"], scene: Int[Tensor, " group"]
) -> Float[Tensor, "group row solid"]:
    """Return what `nearest` needs to know about each solid, seen from each group's origin."""
    half_size = solids.half_size[scene]
    matrix = solids.world2solid[scene] / half_size[..., None]
    offset = origin[:, None] - solids.centre[scene]
    start = (matrix @ offset[..., None]).squeeze(-1)
    quadric, cut = solids.quadric[scene], solids.cut_quadric[scene]
    cut_size = solids.cut_size[scene]
    cut_start = (start - solids.cut_centre[scene]) / cut_size
    columns = (
        matrix.flatten(-2),
        start,
        quadric[..., :3],
        quadric[..., 3:4] / 2,
        _value(quadric, start)[..., None],
        1 / cut_size,
        cut_start,
        cut[..., :3],
        cut[..., 3:4] / 2,
        _value(cut, cut_start)[..., None],
    )
    return torch.cat(columns, dim=-1).mT.contiguous()


def _three(table: Tensor, row: int) -> Triple:
    return table[:, row, None], table[:, row + 1, None], table[:, row + 2, None]


def entries(
    table: Float[Tensor, "group row solid"], ray: Float[Tensor, "group 3 ray"], *, cut: bool
) -> Float[Tensor, "group ray solid"]:
    """Return the ray parameter at which each ray meets each solid, FAR where it does not.

    Cuts are left out of account unless `cut`.
    """
    x, y, z = (ray[:, axis, :, None] for axis in range(3))
    turned = []
    for axis in range(3):
        m = _three(table, 3 * axis)
        turned.append(m[0] * x + m[1] * y + m[2] * z)
    local = (turned[0], turned[1], turned[2])
    enter, leave = interval(
        _three(table, 9), local, _three(table, 12), table[:, 15, None], table[:, 16, None]
    )
    enter = enter.clamp_min(NEAR)
    if not cut:
        return torch.where((enter < leave) & (enter > NEAR), enter, FAR)
    shrink = _three(table, 17)
    in_cut = (local[0] * shrink[0], local[1] * shrink[1], local[2] * shrink[2])
    cut_enter, cut_leave = interval(
        _three(table, 20), in_cut, _three(table, 23), table[:, 26, None], table[:, 27, None]
    )
    t = torch.where((cut_enter <= enter) & (enter < cut_leave), cut_leave, enter)
    return torch.where((t < leave) & (t > NEAR), t, FAR)


def nearest(
    table: Float[Tensor, "group row solid"], ray: Float[Tensor, "group 3 ray"]
) -> tuple[Float[Tensor, "group ray"], Int[Tensor, "group ray"]]:
    """Return the smallest ray parameter over all solids, FAR for none, and the solid's index."""
    t, index = entries(table[..., :N_CUT], ray, cut=True).min(-1)
    if table.shape[-1] <= N_CUT:
        return t, index
    t_whole, index_whole = entries(table[..., N_CUT:], ray, cut=False).min(-1)
    return torch.minimum(t, t_whole), torch.where(t <= t_whole, index, index_whole + N_CUT)


def blocked(
    table: Float[Tensor, "group row solid"], end: Float[Tensor, "group 3 ray"]
) -> Bool[Tensor, "group ray"]:
    """Return whether anything is between the groups' origins and the points origin + `end`."""
    in_way = (entries(table[..., :N_CUT], end, cut=True) < _BEFORE_END).any(-1)
    return in_way | (entries(table[..., N_CUT:], end, cut=False) < _BEFORE_END).any(-1)
