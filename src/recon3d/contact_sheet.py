"""A picture of what training feeds the network: pairs of views as it sees them, and their depth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recon3d.batches import Batch, Source, image_shape, shape_of_step
from recon3d.config import TrainConfig
from recon3d.errors import InputError, UsageError
from recon3d.files import atomic_write

_CELL = 160
_GAP = 4
_PATCH = 16


def _depth_strip(depth: Float[Tensor, "view height width"]) -> Float[Tensor, "view height width 3"]:
    """Return near as bright, far as dark, sky as blue; one scale for all views."""
    known = depth > 0
    inverse = torch.where(known, 1 / depth.clamp_min(1e-3), 0.0)
    top = inverse[known].quantile(0.98) if known.any() else torch.tensor(1.0)
    grey = (inverse / top).clamp(0, 1).sqrt()[..., None].expand(-1, -1, -1, 3)
    return torch.where(known[..., None], grey, torch.tensor([0.15, 0.2, 0.45]))


def _cell(batch: Batch, scene: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return the first two views of a scene beside each other, their depth at half size below."""
    images = (batch.images[scene, :2].cpu().permute(0, 2, 3, 1) + 1) / 2
    depth = _depth_strip(batch.depth[scene, :2].cpu())[:, ::2, ::2]
    height, width = images.shape[1:3]
    cell = torch.zeros(height + depth.shape[1], 2 * width, 3)
    for view in range(2):
        cell[:height, view * width : (view + 1) * width] = images[view]
        left = view * depth.shape[2]
        cell[height:, left : left + depth.shape[2]] = depth[view]
    return (cell * 255).round().to(torch.uint8).numpy()


def write_contact_sheet(
    path: Path,
    *,
    rows: int = 8,
    columns: int = 4,
    seed: int = 0,
    textures: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write `path` (.png or .jpg): rows of one shape that fill the width of `columns` squares.

    Raises:
        UsageError: an ending that is neither, or a file that exists.
        ResourceError: when the file cannot be written.
    """
    import cv2

    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise UsageError(f"the contact sheet {path} must end in .png or .jpg.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; add --overwrite or choose another name.")
    config = replace(
        TrainConfig(),
        scenes_per_step=columns,
        views_per_scene=2,
        compile=False,
        textures=None if textures is None else str(textures),
    )
    source = Source(config, torch.device("cpu"), seed)
    lines, full = [], columns * (2 * _CELL + _GAP)
    for row in range(rows):
        height, width = image_shape(_CELL, *shape_of_step(seed, row), _PATCH)
        count = full // (2 * width + _GAP)
        source.config = replace(config, scenes_per_step=count)
        batch = source.batch(height, width)
        cells = [np.pad(_cell(batch, n), ((0, _GAP), (0, _GAP), (0, 0))) for n in range(count)]
        line = np.concatenate(cells, axis=1)
        lines.append(np.pad(line, ((0, 0), (0, full - line.shape[1]), (0, 0))))
    sheet = np.concatenate(lines)
    ok, encoded = cv2.imencode(path.suffix, sheet[..., ::-1])
    if not ok:
        raise InputError(f"OpenCV cannot encode {path}.")
    with atomic_write(path) as file:
        file.write(encoded.tobytes())
