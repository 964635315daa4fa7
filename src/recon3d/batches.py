"""Batches of procedural views with exact targets: an endless supply for training and probing."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon3d import losses
from recon3d.geometry import compose, invert_rigid, transform_points, unproject
from recon3d.lattice import EVERY_PIXEL, Lattice
from recon3d.synth.assembly import Vantage
from recon3d.synth.cameras import CameraRanges, sample_cameras
from recon3d.synth.draw import Draw
from recon3d.synth.families import draw_kinds, sample_worlds
from recon3d.synth.materials import repainted
from recon3d.synth.render import render
from recon3d.synth.sensor import photograph
from recon3d.synth.textures import make_atlas
from recon3d.synth.world import World, pick, to_device
from recon3d.train_config import LoopConfig

ASPECTS = (3 / 4, 3 / 4, 2 / 3, 1.0, 9 / 16, 2 / 5)
MATCHED = Lattice(4, 2, 2)
"""The pixels that say which patches show the same."""
_RENDERINGS_PER_ATLAS = 2000
_REPAINTED = 0.4  # share of the scenes in which anything may look like anything


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rendered scenes: images in [-1, 1], own-frame pointmaps, and exact cameras."""

    images: Float[Tensor, "scene view 3 height width"]
    depth: Float[Tensor, "scene view height width"]
    points_in_cam: Float[Tensor, "scene view height width 3"]
    cam2world: Float[Tensor, "scene view 4 4"]
    intrinsics: Float[Tensor, "scene view 3 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTargets:
    """What the network should say about ordered pairs of views, both maps in camera i."""

    points_i: Float[Tensor, "pair height width 3"]
    points_j: Float[Tensor, "pair height width 3"]
    valid_i: Bool[Tensor, "pair height width"]
    valid_j: Bool[Tensor, "pair height width"]
    cam_j2cam_i: Float[Tensor, "pair 4 4"]

    @property
    def points_i_in_j(self) -> Float[Tensor, "pair height width 3"]:
        """What view i shows, in camera j; worked out anew every time."""
        return _moved(invert_rigid(self.cam_j2cam_i), self.points_i)


class Source:
    """An endless supply of batches; the atlas of textures is renewed now and then.

    Batch number k is a function of the seed and k alone, so that a resumed training sees what an
    uninterrupted one sees. Set `served` to go to another number. `config.uses` batches in a row
    show the same scenes, photographed anew, every second one in a mirror.

    The scenes of `drawn_at_once` renderings are drawn together: other scenes than one by one, for
    hardly more work than those of one, which is thousands of small steps whatever their number.
    """

    def __init__(
        self,
        config: LoopConfig,
        device: torch.device,
        seed: int,
        rank: int = 0,
        *,
        drawn_at_once: int = 1,
    ) -> None:
        self.config, self.device, self.seed = config, device, (seed, rank)
        self.drawn_at_once = drawn_at_once
        self.generator = torch.Generator()
        self.device_generator = torch.Generator(device=device)
        self.ranges = CameraRanges(usual_share=config.usual_lenses)
        self.folder = Path(config.textures) if config.textures else None
        self.served = 0
        self.atlas_number = -1
        self._rendered: tuple[tuple[int, int, int], Batch] | None = None
        self._drawn: tuple[int, World, Vantage] | None = None

    def _renew_atlas(self, number: int) -> None:
        generator = torch.Generator().manual_seed(_seed(*self.seed, 0, number))
        self.atlas = make_atlas(self.config.n_procedural_textures, generator, self.folder)
        self.texels, self.atlas_number = self.atlas.texels.to(self.device), number

    def chances(self, number: int) -> torch.Generator:
        """Return the randomness, on the CPU, of what is done with batch `number`."""
        return torch.Generator().manual_seed(_seed(*self.seed, 4, number))

    def batch(
        self,
        height: int,
        width: int,
        ease: float = 1.0,
        *,
        kinds: Int[Tensor, " scene"] | None = None,
        ranges: CameraRanges | None = None,
    ) -> Batch:
        """Return one batch; `ease` < 1 gives views more in common (easy first).

        `kinds` and `ranges` are those of training unless given: families drawn by their shares.
        """
        number, use = divmod(self.served, self.config.uses)
        if self._rendered is None or self._rendered[0] != (number, height, width):
            self._rendered = (
                (number, height, width),
                self._render(number, height, width, kinds, (ranges or self.ranges).eased(ease)),
            )
        lit = self._rendered[1]
        self.device_generator.manual_seed(_seed(*self.seed, 2, self.served))
        self.served += 1
        with torch.no_grad():
            images = photograph(lit.images.flatten(0, 1), self.device_generator, ease)
        batch = replace(lit, images=images.view_as(lit.images) * 2 - 1)
        return mirrored(batch) if use % 2 else batch

    def _render(
        self,
        number: int,
        height: int,
        width: int,
        kinds: Int[Tensor, " scene"] | None,
        ranges: CameraRanges,
    ) -> Batch:
        """Return new scenes, not photographed yet: `images` are linear light."""
        config, generator = self.config, self.generator
        if self.atlas_number != number // _RENDERINGS_PER_ATLAS:
            self._renew_atlas(number // _RENDERINGS_PER_ATLAS)
        if kinds is None and self.drawn_at_once > 1:
            world, vantage = self._drawn_together(number)
            generator.manual_seed(_seed(*self.seed, 5, number))
        else:
            generator.manual_seed(_seed(*self.seed, 1, number))
            if kinds is None:
                kinds = draw_kinds(config.scenes_per_step, Draw(generator))
            world, vantage = sample_worlds(kinds, self.atlas, generator)
        looks = repainted(world.materials, self.atlas, _REPAINTED, Draw(generator))
        world = to_device(replace(world, materials=looks), self.device)
        with torch.no_grad():
            cam2world, intrinsics = sample_cameras(
                world,
                vantage,
                config.views_per_scene,
                height,
                width,
                generator,
                ranges,
                compiled=config.compile,
            )
            cam2world, intrinsics = cam2world.to(self.device), intrinsics.to(self.device)
            seen = render(
                world,
                self.texels,
                cam2world,
                intrinsics,
                height,
                width,
                smooth=config.smooth_edges,
                compiled=config.compile,
            )
            depth = torch.where(torch.isfinite(seen.depth), seen.depth, 0.0)
        return Batch(
            images=seen.rgb.permute(0, 1, 4, 2, 3),
            depth=depth,
            points_in_cam=unproject(depth, intrinsics),
            cam2world=cam2world,
            intrinsics=intrinsics,
        )

    def _drawn_together(self, number: int) -> tuple[World, Vantage]:
        """Return the scenes of a rendering, out of those of several."""
        n, (together, place) = self.config.scenes_per_step, divmod(number, self.drawn_at_once)
        if self._drawn is None or self._drawn[0] != together:
            self.generator.manual_seed(_seed(*self.seed, 1, together))
            kinds = draw_kinds(n * self.drawn_at_once, Draw(self.generator))
            self._drawn = (together, *sample_worlds(kinds, self.atlas, self.generator))
        _, world, vantage = self._drawn
        own = torch.arange(place * n, (place + 1) * n)
        return pick(world, own), Vantage(*(part[own] for part in vantage))


def mirrored(batch: Batch) -> Batch:
    """Return the batch of the mirrored world: left and right are exchanged in every view."""
    flip = torch.tensor([-1.0, 1.0, 1.0, 1.0], device=batch.depth.device)
    intrinsics = batch.intrinsics.clone()
    intrinsics[..., 0, 2] = batch.depth.shape[-1] - intrinsics[..., 0, 2]
    return Batch(
        images=batch.images.flip(-1),
        depth=batch.depth.flip(-1),
        points_in_cam=batch.points_in_cam.flip(-2) * flip[:3],
        cam2world=flip[:, None] * batch.cam2world * flip,
        intrinsics=intrinsics,
    )


def image_shape(long_edge: int, aspect: float, portrait: bool, patch: int) -> tuple[int, int]:
    """Return (height, width), multiples of the patch size."""
    short = max(patch, round(long_edge * aspect / patch) * patch)
    return (long_edge, short) if portrait else (short, long_edge)


def pair_targets(batch: Batch, i: Tensor, j: Tensor, lattice: Lattice = EVERY_PIXEL) -> PairTargets:
    """Return the targets of pairs of flat view indices (scene * n_views + view), at some pixels."""
    cam2world = batch.cam2world.flatten(0, 1)
    points = batch.points_in_cam.flatten(0, 1)[:, lattice.rows, lattice.columns].contiguous()
    depth = batch.depth.flatten(0, 1)[:, lattice.rows, lattice.columns].contiguous()
    cam_j2cam_i = compose(invert_rigid(cam2world[i]), cam2world[j])
    return PairTargets(
        points_i=points[i],
        points_j=_moved(cam_j2cam_i, points[j]),
        valid_i=depth[i] > 0,
        valid_j=depth[j] > 0,
        cam_j2cam_i=cam_j2cam_i,
    )


def _moved(
    transform: Float[Tensor, "pair 4 4"], maps: Float[Tensor, "pair height width 3"]
) -> Float[Tensor, "pair height width 3"]:
    return transform_points(transform, maps.flatten(1, 2)).view_as(maps)


def ordered_pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return all ordered pairs of views of one scene, as flat view indices."""
    n_scenes, n_views = batch.images.shape[:2]
    device = batch.images.device
    # worked out on the device: nothing is sent there, for which it would have to be waited
    number = torch.arange(n_views * (n_views - 1), device=device)
    first, other = number // (n_views - 1), number % (n_views - 1)
    second = other + (other >= first)
    base = torch.arange(n_scenes, device=device)[:, None] * n_views
    return (base + first).flatten(), (base + second).flatten()


def matches_of(batch: Batch, i: Tensor, j: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Return the true patch correspondences of pairs, from i to j and from j to i.

    They are counts, of every fourth row and column of pixels.
    """
    depth, intrinsics = batch.depth.flatten(0, 1), batch.intrinsics.flatten(0, 1)
    there = pair_targets(batch, i, j, MATCHED)
    side = patch // MATCHED.step
    return (
        losses.token_matches(
            there.points_i_in_j, there.valid_i, depth[j], intrinsics[j], side, patch
        ),
        losses.token_matches(there.points_j, there.valid_j, depth[i], intrinsics[i], side, patch),
    )


def shape_of_step(seed: int, step: int) -> tuple[float, bool]:
    """Return the aspect ratio of a step's images and whether they are portraits.

    Shapes change from step to step, and two steps in five that are not square show portraits. All
    views of a step have one shape, for which every image is encoded once and in one call: pairs of
    unlike shapes are left out. The network tells places by rotary positions, which depend on the
    distance of two patches and not on the shape of the image they are in.
    """
    generator = torch.Generator().manual_seed(_seed(seed, 0, 3, step))
    pick = int(torch.randint(0, len(ASPECTS), (), generator=generator))
    return ASPECTS[pick], bool(torch.rand((), generator=generator) < 0.4)


def size_of_step(config: LoopConfig, long_edge: int, step: int, patch: int) -> int:
    """Return the long edge of a step's images: drawn from `config.least_size` times it up to it.

    Of one size alone a network takes a smaller image for a part of a larger one, and its lens for
    longer than it is.
    """
    if config.least_size >= 1:
        return long_edge
    least = max(1, round(config.least_size * long_edge / patch))
    generator = torch.Generator().manual_seed(_seed(config.seed, 0, 6, step))
    return patch * int(torch.randint(least, long_edge // patch + 1, (), generator=generator))


def _seed(*numbers: int) -> int:
    """Return a seed that is well mixed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
