"""Which pixels of an upright photo are sky, by colour, smoothness and place."""

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

MIN_SHARE = 0.005
"""A patch of sky covers at least this share of the image."""

_BLUE_LEVEL = 0.4  # of the brightest channel, from 0 to 1
_GREY_LEVEL = 0.7  # of overcast sky, which has hardly any colour
_GREY_SATURATION = 0.12
_MAX_CONTRAST = 0.06  # between the pixels of a neighbourhood: sky has no texture
_RIM = 2  # pixels along roofs and branches, where the contrast is that of the rim


def sky_pixels(image: Float[Tensor, "3 height width"]) -> Bool[Tensor, "height width"]:
    """Mark smooth patches of blue or bright colourless pixels that reach the top of the image.

    It looks at colours alone, so it also takes a bright smooth ceiling, or a white wall that
    reaches the top, for sky; and it misses dark, red or finely clouded sky.

    Args:
        image: RGB from -1 to 1, upright.
    """
    rgb = ((image.float() + 1) / 2).clamp(0, 1).movedim(0, -1).numpy(force=True)
    level, least = rgb.max(axis=2), rgb.min(axis=2)
    blue = (rgb[..., 2] >= level - 0.02) & (rgb[..., 2] > rgb[..., 0]) & (level >= _BLUE_LEVEL)
    grey = (level - least <= _GREY_SATURATION * level) & (level >= _GREY_LEVEL)
    coloured = (blue | grey).astype(np.uint8)
    square = np.ones((3, 3), np.uint8)
    contrast = cv2.dilate(level, square) - cv2.erode(level, square)
    smooth = coloured * (contrast <= _MAX_CONTRAST).astype(np.uint8)
    sky = _from_the_top(smooth)
    # back over the rim, where the contrast is high on either side
    wide = cv2.dilate(sky, np.ones((2 * _RIM + 1, 2 * _RIM + 1), np.uint8))
    return torch.from_numpy((wide & coloured) > 0).to(image.device)


def _from_the_top(mask: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Keep the large patches of the mask that touch the first row."""
    count, label, figures, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    large = figures[:, cv2.CC_STAT_AREA] >= MIN_SHARE * mask.size
    at_top = np.zeros(count, dtype=bool)
    at_top[np.unique(label[0])] = True
    kept = large & at_top
    kept[0] = False  # what is not in the mask
    return np.asarray(kept[label], np.uint8)
