"""Dense stereo after a refinement: exact cameras and the photos themselves give the depth.

What the network says of depth becomes the expectation. Every view is swept against a few others
(`sweep`), what they confirm is kept (`sweep_check`), and the scene returns with larger views.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.config import GUESS, DenseConfig
from recon3d.features import RgbOf
from recon3d.geometry import compose, invert_rigid, pixel_grid, project, transform_points, unproject
from recon3d.parallel import are_parallel, inverse_depth_offset, moved_lens
from recon3d.progress import Track, silent
from recon3d.sweep import Shot, Swept, sweep
from recon3d.sweep_check import believed, confirmations
from recon3d.sweep_fill import fill, moved_expectation
from recon3d.types import Photo, Scene, View
from recon3d.views import make_view

logger = logging.getLogger(__name__)

_PATCH = 8
"""Sides of dense views are multiples of it."""
_MOST_AT_ONCE = 4
"""Views swept at the same time: each takes some hundred megabytes."""
_SAMPLES = 400
_LEAST_SHARE = 0.15
"""Least share of a view's pixels that a neighbour must see."""
_ANGLES_DEG = (1.0, 8.0, 40.0)
"""Angle between the rays of two views below which a neighbour is worth nothing, the best one, and
the one above which windows no longer look alike."""
_SUPPORT = 0.1
"""Share of confirmed surroundings below which depth is but a guess."""


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

    Confirmed pixels are more confident than all others, and all the more the more of their
    surroundings and the more neighbours are. For the others that tells as well, and how far the
    sweep was from what they got; at most `GUESS` are those that hardly anything confirmed is near
    to, and views whose cameras are not exact.

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
    near = {n: _neighbours(shots, n, exact, config.neighbours) for n in exact}
    swept = _all_swept(shots, near, track)
    counts = {n: confirmations(shots, swept, n, [k for k in near[n] if k in swept]) for n in swept}
    good = {n: believed(swept[n], count, len(near[n])) for n, count in counts.items()}
    share = sum(float(g.float().mean()) for g in good.values()) / max(1, len(good))
    report = DenseReport(used=share >= config.min_share, views=len(good), share=share)
    logger.info(
        "dense stereo: photos confirm the depth of %.0f %% of the pixels of %d views%s",
        100 * share,
        len(good),
        "" if report.used else "; too few, depth stays as it was",
    )
    if not report.used:
        return scene, report
    if len(exact) == 2 and len(swept) == 2 and not calibrated:
        shots, swept = _with_lens_offset(shots, swept, good)
    depth = [shot.depth for shot in shots]
    top = max(float(field.confidence.quantile(0.98)) for field in fields)
    confidence = [torch.ones_like(d) for d in depth]
    for n, result in swept.items():
        expected, known = moved_expectation(shots[n].depth, result.depth, good[n])
        depth[n] = fill(expected, result.depth, good[n], shots[n].grey)
        sure = top * (1 + known + 0.1 * counts[n])
        support = known * (-(depth[n] / result.depth).log().abs()).exp()
        guess = 1 + (GUESS - 1) * support / _SUPPORT
        above = GUESS + (top - GUESS) * (support - _SUPPORT) / (1 - _SUPPORT)
        unsure = torch.where(support < _SUPPORT, guess, above)
        confidence[n] = torch.where(good[n], sure, unsure)
    usable = [field.known for field in fields]
    return replace(
        scene,
        views=tuple(views),
        intrinsics=torch.stack([shot.intrinsics for shot in shots]).to(scene.intrinsics),
        depth=tuple(torch.where(k, d, 0.0) for k, d in zip(usable, depth, strict=True)),
        confidence=tuple(torch.where(k, c, 0.0) for k, c in zip(usable, confidence, strict=True)),
    ), report


def _all_swept(
    shots: Sequence[Shot], near: Mapping[int, Sequence[int]], track: Track
) -> dict[int, Swept]:
    """Sweep every view that has neighbours, several at a time and each on one thread.

    A sweep is many small steps, in which threads that share one mostly wait for each other.
    """
    n_threads, n_cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)  # threads that begin from now on take it over
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(min(n_threads, _MOST_AT_ONCE)) as pool:
            results = pool.map(
                lambda n: sweep(shots[n], [shots[k] for k in near[n]]) if near[n] else None, near
            )
            swept: dict[int, Swept] = {}
            for n, result in zip(near, results, strict=True):
                if result is not None:
                    swept[n] = result
                track("dense", len(swept), len(near))
    finally:
        torch.set_num_threads(n_threads)
        cv2.setNumThreads(n_cv_threads)
    return swept


def _with_lens_offset(
    shots: Sequence[Shot], swept: Mapping[int, Swept], good: Mapping[int, Bool[Tensor, "_ _"]]
) -> tuple[list[Shot], dict[int, Swept]]:
    """Return both with what two parallel cameras cannot tell taken from the expected depth."""
    shots, same = list(shots), dict(swept)
    first, second = swept
    if not are_parallel(shots[first].cam2world, shots[second].cam2world):
        return shots, same
    pairs = [(shots[n].depth[good[n]], swept[n].depth[good[n]]) for n in swept]
    expected, found = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if len(found) < _SAMPLES:
        return shots, same
    offset = inverse_depth_offset(expected, found)
    if offset == 0 or float((1 / found + offset).amin()) <= 0:
        return shots, same
    logger.info("dense stereo: parallel photos, their lenses are taken to be off centre")
    one, two = shots[first], shots[second]
    lens = moved_lens(two.intrinsics, two.cam2world, one.cam2world, offset)
    shots[second] = replace(two, intrinsics=lens)
    moved = {
        n: result._replace(depth=1 / (1 / result.depth + offset).clamp_min(1e-6))
        for n, result in swept.items()
    }
    return shots, moved


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


def _neighbours(shots: Sequence[Shot], view: int, exact: Sequence[int], most: int) -> list[int]:
    """Return the views that see most of what a view sees, from an angle that tells depth."""
    shot = shots[view]
    height, width = shot.grey.shape
    step = max(1, int((height * width / _SAMPLES) ** 0.5))
    points = unproject(shot.depth, shot.intrinsics)[::step, ::step].reshape(-1, 3)
    world = transform_points(shot.cam2world, points)
    found = []
    for n in exact:
        if n == view:
            continue
        other = shots[n]
        moved = transform_points(
            compose(invert_rigid(other.cam2world), shot.cam2world).to(points), points
        )
        pixel = project(moved, other.intrinsics)
        size = torch.tensor([other.grey.shape[1], other.grey.shape[0]])
        seen = (moved[:, 2] > 0) & ((pixel > 0) & (pixel < size)).all(-1)
        share = float(seen.float().mean())
        if share < _LEAST_SHARE:
            continue
        rays = [F.normalize(world - s.cam2world[:3, 3], dim=-1) for s in (shot, other)]
        cosine = (rays[0] * rays[1]).sum(-1)[seen].clamp(-1, 1)
        angle = float(torch.rad2deg(cosine.arccos()).median())
        least, best, largest = _ANGLES_DEG
        if least < angle < largest:
            found.append((share * min(angle / best, 1.0, best / angle), n))
    return [n for _, n in sorted(found, reverse=True)[:most]]
