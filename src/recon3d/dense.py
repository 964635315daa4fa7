"""Dense stereo after a refinement: exact cameras and the photos themselves give the depth.

What the network says of depth becomes the expectation. Every view is swept against a few others
(`sweep`), first at half the size (`sweep_levels`), what they confirm is kept (`sweep_check`), and
the scene returns with larger views.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.config import GUESS, DenseConfig
from recon3d.features import RgbOf
from recon3d.geometry import pixel_grid
from recon3d.parallel import are_parallel, inverse_depth_offset, moved_lens
from recon3d.progress import Track, silent
from recon3d.sweep import Shot
from recon3d.sweep_doubt import doubt
from recon3d.sweep_levels import Matched, match
from recon3d.types import Photo, Scene, View
from recon3d.views import make_view

logger = logging.getLogger(__name__)

_PATCH = 8
"""Sides of dense views are multiples of it."""
_LEAST_FOUND = 400
"""Confirmed pixels from which it can be told that lenses are off centre."""
_WORTHLESS = 0.15
"""Relative error to be reckoned with above which depth is but a guess."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseReport:
    """What became of the dense stereo; `share` of the pixels of `views` views are confirmed."""

    used: bool
    views: int
    share: float


def dense_scene(
    scene: Scene,
    names: Collection[str],
    config: DenseConfig,
    *,
    rgb_of: RgbOf,
    calibrated: bool = False,
    track: Track = silent,
) -> tuple[Scene, DenseReport]:
    """Return the scene with larger views whose depth comes from the photos, where they tell it.

    All pixels are the less confident the more wrong their depth may be (`sweep_doubt`), confirmed
    or not; at most `GUESS` are those that may be off by `_WORTHLESS`, and views whose cameras
    are not exact.

    Args:
        scene: depth and confidence as the network sees them.
        names: views whose cameras are exact.
        config: how large, how many neighbours, and when to give up.
        rgb_of: reads the photo behind a view again.
        calibrated: principal points are known, not assumed in the middle of the photos.
        track: told the stage "dense".

    Returns:
        The same scene where fewer than `min_share` of the pixels are confirmed.
    """
    exact = [n for n, view in enumerate(scene.views) if view.name in names]
    views = [_larger(view, config.size, rgb_of) for view in scene.views]
    fields = [_resampled(scene, n, view) for n, view in enumerate(views)]
    shots = [
        Shot(
            grey=_grey(view),
            intrinsics=_intrinsics(scene, n, view),
            cam2world=scene.cam2world[n],
            depth=field.depth,
        )
        for n, (view, field) in enumerate(zip(views, fields, strict=True))
    ]
    found = match(shots, exact, config.neighbours, track=track)
    share = sum(float(one.good.float().mean()) for one in found.values()) / max(1, len(found))
    report = DenseReport(used=share >= config.min_share, views=len(found), share=share)
    logger.info(
        "dense stereo: photos confirm the depth of %.0f %% of the pixels of %d views%s",
        100 * share,
        len(found),
        "" if report.used else "; too few, depth stays as it was",
    )
    if not report.used:
        return scene, report
    if len(exact) == 2 and len(found) == 2 and not calibrated:
        shots, found = _with_lens_offset(shots, found)
    depth = [shot.depth for shot in shots]
    top = max(float(field.confidence.quantile(0.98)) for field in fields)
    confidence = [torch.ones_like(d) for d in depth]
    for n, one in found.items():
        network, grey = depth[n], shots[n].grey
        depth[n] = one.filled(grey)
        wrong = doubt(depth[n], one.good, grey, coarse=one.expected, network=network)
        confidence[n] = _confidence(wrong, top)
    usable = [field.known for field in fields]
    return replace(
        scene,
        views=tuple(views),
        intrinsics=torch.stack([shot.intrinsics for shot in shots]).to(scene.intrinsics),
        depth=tuple(torch.where(k, d, 0.0) for k, d in zip(usable, depth, strict=True)),
        confidence=tuple(torch.where(k, c, 0.0) for k, c in zip(usable, confidence, strict=True)),
    ), report


def _confidence(wrong: Float[Tensor, "height width"], top: float) -> Float[Tensor, "height width"]:
    """Return `top` for depth that is certainly right, `GUESS` and less for worthless depth."""
    worthless = 1 + (GUESS - 1) * _WORTHLESS / wrong
    likely = GUESS + (top - GUESS) * (1 - wrong / _WORTHLESS)
    return torch.where(wrong < _WORTHLESS, likely, worthless)


def _with_lens_offset(
    shots: Sequence[Shot], found: Mapping[int, Matched]
) -> tuple[list[Shot], dict[int, Matched]]:
    """Return both with what two parallel cameras cannot tell taken from the expected depth."""
    shots, same = list(shots), dict(found)
    first, second = found
    if not are_parallel(shots[first].cam2world, shots[second].cam2world):
        return shots, same
    pairs = [(shots[n].depth[one.good], one.swept.depth[one.good]) for n, one in found.items()]
    expected, swept = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if len(swept) < _LEAST_FOUND:
        return shots, same
    offset = inverse_depth_offset(expected, swept)
    if offset == 0 or float((1 / swept + offset).amin()) <= 0:
        return shots, same
    logger.info("dense stereo: parallel photos, their lenses are taken to be off centre")
    one, two = shots[first], shots[second]
    lens = moved_lens(two.intrinsics, two.cam2world, one.cam2world, offset)
    shots[second] = replace(two, intrinsics=lens)
    return shots, {n: one.with_offset(offset) for n, one in found.items()}


def _larger(view: View, size: int, rgb_of: RgbOf) -> View:
    """Return the view at another size, from its photo."""
    photo = Photo(
        path=Path(view.name), name=view.name, sha256=view.sha256, rgb=rgb_of(view),
        width=view.photo_width, height=view.photo_height, focal_px=view.focal_px,
    )  # fmt: skip
    return make_view(photo, max(size, *view.image.shape[1:]), _PATCH)


def _grey(view: View) -> Float[Tensor, "height width"]:
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return ((view.image + 1) / 2 * weights).sum(0)


def _view2old(scene: Scene, n: int, view: View) -> Float64[Tensor, "3 3"]:
    """Return what takes pixels of the larger view to those of view n of the scene."""
    return scene.views[n].photo2view.double() @ torch.linalg.inv(view.photo2view.double())


def _intrinsics(scene: Scene, n: int, view: View) -> Float[Tensor, "3 3"]:
    return (torch.linalg.inv(_view2old(scene, n, view)) @ scene.intrinsics[n].double()).float()


class _Fields(NamedTuple):
    """Depth, filled in where unknown; confidence, at least 1; and where depth is known."""

    depth: Float[Tensor, "height width"]
    confidence: Float[Tensor, "height width"]
    known: Bool[Tensor, "height width"]


def _resampled(scene: Scene, n: int, view: View) -> _Fields:
    """Return what the scene says of view n, at the pixels of the larger view."""
    to_old = _view2old(scene, n, view)
    depth, confidence = scene.depth[n].float(), scene.confidence[n].float()
    old_height, old_width = depth.shape
    grid = pixel_grid(*view.image.shape[1:]).double()
    place = (grid * to_old[[0, 1], [0, 1]] + to_old[:2, 2]) * 2
    place = (place / torch.tensor([old_width, old_height]) - 1).float()[None]
    known = depth > 0
    typical = depth[known].median() if bool(known.any()) else torch.ones(())
    log_depth = torch.where(known, depth, typical).log()
    trust = torch.where(known, confidence, 1.0).clamp_min(1)
    log_depth, trust, share = F.grid_sample(
        torch.stack((log_depth, trust, known.float()))[None],
        place,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0]
    return _Fields(log_depth.exp(), trust, share > 0.5)
