"""The surface that a ray meets: its frame, its normal and its texture coordinates."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon3d.synth.ground import FLOOR, height_at
from recon3d.synth.relief import carve
from recon3d.synth.shapes import IS_BOX
from recon3d.synth.world import ROOM_FACES, World


class Surface(NamedTuple):
    """Where rays end: [group ray] tensors; vectors are triples of them."""

    t: Tensor
    point: Tensor
    """[group ray 3], in the world."""
    hull: Tensor
    """[group ray 3]: the point before recesses, which shadows are cast on."""
    normal: Tensor
    """[group ray 3], of unit length, towards the ray's origin."""
    material: Tensor
    """Its row in `Materials`."""
    u: Tensor
    v: Tensor
    """Texture coordinates in metres."""
    inside: Tensor
    """In a recess."""
    cell: Tensor
    """Which recess."""


def take(values: Tensor, index: Int[Tensor, "group ray"]) -> Tensor:
    """Return row `index` of the group's `values` for every ray."""
    group = torch.arange(len(values), device=values.device)[:, None]
    return values[group, index]


def _select(axis: Tensor, x: Tensor) -> Tensor:
    """Component number `axis` of x [..., 3]."""
    return torch.where(axis == 0, x[..., 0], torch.where(axis == 1, x[..., 1], x[..., 2]))


def _longest(size: Tensor) -> Tensor:
    """Number of the largest component of [..., 3]."""
    x, y, z = size.unbind(-1)
    return torch.where((x >= y) & (x >= z), 0, torch.where(y >= z, 1, 2))


def _one_hot(axis: Tensor) -> Tensor:
    return torch.stack([(axis == n).to(torch.float32) for n in range(3)], dim=-1)


def _slope(quadric: Tensor, point: Tensor) -> Tensor:
    """Gradient of the quadrics at points."""
    rise = 2 * quadric[..., :3] * point
    return torch.stack((rise[..., 0], rise[..., 1], rise[..., 2] + quadric[..., 3]), dim=-1)


def _nearest_side(quadric: Tensor, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (distance from the shape's surface, about; outward normal; whether it is curved)."""
    slope = _slope(quadric, point)
    value = (quadric[..., :3] * point * point).sum(-1) + quadric[..., 3] * point[..., 2]
    to_quadric = (value - quadric[..., 4]).abs() / slope.norm(dim=-1).clamp_min(1e-6)
    size = point.abs()
    axis = _longest(size)
    to_side = (1 - _select(axis, size)).abs()
    curved = to_quadric < to_side
    normal = torch.where(curved[..., None], slope, _one_hot(axis) * point.sign())
    return torch.minimum(to_quadric, to_side), normal, curved


_RIPPLES = ((9.1, 4.3, 3.7), (-5.2, 8.3, -6.1), (13.0, -7.0, 11.0))


def _bump(point: Tensor, normal: Tensor, strength: Tensor, pixel: Tensor) -> Tensor:
    """Tilt normals as ripples a few centimetres wide would; the surface itself stays.

    `pixel` is the size of a pixel in metres: ripples that it could not show are left out.
    """
    tilt = torch.zeros_like(point)
    phases = [
        3 * (x * point[..., 0] + y * point[..., 1] + z * point[..., 2]) for x, y, z in _RIPPLES
    ]
    for (x, y, z), phase, other in zip(_RIPPLES, phases, phases[1:] + phases[:1], strict=True):
        rate = (x * x + y * y + z * z) ** 0.5
        visible = (1 - pixel * rate * 1.5).clamp_min(0)
        wave = torch.cos(phase + 2.5 * torch.sin(0.6 * other)) * visible * strength
        tilt = tilt + torch.stack((wave * (x / rate), wave * (y / rate), wave * (z / rate)), dim=-1)
    bent = normal + tilt
    return bent / bent.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def _ground_normal(waves: Tensor, point: Tensor, reach: float = 0.02) -> Tensor:
    """Upward normal of the ground at points, from heights `reach` metres apart."""
    x, y = point[..., 0], point[..., 1]
    here = height_at(waves, x, y)
    slope_x = (height_at(waves, x + reach, y) - here) / reach
    slope_y = (height_at(waves, x, y + reach) - here) / reach
    lean = torch.stack((-slope_x, -slope_y, torch.ones_like(x)), dim=-1)
    return lean / lean.norm(dim=-1, keepdim=True)


def surface(
    world: World,
    origin: Float[Tensor, "group 3"],
    ray: Float[Tensor, "group 3 ray"],
    t: Float[Tensor, "group ray"],
    solid: Int[Tensor, "group ray"],
    face: Int[Tensor, "group ray"],
    is_around: Tensor,
    pixel_angle: Float[Tensor, " group"],
) -> Surface:
    """Return what lies at ray parameter `t`: solid number `solid`, or `face` of the room."""
    solids, materials, around = world.solids, world.materials, world.around
    direction = ray.mT
    hull = origin[:, None] + t[..., None] * direction
    index = torch.where(is_around, face, solid + ROOM_FACES)

    # The solid's own frame, in half sizes; or the room's, with its middle as the origin.
    rotation = take(solids.world2solid, solid)
    size = take(solids.half_size, solid)
    quadric, cut = take(solids.quadric, solid), take(solids.cut_quadric, solid)
    cut_size = take(solids.cut_size, solid)
    local = (rotation * (hull - take(solids.centre, solid))[..., None, :]).sum(-1) / size
    in_cut = (local - take(solids.cut_centre, solid)) / cut_size
    distance, outward, curved = _nearest_side(quadric, local)
    cut_distance, from_cut, _ = _nearest_side(cut, in_cut)
    is_cut = ~is_around & (cut_distance * cut_size.amin(-1) < distance) & (cut[..., 4] > 0)
    outward = torch.where(is_cut[..., None], -from_cut / (cut_size * size), outward / size)
    low, high = around.bounds_low[:, None], around.bounds_high[:, None]
    ray_local = (rotation * direction[..., None, :]).sum(-1)
    room = is_around[..., None]
    axis = torch.where(face > FLOOR, face - 3, face)
    inward = _one_hot(axis) * torch.where(face > FLOOR, -1.0, 1.0)[..., None]
    middle = (low + high) / 2
    # Heights of walls and floors are those of the world, for textures that stand on the floor.
    place = torch.where(
        room, hull - middle * torch.tensor([1.0, 1, 0], device=t.device), local * size
    )
    frame_ray = torch.where(room, direction, ray_local)
    frame_normal = torch.where(room, inward, outward)
    frame_half = torch.where(room, (high - low) / 2, size)
    frame_normal = frame_normal / frame_normal.norm(dim=-1, keepdim=True).clamp_min(1e-9)

    # Recesses of flat, uncut faces.
    axis = _longest(frame_normal.abs())
    u_axis, v_axis = torch.where(axis == 0, 1, 0), torch.where(axis == 2, 1, 2)
    flat = is_around | ((quadric[..., 4] > IS_BOX) & (cut[..., 4] < 0))
    vertical = torch.where(is_around, face != FLOOR, axis != 2)
    depth = take(materials.recess, index)
    depth = torch.where(flat & vertical, depth, 0.0)
    depth = torch.minimum(depth, torch.where(is_around, depth, 0.8 * _select(axis, frame_half)))
    cell, hole = take(materials.cell, index), take(materials.hole, index)
    ray_u, ray_v = _select(u_axis, frame_ray), _select(v_axis, frame_ray)
    carved = carve(
        _select(u_axis, place),
        _select(v_axis, place) - torch.where(is_around & (v_axis == 2), middle[..., 2], 0.0),
        ray_u,
        ray_v,
        _select(axis, frame_ray).abs(),
        _select(u_axis, frame_half),
        _select(v_axis, frame_half),
        (cell[..., 0], cell[..., 1]),
        (hole[..., 0], hole[..., 1]),
        depth,
    )
    t = t + carved.further
    place = place + carved.further[..., None] * frame_ray
    side = torch.where(carved.side_u, u_axis, v_axis)
    on_side = carved.side_u | carved.side_v
    sideways = -_one_hot(side) * frame_ray.sign()
    frame_normal = torch.where(on_side[..., None], sideways, frame_normal)
    axis = torch.where(on_side, side, axis)

    # Texture coordinates: along the face, or around what is round.
    u = torch.where(axis == 0, place[..., 1], place[..., 0])
    v = torch.where(axis == 2, place[..., 1], place[..., 2])
    around_axis = curved & ~is_cut & ~is_around & (quadric[..., 1] > 0.5)
    angle = torch.atan2(local[..., 1], local[..., 0])
    u = torch.where(around_axis, angle * (size[..., 0] + size[..., 1]) / 2, u)
    v = torch.where(around_axis, local[..., 2] * size[..., 2], v)

    normal = torch.where(room, frame_normal, (rotation * frame_normal[..., :, None]).sum(-2))
    point = origin[:, None] + t[..., None] * direction
    ground = (is_around & (face == FLOOR))[..., None]
    normal = torch.where(ground, _ground_normal(around.waves[:, None], point), normal)
    bump = take(materials.bump, index)
    normal = _bump(torch.where(room, point, place), normal, bump, t * pixel_angle[:, None])
    return Surface(
        t=t,
        point=point,
        hull=hull,
        normal=normal,
        material=index,
        u=u,
        v=v,
        inside=carved.inside,
        cell=carved.cell,
    )
