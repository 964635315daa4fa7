"""The pair predictions at a few hundred pixels per view, and what each view says by itself.

Poses, scales and focals need no more than a fixed sample of pixels per view; float64 throughout. A
canonical pointmap is a view's own-frame pointmap fused over its pairs, with median depth 1; the
camera frame in those units is called `unit`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from recon3d.config import AlignConfig
from recon3d.errors import DisconnectedError
from recon3d.types import PairPrediction, View

logger = logging.getLogger(__name__)

TINY = 1e-12
EXACT = 1e-6
"""Relative distance below which float32 input cannot tell one point from another."""
_MIN_SAMPLES = 16
_EXIF_RATIO = 1.35
"""An EXIF focal length further than this from the estimate is of another lens or a crop."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """All usable ordered pairs at the sample pixels of their views.

    `own` is pointmap_i_in_i at the pixels of view i, `seen` pointmap_j_in_i at those of view j,
    both over `edge_scale`, each with its weights (0 = masked). `confidence` is the geometric mean
    over all pixels of view j. `prediction` says which prediction a row came from; `pixel` is
    relative to the view's centre.
    """

    i: Int64[Tensor, " edge"]
    j: Int64[Tensor, " edge"]
    prediction: Int64[Tensor, " edge"]
    own: Float64[Tensor, "edge sample 3"]
    own_weight: Float64[Tensor, "edge sample"]
    seen: Float64[Tensor, "edge sample 3"]
    seen_weight: Float64[Tensor, "edge sample"]
    confidence: Float64[Tensor, " edge"]
    edge_scale: Float64[Tensor, " edge"]
    pixel: Float64[Tensor, "view sample 2"]

    def where(self, keep: Bool[Tensor, " edge"]) -> "Samples":
        """Return only the edges that `keep` marks."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Samples(**{k: v if k == "pixel" else v[keep] for k, v in fields.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Canonical:
    """Every view by itself at its sample pixels, median depth 1; weight 0 is unknown."""

    points: Float64[Tensor, "view sample 3"]
    weight: Float64[Tensor, "view sample"]


def weighted_median(
    values: Float[Tensor, "*batch sample"], weights: Float[Tensor, "*batch sample"]
) -> Float[Tensor, "*batch"]:
    """Return the value at which half of the weight lies below."""
    ordered, index = values.sort(dim=-1)
    cumulative = weights.gather(-1, index).cumsum(-1)
    half = (cumulative < cumulative[..., -1:] / 2).sum(-1, keepdim=True)
    return ordered.gather(-1, half.clamp_max(values.shape[-1] - 1)).squeeze(-1)


def pixel_weight(
    points: Float[Tensor, "*pixel 3"], confidence: Float[Tensor, "*pixel"]
) -> Float[Tensor, "*pixel"]:
    """Return log-confidence as a weight, 0 where the point or its confidence is not finite."""
    valid = points.isfinite().all(-1) & confidence.isfinite()
    return torch.where(valid, confidence.clamp_min(1).log() + 1e-3, 0.0)


def sample_pixels(height: int, width: int, count: int, seed: int) -> Int64[Tensor, " sample"]:
    """Return `count` flat pixel indices spread evenly over the image; the seed shifts them all.

    They follow the additive sequence of the plastic number, which fills a rectangle of any shape
    without gaps or clusters. Source: Roberts, "The unreasonable effectiveness of quasirandom
    sequences", 2018.
    """
    shift = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    place = (shift + step * torch.arange(count, dtype=torch.float64)[:, None]) % 1.0
    x, y = (place[:, 0] * width).long(), (place[:, 1] * height).long()
    return y.clamp_max(height - 1) * width + x.clamp_max(width - 1)


def take_samples(
    predictions: Sequence[PairPrediction], views: Sequence[View], config: AlignConfig
) -> Samples:
    """Return the predictions at the sample pixels; one without enough finite points is dropped.

    Raises:
        DisconnectedError: when nothing is left.
    """
    sizes = [(view.image.shape[1], view.image.shape[2]) for view in views]
    index = {
        (h, w): sample_pixels(h, w, config.samples_per_edge, config.seed) for h, w in set(sizes)
    }
    rows: dict[str, list[Tensor]] = {}
    for row, p in enumerate(predictions):
        index_i, index_j = index[sizes[p.i]], index[sizes[p.j]]
        own = p.pointmap_i_in_i.reshape(-1, 3)[index_i].double()
        seen = p.pointmap_j_in_i.reshape(-1, 3)[index_j].double()
        own_weight = pixel_weight(own, p.confidence_i.reshape(-1)[index_i].double())
        own_weight = torch.where(own[:, 2] > 0, own_weight, 0.0)
        seen_weight = pixel_weight(seen, p.confidence_j.reshape(-1)[index_j].double())
        if min(int((w > 0).sum()) for w in (own_weight, seen_weight)) < _MIN_SAMPLES:
            logger.warning(
                "pair %s, %s: too few finite points, dropped", views[p.i].name, views[p.j].name
            )
            continue
        logs = p.confidence_j.float().clamp_min(1).log().nan_to_num(0, 0, 0)
        values = {
            "i": torch.tensor(p.i), "j": torch.tensor(p.j), "prediction": torch.tensor(row),
            "own": torch.where(own_weight[:, None] > 0, own, 0.0), "own_weight": own_weight,
            "seen": torch.where(seen_weight[:, None] > 0, seen, 0.0), "seen_weight": seen_weight,
            "confidence": logs.mean().exp().double(), "edge_scale": torch.ones(()).double(),
        }  # fmt: skip
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    if not rows:
        raise DisconnectedError(
            f"no pair of the {len(views)} photos has a finite pointmap."
            " Try other photos or other weights."
        )
    pixels = {
        (h, w): torch.stack((k % w + 0.5 - w / 2, k // w + 0.5 - h / 2), dim=-1).double()
        for (h, w), k in index.items()
    }
    return Samples(
        pixel=torch.stack([pixels[size] for size in sizes]),
        **{name: torch.stack(values) for name, values in rows.items()},
    )


def canonical_views(
    samples: Samples, views: Sequence[View], config: AlignConfig
) -> tuple[Canonical, Samples]:
    """Return every view's own-frame pointmap fused over its pairs, and the samples in its units.

    Alternates a robust mean over the pairs of a view with a closed-form scale per pair. A view that
    is never first in a pair has no own-frame map: its camera is resected from what one pair sees.
    """
    n_views, n_samples = samples.pixel.shape[:2]
    i, weight = samples.i, samples.own_weight
    scale = weighted_median(samples.own[..., 2], weight)
    robust, points = weight, samples.own.new_zeros(n_views, n_samples, 3)
    for _ in range(6):
        own = samples.own / scale[:, None, None]
        total = weight.new_zeros(n_views, n_samples).index_add_(0, i, robust)
        points = torch.zeros_like(points).index_add_(0, i, robust[..., None] * own)
        points = points / total.clamp_min(TINY)[..., None]
        depth = points[i, :, 2]
        gap = (own - points[i]).norm(dim=-1)
        noise = weighted_median(gap, weight)
        noise = torch.hypot(noise, 0.5 * noise.median() + EXACT)[:, None]
        robust = weight / noise.square() / (1 + (gap / (2 * noise)).square())
        ratio = samples.own[..., 2] / depth.clamp_min(TINY)
        scale = weighted_median(ratio, robust * (depth > 0))
    counts = torch.bincount(i, minlength=n_views).clamp_min(1)
    known = torch.zeros_like(points[..., 2]).index_add_(0, i, weight) / counts[:, None]
    for n in sorted(set(samples.j.tolist()) - set(i.tolist())):
        pick = (samples.j == n).nonzero().flatten()
        best = int(pick[samples.confidence[pick].argmax()])
        seen, seen_weight = samples.seen[best], samples.seen_weight[best]
        points[n] = resect(seen, samples.pixel[n], seen_weight, *_focal_range(views[n], config))
        known[n] = torch.where(points[n, :, 2] > 0, seen_weight, 0.0)
    median = weighted_median(points[..., 2], known).clamp_min(TINY)
    scale = scale * median[i]
    in_units = replace(
        samples,
        own=samples.own / scale[:, None, None],
        seen=samples.seen / scale[:, None, None],
        edge_scale=samples.edge_scale * scale,
    )
    return Canonical(points=points / median[:, None, None], weight=known), in_units


def resect(
    points: Float64[Tensor, "sample 3"],
    pixel: Float64[Tensor, "sample 2"],
    weight: Float64[Tensor, " sample"],
    least_focal_px: float,
    most_focal_px: float,
) -> Float64[Tensor, "sample 3"]:
    """Return the points in the frame of the camera that sees them at `pixel`.

    The focal length with the least median reprojection error is searched on ever finer grids; for
    each, SQPnP (Terzakis and Lourakis, ECCV 2020) is repeated on the half of the points that fitted
    best before. No random choice is made.
    """
    usable = start = (weight > 0).numpy()
    source, target = points.numpy(), pixel.numpy()
    best_error, best_focal, best, nearest = np.inf, least_focal_px, source, usable
    low, high = least_focal_px, most_focal_px
    for level in range(9):
        focals = np.geomspace(low, high, 21 if level == 0 else 9) if high > low else [low]
        for focal in focals:
            inlier = start
            for _ in range(30 if high == low else 6):
                found, turn, shift = cv2.solvePnP(
                    source[inlier], target[inlier], np.diag([focal, focal, 1.0]), None,
                    flags=cv2.SOLVEPNP_SQPNP,
                )  # fmt: skip
                if not found:
                    break
                moved = source @ cv2.Rodrigues(turn)[0].T + shift[:, 0]
                projected = focal * moved[:, :2] / np.maximum(moved[:, 2:], 1e-9)
                error = np.linalg.norm(projected - target, axis=1)
                median = float(np.median(error[usable]))
                inlier = usable & (error <= median)
                if median < best_error:
                    best_error, best_focal, best, nearest = median, float(focal), moved, inlier
        start = nearest
        if high == low:
            break
        step = (high / low) ** (2 / (len(focals) - 1))  # two cells either way: halves the range
        low, high = best_focal / step, best_focal * step
    return torch.from_numpy(best)


def _focal_range(view: View, config: AlignConfig) -> tuple[float, float]:
    known = config.focal_px if config.focal_px is not None else view.focal_px
    if known is not None:
        focal = known * float(view.photo2view[0, 0])
        return focal, focal
    long_edge = float(max(view.image.shape[-2:]))
    return 0.5 * long_edge, 3.0 * long_edge


def weiszfeld_focal(
    points: Float64[Tensor, "view sample 3"],
    pixel: Float64[Tensor, "view sample 2"],
    weight: Float64[Tensor, "view sample"],
    long_edge: Float64[Tensor, " view"],
) -> Float64[Tensor, " view"]:
    """Return the focal length in pixels that best projects each view's points onto their pixels.

    Minimises the unsquared reprojection distance (Wang et al., DUSt3R, CVPR 2024, section 3.3),
    principal point at the centre; kept within 0.35 to 4 times the long edge.
    """
    z = points[..., 2:]
    usable = (weight > 0) & (z[..., 0] > 1e-6)
    ray = torch.where(usable[..., None], points[..., :2] / z.clamp_min(1e-6), 0.0)
    robust = weight * usable
    focal = long_edge
    for _ in range(15):
        numerator = (robust * (ray * pixel).sum(-1)).sum(-1)
        focal = numerator / (robust * ray.square().sum(-1)).sum(-1).clamp_min(TINY)
        distance = (pixel - focal[:, None, None] * ray).norm(dim=-1)
        robust = weight * usable / (distance + 1e-3)
    return focal.clamp(0.35 * long_edge, 4.0 * long_edge)


def choose_focals(
    points: Float64[Tensor, "view sample 3"],
    weight: Float64[Tensor, "view sample"],
    pixel: Float64[Tensor, "view sample 2"],
    views: Sequence[View],
    config: AlignConfig,
) -> tuple[Float64[Tensor, "view 2"], list[str]]:
    """Return (fx, fy) in pixels of each view, and where each comes from.

    A given focal length wins; then EXIF, unless it contradicts the estimate by a factor of more
    than 1.35; then the estimate. `shared_focal` takes the weighted median of all estimates
    relative to the long edges of the photos, so that photos of several sizes may share a lens.
    """
    photo_edge = torch.tensor([max(v.photo_width, v.photo_height) for v in views]).double()
    view_edge = torch.tensor([max(v.image.shape[-2:]) for v in views]).double()
    to_view = torch.stack([view.photo2view.double()[[0, 1], [0, 1]] for view in views])
    estimate = weiszfeld_focal(points, pixel, weight, view_edge) / to_view.mean(-1)
    if config.shared_focal:
        estimate = weighted_median(estimate / photo_edge, weight.sum(-1)) * photo_edge
    focal, sources = estimate.clone(), ["estimated"] * len(views)
    for n, view in enumerate(views):
        if config.focal_px is not None:
            focal[n], sources[n] = config.focal_px, "given"
        elif view.focal_px is not None:
            ratio = view.focal_px / float(estimate[n])
            if 1 / _EXIF_RATIO < ratio < _EXIF_RATIO:
                focal[n], sources[n] = view.focal_px, "exif"
    return focal[:, None] * to_view, sources
