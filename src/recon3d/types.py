"""The values that flow through the program: Photo, View, PairPrediction, Scene, PointCloud.

Frames: every camera is OpenCV (+x right, +y down, +z forward); `a2b` maps coordinates in a to
coordinates in b; the centre of the top-left pixel is (0.5, 0.5). Depth is z, not ray length.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor

_SAME = 1e-5
"""Difference from the identity, in radians and scene units, up to which it is only rounding."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Photo:
    """A decoded photograph, upright, sRGB.

    `rgb` may be decoded at a reduced size; `width` and `height` are those of the full photograph
    after EXIF rotation, and `focal_px` is in pixels of that full size. `opaque` says which pixels
    are not fully transparent; None is all.
    """

    path: Path
    name: str
    sha256: str
    rgb: UInt8[np.ndarray, "decoded_height decoded_width 3"]
    width: int
    height: int
    focal_px: float | None
    opaque: Bool[np.ndarray, "decoded_height decoded_width"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class View:
    """What the network sees of a photo: resized, cropped, RGB in [-1, 1].

    `photo2view` maps homogeneous pixel coordinates of the full photo to those of `image`.
    `focal_px` is the EXIF focal length in pixels of the full photo, a prior, or None. `mask` says
    which pixels count: not those that the photo or whoever gave it hides; None is all. Depth is 0
    there; files of scenes do not keep the mask itself.
    """

    name: str
    sha256: str
    image: Float[Tensor, "3 height width"]
    photo2view: Float[Tensor, "3 3"]
    photo_width: int
    photo_height: int
    focal_px: float | None
    mask: Bool[Tensor, "height width"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnownCamera:
    """What is known of a view's camera; None is unknown.

    `intrinsics` are in pixels of `View.image`; `cam2world` is OpenCV, in the units and the world of
    whoever gave it.
    """

    intrinsics: Float[Tensor, "3 3"] | None
    cam2world: Float[Tensor, "4 4"] | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairPrediction:
    """What the network says about the ordered pair (i, j). Both pointmaps are in camera i.

    Units are arbitrary, one scale per pair. Confidence is 1 + e^c > 1. Tensors may be fp16.
    Descriptors have length 1, the confidence of one is e^c > 0; None from networks without them.
    """

    i: int
    j: int
    pointmap_i_in_i: Float[Tensor, "height_i width_i 3"]
    pointmap_j_in_i: Float[Tensor, "height_j width_j 3"]
    confidence_i: Float[Tensor, "height_i width_i"]
    confidence_j: Float[Tensor, "height_j width_j"]
    descriptors_i: Float[Tensor, "height_i width_i channel"] | None = None
    descriptors_j: Float[Tensor, "height_j width_j channel"] | None = None
    descriptor_confidence_i: Float[Tensor, "height_i width_i"] | None = None
    descriptor_confidence_j: Float[Tensor, "height_j width_j"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A photograph that is not part of the scene, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How far to trust one placed view.

    `residual` is the median distance between its pointmaps and the scene over its depth (relative,
    0 is perfect); `edges` counts the good pairs that hold it and `inliers` is the share of their
    pixels that agree with the scene. The uncertainties are standard deviations of the camera's
    rotation and centre (in scene units) relative to all others, as far as the pairs disagree (an
    error that all of them share is not seen); nan where no pair is to spare. That of the centre is
    infinite where the photos show no parallax.
    """

    residual: float
    edges: int
    rotation_uncertainty_deg: float
    focal_source: str  # "estimated", "exif", "prior" (given, but not held) or "given"
    inliers: float = math.nan
    position_uncertainty: float = math.nan

    @property
    def focal_is_known(self) -> bool:
        """Say whether the focal length comes from the user or the photo, not from a network."""
        return self.focal_source != "estimated"


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeVerdict:
    """What became of one pair of photographs, and why.

    `reason` is empty where the pair was used. `rotation_error_deg` is the angle between its own
    relative rotation and that of the scene; with `residual` (relative distance) and `inliers` it
    is nan unless both photos are placed. `confidence` is nan where nothing was finite.
    """

    first: str
    second: str
    used: bool
    reason: str
    confidence: float
    residual: float = math.nan
    rotation_error_deg: float = math.nan
    inliers: float = math.nan


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """The fused reconstruction of all placed views.

    World is the camera of `views[0]`, or the world of the given poses; there `cam2world` has
    float64, for its origin may be far away. `intrinsics` are in pixels of `View.image`; depth and
    confidence are at the same resolution. Depth 0 means unknown. Confidence is > 1 where known.
    `edges` holds every pair that was predicted; of several scenes each has those that touch it, and
    the first also those that touch none. `metric` says whether units are metres.
    """

    views: tuple[View, ...]
    cam2world: Float[Tensor, "view 4 4"]
    intrinsics: Float[Tensor, "view 3 3"]
    depth: tuple[Float[Tensor, "_ _"], ...]
    confidence: tuple[Float[Tensor, "_ _"], ...]
    verdicts: tuple[Verdict, ...]
    left_out: tuple[LeftOut, ...] = ()
    edges: tuple[EdgeVerdict, ...] = ()
    metric: bool = False

    def __post_init__(self) -> None:
        """Check that every per-view field has one entry per view."""
        n_views = len(self.views)
        lengths = (
            len(self.cam2world),
            len(self.intrinsics),
            len(self.depth),
            len(self.confidence),
            len(self.verdicts),
        )
        if any(length != n_views for length in lengths):
            raise ValueError(f"{n_views} views but per-view fields of lengths {lengths}")

    @property
    def units(self) -> str:
        """Return what files call the unit of lengths: "metres" or "arbitrary"."""
        return "metres" if self.metric else "arbitrary"

    @property
    def in_first_camera(self) -> bool:
        """Say whether the world is the camera of `views[0]`; else it is that of the given poses."""
        first = self.cam2world[0].double().cpu()
        return torch.allclose(first, torch.eye(4, dtype=torch.float64), rtol=0, atol=_SAME)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PointCloud:
    """Coloured points in world coordinates with unit normals that face their cameras.

    Points have float64 where float32 is too coarse, far from the world's origin.
    """

    points_in_world: Float32[np.ndarray, "point 3"] | Float64[np.ndarray, "point 3"]
    normals_in_world: Float32[np.ndarray, "point 3"]
    rgb: UInt8[np.ndarray, "point 3"]
    confidence: Float32[np.ndarray, " point"]
