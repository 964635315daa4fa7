"""Pictures and exact depth of procedural scenes; one function traces and shades, compiled or not.

Cameras are OpenCV. Rays have z = 1 in their camera, so that the ray parameter is the depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon3d.compiled import compiled_if_possible
from recon3d.compiler import can_compile
from recon3d.synth.ground import all_hits
from recon3d.synth.shade import lit
from recon3d.synth.surface import surface, take
from recon3d.synth.trace import nearest, table_of
from recon3d.synth.world import World, pick

_BLOCKS = {
    ("cast", "cpu"): (1, 8192),
    ("cast", "cuda"): (256, 4096),
    ("depth", "cpu"): (24, 81),
    ("depth", "cuda"): (1024, 81),
}
"""Groups and rays of a compiled call: the same for all image sizes, so that one kernel serves."""
_UNCOMPILED = {"cast": (1, 2400), "depth": (24, 81)}
"""As much as fits into the cache."""
_BRIGHTEST = 4.0
"""Highlights above this would make jagged edges again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Render:
    """What the cameras see: linear light, not bounded above, and exact z-depth (0: sky)."""

    rgb: Float[Tensor, "scene view height width 3"]
    depth: Float[Tensor, "scene view height width"]


def cast_depth(
    world: World,
    table: Float[Tensor, "group row solid"],
    origin: Float[Tensor, "group 3"],
    ray: Float[Tensor, "group 3 ray"],
) -> tuple[Float[Tensor, "group ray"]]:
    """Return the ray parameter of the first hit, 0 for sky; recesses count as closed.

    Everything is by group of rays that share scene and origin, `world` as well.
    """
    t_solid, _ = nearest(table, ray)
    t, face = all_hits(world.around, origin, ray)
    sky = (t < t_solid) & take(world.around.face_is_sky, face)
    return (torch.where(sky, 0.0, torch.minimum(t, t_solid)),)


def cast(
    world: World,
    atlas: Int[Tensor, "texture texel"],
    table: Float[Tensor, "group row solid"],
    lights: Float[Tensor, "group row solid"],
    balls: Float[Tensor, "group 4 solid"],
    origin: Float[Tensor, "group 3"],
    pixel_angle: Float[Tensor, " group"],
    ray: Float[Tensor, "group 3 ray"],
) -> tuple[Float[Tensor, "group ray 3"], Float[Tensor, "group ray"]]:
    """Return (linear colour, ray parameter of the hit or 0 for sky)."""
    t_solid, solid = nearest(table, ray)
    t, face = all_hits(world.around, origin, ray)
    is_around = t < t_solid
    is_sky = is_around & take(world.around.face_is_sky, face)
    t = torch.minimum(t, t_solid)
    seen = surface(world, origin, ray, t, solid, face, is_around, pixel_angle)
    colour = lit(world, atlas, lights, balls, seen, is_sky, ray.mT, pixel_angle)
    return colour, torch.where(is_sky, 0.0, seen.t)


@cache
def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    return compiled_if_possible(function)


def _block(name: str, ray: Tensor, compiled: bool) -> tuple[int, int]:
    if ray.device.type == "cpu" and not compiled:
        return _UNCOMPILED[name]
    return _BLOCKS[name, "cpu" if ray.device.type == "cpu" else "cuda"]


def _in_blocks(
    function: Callable[..., tuple[Tensor, ...]],
    world: World,
    scene: Int[Tensor, " group"],
    given: tuple[Tensor, ...],
    ray: Float[Tensor, "group 3 ray"],
    block: tuple[int, int],
    *,
    whole: bool,
) -> list[Tensor]:
    """Call `function` on blocks of rays; `given` has a row for each group.

    Blocks have no more groups and rays than `block`, and exactly as many if `whole`.
    """
    n_groups, n_rays = block
    total = ray.shape[2]
    pieces = -(-total // n_rays)
    if not whole:
        n_rays = -(-total // pieces)
    ray = torch.nn.functional.pad(ray, (0, pieces * n_rays - total), value=1.0)
    ray = ray.unflatten(2, (pieces, n_rays)).transpose(1, 2).flatten(0, 1).contiguous()
    owner = torch.arange(len(scene), device=ray.device).repeat_interleave(pieces)
    results: list[list[Tensor]] = []
    last = len(ray) - 1
    for start in range(0, len(ray), n_groups):
        stop = start + n_groups if whole else min(start + n_groups, len(ray))
        rows = torch.arange(start, stop, device=ray.device).clamp_max(last)
        of = owner[rows]
        out = function(pick(world, scene[of]), *(part[of] for part in given), ray[rows])
        results.append([part[: last + 1 - start] for part in out])
    joined = [torch.cat(parts) for parts in zip(*results, strict=True)]
    return [part.unflatten(0, (-1, pieces)).flatten(1, 2)[:, :total] for part in joined]


def camera_rays(
    cam2world: Float[Tensor, "group 4 4"],
    intrinsics: Float[Tensor, "group 3 3"],
    height: int,
    width: int,
) -> Float[Tensor, "group 3 ray"]:
    """Return the rays of all pixel centres of every view, in the world, row by row."""
    device = cam2world.device
    x = torch.arange(width, device=device) + 0.5
    y = torch.arange(height, device=device) + 0.5
    focal_x, focal_y = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]
    ray_x = (x - intrinsics[:, 0, 2, None]) / focal_x
    ray_y = (y - intrinsics[:, 1, 2, None]) / focal_y
    shape = (len(cam2world), height, width)
    in_cam = torch.stack(
        (
            ray_x[:, None, :].expand(shape),
            ray_y[:, :, None].expand(shape),
            torch.ones(shape, device=device),
        ),
        dim=1,
    )
    return cam2world[:, :3, :3] @ in_cam.flatten(2)


def _grouped(cam2world: Tensor) -> Tensor:
    """Return the scene of every view, scene by scene."""
    n_scenes, n_views = cam2world.shape[:2]
    return torch.arange(n_scenes, device=cam2world.device).repeat_interleave(n_views)


def render(
    world: World,
    atlas: Int[Tensor, "texture texel"],
    cam2world: Float[Tensor, "scene view 4 4"],
    intrinsics: Float[Tensor, "scene view 3 3"],
    height: int,
    width: int,
    *,
    smooth: bool = False,
    compiled: bool = False,
) -> Render:
    """Return colour and exact depth of every view.

    `smooth` mixes the colour of every pixel's centre with those of its four corners, against
    jagged edges, for twice the work; depth is always that of the centre. `compiled` fuses the
    caster into a few kernels, where there is a compiler: the same result up to rounding, many times
    faster once compiled.
    """
    scene = _grouped(cam2world)
    cameras, matrices = cam2world.flatten(0, 1), intrinsics.flatten(0, 1)
    origin = cameras[:, :3, 3].contiguous()
    table = table_of(world.solids, origin, scene)
    lights = table_of(world.solids, world.around.light[scene, 0], scene)
    radius = world.solids.half_size.amin(-1, keepdim=True)
    balls = torch.cat((world.solids.centre, radius), dim=-1).mT.contiguous()[scene]
    given = (table, lights, balls, origin, 1 / matrices[:, 0, 0])
    ray = camera_rays(cameras, matrices, height, width)
    if smooth:
        shifted = matrices.clone()
        shifted[:, :2, 2] += 0.5
        ray = torch.cat((ray, camera_rays(cameras, shifted, height + 1, width + 1)), dim=2)
    compiled = compiled and can_compile(ray.device.type)
    call = _fused(cast) if compiled else cast

    def with_atlas(part: World, *rest: Tensor) -> tuple[Tensor, ...]:
        return call(part, atlas, *rest)

    rgb, depth = _in_blocks(
        with_atlas, world, scene, given, ray, _block("cast", ray, compiled), whole=compiled
    )
    n_pixels = height * width
    colour = rgb[:, :n_pixels].unflatten(1, (height, width))
    if smooth:
        corners = rgb[:, n_pixels:].unflatten(1, (height + 1, width + 1)).clamp_max(_BRIGHTEST)
        rows = corners[:, 1:] + corners[:, :-1]
        colour = colour.clamp_max(_BRIGHTEST) / 2 + (rows[:, :, 1:] + rows[:, :, :-1]) / 8
    shape = (*cam2world.shape[:2], height, width)
    return Render(rgb=colour.reshape(*shape, 3), depth=depth[:, :n_pixels].reshape(shape))


def depth_along(
    world: World,
    origin: Float[Tensor, "scene view 3"],
    ray: Float[Tensor, "scene view 3 ray"],
    *,
    compiled: bool = False,
) -> Float[Tensor, "scene view ray"]:
    """Return the ray parameters of first hits, 0 for sky, for choosing cameras."""
    scene = _grouped(origin)
    flat, rays = origin.flatten(0, 1), ray.flatten(0, 1)
    table = table_of(world.solids, flat, scene)
    compiled = compiled and can_compile(ray.device.type)
    call = _fused(cast_depth) if compiled else cast_depth
    block = _block("depth", ray, compiled)
    (depth,) = _in_blocks(call, world, scene, (table, flat), rays, block, whole=compiled)
    return depth.reshape(*origin.shape[:2], -1)


def render_depth(
    world: World,
    cam2world: Float[Tensor, "scene view 4 4"],
    intrinsics: Float[Tensor, "scene view 3 3"],
    height: int,
    width: int,
) -> Float[Tensor, "scene view height width"]:
    """Return the depth alone, 0 for sky, with recesses closed: for choosing views."""
    shape = cam2world.shape[:2]
    ray = camera_rays(cam2world.flatten(0, 1), intrinsics.flatten(0, 1), height, width)
    depth = depth_along(world, cam2world[..., :3, 3], ray.unflatten(0, shape))
    return depth.unflatten(-1, (height, width))
