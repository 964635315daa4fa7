"""Features that survive a large change of viewpoint: those of the photo as it looks from aside.

Seen from aside a surface is compressed in one direction, which SIFT does not tolerate. So every
photo is compressed in many directions by several factors, and all the results have features. They
are SIFT's in place, size and direction; a small network describes them.

Source: Morel and Yu, ASIFT: a new framework for fully affine invariant image comparison, SIAM
Journal on Imaging Sciences 2(2), 2009.
"""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from recon3d.config import RefineConfig
from recon3d.features import RgbOf, find_keypoints, grey_photo, in_opencv, is_inside, moved
from recon3d.patch_net import SIDE, cut_patches, describe
from recon3d.types import View
from recon3d.views import RIM

_COMPRESSIONS = (2**0.5, 2.0, 2**1.5, 4.0)
"""ASIFT's, up to the 75 degrees at which a surface shows a quarter of itself."""
_TURN_DEG = 72.0  # between directions, for a compression by 1; ASIFT's
_MIN_CONTRAST = 0.007  # a sixth of OpenCV's: a dark room has features too, if weak ones
_BLUR = 0.8  # pixels, for a compression by sqrt(2); ASIFT's
_DIRECTIONS = tuple(
    (compression, float(angle))
    for compression in _COMPRESSIONS
    for angle in np.arange(0, math.pi - 1e-9, math.radians(_TURN_DEG) / compression)
)
N_PICTURES = 1 + len(_DIRECTIONS)
"""In how many pictures of a photo features are found: the photo and its compressions."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WideFeatures:
    """Features of one view with the shape of the patch that each describes.

    Pixels are those of `View.image`; `frames` maps the unit circle to the patch. Descriptors have
    length 1.
    """

    pixels: Float[Tensor, "feature 2"]
    frames: Float[Tensor, "feature 2 2"]
    descriptors: Float[Tensor, "feature 128"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WidePatches:
    """Features of one picture and what they look like; `pixels` and `frames` are the picture's."""

    pixels: Float64[np.ndarray, "feature 2"]
    frames: Float64[np.ndarray, "feature 2 2"]
    patches: UInt8[Tensor, "feature 32 32"]


def find_wide_features(view: View, rgb_of: RgbOf, config: RefineConfig) -> WideFeatures:
    """Return the features of a view in its photo and in all its compressions.

    Up to `config.wide_features` come from the photo, and fewer from each compression, as it has
    fewer pixels; those outside the view, masked or at the photo's border are dropped.

    Raises:
        ValueError: when the picture has not the photo's shape nor the view's.
    """
    sides = view.photo_width, view.photo_height
    long_edge = round(config.wide_size * math.sqrt(max(sides) / min(sides)))
    grey, grey2view = grey_photo(view, rgb_of, long_edge)
    found = find_wide_patches(grey, config.wide_features)
    in_view = moved(grey2view, found.pixels)
    inside = is_inside(view, in_view)
    return WideFeatures(
        pixels=torch.from_numpy(in_view[inside]).float(),
        frames=torch.from_numpy(grey2view[:2, :2] @ found.frames[inside]).float(),
        descriptors=describe(found.patches[torch.from_numpy(inside)]),
    )


def find_wide_patches(
    grey: UInt8[np.ndarray, "height width"], most: int, pictures: Container[int] = range(N_PICTURES)
) -> WidePatches:
    """Return the features of a photo, but for those at its border, in some of its pictures.

    Args:
        grey: the photo.
        most: features of the photo itself; compressions have fewer, as they have fewer pixels.
        pictures: which are looked at: 0 is the photo itself.
    """
    height, width = grey.shape
    margin = RIM * max(height, width)
    pixels, frames = [np.zeros((0, 2))], [np.zeros((0, 2, 2))]
    patches = [torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)]
    for compression, picture, mask, picture2grey in _pictures(grey, pictures):
        some = max(1, int(most / compression))
        found, places = find_keypoints(picture, some, mask, _MIN_CONTRAST)
        in_grey = moved(picture2grey, places)
        far = (in_grey > margin).all(1) & (in_grey < np.array((width, height)) - margin).all(1)
        circles = _circles(found)[far]
        pixels.append(in_grey[far])
        frames.append(picture2grey[:2, :2] @ circles)
        patches.append(cut_patches(picture, places[far], circles))
    return WidePatches(
        pixels=np.concatenate(pixels),
        frames=np.concatenate(frames),
        patches=torch.cat(patches),
    )


def _pictures(
    grey: UInt8[np.ndarray, "height width"], wanted: Container[int]
) -> Iterator[
    tuple[
        float,
        UInt8[np.ndarray, "new_height new_width"],
        UInt8[np.ndarray, "new_height new_width"] | None,
        Float64[np.ndarray, "3 3"],
    ]
]:
    """Yield the wanted pictures: (compression, picture, what of it is photo, 2grey)."""
    if 0 in wanted:
        yield 1.0, grey, None, np.eye(3)
    for n, (compression, angle) in enumerate(_DIRECTIONS, start=1):
        if n in wanted:
            yield compression, *_compressed(grey, compression, angle)


def _compressed(
    grey: UInt8[np.ndarray, "height width"], compression: float, angle: float
) -> tuple[
    UInt8[np.ndarray, "new_height new_width"],
    UInt8[np.ndarray, "new_height new_width"],
    Float64[np.ndarray, "3 3"],
]:
    """Return the photo as it looks from aside, what of it is photo, and its pixels2grey."""
    height, width = grey.shape
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float64)
    turn = np.eye(3)
    turn[:2, :2] = (np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))
    turn[:2, 2] = -np.floor(moved(turn, corners).min(0))
    new_width, new_height = np.ceil(moved(turn, corners).max(0)).astype(int).tolist()
    matrix = in_opencv(turn)[:2]
    turned = cv2.warpAffine(grey, matrix, (new_width, new_height), borderMode=cv2.BORDER_REPLICATE)
    sigma = _BLUR * math.sqrt(compression**2 - 1)
    turned = cv2.GaussianBlur(turned, (0, 0), sigmaX=sigma, sigmaY=1e-3)
    covered = cv2.warpAffine(
        np.full_like(grey, 255), matrix, (new_width, new_height), flags=cv2.INTER_NEAREST
    )
    size = max(1, round(new_width / compression)), new_height
    compress = np.diag((size[0] / new_width, 1.0, 1.0))
    return (
        cv2.resize(turned, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(covered, size, interpolation=cv2.INTER_NEAREST),
        np.linalg.inv(compress @ turn),
    )


def _circles(found: Sequence[cv2.KeyPoint]) -> Float64[np.ndarray, "feature 2 2"]:
    """Return for each feature the map from the unit circle to its patch, as it is turned."""
    radius = np.array([one.size for one in found]) / 2
    angle = np.radians(np.array([one.angle for one in found]))
    cos, sin = radius * np.cos(angle), radius * np.sin(angle)
    return np.stack((np.stack((cos, -sin), -1), np.stack((sin, cos), -1)), -2)
