"""A picture of what training feeds the network: pairs of views as it sees them, and their depth."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recon3d.batches import Batch, Source, image_shape, shape_of_step
from recon3d.errors import InputError, UsageError
from recon3d.files import atomic_write
from recon3d.progress import Track, silent
from recon3d.synth.cameras import CameraRanges
from recon3d.synth.families import KINDS
from recon3d.synth.folder import covisibility
from recon3d.train_config import TrainConfig

logger = logging.getLogger(__name__)

_CELL = 160
_GAP, _CAPTION = 8, 16
_PATCH = 16
_PAPER = 255


class Shown(NamedTuple):
    """A pair on the sheet: its kind of scene, and the share of either view that the other sees."""

    kind: str
    share: float


def _in_greys(depth: Float[Tensor, "view height width"]) -> Float[Tensor, "view height width 3"]:
    """Return near as bright, far as dark, sky as blue; one scale for all views."""
    known = depth > 0
    inverse = torch.where(known, 1 / depth.clamp_min(1e-3), 0.0)
    top = inverse[known].quantile(0.98) if known.any() else torch.tensor(1.0)
    grey = (inverse / top).clamp(0, 1).sqrt()[..., None].expand(-1, -1, -1, 3)
    return torch.where(known[..., None], grey, torch.tensor([0.15, 0.2, 0.45]))


def _cell(batch: Batch, scene: int, shown: Shown) -> UInt8[np.ndarray, "height width 3"]:
    """Return two views side by side, right of them their depth at half size, below what it is."""
    import cv2

    first, second = (batch.images[scene].permute(0, 2, 3, 1) + 1) / 2
    depth = _in_greys(batch.depth[scene])[:, ::2, ::2].flatten(0, 1)
    cell = (torch.cat((first, second, depth), dim=1) * 255).round().to(torch.uint8).numpy()
    cell = np.pad(cell, ((0, _CAPTION), (0, 0), (0, 0)), constant_values=_PAPER)
    words, where = f"{shown.kind}, {shown.share:.0%} shared", (1, len(cell) - 4)
    return cv2.putText(
        cell, words, where, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA
    )


def _shared(batch: Batch) -> list[float]:
    """Return what the two views of each scene have in common: the mean share of either."""
    both = zip(batch.depth, batch.cam2world, batch.intrinsics, strict=True)
    shares = [covisibility(*one) for one in both]
    return [float(share[0, 1] + share[1, 0]) / 2 for share in shares]


def _row(cells: list[UInt8[np.ndarray, "height width 3"]], full: int) -> UInt8[np.ndarray, "..."]:
    """Return cells of one shape in a row of the full width, the spaces between them equal."""
    height, width = cells[0].shape[:2]
    row = np.full((height + _GAP, full, 3), _PAPER, np.uint8)
    for cell, left in zip(cells, np.linspace(0, full - width, len(cells)).round(), strict=True):
        row[:height, int(left) : int(left) + width] = cell
    return row


def write_contact_sheet(
    path: Path,
    *,
    rows: int = 8,
    columns: int = 4,
    seed: int = 0,
    textures: Path | None = None,
    overwrite: bool = False,
    track: Track = silent,
) -> list[Shown]:
    """Write `path` (.png or .jpg): pairs as a network is shown them, rows of one shape.

    Each kind of scene comes in turn, also those that training leaves out; the last pair is one that
    shares nothing. Rows have the width of `columns` pairs of landscapes. `track` is told the stage
    "render".

    Returns:
        What is shown, row by row.

    Raises:
        UsageError: an ending that is neither, or a file that exists.
        ResourceError: when the file cannot be written.
    """
    import cv2

    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise UsageError(f"the contact sheet {path} must end in .png or .jpg.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; add --overwrite or choose another name.")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}. Create it.")
    config = replace(
        TrainConfig(),
        views_per_scene=2,
        compile=False,
        textures=None if textures is None else str(textures),
    )
    logger.info("rendering %d rows of pairs", rows)
    source, names = Source(config, torch.device("cpu"), seed), list(KINDS)
    full = columns * (_CELL * 5 // 2 + _GAP) - _GAP
    shown: list[Shown] = []
    lines = []
    for row in range(rows):
        height, width = image_shape(_CELL, *shape_of_step(seed, row), _PATCH)
        kinds = torch.arange((full + _GAP) // (width * 5 // 2 + _GAP)) + len(shown)
        batch = source.batch(height, width, kinds=kinds % len(names))
        pairs = [
            Shown(names[kind % len(names)], share)
            for kind, share in zip(kinds.tolist(), _shared(batch), strict=True)
        ]
        cells = [_cell(batch, n, pair) for n, pair in enumerate(pairs)]
        if row == rows - 1:
            apart = source.batch(
                height,
                width,
                kinds=torch.arange(len(names)),
                ranges=CameraRanges(none_share=1.0),
            )
            shares = _shared(apart)
            least = shares.index(min(shares))
            pairs[-1] = Shown(names[least], shares[least])
            cells[-1] = _cell(apart, least, pairs[-1])
        shown += pairs
        lines.append(_row(cells, full))
        track("render", row + 1, rows)
    sheet = np.pad(np.concatenate(lines), ((_GAP, 0), (_GAP, _GAP), (0, 0)), constant_values=_PAPER)
    ok, encoded = cv2.imencode(path.suffix, sheet[..., ::-1])
    if not ok:
        raise InputError(f"OpenCV cannot encode {path}.")
    with atomic_write(path) as file:
        file.write(encoded.tobytes())
    return shown
