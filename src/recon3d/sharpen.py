"""Matches of pointmaps -> matches of image features near them, exact to a fraction of a pixel.

A match says roughly where a pixel reappears; a SIFT feature near it is looked for only there, so
repeated texture confuses less. What survives the mutual, ratio and similarity tests of the
descriptors must also lie on common epipolar lines.

Source: Lowe, IJCV 2004 (features, ratio test); Arandjelovic and Zisserman, CVPR 2012 (RootSIFT);
Barath et al., CVPR 2020 (MAGSAC++).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recon3d.config import RefineConfig
from recon3d.matches import Matches, select, without_repeats
from recon3d.progress import Track, silent
from recon3d.types import View

logger = logging.getLogger(__name__)

RgbOf = Callable[[View], UInt8[np.ndarray, "height width 3"]]
"""Returns the upright photo behind a view, RGB, at any resolution."""

_MIN_CONTRAST = 0.02  # half of OpenCV's: the search is guided, so weak features do no harm
_MIN_SIMILARITY = 0.8  # cosine of two RootSIFT vectors; wrong pairs are rarely above
_MIN_INLIERS = 20  # of the epipolar check; a wrong geometry rarely finds as many ...
_MIN_INLIER_SHARE = 0.3  # ... and never this share of the features
_EPIPOLAR_ERROR = 1 / 500  # of the long edge of the photo
_N_GUESSES = 3  # nearest matches that each predict where a feature reappears
_ROWS = 1024  # features compared at a time


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Features:
    """Image features of one view; pixels are those of `View.image`, descriptors 0 to 255."""

    pixels: Float[Tensor, "feature 2"]
    descriptors: UInt8[Tensor, "feature 128"]


def view_rgb(view: View) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture the network saw, for want of the photo."""
    image = ((view.image.float() + 1) * 127.5).round().clamp(0, 255).byte()
    rgb: np.ndarray = np.ascontiguousarray(image.permute(1, 2, 0).numpy(force=True))
    return rgb


def find_features(view: View, rgb_of: RgbOf, config: RefineConfig) -> Features:
    """Return the SIFT features of a view, found in its photo; those outside the view are dropped.

    Raises:
        ValueError: when the picture has not the photo's shape nor the view's.
    """
    rgb = rgb_of(view)
    height, width = rgb.shape[:2]
    rgb2view = _rgb2view(view, height, width)
    scale = min(1.0, config.feature_size / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        rgb2view = rgb2view @ np.diag((width / size[0], height / size[1], 1.0))
    # without precise upscaling OpenCV's features lie a quarter of a pixel off
    sift = cv2.SIFT_create(  # type: ignore[attr-defined]
        config.max_features, contrastThreshold=_MIN_CONTRAST, enable_precise_upscale=True
    )
    found, descriptors = sift.detectAndCompute(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None)
    if not found:
        return Features(pixels=torch.zeros(0, 2), descriptors=torch.zeros(0, 128).byte())
    # OpenCV puts the centre of the top-left pixel at (0, 0)
    pixels = np.array([feature.pt for feature in found]) + 0.5
    pixels = pixels @ rgb2view[:2, :2].T + rgb2view[:2, 2]
    inside = (pixels >= 0).all(1) & (pixels < np.array(view.image.shape[:0:-1])).all(1)
    return Features(
        pixels=torch.from_numpy(pixels[inside]).float(),
        descriptors=torch.from_numpy(descriptors[inside].clip(0, 255).astype(np.uint8)),
    )


def sharpen_matches(
    matches: Sequence[Matches],
    views: Sequence[View],
    rgb_of: RgbOf,
    config: RefineConfig,
    *,
    track: Track = silent,
) -> list[Matches]:
    """Return the feature matches of every pair that has enough of them, in pixels of the views.

    Confidence is the cosine of the two descriptors. Pairs without enough texture are left out.
    `track` is told the stage "features".
    """
    wanted = sorted({n for one in matches for n in (one.i, one.j)})
    features = {}
    for done, n in enumerate(wanted, start=1):
        features[n] = find_features(views[n], rgb_of, config)
        track("features", done, len(wanted))
    sharp = []
    for one in matches:
        found = _on_epipolar_lines(
            guided_matches(one, features[one.i], features[one.j], views, config), views
        )
        if found is not None:
            sharp.append(found)
    logger.info("image features sharpen %d of %d pairs", len(sharp), len(matches))
    return sharp


def guided_matches(
    one: Matches, first: Features, second: Features, views: Sequence[View], config: RefineConfig
) -> Matches:
    """Return the features of i and j that are mutually most similar near where `one` says."""
    from scipy.spatial import KDTree

    n_i, n_j, n_known = len(first.pixels), len(second.pixels), len(one.pixels_i)
    if not n_i or not n_j or not n_known:
        return select(one, torch.zeros(0, dtype=torch.int64))
    radius_i, radius_j = (
        config.search_radius * max(views[n].image.shape[-2:]) for n in (one.i, one.j)
    )
    n_guesses = min(_N_GUESSES, n_known)
    far, nearest = KDTree(one.pixels_i.numpy()).query(first.pixels.numpy(), k=n_guesses)
    far, nearest = far.reshape(n_i, n_guesses), nearest.reshape(n_i, n_guesses)
    moved = first.pixels[:, None] - one.pixels_i[nearest]
    guess = one.pixels_j[nearest] + moved
    guess[torch.from_numpy(far > radius_i)] = -math.inf  # too far from any match: no prediction
    root_i, root_j = _root_sift(first.descriptors), _root_sift(second.descriptors)
    best_j = torch.zeros(n_i, dtype=torch.int64)
    top = torch.full((n_i, 2), -1.0)
    back = torch.full((n_j,), -1.0)
    best_i = torch.zeros(n_j, dtype=torch.int64)
    for start in range(0, n_i, _ROWS):
        rows = slice(start, start + _ROWS)
        near = torch.zeros(len(guess[rows]), n_j, dtype=torch.bool)
        for k in range(n_guesses):
            near |= torch.cdist(guess[rows, k], second.pixels) <= radius_j
        similarity = torch.where(near, root_i[rows] @ root_j.T, -1.0)
        two = similarity.topk(min(2, n_j), dim=1)
        top[rows, : two.values.shape[1]], best_j[rows] = two.values, two.indices[:, 0]
        column = similarity.max(dim=0)
        better = column.values > back
        back = torch.where(better, column.values, back)
        best_i = torch.where(better, start + column.indices, best_i)
    distance = (2 - 2 * top).clamp_min(0).sqrt()
    keep = (best_i[best_j] == torch.arange(n_i)) & (top[:, 0] >= _MIN_SIMILARITY)
    keep &= distance[:, 0] <= config.max_ratio * distance[:, 1]
    found = Matches(
        i=one.i,
        j=one.j,
        pixels_i=first.pixels[keep],
        pixels_j=second.pixels[best_j[keep]],
        confidence=top[keep, 0],
    )
    return without_repeats(found)  # SIFT gives one pixel several orientations


def _on_epipolar_lines(one: Matches, views: Sequence[View]) -> Matches | None:
    """Return the matches that agree with one epipolar geometry, None where too few do."""
    if len(one.confidence) < _MIN_INLIERS:
        return None
    error = _EPIPOLAR_ERROR * max(max(views[n].image.shape[-2:]) for n in (one.i, one.j))
    _, mask = cv2.findFundamentalMat(
        one.pixels_i.double().numpy(),
        one.pixels_j.double().numpy(),
        method=cv2.USAC_MAGSAC,
        ransacReprojThreshold=error,
        confidence=0.9999,
        maxIters=5000,
    )
    if mask is None:
        return None
    keep = torch.from_numpy(np.asarray(mask).ravel() > 0)
    if int(keep.sum()) < max(_MIN_INLIERS, _MIN_INLIER_SHARE * len(keep)):
        return None
    return select(one, keep)


def _rgb2view(view: View, height: int, width: int) -> Float[np.ndarray, "3 3"]:
    """Return the map from pixels of a picture of that size, photo or view, to those of the view."""
    if (height, width) == tuple(view.image.shape[-2:]) and _is_not_photo(view, height, width):
        return np.eye(3)
    if _is_not_photo(view, height, width):
        raise ValueError(
            f"{view.name}: a picture of {width} x {height} is neither the photo"
            f" ({view.photo_width} x {view.photo_height}) nor the view"
        )
    rgb2photo = np.diag((view.photo_width / width, view.photo_height / height, 1.0))
    photo2view: np.ndarray = view.photo2view.double().numpy(force=True)
    return photo2view @ rgb2photo


def _is_not_photo(view: View, height: int, width: int) -> bool:
    """Say whether the shape differs from the photo's by more than rounding to whole pixels."""
    expected = width * view.photo_height / view.photo_width
    return abs(height - expected) > 1.0 + expected / width


def _root_sift(descriptors: UInt8[Tensor, "feature 128"]) -> Float[Tensor, "feature 128"]:
    values = descriptors.float()
    return (values / values.sum(-1, keepdim=True).clamp_min(1e-6)).sqrt()
