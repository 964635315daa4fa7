"""Cameras of procedural scenes: of many, those that have as much in common as was asked for.

What two cameras have in common is measured by tracing a coarse grid of rays from each and looking
at where they end from the other.
"""

import math
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon3d.geometry import invert_rigid, look_at, project, so3_exp, transform_points
from recon3d.synth.assembly import Vantage
from recon3d.synth.draw import Draw
from recon3d.synth.ground import height_at
from recon3d.synth.render import camera_rays, depth_along
from recon3d.synth.trace import FAR
from recon3d.synth.world import World

CLEARANCE_M = 0.12
_BARE = 0.5
"""What the variety of depth counts beside the wish for a share in common, in the choice of views:
little, for bare walls and grounds are photographed too."""
_NEAR, _FAR = 0.35, 2.5
"""How much candidates that are to differ little or much do so, in turn, distance and aim, beside
the others."""
_COMPARED = 31
"""Most views that a further one is compared with."""
_GRID = 9
"""Rays along the long and the short edge of the coarse grid."""
_GRID_SEES_MORE = 0.03
"""By how much the share of the grid's rays that end in both views exceeds that of the pixels, of
which some at edges and on slanted ground are not found again: 0.01 at 192x144, 0.05 at 48x36."""


@dataclass(frozen=True, kw_only=True)
class CameraRanges:
    """How the views of one scene differ. Angles in degrees, shares of views."""

    fov_deg: tuple[float, float] = (31.0, 97.0)
    """Of the long edge."""
    usual_share: float = 0.5
    """Fields of view that are like those of most cameras, and not uniform in the range."""
    usual_fov_deg: tuple[float, float] = (62.0, 9.0)
    """Mean and deviation of these."""
    covisibility: tuple[float, float] = (0.1, 0.9)
    """Share of the pixels of the first view and of another that the other of the two sees."""
    none_share: float = 0.05
    """Views that have nothing in common with the first."""
    rotation_share: float = 0.05
    """Candidates that only turn."""
    zoom_share: float = 0.05
    """Candidates that only change their focal length."""
    near_share: float = 0.3
    """Candidates that differ little from the first view. Of others too few have nearly all in
    common with it."""
    far_share: float = 0.2
    """Candidates that differ much. Of others too few have next to nothing in common with it."""
    own_lens_share: float = 0.3
    """Scenes in which every view has a focal length of its own."""
    roll_deg: float = 10.0
    any_roll_share: float = 0.05
    principal_point: float = 0.05
    """Largest offset from the middle, in widths and heights."""

    def eased(self, ease: float) -> "CameraRanges":
        """Return the ranges with more in common between views where `ease` is below 1."""
        low, high = self.covisibility
        return replace(
            self,
            covisibility=(high - (high - low) * ease, high),
            none_share=self.none_share * ease,
        )


def clear_of_solids(
    world: World, points: Float[Tensor, "scene point 3"]
) -> Bool[Tensor, "scene point"]:
    """Return whether points are CLEARANCE_M away from the boxes of all solids, and above ground."""
    offset = points[:, :, None] - world.solids.centre[:, None]
    local = (world.solids.world2solid[:, None] @ offset[..., None]).squeeze(-1)
    outside = (local.abs() - world.solids.half_size[:, None]).clamp_min(0)
    ground = height_at(world.around.waves[:, None], points[..., 0], points[..., 1])
    return (outside.norm(dim=-1).amin(-1) > CLEARANCE_M) & (points[..., 2] > ground + 0.2)


def _matrices(fov: Tensor, offset: Tensor, height: int, width: int) -> Tensor:
    """Return intrinsics for fields of view of the long edge, in radians."""
    focal = max(height, width) / 2 / torch.tan(fov / 2)
    matrix = torch.zeros(*fov.shape, 3, 3)
    matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2] = focal, focal, 1
    matrix[..., 0, 2] = width * (0.5 + offset[..., 0])
    matrix[..., 1, 2] = height * (0.5 + offset[..., 1])
    return matrix


def _fields_of_view(ranges: CameraRanges, draw: Draw, *shape: int) -> Tensor:
    """Return fields of view in radians."""
    low, high = ranges.fov_deg
    mean, deviation = ranges.usual_fov_deg
    usual = (mean + deviation * draw.normal(*shape)).clamp(low, high)
    any_fov = draw.uniform(*shape, low=low, high=high)
    fov = torch.where(draw.chance(*shape, share=ranges.usual_share), usual, any_fov)
    return fov / 180 * math.pi


def _rolled(cam2world: Tensor, roll: Tensor) -> Tensor:
    turned = cam2world.clone()
    zero = torch.zeros_like(roll)
    turned[..., :3, :3] = cam2world[..., :3, :3] @ so3_exp(torch.stack((zero, zero, roll), -1))
    return turned


class _Rig:
    """A world with a way to look at it coarsely: [scene, camera] batches of cameras."""

    def __init__(self, world: World, height: int, width: int, *, compiled: bool) -> None:
        self.world, self.compiled = world, compiled
        self.height, self.width, self.device = height, width, world.solids.centre.device

    def look(self, cam2world: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """Return (depth [scene, camera, ray] of a coarse grid, points in the world)."""
        n, m = cam2world.shape[:2]
        shrink = torch.tensor([_GRID / self.width, _GRID / self.height, 1.0])[:, None]
        coarse = (intrinsics * shrink).flatten(0, 1)
        ray = camera_rays(cam2world.flatten(0, 1), coarse, _GRID, _GRID).unflatten(0, (n, m))
        depth = self.trace(cam2world[..., :3, 3], ray)
        points = cam2world[..., :3, 3, None] + depth[:, :, None] * ray
        return depth, points.mT

    def trace(self, origin: Tensor, ray: Tensor) -> Tensor:
        there = (origin.to(self.device), ray.to(self.device))
        return depth_along(self.world, *there, compiled=self.compiled).cpu()

    def clear(self, points: Tensor) -> Tensor:
        return clear_of_solids(self.world, points.to(self.device)).cpu()

    def seen(self, points: Tensor, known: Tensor, cam2world: Tensor, intrinsics: Tensor) -> Tensor:
        """Return which of the known points [scene, camera, ray, 3] the cameras see."""
        in_cam = transform_points(invert_rigid(cam2world), points)
        pixel = project(in_cam, intrinsics[:, :, None])
        limit = torch.tensor([self.width, self.height])
        inside = ((pixel > 0) & (pixel < limit)).all(-1) & (in_cam[..., 2] > 0)
        centre = cam2world[..., :3, 3]
        reached = self.trace(centre, (points - centre[:, :, None]).mT)
        free = (reached == 0) | (reached > 0.97)
        return inside & free & known


def _dealt(share: Tensor, parts: tuple[float, ...]) -> list[Tensor]:
    """Return for each part which of the numbers, uniform in 0 to 1, fall to it."""
    edges = list(accumulate(parts, initial=0.0))
    return [(share >= low) & (share < high) for low, high in pairwise(edges)]


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.float().sum(-1) / whole.float().sum(-1).clamp_min(1)


def _quality(depth: Tensor, clear: Tensor) -> Tensor:
    """Return how good pictures are: not blocked, not all sky, nothing right before the lens."""
    known = (depth > 0).float().mean(-1)
    near = ((depth > 0) & (depth < 0.35)).float().mean(-1)
    return -(0.6 - known).clamp_min(0) - 2 * near - 10 * (~clear).float()


def _variety(depth: Tensor) -> Tensor:
    """Return how much depth varies, 0 to 0.3: a bare wall shows less than a corner with things."""
    logarithm = depth.clamp_min(0.1).log()
    return 0.5 * (logarithm - logarithm.mean(-1, keepdim=True)).abs().mean(-1).clamp_max(0.6)


def sample_cameras(
    world: World,
    vantage: Vantage,
    n_views: int,
    height: int,
    width: int,
    generator: torch.Generator,
    ranges: CameraRanges | None = None,
    *,
    compiled: bool = False,
) -> tuple[Float[Tensor, "scene view 4 4"], Float[Tensor, "scene view 3 3"]]:
    """Return (cam2world, intrinsics); the world may be on any device, the cameras are on the CPU.

    What the first view and each other have in common is uniform within the bounds of `ranges`, as
    far as the candidates allow.
    """
    ranges, draw = ranges or CameraRanges(), Draw(generator)
    rig = _Rig(world, height, width, compiled=compiled)
    n, up = len(vantage.low), torch.tensor([0.0, 0.0, 1.0])
    fov = _fields_of_view(ranges, draw, n, 1)
    offset = draw.uniform(n, 1, 2, low=-1.0, high=1.0) * ranges.principal_point

    # The first view: the best of the vantages.
    first = look_at(vantage.position, vantage.target, up.expand_as(vantage.target))
    lens = _matrices(fov, offset, height, width)
    depth, points = rig.look(first, lens.expand(-1, first.shape[1], 3, 3))
    quality = _quality(depth, rig.clear(vantage.position))
    score = quality + _variety(depth) + 0.2 * draw.uniform(*quality.shape)
    rows, best = torch.arange(n), score.argmax(-1)
    first, depth, points = first[rows, best], depth[rows, best], points[rows, best]
    reach = torch.where(depth > 0, depth, torch.nan).nanmedian(-1).values.nan_to_num(3.0)
    reach = reach.clamp(0.5, 20.0)

    # Candidates: around what the first view sees, turned only, or zoomed only.
    count = max(24, min(8 * n_views, 192 + 2 * n_views))
    centre, goal = first[:, None, :3, 3], first[:, :3, 3] + reach[:, None] * first[:, :3, 2]
    goal, scale = goal[:, None], reach[:, None, None]
    angle = draw.log_uniform(n, count, low=0.02, high=1.6)
    sign = torch.where(draw.chance(n, count, share=0.5), 1.0, -1.0)
    lean, nearer, shift = (draw.normal(n, count, size) for size in (1, 1, 3))
    wander = draw.log_uniform(n, count, 1, low=0.02, high=1.2)
    aside = draw.normal(n, count, 3)
    turns, zooms, near, far = _dealt(
        draw.uniform(n, count, 1),
        (ranges.rotation_share, ranges.zoom_share, ranges.near_share, ranges.far_share),
    )
    step = torch.where(near, _NEAR, torch.where(far, _FAR, 1.0))
    angle = step[..., 0] * angle
    tilt = 0.3 * angle * lean[..., 0]
    turn = so3_exp(torch.stack((tilt, torch.zeros_like(tilt), angle * sign), dim=-1))
    away = (turn @ (centre - goal)[..., None]).squeeze(-1)
    away = away * torch.exp(0.25 * step * nearer)
    position = goal + away + 0.04 * step * scale * shift
    position = torch.minimum(torch.maximum(position, vantage.low[:, None]), vantage.high[:, None])
    aim = goal + step * wander * scale * aside * torch.tensor([1.0, 1.0, 0.4])
    position = torch.where(turns | zooms, centre, position)
    aim = torch.where(zooms, goal, aim)
    cam2world = look_at(position, aim, up.expand_as(aim))
    other_lens = draw.chance(n, 1, share=ranges.own_lens_share) | zooms[..., 0]
    fovs = torch.where(other_lens, _fields_of_view(ranges, draw, n, count), fov)
    fovs = torch.lerp(fov.expand_as(fovs), fovs, step[..., 0].clamp_max(1))
    lenses = _matrices(fovs, offset.expand(n, count, 2), height, width)
    clear = rig.clear(position)

    # What each has in common with the first view, seen from either side.
    there, their_points = rig.look(cam2world, lenses)
    known = depth[:, None] > 0
    spread = (n, count, -1, -1)
    shown = rig.seen(points[:, None].expand(spread), known, cam2world, lenses)
    first_again = first[:, None].expand(n, count, 4, 4)
    back = rig.seen(their_points, there > 0, first_again, lens.expand(n, count, 3, 3))
    common = (_share(shown, known) + _share(back, there > 0)) / 2

    # For each view a wish, and the candidate that comes nearest. What views other than the first
    # have in common is at least what the first sees as well.
    low, high = (bound + _GRID_SEES_MORE for bound in ranges.covisibility)
    wish = draw.uniform(n, n_views - 1, low=low, high=high)
    wish = torch.where(draw.chance(n, n_views - 1, share=ranges.none_share), 0.0, wish)
    quality = _quality(there, clear) + _BARE * _variety(there)
    index = torch.zeros(n, n_views - 1, dtype=torch.int64)
    taken = torch.zeros(n, count, dtype=torch.bool)
    seen, n_known = shown.float(), known.float().sum(-1, keepdim=True).clamp_min(1)
    for view in range(n_views - 1):
        cost = (common - wish[:, view, None]).abs() - quality
        others = seen[rows[:, None], index[:, max(0, view - _COMPARED) : view]]
        for both in (seen @ others.mT / n_known).unbind(-1):
            cost = cost + 0.5 * (both - wish[:, view, None]).abs()
        index[:, view] = torch.where(taken, FAR, cost).argmin(-1)
        taken[rows, index[:, view]] = True
    cam2world = torch.cat((first[:, None], cam2world[rows[:, None], index]), dim=1)
    lenses = torch.cat((lens, lenses[rows[:, None], index]), dim=1)
    roll = draw.uniform(n, n_views, low=-1.0, high=1.0) * (ranges.roll_deg / 180 * math.pi)
    any_roll = draw.uniform(n, n_views, low=-math.pi, high=math.pi)
    roll = torch.where(draw.chance(n, n_views, share=ranges.any_roll_share), any_roll, roll)
    return _rolled(cam2world, roll), lenses
