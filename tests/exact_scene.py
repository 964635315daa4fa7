"""Exact pair predictions without a renderer: a room with two balls in it, by closed-form rays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recon3d.geometry import (
    compose,
    invert_rigid,
    look_at,
    rotation_angle,
    so3_exp,
    transform_points,
    umeyama,
    unproject,
)
from recon3d.types import PairPrediction, Scene, Verdict, View

SHAPES = ((48, 64), (64, 48), (48, 48), (32, 64))
_ROOM = torch.tensor([3.0, 1.6, 3.0], dtype=torch.float64)
_BALLS = ((0.0, 0.5, 0.0, 0.8), (0.9, -0.4, 0.7, 0.5))


@dataclass(frozen=True)
class ExactScene:
    """Ground truth, all float64; `pointmap(n)` is in camera n."""

    views: tuple[View, ...]
    cam2world: Tensor
    focal: Tensor
    depth: tuple[Tensor, ...]

    def intrinsics(self, n: int) -> Tensor:
        height, width = self.views[n].image.shape[-2:]
        f = float(self.focal[n])
        return torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]).double()

    def pointmap(self, n: int) -> Tensor:
        return unproject(self.depth[n], self.intrinsics(n))

    def predictions(
        self,
        pairs: Sequence[tuple[int, int]] | None = None,
        *,
        noise: float = 0.0,
        outliers: float = 0.0,
        seed: int = 0,
    ) -> list[PairPrediction]:
        """Return both orders of the pairs (default: all), each with a scale of its own.

        `noise` is relative to the distance; `outliers` is the share of points moved along their
        ray by up to a factor of 2, at full confidence.
        """
        n_views = len(self.views)
        if pairs is None:
            pairs = [(i, j) for i in range(n_views) for j in range(i)]
        generator = torch.Generator().manual_seed(seed)

        def spoilt(points: Tensor) -> Tensor:
            distance = points.norm(dim=-1, keepdim=True)
            points = points + noise * distance * torch.randn(points.shape, generator=generator)
            moved = torch.rand(distance.shape, generator=generator) < outliers
            factor = torch.rand(distance.shape, generator=generator) * 1.4 - 0.7
            return torch.where(moved, points * factor.exp(), points)

        result = []
        for i, j in [*pairs, *((j, i) for i, j in pairs)]:
            scale = float(torch.rand((), generator=generator) * 2 + 0.3)
            cam_j2cam_i = compose(invert_rigid(self.cam2world[i]), self.cam2world[j])
            own, other = self.pointmap(i), self.pointmap(j)
            seen = transform_points(cam_j2cam_i, other.reshape(-1, 3)).view(other.shape)
            result.append(
                PairPrediction(
                    i=i,
                    j=j,
                    pointmap_i_in_i=(scale * spoilt(own)).float(),
                    pointmap_j_in_i=(scale * spoilt(seen)).float(),
                    confidence_i=4 + 8 * torch.rand(own.shape[:2], generator=generator),
                    confidence_j=3 + 6 * torch.rand(other.shape[:2], generator=generator),
                )
            )
        return result


def exact_scene(
    n_views: int,
    *,
    seed: int = 0,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    focals: Sequence[float] | None = None,
) -> ExactScene:
    """Return cameras on an arc around the balls, of mixed shapes and focal lengths.

    These are drawn, or `focals` over the long edge.
    """
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(n_views).double() * (4.5 / max(n_views, 6))
    jitter = torch.rand(n_views, 3, generator=generator).double() - 0.5
    centre = torch.stack((2.3 * angle.cos(), torch.zeros(n_views), 2.3 * angle.sin()), dim=-1)
    centre = centre + 0.5 * jitter
    target = 0.4 * jitter.flip(0)
    up = torch.tensor([0.05, -1.0, 0.1], dtype=torch.float64)
    cam2world = look_at(centre, target, up)
    sizes = [shapes[n % len(shapes)] for n in range(n_views)]
    drawn = 0.75 + 0.4 * torch.rand(n_views, generator=generator).double()
    relative = drawn if focals is None else torch.tensor(focals).double()
    focal = torch.tensor([max(size) for size in sizes]) * relative
    views = tuple(blank_view(f"{n}.jpg", size) for n, size in enumerate(sizes))
    scene = ExactScene(views=views, cam2world=cam2world, focal=focal, depth=())
    depth = tuple(cast(scene, n) for n in range(n_views))
    return replace(scene, depth=depth)


def blank_view(name: str, size: tuple[int, int], focal_px: float | None = None) -> View:
    """Return a view of a photo of twice the size."""
    height, width = size
    return View(
        name=name,
        sha256=name,
        image=torch.zeros(3, height, width),
        photo2view=torch.diag(torch.tensor([0.5, 0.5, 1.0])),
        photo_width=2 * width,
        photo_height=2 * height,
        focal_px=focal_px,
    )


def start_scene(
    scene: ExactScene, *, turned_deg: float = 40.0, focal_source: str = "estimated"
) -> Scene:
    """Return the scene with every camera turned by that angle about an axis of its own."""
    n_views = len(scene.views)
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).double()

    axis = torch.nn.functional.normalize(noise(n_views, 3), dim=-1)
    cam2world = scene.cam2world.clone()
    cam2world[:, :3, :3] = so3_exp(np.deg2rad(turned_deg) * axis) @ cam2world[:, :3, :3]
    cam2world[:, :3, 3] += turned_deg / 80 * noise(n_views, 3)
    intrinsics = torch.stack([scene.intrinsics(n) for n in range(n_views)])
    if focal_source != "given":
        intrinsics[:, [0, 1], [0, 1]] *= (turned_deg / 260 * noise(n_views, 1)).exp()
    verdict = Verdict(
        residual=0.1,
        edges=3,
        rotation_uncertainty_deg=1.0,
        focal_source=focal_source,
        position_uncertainty=0.01,
    )
    return Scene(
        views=scene.views,
        cam2world=cam2world.float(),
        intrinsics=intrinsics.float(),
        depth=tuple((d * (0.2 * noise()).exp()).float() for d in scene.depth),
        confidence=tuple(2 * torch.ones(d.shape) for d in scene.depth),
        verdicts=(verdict,) * n_views,
    )


def errors(
    scene: Scene, truth: ExactScene, placed: Sequence[int] | None = None
) -> dict[str, float]:
    """Return the largest errors: rotation (degrees), centre and depth (relative), focal (relative).

    The world is fixed by the similarity that best maps all camera centres and axes.
    """
    placed = range(len(truth.views)) if placed is None else placed
    cam2true = truth.cam2world[list(placed)]
    cam2world = scene.cam2world.double()
    ratio = [
        float((truth.depth[n] / d.double())[d > 0].median())
        for n, d in zip(placed, scene.depth, strict=True)
    ]
    size = float(torch.tensor(ratio).median())
    ends = [
        torch.cat((c[:, :3, 3], *(c[:, :3, 3] + s * c[:, :3, k] for k in range(3))))
        for c, s in ((cam2world, 1 / size), (cam2true, 1.0))
    ]
    scale, rotation, shift = umeyama(*ends, torch.ones(len(ends[0])).double())
    turned = rotation @ cam2world[:, :3, :3]
    centre = scale * cam2world[:, :3, 3] @ rotation.mT + shift
    angle = rotation_angle(turned.mT @ cam2true[:, :3, :3])
    focal = scene.intrinsics[:, 0, 0].double() / truth.focal[list(placed)]
    depth = [
        float((scale * d.double() / truth.depth[n] - 1)[d > 0].abs().median())
        for n, d in zip(placed, scene.depth, strict=True)
    ]
    return {
        "rotation_deg": float(torch.rad2deg(angle).max()),
        "centre": float((centre - cam2true[:, :3, 3]).norm(dim=-1).max()) / 2.3,
        "focal": float((focal - 1).abs().max()),
        "depth": max(depth),
    }


def pattern(points: Tensor) -> np.ndarray:
    """Return a grey pattern in space, of many sizes, seen at these points."""
    generator = torch.Generator().manual_seed(7)
    wave = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator).double(), dim=-1)
    wave = wave * torch.logspace(0.3, 1.8, 300)[:, None].double()
    phase = 6.3 * torch.rand(300, generator=generator).double()
    grey = (points @ wave.T + phase).cos().sum(-1)
    grey = (127 + 60 * grey / grey.std()).clamp(0, 255).round().byte()
    return np.repeat(grey.numpy()[..., None], 3, axis=-1)


def cast(scene: ExactScene, n: int) -> Tensor:
    """Return the depth of the nearest wall or ball at every pixel."""
    height, width = scene.views[n].image.shape[-2:]
    ray = unproject(torch.ones(height, width).double(), scene.intrinsics(n))
    cam2world = scene.cam2world[n]
    direction, origin = ray @ cam2world[:3, :3].mT, cam2world[:3, 3]
    depth = ((_ROOM * direction.sign() - origin) / direction).amin(-1)
    for *centre, radius in _BALLS:
        offset = origin - torch.tensor(centre).double()
        a, b = direction.square().sum(-1), (direction * offset).sum(-1)
        root = b.square() - a * (offset.square().sum() - radius**2)
        near = (-b - root.clamp_min(0).sqrt()) / a
        depth = torch.where((root > 0) & (near > 0.05), torch.minimum(depth, near), depth)
    return depth
