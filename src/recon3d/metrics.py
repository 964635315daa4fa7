"""Errors of cameras, depth, clouds and confidence against ground truth; pure functions.

A camera that is missing (not placed, or a method that failed) is a `cam2world` of nan; every error
that it takes part in is infinite, so a failure counts against a method instead of vanishing.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64

from recon3d.geometry import umeyama

FEWEST_FOR_ATE = 3
"""A similarity maps any two camera centres onto any other two: below three, ATE says nothing."""


def rotation_error_deg(
    estimated: Float[np.ndarray, "*#batch 3 3"], true: Float[np.ndarray, "*#batch 3 3"]
) -> Float64[np.ndarray, "*batch"]:
    """Return the angle of `true`^T `estimated`, 0 to 180; infinite where a matrix is not finite.

    By atan2 of sine and cosine, which is accurate near 0 and near 180 degrees, unlike arccos.
    """
    product = np.swapaxes(true, -1, -2).astype(np.float64) @ estimated
    skew = product - np.swapaxes(product, -1, -2)
    sine = np.sqrt(skew[..., 2, 1] ** 2 + skew[..., 0, 2] ** 2 + skew[..., 1, 0] ** 2) / 2
    cosine = (np.trace(product, axis1=-2, axis2=-1) - 1) / 2
    angle = np.degrees(np.arctan2(sine, cosine))
    return np.where(np.isfinite(angle), angle, np.inf)


def direction_error_deg(
    estimated: Float[np.ndarray, "*#batch 3"], true: Float[np.ndarray, "*#batch 3"]
) -> Float64[np.ndarray, "*batch"]:
    """Return the angle between two directions, 0 to 180; the lengths do not matter, the sign does.

    (Some protocols forgive the sign, min(e, 180 - e), because an essential matrix alone does not
    tell it; a reconstruction that moves the wrong way is wrong here.) Infinite where `estimated` is
    not finite or has no length; 0 where `true` has no length and so no direction to miss.
    """
    a, b = estimated.astype(np.float64), true.astype(np.float64)
    sine = np.linalg.norm(np.cross(a, b), axis=-1)
    angle = np.degrees(np.arctan2(sine, (a * b).sum(-1)))
    length = np.linalg.norm(a, axis=-1)
    angle = np.where(np.isfinite(length) & (length > 0), angle, np.inf)
    still = np.linalg.norm(b, axis=-1) == 0
    return np.where(still & np.isfinite(length), 0.0, angle)


class PoseErrors(NamedTuple):
    """Errors in degrees of the relative poses of some pairs of views."""

    rotation_deg: Float64[np.ndarray, " pair"]
    direction_deg: Float64[np.ndarray, " pair"]

    @property
    def worst_deg(self) -> Float64[np.ndarray, " pair"]:
        """The larger of the two, the error that AUC and mAA count."""
        return np.maximum(self.rotation_deg, self.direction_deg)


def relative_pose_errors(
    cam2world: Float[np.ndarray, "view 4 4"],
    true_cam2world: Float[np.ndarray, "view 4 4"],
    pairs: list[tuple[int, int]] | None = None,
) -> PoseErrors:
    """Return the errors of cam_j2cam_i for the given pairs (i, j), by default all i < j.

    Rotation: angle between the relative rotations. Direction: angle between the positions of
    camera j seen from camera i. Both are free of the choice of world and scale.
    """
    if pairs is None:
        first, second = np.triu_indices(len(cam2world), k=1)
    else:
        first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    relative = []
    for cameras in (cam2world.astype(np.float64), true_cam2world.astype(np.float64)):
        turn = np.swapaxes(cameras[first, :3, :3], -1, -2)
        step = cameras[second, :3, 3] - cameras[first, :3, 3]
        relative.append((turn @ cameras[second, :3, :3], (turn @ step[..., None])[..., 0]))
    (rotation, direction), (true_rotation, true_direction) = relative
    return PoseErrors(
        rotation_error_deg(rotation, true_rotation),
        direction_error_deg(direction, true_direction),
    )


def area_under_curve(error_deg: Float64[np.ndarray, " pair"], threshold_deg: float) -> float:
    """Return the area under recall(error) from 0 to the threshold over the threshold, 0 to 1.

    The exact integral of the step function: mean of max(0, 1 - error / threshold). The trapezoids
    of Sarlin et al. (SuperGlue, CVPR 2020) lie above it by at most 1 / (2 pairs). nan if no pairs.
    """
    if len(error_deg) == 0:
        return float("nan")
    return float(np.clip(1 - error_deg / threshold_deg, 0, 1).mean())


def share_within(error_deg: Float64[np.ndarray, " pair"], threshold_deg: float) -> float:
    """Return the share of errors below the threshold: RRA of rotations, RTA of directions."""
    return float((error_deg < threshold_deg).mean()) if len(error_deg) else float("nan")


def mean_average_accuracy(
    worst_deg: Float64[np.ndarray, " pair"], threshold_deg: int = 30
) -> float:
    """Return mAA: the share of pairs below t degrees, averaged over t = 1, 2, .. threshold.

    A pair counts where both its rotation and its direction are below t. Source: Wang et al.,
    PoseDiffusion (ICCV 2023), section 4, after Jin et al., IJCV 2021.
    """
    if len(worst_deg) == 0:
        return float("nan")
    steps = np.arange(1, threshold_deg + 1)
    return float((worst_deg[:, None] < steps).mean())


def ate_pct(
    centres: Float[np.ndarray, "view 3"], true_centres: Float[np.ndarray, "view 3"]
) -> float:
    """Return the RMS distance of camera centres after the best similarity, in % of the extent.

    The extent is the largest distance between two of the true centres given. nan below three
    centres or where all true centres coincide.

    Source: Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems", IROS 2012, with
    the scale of Umeyama, PAMI 1991.
    """
    if len(centres) < FEWEST_FOR_ATE:
        return float("nan")
    true = true_centres.astype(np.float64)
    extent = np.linalg.norm(true[:, None] - true[None], axis=-1).max()
    if extent == 0:
        return float("nan")
    moved = similarity_between(centres, true).apply(centres)
    return float(100 * np.sqrt(np.square(moved - true).sum(-1).mean()) / extent)


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation."""

    scale: float
    rotation: Float64[np.ndarray, "3 3"]
    translation: Float64[np.ndarray, "3"]

    def apply(self, points: Float[np.ndarray, "point 3"]) -> Float64[np.ndarray, "point 3"]:
        """Return the moved points."""
        return self.scale * points.astype(np.float64) @ self.rotation.T + self.translation


def similarity_between(
    source: Float[np.ndarray, "point 3"],
    target: Float[np.ndarray, "point 3"],
    *,
    robust_rounds: int = 0,
) -> Similarity:
    """Return the similarity that takes source points to the target points of the same index.

    Least squares, then as many rounds reweighted towards least unsquared distances.
    """
    a, b = torch.from_numpy(source.astype(np.float64)), torch.from_numpy(target.astype(np.float64))
    weight = torch.ones(len(a), dtype=torch.float64)
    for last in range(robust_rounds + 1):
        scale, rotation, translation = umeyama(a, b, weight)
        if last < robust_rounds:
            distance = (scale * a @ rotation.mT + translation - b).norm(dim=-1)
            weight = 1 / distance.clamp_min(1e-3 * float(distance.median()) + 1e-12)
    return Similarity(float(scale), rotation.numpy(), translation.numpy())


def focal_error_pct(
    focal_px: Float[np.ndarray, " view"], true_focal_px: Float[np.ndarray, " view"]
) -> Float64[np.ndarray, " view"]:
    """Return |f / f_true - 1| in %."""
    return 100 * np.abs(focal_px.astype(np.float64) / true_focal_px - 1)


class DepthErrors(NamedTuple):
    """Errors of one depth map after its scale was fixed by the median."""

    abs_rel: float
    delta_125: float
    scale: float
    relative: Float64[np.ndarray, " pixel"]
    """Per compared pixel, in row order."""
    spread: Float64[np.ndarray, " pixel"]
    """The same after the scale that makes the median of estimated / true 1."""


def depth_errors(
    depth: Float[np.ndarray, "*pixel"],
    true_depth: Float[np.ndarray, "*pixel"],
    known: Bool[np.ndarray, "*pixel"],
) -> DepthErrors | None:
    """Return the errors where `known`, or None where no pixel is.

    `scale` = median(true) / median(estimated) multiplies the estimate. AbsRel is the mean of
    |estimated - true| / true, delta_125 the share with max(estimated / true, true / estimated)
    below 1.25. Source: Eigen et al., NeurIPS 2014; scale of Zhou et al., CVPR 2017.
    """
    estimated, true = depth[known].astype(np.float64), true_depth[known].astype(np.float64)
    if estimated.size == 0:
        return None
    if not (estimated.min() > 0 and true.min() > 0):
        raise ValueError("known depths must be positive")
    scale = float(np.median(true) / np.median(estimated))
    ratio = scale * estimated / true
    relative = np.abs(ratio - 1)
    within = np.maximum(ratio, 1 / ratio) < 1.25
    spread = np.abs(ratio / np.median(ratio) - 1)
    return DepthErrors(float(relative.mean()), float(within.mean()), scale, relative, spread)


class CloudErrors(NamedTuple):
    """Distances between clouds in % of the extent of the reference."""

    accuracy_pct: float
    accuracy_median_pct: float
    completeness_pct: float
    completeness_median_pct: float


def extent_of(points: Float[np.ndarray, "point 3"]) -> float:
    """Return the diagonal of the box that holds the middle 96 % of the points along each axis."""
    low, high = np.percentile(points.astype(np.float64), (2, 98), axis=0)
    return float(np.linalg.norm(high - low))


def cloud_errors(
    points: Float[np.ndarray, "point 3"], reference: Float[np.ndarray, "reference 3"]
) -> CloudErrors:
    """Return accuracy and completeness, each as mean and median, relative to `extent_of`.

    Accuracy: distance of a point to the nearest reference point. Completeness: of a reference
    point to the nearest point. Source: Seitz et al., CVPR 2006; Jensen et al., CVPR 2014.

    Raises:
        ValueError: an empty cloud, or a reference without extent.
    """
    from scipy.spatial import cKDTree

    if len(points) == 0 or len(reference) == 0:
        raise ValueError(f"clouds of {len(points)} and {len(reference)} points")
    extent = extent_of(reference)
    if extent == 0:
        raise ValueError("the reference has no extent")
    accuracy, _ = cKDTree(reference).query(points)
    completeness, _ = cKDTree(points).query(reference)
    return CloudErrors(
        *(
            float(100 * middle(distance) / extent)
            for distance in (accuracy, completeness)
            for middle in (np.mean, np.median)
        )
    )


def error_by_confidence(
    confidence: Float[np.ndarray, " pixel"], error: Float[np.ndarray, " pixel"], n_bins: int = 10
) -> Float64[np.ndarray, " bin"]:
    """Return the mean error of each decile of confidence, the least confident first.

    Bins hold equally many pixels, to one; equal confidences keep their order.

    Raises:
        ValueError: fewer pixels than bins.
    """
    if len(error) < n_bins:
        raise ValueError(f"{len(error)} pixels for {n_bins} bins")
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(error[order].astype(np.float64), n_bins)
    return np.array([part.mean() for part in parts])


def falls_monotonically(values: Float[np.ndarray, " bin"]) -> bool:
    """Say whether no value is larger than the one before: what an honest confidence gives."""
    return bool((np.diff(values) <= 0).all())
