"""Dense stereo of a set of views from coarse to fine.

Views of half the size are swept first, over all depths that there may be: their windows cover twice
as much and their noise is averaged, so they tell what has little texture, and they are cheap. What
they confirm, continued over the rest, is what the views of full size expect.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import cv2
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.geometry import compose, invert_rigid, project, transform_points, unproject
from recon3d.progress import Track, silent
from recon3d.sweep import Shot, Swept, sweep
from recon3d.sweep_check import believed, confirmations
from recon3d.sweep_fill import fill, moved_expectation

_WIDEN_COARSE, _WIDEN_FINE = 2.5, 1.3
"""Factors by which the swept depths exceed the expected ones at both ends: a network's depth is
often too flat; that of the coarse level is not."""
_MOST_AT_ONCE = 4
"""Views swept at the same time: each takes some hundred megabytes."""
_SAMPLES = 400
_LEAST_SHARE = 0.15
"""Least share of a view's pixels that a neighbour must see."""
_ANGLES_DEG = (1.0, 8.0, 40.0)
"""Angle between the rays of two views below which a neighbour is worth nothing, the best one, and
the one above which windows no longer look alike."""


class Matched(NamedTuple):
    """What the photos tell of one view, and the depth that was expected.

    `good` is where the swept depth is believed.
    """

    swept: Swept
    good: Bool[Tensor, "height width"]
    expected: Float[Tensor, "height width"]

    def filled(self, grey: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
        """Return depth, continued where it is not believed."""
        expected = moved_expectation(self.expected, self.swept.depth, self.good)
        return fill(expected, self.swept.depth, self.good, grey)

    def with_offset(self, offset: float) -> "Matched":
        """Return the same with a number added to all inverse depths."""
        swept, expected = (
            1 / (1 / depth + offset).clamp_min(1e-6) for depth in (self.swept.depth, self.expected)
        )
        return self._replace(swept=self.swept._replace(depth=swept), expected=expected)


def match(
    shots: Sequence[Shot], exact: Sequence[int], most: int, *, track: Track = silent
) -> dict[int, Matched]:
    """Return what the photos tell of those of the `exact` views that have neighbours among them.

    Args:
        shots: all views; sides of an even number of pixels.
        exact: the views whose cameras are exact.
        most: neighbours that a view is compared with.
        track: told the stage "dense".
    """
    total = 2 * len(exact)
    small = [_halved(shot) for shot in shots]
    coarse = _matched(
        small, exact, most, _WIDEN_COARSE, track=lambda stage, n, _: track(stage, n, total)
    )
    guided = list(shots)
    for n, one in coarse.items():
        depth = one.filled(small[n].grey)
        size = shots[n].grey.shape
        smooth = F.interpolate(depth.log()[None, None], size, mode="bilinear")[0, 0].exp()
        guided[n] = replace(shots[n], depth=smooth)
    return _matched(
        guided, exact, most, _WIDEN_FINE,
        track=lambda stage, n, _: track(stage, len(exact) + n, total),
    )  # fmt: skip


def _halved(shot: Shot) -> Shot:
    half = torch.tensor([0.5, 0.5, 1.0])[:, None]
    grey, log_depth = F.avg_pool2d(torch.stack((shot.grey, shot.depth.log()))[None], 2)[0]
    return replace(shot, grey=grey, depth=log_depth.exp(), intrinsics=half * shot.intrinsics)


def _matched(
    shots: Sequence[Shot], exact: Sequence[int], most: int, widen: float, *, track: Track
) -> dict[int, Matched]:
    near = {n: _neighbours(shots, n, exact, most) for n in exact}
    swept = _all_swept(shots, near, widen, track)
    found = {}
    for n, result in swept.items():
        confirmed = confirmations(shots, swept, n, [k for k in near[n] if k in swept])
        good = believed(result, confirmed, len(near[n]))
        found[n] = Matched(result, good, shots[n].depth)
    return found


def _all_swept(
    shots: Sequence[Shot], near: Mapping[int, Sequence[int]], widen: float, track: Track
) -> dict[int, Swept]:
    """Sweep every view that has neighbours, several at a time and each on one thread.

    A sweep is many small steps, in which threads that share one mostly wait for each other.
    """
    n_threads, n_cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)  # threads that begin from now on take it over
    cv2.setNumThreads(1)

    def one(n: int) -> Swept | None:
        return sweep(shots[n], [shots[k] for k in near[n]], widen) if near[n] else None

    try:
        with ThreadPoolExecutor(min(n_threads, _MOST_AT_ONCE)) as pool:
            swept: dict[int, Swept] = {}
            for k, (n, result) in enumerate(zip(near, pool.map(one, near), strict=True)):
                if result is not None:
                    swept[n] = result
                track("dense", k + 1, len(near))
    finally:
        torch.set_num_threads(n_threads)
        cv2.setNumThreads(n_cv_threads)
    return swept


def _neighbours(shots: Sequence[Shot], view: int, exact: Sequence[int], most: int) -> list[int]:
    """Return the views that see most of what a view sees, from an angle that tells depth."""
    shot = shots[view]
    height, width = shot.grey.shape
    step = max(1, int((height * width / _SAMPLES) ** 0.5))
    points = unproject(shot.depth, shot.intrinsics)[::step, ::step].reshape(-1, 3)
    world = transform_points(shot.cam2world.double(), points.double())
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
