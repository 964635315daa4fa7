"""Image features of photos, and which features of two photos show the same point.

Source: Lowe, IJCV 2004 (features, ratio test); Arandjelovic and Zisserman, CVPR 2012 (RootSIFT);
Barath et al., CVPR 2020 (MAGSAC++); Wu, 3DV 2013 (the largest features tell which photos match).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from recon3d.config import RefineConfig
from recon3d.matches import Matches, select, without_repeats
from recon3d.overlays import is_spread, overlay_matches
from recon3d.progress import Track, silent
from recon3d.types import View

logger = logging.getLogger(__name__)

RgbOf = Callable[[View], UInt8[np.ndarray, "height width 3"]]
"""Returns the upright photo behind a view, RGB, at any resolution."""

MIN_SIMILARITY = 0.8
"""Cosine of two RootSIFT vectors; wrong pairs are rarely above."""
_MIN_CONTRAST = 0.02  # half of OpenCV's: what is wrong is found out by epipolar lines
_WIDE_RATIO = 0.8  # Lowe's: in the whole photo more features compete than near a known place
_MIN_INLIERS = 20  # of the epipolar check; a wrong geometry rarely finds as many ...
_MIN_INLIER_SHARE = 0.3  # ... and never this share of the features
_EPIPOLAR_ERROR = 1 / 500  # of the long edge of the photo
_MOVED_SHARE = 0.25  # of the pairs with an overlay, that show a camera which moved
_SEED = 0
_ROWS = 1024  # features compared at a time
_N_LARGEST = 500  # features that say which photos are worth comparing


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Features:
    """Image features of one view, the largest first.

    Pixels are those of `View.image`, descriptors 0 to 255.
    """

    pixels: Float[Tensor, "feature 2"]
    descriptors: UInt8[Tensor, "feature 128"]


def view_rgb(view: View) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture the network saw, for want of the photo."""
    image = ((view.image.float() + 1) * 127.5).round().clamp(0, 255).byte()
    rgb: np.ndarray = np.ascontiguousarray(image.permute(1, 2, 0).numpy(force=True))
    return rgb


def find_features(view: View, rgb_of: RgbOf, config: RefineConfig) -> Features:
    """Return the SIFT features of a view, found in its photo; others and masked ones are dropped.

    Raises:
        ValueError: when the picture has not the photo's shape nor the view's.
    """
    grey, grey2view = grey_photo(view, rgb_of, config.feature_size)
    found, pixels, descriptors = _sift(grey, config.max_features)
    largest = np.argsort([-feature.size for feature in found], kind="stable")
    pixels = moved(grey2view, pixels)[largest]
    inside = is_inside(view, pixels)
    return Features(
        pixels=torch.from_numpy(pixels[inside]).float(),
        descriptors=torch.from_numpy(descriptors[largest][inside]),
    )


def find_keypoints(
    grey: UInt8[np.ndarray, "height width"],
    most: int,
    mask: UInt8[np.ndarray, "height width"] | None = None,
    min_contrast: float = _MIN_CONTRAST,
) -> tuple[Sequence[cv2.KeyPoint], Float64[np.ndarray, "feature 2"]]:
    """Return the SIFT keypoints of a picture where the mask is not 0, and their pixels."""
    found = _detector(most, min_contrast).detect(grey, mask)
    return found, _pixels_of(found)


def _sift(
    grey: UInt8[np.ndarray, "height width"], most: int
) -> tuple[
    Sequence[cv2.KeyPoint],
    Float64[np.ndarray, "feature 2"],
    UInt8[np.ndarray, "feature 128"],
]:
    """Return the SIFT features of a picture, their pixels, descriptors."""
    found, descriptors = _detector(most).detectAndCompute(grey, None)
    if not found:
        return (), np.zeros((0, 2)), np.zeros((0, 128), np.uint8)
    return found, _pixels_of(found), descriptors.clip(0, 255).astype(np.uint8)


def _detector(most: int, min_contrast: float = _MIN_CONTRAST) -> cv2.SIFT:
    # without precise upscaling OpenCV's features lie a quarter of a pixel off
    return cv2.SIFT_create(  # type: ignore[attr-defined]
        most, contrastThreshold=min_contrast, enable_precise_upscale=True
    )


def _pixels_of(found: Sequence[cv2.KeyPoint]) -> Float64[np.ndarray, "feature 2"]:
    # OpenCV puts the centre of the top-left pixel at (0, 0)
    return np.array([feature.pt for feature in found]).reshape(-1, 2) + 0.5


def moved(
    matrix: Float[np.ndarray, "3 3"], pixels: Float64[np.ndarray, "pixel 2"]
) -> Float64[np.ndarray, "pixel 2"]:
    """Return the pixels under an affine map."""
    result: np.ndarray = pixels @ matrix[:2, :2].T + matrix[:2, 2]
    return result


def in_opencv(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """Return a map of pixels as OpenCV counts them, whose top-left centre is (0, 0)."""
    half = np.eye(3)
    half[:2, 2] = 0.5
    result: np.ndarray = np.linalg.inv(half) @ matrix @ half
    return result


def is_inside(view: View, pixels: Float64[np.ndarray, "pixel 2"]) -> Bool[np.ndarray, " pixel"]:
    """Say which pixels lie in the view, and not where its mask hides it."""
    within: np.ndarray = (pixels >= 0) & (pixels < np.array(view.image.shape[:0:-1]))
    inside = np.asarray(within.all(axis=1))
    if view.mask is not None:
        column, row = pixels[inside].astype(np.int64).T
        inside[inside] = view.mask.numpy()[row, column]
    return inside


def grey_photo(
    view: View, rgb_of: RgbOf, most: int
) -> tuple[UInt8[np.ndarray, "height width"], Float[np.ndarray, "3 3"]]:
    """Return the photo of a view in grey, its long edge `most` at most; and its pixels2view.

    Raises:
        ValueError: when the picture has not the photo's shape nor the view's.
    """
    rgb = rgb_of(view)
    height, width = rgb.shape[:2]
    grey2view = _rgb2view(view, height, width)
    scale = min(1.0, most / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        grey2view = grey2view @ np.diag((width / size[0], height / size[1], 1.0))
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), grey2view


def gather_features(
    wanted: Iterable[int],
    views: Sequence[View],
    rgb_of: RgbOf,
    config: RefineConfig,
    known: dict[int, Features],
    *,
    track: Track = silent,
) -> None:
    """Find the features of the views that `known` lacks, and put them there."""
    missing = sorted(set(wanted) - known.keys())
    for done, n in enumerate(missing, start=1):
        known[n] = find_features(views[n], rgb_of, config)
        track("features", done, len(missing))


def promising_pairs(
    pairs: Sequence[tuple[int, int]], features: dict[int, Features], config: RefineConfig
) -> list[tuple[int, int]]:
    """Return, in their order, the pairs among the best `max_partners` of one of their views.

    Best are those of which the most of the largest features match.
    """
    partners: dict[int, list[tuple[int, int]]] = {}
    for pair in pairs:
        for n in pair:
            partners.setdefault(n, []).append(pair)
    if all(len(own) <= config.max_partners for own in partners.values()):
        return list(pairs)
    root = {n: root_sift(features[n].descriptors[:_N_LARGEST]) for n in partners}
    n_matches = {(i, j): len(most_similar(root[i], root[j], config.max_ratio)[0]) for i, j in pairs}
    kept: set[tuple[int, int]] = set()
    for own in partners.values():
        kept.update(sorted(own, key=lambda pair: -n_matches[pair])[: config.max_partners])
    return [pair for pair in pairs if pair in kept]


def match_photos(
    pairs: Sequence[tuple[int, int]],
    views: Sequence[View],
    features: dict[int, Features],
    config: RefineConfig,
    *,
    track: Track = silent,
) -> list[Matches]:
    """Return the matches of features anywhere in the photos, in pixels of the views.

    Confidence is the cosine of the two descriptors. Pairs whose features lie on no common epipolar
    lines are left out. `track` is told the stage "matching".
    """
    root = {n: root_sift(features[n].descriptors) for pair in pairs for n in pair}
    rough = []
    for done, (i, j) in enumerate(pairs, start=1):
        ratio = min(_WIDE_RATIO, config.max_ratio)
        index_i, index_j, similarity = most_similar(root[i], root[j], ratio)
        one = Matches(
            i=i,
            j=j,
            pixels_i=features[i].pixels[index_i],
            pixels_j=features[j].pixels[index_j],
            confidence=similarity,
        )
        rough.append(without_repeats(one))
        track("matching", done, len(pairs))
    found = all_on_epipolar_lines(rough, views)
    logger.info("features match in %d of %d pairs of photos", len(found), len(pairs))
    return found


def most_similar(
    first: Float[Tensor, "n_i 128"],
    second: Float[Tensor, "n_j 128"],
    max_ratio: float,
    allowed: Callable[[slice], Bool[Tensor, "some n_j"]] | None = None,
) -> tuple[Int64[Tensor, " match"], Int64[Tensor, " match"], Float[Tensor, " match"]]:
    """Return (index into first, index into second, cosine) of features that choose each other.

    Args:
        first: as `root_sift` returns them.
        second: likewise.
        max_ratio: the best must be nearer than this share of the second best.
        allowed: returns for some rows of `first` which features of `second` may be their partners.
    """
    n_i, n_j = len(first), len(second)
    best_j = np.zeros(n_i, dtype=np.int64)
    top = np.full((n_i, 2), -1.0, dtype=np.float32)
    back = np.full(n_j, -1.0, dtype=np.float32)  # of each feature of `second`, its best cosine
    for start in range(0, n_i if n_j else 0, _ROWS):
        rows = slice(start, min(start + _ROWS, n_i))
        cosine = first[rows] @ second.T
        if allowed is not None:
            cosine = torch.where(allowed(rows), cosine, -1.0)
        # NumPy: its argmax and max are several times as fast as torch's max and topk
        table, each = cosine.numpy(), np.arange(rows.stop - start)
        np.maximum(back, table.max(axis=0), out=back)
        best_j[rows] = table.argmax(axis=1)
        top[rows, 0] = table[each, best_j[rows]]
        table[each, best_j[rows]] = -1.0
        top[rows, 1] = table.max(axis=1)
    distance = np.sqrt(np.maximum(2 - 2 * top, 0))
    keep = (top[:, 0] >= MIN_SIMILARITY) & (distance[:, 0] <= max_ratio * distance[:, 1])
    chosen = np.flatnonzero(keep)
    chosen = chosen[top[chosen, 0] >= back[best_j[chosen]]]
    _, single = np.unique(best_j[chosen], return_index=True)  # of rows that are alike, the first
    match = torch.from_numpy(chosen[np.sort(single)])
    return match, torch.from_numpy(best_j)[match], torch.from_numpy(top[:, 0])[match]


def all_on_epipolar_lines(found: Sequence[Matches], views: Sequence[View]) -> list[Matches]:
    """Return `on_epipolar_lines` of each pair that has enough, without what overlays match.

    There are overlays where in some of the pairs with matches that stay at their pixel the others
    tell of a camera that moved. Photos from a tripod keep theirs.
    """
    still = [overlay_matches(one, views) for one in found]
    with_still = [n for n, mask in enumerate(still) if bool(mask.any())]
    moving = {n: on_epipolar_lines(select(found[n], ~still[n]), views) for n in with_still}
    n_moved = sum(one is not None and is_spread(one, views) for one in moving.values())
    if not n_moved or n_moved < _MOVED_SHARE * len(with_still):
        moving = {}
    else:
        logger.info(
            "what stays at its pixel in %d of %d pairs of photos is no part of the scene",
            len(with_still),
            len(found),
        )
    kept = (
        moving[n] if n in moving else on_epipolar_lines(one, views) for n, one in enumerate(found)
    )
    return [one for one in kept if one is not None]


def on_epipolar_lines(one: Matches, views: Sequence[View]) -> Matches | None:
    """Return the matches that agree with one epipolar geometry, None where too few do."""
    if len(one.confidence) < _MIN_INLIERS:
        return None
    error = _EPIPOLAR_ERROR * max(max(views[n].image.shape[-2:]) for n in (one.i, one.j))
    cv2.setRNGSeed(_SEED)
    try:
        _, mask = cv2.findFundamentalMat(
            one.pixels_i.double().numpy(),
            one.pixels_j.double().numpy(),
            method=cv2.USAC_MAGSAC,
            ransacReprojThreshold=error,
            confidence=0.9999,
            maxIters=5000,
        )
    except cv2.error:  # raised where no sample of the matches gives a geometry
        return None
    if mask is None:
        return None
    keep = torch.from_numpy(np.asarray(mask).ravel() > 0)
    if int(keep.sum()) < max(_MIN_INLIERS, _MIN_INLIER_SHARE * len(keep)):
        return None
    return select(one, keep)


def root_sift(descriptors: UInt8[Tensor, "feature 128"]) -> Float[Tensor, "feature 128"]:
    """Return the square roots of the descriptors' shares: vectors of length 1."""
    values = descriptors.float()
    return (values / values.sum(-1, keepdim=True).clamp_min(1e-6)).sqrt()


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
