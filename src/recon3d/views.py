"""From a photo to what the network sees: resize, crop to whole patches, and the map back.

The long edge becomes the asked size, then a centred crop cuts each side to a multiple of the
patch. Unlike the published protocol no shape is cut further: squares stay square at every
size, and wide photos are enlarged until their short side holds a few patches.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)

from recon3d.types import Photo, View

MIN_PATCHES = 4
"""The short side of a view has at least this many patches, where `MAX_STRETCH` allows it."""
RIM = 0.01
"""Share of the long edge along the border where photos have the rim that undistortion leaves."""
MAX_STRETCH = 2
"""The long edge of a view may exceed the asked size by this factor to give the short side room."""


class ViewShape(NamedTuple):
    """Pixel sizes: the photo is resized to `resized_*`, then cropped to the rest."""

    resized_width: int
    resized_height: int
    crop_left: int
    crop_top: int
    width: int
    height: int


def view_shape(photo_width: int, photo_height: int, size: int, patch_size: int) -> ViewShape:
    """Return how a photo becomes a view with a long edge of about `size` pixels.

    Only a photo longer than 2 * size / patch_size times its short side loses more than the
    remainder of a patch: its ends are cut.

    Raises:
        ValueError: when a size is smaller than a pixel, or `size` than a patch.
    """
    if min(photo_width, photo_height, patch_size) < 1 or size < patch_size:
        raise ValueError(
            f"no view of {size} pixels with patches of {patch_size}"
            f" from a photo of {photo_width} x {photo_height}"
        )
    long_edge, short_edge = max(photo_width, photo_height), min(photo_width, photo_height)
    scale = size / long_edge
    least_short = min(MIN_PATCHES * patch_size, size)
    if round(short_edge * scale) < least_short:
        scale = min(least_short / short_edge, MAX_STRETCH * size / long_edge)
        scale = max(scale, patch_size / short_edge)
    resized_width, resized_height = round(photo_width * scale), round(photo_height * scale)
    width, height = (
        min(side, MAX_STRETCH * size) // patch_size * patch_size
        for side in (resized_width, resized_height)
    )
    return ViewShape(
        resized_width=resized_width,
        resized_height=resized_height,
        crop_left=(resized_width - width) // 2,
        crop_top=(resized_height - height) // 2,
        width=width,
        height=height,
    )


def make_view(photo: Photo, size: int, patch_size: int) -> View:
    """Return the view of a photo; `photo2view` is exact, through reduced decoding as well.

    Its mask is where the photo is opaque, None for everywhere.

    Both ways the filter is the bicubic of Pillow, on levels of 8 bits; shrinking widens it, so fine
    texture does not alias.

    Raises:
        ValueError: when `size` is smaller than a patch.
    """
    shape = view_shape(photo.width, photo.height, size, patch_size)
    rgb = np.require(photo.rgb, requirements=("C", "W"))  # what torch can share
    levels = torch.from_numpy(rgb).permute(2, 0, 1)
    if levels.shape[1:] != (shape.resized_height, shape.resized_width):
        # torch resizes bytes four times as fast as OpenCV averages areas, and nearer to the
        # published protocol (Lanczos)
        resized_size = (shape.resized_height, shape.resized_width)
        levels = F.interpolate(levels[None], resized_size, mode="bicubic", antialias=True)[0]
    bottom, right = shape.crop_top + shape.height, shape.crop_left + shape.width
    cropped = levels[:, shape.crop_top : bottom, shape.crop_left : right]
    # numpy, because torch would share this little work with other threads, which then spin for more
    # of it and keep the decoders from their cores
    image = cropped.numpy().astype(np.float32, order="C")
    image /= np.float32(127.5)
    image -= np.float32(1)
    photo2view = torch.tensor(
        [
            [shape.resized_width / photo.width, 0.0, -shape.crop_left],
            [0.0, shape.resized_height / photo.height, -shape.crop_top],
            [0.0, 0.0, 1.0],
        ]
    )
    view = View(
        name=photo.name,
        sha256=photo.sha256,
        image=torch.from_numpy(image),
        photo2view=photo2view,
        photo_width=photo.width,
        photo_height=photo.height,
        focal_px=photo.focal_px,
    )
    return view if photo.opaque is None else replace(view, mask=resampled_mask(photo.opaque, view))


def resampled_mask(
    mask: Bool[np.ndarray, "mask_height mask_width"], view: View
) -> Bool[Tensor, "height width"]:
    """Return a mask of the photo, of any scale, at the pixel centres of the view.

    Centres beyond its rim take what the rim says.
    """
    # x and y are mapped apart: photo2view scales and shifts
    photo2view = view.photo2view.double().numpy()
    x, y = (
        (np.arange(n_pixels) + 0.5 - photo2view[axis, 2]) / photo2view[axis, axis]
        for axis, n_pixels in enumerate(view.image.shape[:0:-1])
    )
    height, width = mask.shape
    column = np.floor(x * width / view.photo_width).astype(np.int64).clip(0, width - 1)
    row = np.floor(y * height / view.photo_height).astype(np.int64).clip(0, height - 1)
    return torch.from_numpy(mask[np.ix_(row, column)])


def in_photo(pixels: Float[Tensor, "match 2"], view: View) -> Float64[np.ndarray, "match 2"]:
    """Return pixels of the view as pixels of its full upright photo."""
    view2photo = np.linalg.inv(view.photo2view.double().numpy(force=True))
    in_photo: np.ndarray = (
        pixels.double().numpy(force=True) @ view2photo[:2, :2].T + view2photo[:2, 2]
    )
    return in_photo
