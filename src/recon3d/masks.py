"""Masks: which pixels of each view count, as files say and as the photos' own transparency does.

A mask belongs to the upright photo, pixel by pixel, or is a smaller or larger copy of it. The
photo's own EXIF orientation says nothing of it: whoever painted the mask saw the photo either
upright or as stored, and only the size can tell. So a mask is taken as its pixels are stored; an
orientation in its own EXIF data (tools copy it from the photo, turned or not) counts only where
the stored size does not fit the upright photo and the turned size does. What fits neither way is
refused, for nothing says to which side it should be turned.
"""

import contextlib
import logging
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from jaxtyping import Bool
from torch import Tensor

from recon3d.config import PhotoConfig
from recon3d.errors import InputError, UsageError
from recon3d.image_header import ImageHeader, read_header
from recon3d.types import View
from recon3d.views import resampled_mask

logger = logging.getLogger(__name__)

MAX_ASPECT_DIFFERENCE = 0.01
"""Relative difference of aspect ratio up to which a mask is a scaled copy."""

_MAX_FILE_BYTES = 256 * 1024 * 1024
_N_NAMED = 5  # names that one line of warning holds


def with_masks(views: Sequence[View], folder: Path | None) -> tuple[View, ...]:
    """Return the views of which only those pixels count that also their files let count.

    Args:
        views: their masks say where the photos are opaque.
        folder: holds the files; None is no files.

    Raises:
        InputError: no pixel of any photo is left.
        UsageError: as `read_masks`.
    """
    painted = (None,) * len(views) if folder is None else read_masks(folder, views)
    masks = [_both(view.mask, mask) for view, mask in zip(views, painted, strict=True)]
    where = "" if folder is None else " where their masks are not black"
    if all(map(is_blank, masks)):
        raise InputError(
            f"all {len(views)} photos are transparent everywhere{where}, and transparent pixels"
            " are ignored. Give photos that show something."
        )
    lost = [
        view.name
        for view, before, after in zip(views, painted, masks, strict=True)
        if is_blank(after) and not is_blank(before)
    ]
    if lost:
        logger.warning(
            "%d photos are transparent everywhere%s and not used (%s)",
            len(lost),
            where,
            _listed(lost),
        )
    return tuple(replace(view, mask=mask) for view, mask in zip(views, masks, strict=True))


def _both(
    first: Bool[Tensor, "height width"] | None, second: Bool[Tensor, "height width"] | None
) -> Bool[Tensor, "height width"] | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second


def is_blank(mask: Bool[Tensor, "height width"] | None) -> bool:
    """Say whether a mask lets no pixel count; None lets all."""
    return mask is not None and not bool(mask.any())


def read_masks(folder: Path, views: Sequence[View]) -> tuple[Bool[Tensor, "_ _"] | None, ...]:
    """Return the pixels of each view that count, None for all of them.

    The mask of a/IMG.jpg is a/IMG.jpg.png (COLMAP's naming) or a/IMG.png; without the folder a/
    too, where no other photo has the same name. Pixels that are black in all colours are to be
    ignored, all others count, whatever their transparency. A pixel of a view takes what the
    mask says at its centre. Photos without a mask are warned of.

    Raises:
        UsageError: no mask of any of the photos; one that cannot be read, is not a PNG file, has
            not the shape of its photo, or is the photo itself; all are black.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder. Give one with a mask IMG.jpg.png per photo.")
    names = [view.name for view in views]
    candidates = list(_candidates(names))
    paths = [_find(folder, some) for some in candidates]
    bare = [n for n, path in enumerate(paths) if path is None]
    advice = next(
        (f"Name that of {names[n]!r} {str(candidates[n][0])!r}." for n in bare if candidates[n]),
        "Give every photo a name of its own.",
    )
    if len(bare) == len(views):
        raise UsageError(f"{folder} holds no mask of any photo. {advice}")
    if bare:
        without = _listed([names[n] for n in bare])
        logger.warning("%s: %d photos without a mask (%s). %s", folder, len(bare), without, advice)
    masks = tuple(
        None if path is None else resampled_mask(_read_mask(path, view), view)
        for path, view in zip(paths, views, strict=True)
    )
    _check_blank(folder, masks, views)
    return masks


def _check_blank(
    folder: Path, masks: Sequence[Bool[Tensor, "_ _"] | None], views: Sequence[View]
) -> None:
    """Warn of masks that leave nothing of their photos; all of them are a fault."""
    blank = [view.name for mask, view in zip(masks, views, strict=True) if is_blank(mask)]
    if len(blank) == len(views):
        raise UsageError(
            f"{folder}: all {len(blank)} masks are black everywhere, and black pixels are ignored."
            " Paint white what is to be used, or leave --masks out."
        )
    if blank:
        logger.warning(
            "%s: %d masks are black everywhere, their photos are not used (%s)",
            folder,
            len(blank),
            _listed(blank),
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:_N_NAMED])
    return f"{shown} and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else shown


def _candidates(names: Sequence[str]) -> Iterator[list[PurePosixPath]]:
    """Yield for each photo the relative paths that its mask may have, best first."""
    # a name may be a whole path: it must not lead out of the folder of masks
    whole = [
        PurePosixPath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..")))
        for name in names
    ]
    kinds = [
        [path.with_name(f"{path.name}.png") for path in whole],
        [path.with_suffix(".png") for path in whole],
        [PurePosixPath(f"{path.name}.png") for path in whole],
        [PurePosixPath(f"{path.stem}.png") for path in whole],
    ]
    counts = [Counter(paths) for paths in kinds]
    for of_photo in zip(*kinds, strict=True):
        # what could be the mask of two photos is that of neither
        yield [path for path, count in zip(of_photo, counts, strict=True) if count[path] == 1]


def _find(folder: Path, candidates: Sequence[PurePosixPath]) -> Path | None:
    for path in candidates:
        with contextlib.suppress(OSError):  # a name that is too long for the file system
            if (folder / path).exists():
                return folder / path
    return None


def _read_mask(path: Path, view: View) -> Bool[np.ndarray, "mask_height mask_width"]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
            raise InputError(f"not a regular file of at most {_MAX_FILE_BYTES} bytes")
        data = path.read_bytes()
        if sha256(data).hexdigest() == view.sha256:
            raise InputError("it is the photo itself")
        header = read_header(data)
        if header.format != "png":
            raise InputError(f"a {header.format.upper()} file, not PNG")
        orientation = _orientation(header, view)
        if header.width * header.height > PhotoConfig.max_pixels:
            raise InputError(f"{header.width} x {header.height} pixels are too many")
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise UsageError(f"the mask {path} cannot be read ({error.strerror}). Check it.") from error
    except InputError as error:
        raise UsageError(
            f"the mask {path} cannot be used: {error}."
            " Give a PNG file painted on the upright photo."
        ) from error
    except (cv2.error, MemoryError) as error:
        raise UsageError(f"the mask {path} cannot be decoded. Write it anew.") from error
    if levels is None or levels.shape[:2] != (header.height, header.width):
        raise UsageError(f"the mask {path} is damaged or cut short. Write it anew.")
    colours = np.atleast_3d(levels)
    if colours.shape[2] in (2, 4):
        colours = colours[:, :, :-1]  # without transparency
    counts = np.asarray((colours > 0).any(axis=2))
    return _turn(counts, orientation)


def _orientation(header: ImageHeader, view: View) -> int:
    """Return how to turn the mask (EXIF, 1 is not at all) so that it has the photo's shape."""
    if _fits(header.width, header.height, view):
        return 1
    if header.orientation >= 5 and _fits(header.height, header.width, view):
        return header.orientation
    raise InputError(
        f"{header.width} x {header.height} pixels, but the upright photo has"
        f" {view.photo_width} x {view.photo_height}"
    )


def _fits(width: int, height: int, view: View) -> bool:
    ratio = width * view.photo_height / (height * view.photo_width)
    return abs(ratio - 1) <= MAX_ASPECT_DIFFERENCE


def _turn(
    mask: Bool[np.ndarray, "stored_height stored_width"], orientation: int
) -> Bool[np.ndarray, "height width"]:
    """Return the mask upright; of the orientations only those that swap the sides occur."""
    if orientation < 5:
        return mask
    turned = mask.T  # orientation 5; the others are mirrored as well
    if orientation in (6, 7):
        turned = turned[:, ::-1]
    if orientation in (7, 8):
        turned = turned[::-1]
    return turned
