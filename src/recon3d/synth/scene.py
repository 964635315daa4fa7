"""Random scenes and the cameras that look at them: rooms, courtyards and objects on a ground."""

import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon3d.geometry import look_at, so3_exp
from recon3d.synth.render import BOX, SceneBatch

ROOM, YARD, OBJECT = 0, 1, 2
KINDS = {"room": ROOM, "yard": YARD, "object": OBJECT}
N_SOLIDS = 22
CLEARANCE = 0.25


@dataclass(frozen=True, kw_only=True)
class CameraRanges:
    """How the views of one scene differ: all uniform, in degrees and world units."""

    fov_deg: tuple[float, float] = (42.0, 78.0)  # of the long edge
    baseline: tuple[float, float] = (0.15, 1.6)
    target_jitter: float = 0.35
    arc_deg: tuple[float, float] = (8.0, 55.0)  # half width of the arc around an object
    roll_deg: float = 4.0


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _log_uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator
) -> Tensor:
    return torch.exp(_uniform(shape, math.log(low), math.log(high), generator))


def sample_scenes(
    kinds: Int[Tensor, " scene"], n_textures: int, generator: torch.Generator
) -> SceneBatch:
    """Return random scenes of the given kinds (ROOM, YARD or OBJECT)."""
    n = len(kinds)
    is_room, is_object = kinds == ROOM, kinds == OBJECT
    extent = _uniform((n, 2), 3.0, 7.5, generator)
    extent = torch.where((kinds == YARD)[:, None], extent * 2.2, extent)
    height = torch.where(
        is_room, _uniform((n,), 2.2, 3.4, generator), _uniform((n,), 4.0, 9.0, generator)
    )
    high = torch.cat((extent / 2, height[:, None]), dim=1)
    low = torch.cat((-extent / 2, torch.zeros(n, 1)), dim=1)
    high[is_object] = torch.tensor([14.0, 14.0, 12.0])
    low[is_object] = torch.tensor([-14.0, -14.0, 0.0])
    face_is_sky = torch.zeros(n, 6, dtype=torch.bool)
    face_is_sky[:, 5] = ~is_room
    for face in (0, 1, 3, 4):
        open_side = torch.rand(n, generator=generator) < 0.12
        face_is_sky[:, face] = ((kinds == YARD) & open_side) | (is_object & (open_side | is_room))
    walled = torch.rand(n, generator=generator) < 0.5  # objects: half before far walls
    face_is_sky[:, [0, 1, 3, 4]] |= (is_object & ~walled)[:, None]

    kind = torch.randint(0, 3, (n, N_SOLIDS), generator=generator)
    kind = torch.where(torch.rand(n, N_SOLIDS, generator=generator) < 0.35, BOX, kind)
    half = _log_uniform((n, N_SOLIDS, 3), 0.1, 0.7, generator)
    yaw = _uniform((n, N_SOLIDS), -math.pi, math.pi, generator)
    # Rooms and yards: 6 pieces of furniture, 6 panels on walls, 6 small things, 4 free ones.
    furniture, panels = slice(0, 6), slice(6, 12)
    small, free = slice(12, 18), slice(18, N_SOLIDS)
    scale = torch.where(kinds == YARD, 2.0, 1.0)[:, None]
    half[:, furniture] = _log_uniform((n, 6, 3), 0.2, 0.9, generator) * scale[..., None]
    yaw[:, furniture] = yaw[:, furniture] * (torch.rand(n, 6, generator=generator) < 0.4)
    half[:, small] = _log_uniform((n, 6, 3), 0.06, 0.3, generator) * scale[..., None]
    centre = (torch.rand(n, N_SOLIDS, 3, generator=generator) * 2 - 1) * high[:, None]
    centre[..., 2] = half[..., 2]
    support = torch.randint(0, 6, (n, 6), generator=generator)  # small things stand on furniture
    rows = torch.arange(n)[:, None]
    top = centre[rows, support] + half[rows, support] * (
        torch.rand(n, 6, 3, generator=generator) - 0.5
    )
    top[..., 2] = 2 * half[rows, support][..., 2] + half[:, small, 2]
    on_floor = torch.rand(n, 6, generator=generator) < 0.3
    centre[:, small] = torch.where(on_floor[..., None], centre[:, small], top)
    # Panels: thin boxes flush with a wall (pictures, doors, windows).
    wall = torch.randint(0, 4, (n, 6), generator=generator)
    wall_axis, wall_sign = wall % 2, (wall // 2 * 2 - 1).float()
    axis_hot = torch.nn.functional.one_hot(wall_axis, 3).float()
    panel_half = _log_uniform((n, 6, 3), 0.2, 0.9, generator) * scale[..., None]
    half[:, panels] = torch.where(
        axis_hot > 0, _uniform((n, 6, 1), 0.01, 0.1, generator), panel_half
    )
    panel_centre = (torch.rand(n, 6, 3, generator=generator) * 2 - 1) * high[:, None]
    panel_centre[..., 2] = torch.rand(n, 6, generator=generator) * high[:, 2:]
    centre[:, panels] = torch.where(
        axis_hot > 0, high[:, None] * wall_sign[..., None], panel_centre
    )
    kind[:, panels], yaw[:, panels] = BOX, 0.0
    # Free solids: anywhere, any rotation; half of them sticks.
    stick = (torch.rand(n, 4, 1, generator=generator) < 0.5).float()
    thin = _uniform((n, 4, 1), 0.01, 0.05, generator)
    long = torch.cat((thin, thin, _uniform((n, 4, 1), 0.3, 1.2, generator)), -1)
    half[:, free] = stick * long + (1 - stick) * half[:, free] * 0.5
    centre[:, free, 2] = torch.rand(n, 4, generator=generator) * high[:, 2:]
    tumble = so3_exp(_uniform((n, N_SOLIDS, 3), -math.pi, math.pi, generator))
    upright = so3_exp(torch.stack((torch.zeros_like(yaw), torch.zeros_like(yaw), yaw), -1))
    tumbling = torch.rand(n, N_SOLIDS, generator=generator) < 0.08
    tumbling[:, free], tumbling[:, panels] = True, False
    world2solid = torch.where(tumbling[..., None, None], tumble, upright)
    # Object scenes: everything in a cluster around the origin, piled on a central body.
    cluster = torch.randn(n, N_SOLIDS, 3, generator=generator) * torch.tensor([0.55, 0.55, 0.0])
    cluster_half = _log_uniform((n, N_SOLIDS, 3), 0.08, 0.5, generator)
    cluster[:, 0] = 0
    cluster_half[:, 0] = _log_uniform((n, 3), 0.35, 0.8, generator)
    stacked = torch.rand(n, N_SOLIDS, generator=generator) < 0.4
    stacked[:, 0] = False
    on_body = 2 * cluster_half[:, :1, 2] + cluster_half[..., 2]
    cluster[..., 2] = torch.where(stacked, on_body, cluster_half[..., 2])
    cluster[..., :2] = torch.where(stacked[..., None], cluster[..., :2] * 0.5, cluster[..., :2])
    cluster[:, 16:] = (torch.rand(n, 6, 3, generator=generator) * 2 - 1) * high[:, None] * 0.9
    cluster_half[:, 16:] *= 3  # far things behind the object
    cluster[:, 16:, 2] = cluster_half[:, 16:, 2]
    near = cluster[:, 16:, :2].norm(dim=-1, keepdim=True).clamp_min(1e-3)
    cluster[:, 16:, :2] = cluster[:, 16:, :2] * torch.maximum(6.5 / near, torch.ones_like(near))
    centre = torch.where(is_object[:, None, None], cluster, centre)
    half = torch.where(is_object[:, None, None], cluster_half, half)
    world2solid = torch.where(is_object[:, None, None, None], upright, world2solid)

    surfaces = 6 + N_SOLIDS
    tile = _log_uniform((n, surfaces, 2), 0.35, 2.0, generator)
    tile[:, :6] = _log_uniform((n, 6, 2), 1.5, 6.0, generator) * scale[..., None]
    tile[:, 2] *= 0.8
    blend = torch.rand(n, surfaces, generator=generator) * 0.5
    light = torch.stack(
        (
            _uniform((n,), -0.6, 0.6, generator) * high[:, 0],
            _uniform((n,), -0.6, 0.6, generator) * high[:, 1],
            high[:, 2] * _uniform((n,), 0.8, 0.97, generator),
        ),
        dim=-1,
    )
    light[is_object] *= torch.tensor([0.5, 0.5, 0.7])
    sky_low = _uniform((n, 1, 3), 0.6, 1.0, generator)
    sky_high = sky_low * _uniform((n, 1, 3), 0.3, 0.95, generator)
    return SceneBatch(
        bounds_low=low,
        bounds_high=high,
        face_is_sky=face_is_sky,
        kind=kind,
        centre=centre,
        world2solid=world2solid,
        half_size=half,
        texture=torch.randint(0, n_textures, (n, surfaces, 2), generator=generator),
        tile=tile,
        blend=blend,
        tint=_uniform((n, surfaces, 1), 0.6, 1.1, generator)
        * _uniform((n, surfaces, 3), 0.85, 1.1, generator),
        gloss=torch.rand(n, surfaces, generator=generator) ** 4 * 0.6,
        light=light,
        ambient=_uniform((n,), 0.35, 0.8, generator),
        sky=torch.cat((sky_high, sky_low), dim=1),
    )


def _distance_to_solids(scene: SceneBatch, points: Tensor) -> Tensor:
    """Smallest distance (a lower bound) from each point to any solid's bounding box."""
    offset = points[:, :, None] - scene.centre[:, None]
    local = (scene.world2solid[:, None] @ offset[..., None]).squeeze(-1)
    outside = (local.abs() - scene.half_size[:, None]).clamp_min(0)
    return outside.norm(dim=-1).amin(-1)


def sample_cameras(
    scene: SceneBatch,
    kinds: Int[Tensor, " scene"],
    n_views: int,
    height: int,
    width: int,
    generator: torch.Generator,
    ranges: CameraRanges | None = None,
) -> tuple[Float[Tensor, "scene view 4 4"], Float[Tensor, "scene view 3 3"]]:
    """Return (cam2world, intrinsics) of overlapping views that stand clear of every solid."""
    ranges = ranges or CameraRanges()
    n, candidates = len(kinds), 12 * n_views
    low, high = scene.bounds_low, scene.bounds_high
    # Inside rooms and yards: a base position, others around it, all looking at one target.
    margin = torch.tensor([0.35, 0.35, 0.0])
    base = low + margin + torch.rand(n, 3, generator=generator) * (high - low - 2 * margin)
    base[:, 2] = _uniform((n,), 0.7, 2.0, generator)
    target = low * 0.8 + torch.rand(n, 3, generator=generator) * (high - low) * 0.8
    target[:, 2] = _uniform((n,), 0.3, 1.8, generator)
    push = target[:, :2] - base[:, :2]
    close = push.norm(dim=-1, keepdim=True) < 1.5  # look across the room, not at one's feet
    target[:, :2] = torch.where(close, -base[:, :2] * 0.8, target[:, :2])
    spread = _log_uniform((n, 1, 1), *ranges.baseline, generator)
    spread = torch.where((kinds == YARD)[:, None, None], spread * 2, spread)
    step = torch.randn(n, candidates, 3, generator=generator) * spread
    step[..., 2] *= 0.35
    inside = base[:, None] + step
    inside = torch.maximum(torch.minimum(inside, (high - margin)[:, None]), (low + margin)[:, None])
    inside[..., 2] = torch.minimum(inside[..., 2].clamp_min(0.3), high[:, None, 2] - 0.2)
    # Around objects: an arc at a random elevation and distance.
    arc = _log_uniform((n, 1), *ranges.arc_deg, generator) / 180 * math.pi
    start = _uniform((n, 1), -math.pi, math.pi, generator)
    azimuth = start + arc * (torch.rand(n, candidates, generator=generator) * 2 - 1)
    elevation = _uniform((n, 1), 8.0, 45.0, generator) / 180 * math.pi
    elevation = elevation + arc * 0.3 * (torch.rand(n, candidates, generator=generator) * 2 - 1)
    elevation = elevation.clamp(0.05, 1.2)
    radius = _uniform((n, 1), 2.4, 4.5, generator)
    radius = radius * _uniform((n, candidates), 0.85, 1.2, generator)
    around = torch.stack(
        (
            radius * azimuth.cos() * elevation.cos(),
            radius * azimuth.sin() * elevation.cos(),
            radius * elevation.sin() + 0.4,
        ),
        dim=-1,
    )
    is_object = (kinds == OBJECT)[:, None, None]
    centre = torch.where(is_object, around, inside)
    middle = torch.where(is_object[:, 0], torch.tensor([0.0, 0.0, 0.5]).expand(n, 3), target)
    blocked = _distance_to_solids(scene, centre) < CLEARANCE
    order = (blocked.float() + torch.linspace(0, 0.5, candidates)).argsort(-1)[:, :n_views]
    centre = centre.gather(1, order[..., None].expand(-1, -1, 3))
    jitter = torch.randn(n, n_views, 3, generator=generator) * ranges.target_jitter
    aim = middle[:, None] + jitter * torch.where(is_object, 0.6, 1.0)
    up = torch.tensor([0.0, 0.0, 1.0]).expand(n, n_views, 3)
    cam2world = look_at(centre, aim, up)
    roll = torch.randn(n, n_views, generator=generator) * (ranges.roll_deg / 180 * math.pi)
    zero = torch.zeros_like(roll)
    turned = cam2world.clone()
    turned[..., :3, :3] = cam2world[..., :3, :3] @ so3_exp(torch.stack((zero, zero, roll), -1))
    # Views of one scene come from one camera, as in most photo folders.
    fov = _uniform((n, 1), *ranges.fov_deg, generator) / 180 * math.pi
    focal = (max(height, width) / 2 / torch.tan(fov / 2)).expand(n, n_views)
    intrinsics = torch.zeros(n, n_views, 3, 3)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = focal, focal
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = width / 2, height / 2, 1
    return turned, intrinsics


def to_device(scene: SceneBatch, device: torch.device) -> SceneBatch:
    """Return the scene with every tensor on `device`."""
    return replace(scene, **{f.name: getattr(scene, f.name).to(device) for f in fields(scene)})
