"""Focal lengths and principal points of the views, from their pointmaps and from what is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from recon3d.align_samples import TINY, Cameras, edge_chunks, weighted_median
from recon3d.config import AlignConfig
from recon3d.geometry import dot
from recon3d.known_cameras import is_fixed
from recon3d.types import View

_PRIOR_RATIO = 1.35
"""A prior (EXIF) focal length further than this from the estimate is of another lens or a crop."""
_LEAST, _MOST = 0.35, 4.0
"""Range of estimated focal lengths relative to the long edge."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lenses:
    """What is known of the focal lengths before a pixel is looked at; nan is unknown.

    `to_view` takes pixels of the photo to those of the view, `long_edge` is the view's and
    `photo_edge` the photo's. `given` (fx, fy) and the `prior` with its `source` are in pixels of
    the view. A view with `exact_centre` keeps its principal point.
    """

    to_view: Float64[Tensor, "view 2"]
    long_edge: Float64[Tensor, " view"]
    photo_edge: Float64[Tensor, " view"]
    given: Float64[Tensor, "view 2"]
    prior: Float64[Tensor, "view 2"]
    source: tuple[str, ...]
    exact_centre: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Focals:
    """(fx, fy), the principal point relative to where pixels count from, and where f comes from."""

    focal: Float64[Tensor, "view 2"]
    centre: Float64[Tensor, "view 2"]
    source: tuple[str, ...]


def lenses(views: Sequence[View], config: AlignConfig, cameras: Cameras = ()) -> Lenses:
    """Return what is known: given cameras first, then `--focal`, then EXIF as a prior."""
    unknown = torch.full((2,), torch.nan, dtype=torch.float64)
    to_view = torch.stack([view.photo2view.double()[[0, 1], [0, 1]] for view in views])
    given, prior, source, exact = [], [], [], []
    for n, view in enumerate(views):
        camera = cameras[n] if cameras else None
        known = None if camera is None or camera.intrinsics is None else camera.intrinsics.double()
        is_given, from_exif = unknown, unknown
        if known is not None and is_fixed(camera, config):
            is_given = known[[0, 1], [0, 1]]
        elif config.focal_px is not None:
            is_given = config.focal_px * to_view[n]
        if known is not None:
            from_exif = known[[0, 1], [0, 1]]
        elif view.focal_px is not None:
            from_exif = view.focal_px * to_view[n]
        given.append(is_given)
        prior.append(from_exif)
        source.append("exif" if known is None else "prior")
        exact.append(known is not None)
    return Lenses(
        to_view=to_view,
        long_edge=torch.tensor([max(v.image.shape[-2:]) for v in views]).double(),
        photo_edge=torch.tensor([max(v.photo_width, v.photo_height) for v in views]).double(),
        given=torch.stack(given),
        prior=torch.stack(prior),
        source=tuple(source),
        exact_centre=tuple(exact),
    )


def choose_focals(
    points: Float64[Tensor, "view sample 3"],
    weight: Float64[Tensor, "view sample"],
    pixel: Float64[Tensor, "view sample 2"],
    known: Lenses,
    config: AlignConfig,
) -> Focals:
    """Return the focal lengths in pixels of each view, and where each comes from.

    A given focal length wins; then a prior, unless it contradicts the estimate by a factor of more
    than 1.35; then the estimate. With `shared_focal` the weighted median of those that are given is
    that of all others, else the median of the priors that of all without, else the median of all
    estimates; relative to the long edges of the photos, so that photos of several sizes may share a
    lens.
    """
    device = pixel.device
    to_view, long_edge = known.to_view.to(device), known.long_edge.to(device)
    centre = torch.zeros_like(pixel[:, 0])
    if config.estimate_principal_point:
        free = ~torch.tensor(known.exact_centre, device=device)
        centre = principal_point(points, pixel, weight, long_edge) * free[:, None]
    estimate = weiszfeld_focal(points, pixel - centre[:, None], weight, long_edge)
    estimate = estimate / to_view.mean(-1)
    photo_edge, total = known.photo_edge.to(device), weight.sum(-1)
    if config.shared_focal:
        estimate = weighted_median(estimate / photo_edge, total) * photo_edge
    focal = estimate[:, None] * to_view
    prior, given = known.prior.to(device), known.given.to(device)
    ratio = (prior / focal).log().abs().mean(-1)
    from_prior = ratio < float(np.log(_PRIOR_RATIO))  # nan is False
    is_given = given.isfinite().all(-1)
    otherwise = "estimated"
    if config.shared_focal and bool((is_given | from_prior).any()):
        told, sure = (given, is_given) if bool(is_given.any()) else (prior, from_prior)
        relative = (told / to_view).mean(-1)[sure] / photo_edge[sure]
        lens = weighted_median(relative, total[sure]) * photo_edge
        focal, from_prior = lens[:, None] * to_view, from_prior & ~is_given.any()
        otherwise = "given" if told is given else known.source[int(sure.nonzero()[0])]
    focal = torch.where(from_prior[:, None], prior, focal)
    focal = torch.where(is_given[:, None], given, focal)
    source = [
        "given" if fixed else known.source[n] if agrees else otherwise
        for n, (fixed, agrees) in enumerate(
            zip(is_given.tolist(), from_prior.tolist(), strict=True)
        )
    ]
    return Focals(focal=focal, centre=centre, source=tuple(source))


def principal_point(
    points: Float64[Tensor, "view sample 3"],
    pixel: Float64[Tensor, "view sample 2"],
    weight: Float64[Tensor, "view sample"],
    long_edge: Float64[Tensor, " view"],
) -> Float64[Tensor, "view 2"]:
    """Return the principal point that, with one focal length, best projects points onto pixels.

    Minimises the unsquared reprojection distance over (f, cx, cy) by reweighted linear least
    squares. It stays within a tenth of the long edge from where pixels count.
    """
    ray, robust = _rays(points, weight)
    usable = robust
    solution = torch.stack((long_edge, long_edge * 0, long_edge * 0), dim=-1)
    for _ in range(15):
        error = pixel - solution[:, None, :1] * ray - solution[:, None, 1:]
        robust = usable / (error.norm(dim=-1) + 1e-3)
        total = robust.sum(-1).clamp_min(TINY)
        mean_ray = (robust[..., None] * ray).sum(1) / total[:, None]
        mean_pixel = (robust[..., None] * pixel).sum(1) / total[:, None]
        ray_from, pixel_from = ray - mean_ray[:, None], pixel - mean_pixel[:, None]
        focal = (robust * (ray_from * pixel_from).sum(-1)).sum(-1)
        focal = focal / (robust * ray_from.square().sum(-1)).sum(-1).clamp_min(TINY)
        focal = torch.minimum(torch.maximum(focal, _LEAST * long_edge), _MOST * long_edge)
        solution = torch.cat((focal[:, None], mean_pixel - focal[:, None] * mean_ray), dim=-1)
    limit = 0.1 * long_edge[:, None]
    return torch.minimum(torch.maximum(solution[:, 1:], -limit), limit)


def weiszfeld_focal(
    points: Float64[Tensor, "view sample 3"],
    pixel: Float64[Tensor, "view sample 2"],
    weight: Float64[Tensor, "view sample"],
    long_edge: Float64[Tensor, " view"],
) -> Float64[Tensor, " view"]:
    """Return the focal length in pixels that best projects each view's points onto their pixels.

    Minimises the unsquared reprojection distance (Wang et al., DUSt3R, CVPR 2024, section 3.3),
    principal point at pixel 0; kept within 0.35 to 4 times the long edge.
    """
    found = torch.empty_like(long_edge)
    for cut in edge_chunks(points):
        ray, usable = _rays(points[cut], weight[cut])
        along, across = dot(ray, pixel[cut]), dot(ray, ray)
        robust, focal = usable, long_edge[cut]
        for _ in range(15):
            focal = (robust * along).sum(-1) / (robust * across).sum(-1).clamp_min(TINY)
            distance = (pixel[cut] - focal[:, None, None] * ray).norm(dim=-1)
            robust = usable / (distance + 1e-3)
        found[cut] = focal
    return found.clamp(_LEAST * long_edge, _MOST * long_edge)


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
    usable = start = (weight > 0).numpy(force=True)
    source, target = points.numpy(force=True), pixel.numpy(force=True)
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
    return torch.from_numpy(best).to(points.device)


def focal_range(known: Lenses, view: int) -> tuple[float, float]:
    """Return the least and greatest focal length in pixels that a view may have."""
    for values in (known.given[view], known.prior[view]):
        if bool(values.isfinite().all()):
            return float(values.mean()), float(values.mean())
    long_edge = float(known.long_edge[view])
    return 0.5 * long_edge, 3.0 * long_edge


def _rays(
    points: Float64[Tensor, "view sample 3"], weight: Float64[Tensor, "view sample"]
) -> tuple[Float64[Tensor, "view sample 2"], Float64[Tensor, "view sample"]]:
    """Return x / z and y / z of the points, and their weights, 0 for those without a depth."""
    z = points[..., 2:]
    usable = weight * (z[..., 0] > 1e-6)
    return torch.where(usable[..., None] > 0, points[..., :2] / z.clamp_min(1e-6), 0.0), usable
