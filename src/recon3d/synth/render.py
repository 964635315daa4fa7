"""Ray caster of analytic solids: one function for colour, depth and sky, compiled where it pays.

World frame: +z up, the floor at z = 0. Cameras are OpenCV. Everything is exact (no meshes): a ray
meets the bounding box of the scene from inside and every solid from outside in closed form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

BOX, CYLINDER, ELLIPSOID = 0, 1, 2
FAR = 1e4
MIP_LEVELS = 6
_CHUNK = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneBatch:
    """A batch of scenes: one bounding box with six faces each, and solids inside it.

    `world2solid` are rotations; a solid fills |x| <= half_size of its own frame (box, elliptic
    cylinder along z, or ellipsoid). Faces are ordered -x, -y, -z, +x, +y, +z; a face may be sky.
    A surface has two textures (index into the atlas), their tile sizes in world units, the share of
    the second one, and a tint. `light` is a point light with hard shadows.
    """

    bounds_low: Float[Tensor, "scene 3"]
    bounds_high: Float[Tensor, "scene 3"]
    face_is_sky: Bool[Tensor, "scene 6"]
    kind: Int[Tensor, "scene solid"]
    centre: Float[Tensor, "scene solid 3"]
    world2solid: Float[Tensor, "scene solid 3 3"]
    half_size: Float[Tensor, "scene solid 3"]
    texture: Int[Tensor, "scene surface 2"]
    tile: Float[Tensor, "scene surface 2"]
    blend: Float[Tensor, "scene surface"]
    tint: Float[Tensor, "scene surface 3"]
    gloss: Float[Tensor, "scene surface"]
    light: Float[Tensor, "scene 3"]
    ambient: Float[Tensor, "scene"]
    sky: Float[Tensor, "scene 2 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Render:
    """What the cameras see: linear-ish RGB in [0, 1] and exact z-depth (0 where there is sky)."""

    rgb: Float[Tensor, "scene view height width 3"]
    depth: Float[Tensor, "scene view height width"]


def _enter_solid(
    origin: Tensor, ray: Tensor, kind: Tensor, centre: Tensor, rotation: Tensor, half_size: Tensor
) -> Tensor:
    """Ray parameter at which each ray enters one convex solid per scene, FAR where it misses."""
    offset = origin - centre[:, None]
    enter = torch.full_like(ray[..., 0], -FAR)
    leave = torch.full_like(enter, FAR)
    a, b, c = torch.zeros_like(enter), torch.zeros_like(enter), torch.full_like(enter, -1.0)
    for axis in range(3):
        row = rotation[:, None, axis]
        o = (row * offset).sum(-1) / half_size[:, None, axis]
        d = (row * ray).sum(-1) / half_size[:, None, axis]
        safe = torch.where(d.abs() < 1e-7, torch.full_like(d, 1e-7), d)
        near, far = (-1 - o) / safe, (1 - o) / safe
        flat = (kind == BOX) | ((kind == CYLINDER) & (axis == 2))
        round_ = (kind == ELLIPSOID) | ((kind == CYLINDER) & (axis != 2))
        enter = torch.where(flat[:, None], torch.maximum(enter, torch.minimum(near, far)), enter)
        leave = torch.where(flat[:, None], torch.minimum(leave, torch.maximum(near, far)), leave)
        weight = round_[:, None].to(o.dtype)
        a, b, c = a + weight * d * d, b + weight * o * d, c + weight * o * o
    discriminant = b * b - a * c
    root = discriminant.clamp_min(0).sqrt()
    safe_a = a.clamp_min(1e-9)
    curved = (kind != BOX)[:, None]
    enter = torch.where(curved, torch.maximum(enter, (-b - root) / safe_a), enter)
    leave = torch.where(curved, torch.minimum(leave, (-b + root) / safe_a), leave)
    hit = (enter < leave) & (enter > 1e-3) & ((discriminant > 0) | ~curved)
    return torch.where(hit, enter, torch.full_like(enter, FAR))


def _nearest_solid(origin: Tensor, ray: Tensor, scene: SceneBatch) -> tuple[Tensor, Tensor]:
    """Smallest entry parameter over all solids and the index of that solid."""
    nearest = torch.full_like(ray[..., 0], FAR)
    index = torch.zeros_like(nearest, dtype=torch.int64)
    for solid in range(scene.kind.shape[1]):
        t = _enter_solid(
            origin,
            ray,
            scene.kind[:, solid],
            scene.centre[:, solid],
            scene.world2solid[:, solid],
            scene.half_size[:, solid],
        )
        closer = t < nearest
        nearest = torch.where(closer, t, nearest)
        index = torch.where(closer, solid, index)
    return nearest, index


def _sample_atlas(
    atlas: UInt8[Tensor, "texture texel 3"], index: Tensor, u: Tensor, v: Tensor, footprint: Tensor
) -> Tensor:
    """Bilinear sample of mirrored tiles; `footprint`, the pixel's size in tiles, sets the level."""
    side = _atlas_side(atlas)
    level = (footprint * side).clamp_min(1.0).log2().round().clamp_max(MIP_LEVELS - 1)
    size = side * torch.exp2(-level)
    start = (side * side * (1 - torch.exp2(-2 * level)) * (4 / 3)).round().to(torch.int64)
    flat = atlas.reshape(-1, 3)
    base = index * atlas.shape[1] + start
    coordinates = []
    for value in (u, v):
        mirrored = (torch.remainder(value, 2.0) - 1).abs()
        texel = (mirrored * size - 0.5).clamp_min(0)
        low = torch.minimum(texel.floor(), size - 1)
        high = torch.minimum(low + 1, size - 1)
        coordinates.append((low.to(torch.int64), high.to(torch.int64), (texel - low).clamp(0, 1)))
    (x0, x1, fx), (y0, y1, fy) = coordinates
    stride = size.to(torch.int64)
    out = torch.zeros((*u.shape, 3), device=u.device)
    for y, wy in ((y0, 1 - fy), (y1, fy)):
        for x, wx in ((x0, 1 - fx), (x1, fx)):
            out = out + flat[base + y * stride + x].to(torch.float32) * (wx * wy / 255)[..., None]
    return out


def _atlas_side(atlas: Tensor) -> int:
    return round((atlas.shape[1] / sum(4.0**-level for level in range(MIP_LEVELS))) ** 0.5)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Row `index[b, n]` of `values[b]` for every ray."""
    batch = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[batch, index]


def hit_bounds(origin: Tensor, ray: Tensor, scene: SceneBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ray parameter, axis, face) at which each ray leaves the bounding box."""
    safe = torch.where(ray.abs() < 1e-7, torch.full_like(ray, 1e-7), ray)
    bound = torch.where(safe > 0, scene.bounds_high[:, None], scene.bounds_low[:, None])
    t, axis = ((bound - origin) / safe).min(-1)
    return t, axis, axis + 3 * (safe.gather(-1, axis[..., None]).squeeze(-1) > 0)


def cast_depth(
    scene: SceneBatch, origin: Float[Tensor, "scene ray 3"], ray: Float[Tensor, "scene ray 3"]
) -> Float[Tensor, "scene ray"]:
    """Return the ray parameter of the hit alone, 0 for sky."""
    t_solid, _ = _nearest_solid(origin, ray, scene)
    t_room, _, face = hit_bounds(origin, ray, scene)
    sky = (t_room < t_solid) & _take(scene.face_is_sky, face)
    return torch.where(sky, 0.0, torch.minimum(t_room, t_solid))


def cast(
    scene: SceneBatch,
    atlas: UInt8[Tensor, "texture texel 3"],
    origin: Float[Tensor, "scene ray 3"],
    ray: Float[Tensor, "scene ray 3"],
    pixel_angle: Float[Tensor, "scene ray"],
) -> tuple[Float[Tensor, "scene ray 3"], Float[Tensor, "scene ray"], Bool[Tensor, "scene ray"]]:
    """Return (rgb, ray parameter of the hit, sky mask).

    `ray` has z = 1 in its camera, so that the parameter is the depth; `pixel_angle` is the size of
    a pixel in radians, which chooses the texture's mip level.
    """
    t_solid, solid = _nearest_solid(origin, ray, scene)
    t_room, axis, face = hit_bounds(origin, ray, scene)
    is_room = t_room < t_solid
    t = torch.minimum(t_room, t_solid)
    point = origin + t[..., None] * ray
    sky = is_room & _take(scene.face_is_sky, face)

    # Surface frame of the solid: local coordinates in units of the half size, and the face hit.
    rotation, half_size = _take(scene.world2solid, solid), _take(scene.half_size, solid)
    kind = _take(scene.kind, solid)
    local = (rotation * (point - _take(scene.centre, solid))[..., None, :]).sum(-1) / half_size
    metric = local * half_size
    largest = local.abs().argmax(-1)
    on_cap = (kind == CYLINDER) & (local[..., 2].abs() > 0.999)
    solid_axis = torch.where(on_cap, 2, largest)
    one_hot = torch.nn.functional.one_hot(solid_axis, 3).to(local.dtype)
    round_z = (kind == ELLIPSOID).to(local.dtype)
    gradient = torch.stack((local[..., 0], local[..., 1], local[..., 2] * round_z), -1) / half_size
    flat = (kind == BOX) | on_cap
    normal_local = torch.where(flat[..., None], one_hot * local.sign(), gradient)
    normal_solid = (rotation * normal_local[..., :, None]).sum(-2)
    room_axis = torch.nn.functional.one_hot(axis, 3).to(ray.dtype)
    normal = torch.where(is_room[..., None], -room_axis * ray.sign(), normal_solid)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-9)

    # Texture coordinates in world units: the two coordinates along the face, or around a cylinder.
    place = torch.where(is_room[..., None], point, metric)
    place_axis = torch.where(is_room, axis, solid_axis)
    u = torch.where(place_axis == 0, place[..., 1], place[..., 0])
    v = torch.where(place_axis == 2, place[..., 1], place[..., 2])
    around = (kind == CYLINDER) & ~on_cap & ~is_room
    angle = torch.atan2(local[..., 1], local[..., 0])
    u = torch.where(around, angle * half_size[..., :2].mean(-1), u)
    shift = torch.where(is_room, face, place_axis).to(u.dtype) * 0.37
    surface = torch.where(is_room, face, solid + 6)
    texture, tile = _take(scene.texture, surface), _take(scene.tile, surface)
    length = ray.norm(dim=-1)
    cosine = ((normal * ray).sum(-1) / length).abs().clamp_min(0.08)
    size = t * length * pixel_angle / cosine
    colour = torch.zeros_like(ray)
    for layer in range(2):
        scale = tile[..., layer]
        sample = _sample_atlas(
            atlas, texture[..., layer], u / scale + shift, v / scale + shift, size / scale
        )
        share = _take(scene.blend, surface)
        weight = share if layer else 1 - share
        colour = colour + sample * weight[..., None]
    colour = colour * _take(scene.tint, surface)

    # One point light with a hard shadow, an ambient part, and a highlight.
    to_light = scene.light[:, None] - point
    lifted = point + normal * 2e-3
    blocked, _ = _nearest_solid(lifted, to_light, scene)
    lit = (blocked > 1).to(ray.dtype)
    direction = to_light / to_light.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    lambert = (normal * direction).sum(-1).clamp_min(0)
    half_way = direction - ray / length[..., None]
    half_way = half_way / half_way.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    highlight = (normal * half_way).sum(-1).clamp_min(0) ** 24 * _take(scene.gloss, surface)
    ambient = scene.ambient[:, None]
    # A weak term along the normal tells the sides of a box apart in the shade as well.
    shade = ambient * (0.85 + 0.15 * normal[..., 2]) + (1 - ambient) * lit * lambert
    colour = colour * shade[..., None] * 1.4 + (lit * highlight * (1 - ambient))[..., None]
    height = (ray[..., 2] / length).clamp(0, 1)[..., None]
    sky_colour = scene.sky[:, None, 0] * (1 - height) + scene.sky[:, None, 1] * height
    colour = torch.where(sky[..., None], sky_colour, colour)
    return colour.clamp(0, 1), t, sky


@cache
def _compiled_cast() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(cast, dynamic=True)  # one kernel for all image shapes


def camera_rays(
    cam2world: Float[Tensor, "scene view 4 4"],
    intrinsics: Float[Tensor, "scene view 3 3"],
    height: int,
    width: int,
) -> tuple[Float[Tensor, "scene ray 3"], Float[Tensor, "scene ray 3"], Float[Tensor, "scene ray"]]:
    """Return (origin, ray, pixel_angle) of every pixel centre of every view, in the world."""
    n_scenes, n_views = cam2world.shape[:2]
    device = cam2world.device
    x = torch.arange(width, device=device) + 0.5
    y = torch.arange(height, device=device) + 0.5
    focal_x, focal_y = intrinsics[..., 0, 0], intrinsics[..., 1, 1]
    ray_x = (x - intrinsics[..., 0, 2, None]) / focal_x[..., None]
    ray_y = (y - intrinsics[..., 1, 2, None]) / focal_y[..., None]
    shape = (n_scenes, n_views, height, width)
    in_cam = torch.stack(
        (
            ray_x[:, :, None, :].expand(shape),
            ray_y[:, :, :, None].expand(shape),
            torch.ones(shape, device=device),
        ),
        dim=-1,
    ).reshape(n_scenes, n_views, -1, 3)
    ray = (in_cam @ cam2world[..., :3, :3].mT).reshape(n_scenes, -1, 3)
    origin = cam2world[:, :, None, :3, 3].expand(-1, -1, height * width, -1)
    pixel_angle = (1 / focal_x)[:, :, None].expand(-1, -1, height * width)
    return (
        origin.reshape(n_scenes, -1, 3).contiguous(),
        ray.contiguous(),
        pixel_angle.reshape(n_scenes, -1).contiguous(),
    )


def render(
    scene: SceneBatch,
    atlas: UInt8[Tensor, "texture texel 3"],
    cam2world: Float[Tensor, "scene view 4 4"],
    intrinsics: Float[Tensor, "scene view 3 3"],
    height: int,
    width: int,
    *,
    compiled: bool = False,
) -> Render:
    """Return colour and exact depth of every view.

    `compiled` fuses the caster into one kernel (needs a C++ compiler on the CPU): the same result
    up to rounding, several times faster once compiled. Otherwise rays go in cache-sized chunks.
    """
    rays = camera_rays(cam2world, intrinsics, height, width)
    if compiled:
        rgb, depth, sky = _compiled_cast()(scene, atlas, *rays)
    else:
        chunks = zip(*(part.split(_CHUNK, dim=1) for part in rays), strict=True)
        parts = [cast(scene, atlas, *chunk) for chunk in chunks]
        rgb, depth, sky = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    shape = (*cam2world.shape[:2], height, width)
    return Render(
        rgb=rgb.reshape(*shape, 3),
        depth=torch.where(sky, torch.zeros_like(depth), depth).reshape(shape),
    )


def render_depth(
    scene: SceneBatch,
    cam2world: Float[Tensor, "scene view 4 4"],
    intrinsics: Float[Tensor, "scene view 3 3"],
    height: int,
    width: int,
) -> Float[Tensor, "scene view height width"]:
    """Return the exact depth alone (0: sky), for choosing cameras."""
    origin, ray, _ = camera_rays(cam2world, intrinsics, height, width)
    return cast_depth(scene, origin, ray).reshape(*cam2world.shape[:2], height, width)
