"""From the bytes of a picture file to its pixels, upright, and which of them are opaque.

The bytes are untrusted: the size is checked before anything is decoded.
"""

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from recon3d.config import ModelConfig, PhotoConfig
from recon3d.errors import InputError, MemoryShortageError, UsageError
from recon3d.exif import focal_px, read_exif
from recon3d.image_header import (
    JPEG_END,
    ImageHeader,
    image_format,
    read_header,
    without_tiff_orientation,
)
from recon3d.views import view_shape

_MAX_SIZE = 8192  # of a view in pixels; the network would need more memory than there is
_MAX_ASPECT = 1000  # a view of a longer strip would be enlarged by as much before its ends are cut
_OPENCV_MAX_PIXELS = 2**30  # OpenCV's own limit, fixed at the moment it is imported
_REDUCED_MARGIN = 1.9  # a reduced JPEG must stay this much larger than the view
_REDUCED_FLAGS = {8: 64, 4: 32, 2: 16}  # the bit that IMREAD_REDUCED_COLOR_N adds to IMREAD_COLOR
_MIRROR = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF orientation -> cv2.flip after transposing

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Decoded:
    """A picture, RGB, and where it is not fully transparent; `opaque` None is everywhere.

    The pixels are turned as `header` says, and may be fewer.
    """

    header: ImageHeader
    rgb: UInt8[np.ndarray, "height width 3"]
    opaque: Bool[np.ndarray, "height width"] | None


def decode(data: bytes, config: PhotoConfig, *, reduce: bool = False) -> Decoded:
    """Return the picture in a file, upright.

    Args:
        data: the whole file; its content tells the format.
        config: limits, and the size of the view.
        reduce: let JPEGs decode at 1/2, 1/4 or 1/8 where a view of `config.size` loses nothing.

    Raises:
        InputError: when the file cannot be decoded, or is over a limit; the text is the reason
            alone.
        MemoryShortageError: when it needs more memory than is free; the text alike.
    """
    heic = image_format(data) == "heic"
    try:
        return _upright(
            _decode_heic(data, config) if heic else _decode(data, config, reduce=reduce)
        )
    except (MemoryError, cv2.error) as error:
        if isinstance(error, MemoryError) or error.code == cv2.Error.StsNoMem:
            raise MemoryShortageError("needs more memory than is free") from error
        raise InputError("cannot be decoded") from error


def view_size(config: PhotoConfig) -> int:
    """Return the long edge of views in pixels; None is that of the embedded weights.

    Raises:
        UsageError: when it is out of range.
    """
    size = ModelConfig.image_size if config.size is None else config.size
    if not config.patch_size <= size <= _MAX_SIZE:
        raise UsageError(
            f"a view of {size} pixels is out of range."
            f" Give a size from {config.patch_size} to {_MAX_SIZE}."
        )
    return size


def _decode(data: bytes, config: PhotoConfig, *, reduce: bool) -> Decoded:
    header = read_header(data)
    _check_pixels(header.width, header.height, config)
    if not header.has_end:
        data = _ended(data)
    factor = _reduction(header, config) if reduce and header.format == "jpeg" else 1
    if header.format == "tiff":
        data = without_tiff_orientation(data)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED_FLAGS.get(factor, 0)
    buffer = np.frombuffer(data, np.uint8)
    levels = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if header.has_alpha else None
    if levels is not None and levels.shape[2:] == (4,) and levels.dtype == np.uint8:
        # what the flags give, without decoding twice
        rgb: np.ndarray | None = cv2.cvtColor(levels, cv2.COLOR_BGRA2RGB)
    else:
        rgb = cv2.imdecode(buffer, flags)
    if rgb is None or rgb.shape != (header.height // factor, header.width // factor, 3):
        kinds = "; of 32 bits or more it cannot be read" if header.format == "tiff" else ""
        raise InputError(f"damaged or cut short ({header.format.upper()} data{kinds})")
    opaque = None if levels is None else _opaque(levels)
    return Decoded(header=header, rgb=np.asarray(rgb, np.uint8), opaque=opaque)


def _opaque(
    levels: Shaped[np.ndarray, "height width *channel"],
) -> Bool[np.ndarray, "height width"] | None:
    """Return where the fourth channel is not 0; None is everywhere, or that there is none."""
    if levels.shape[2:] != (4,) or levels[..., 3].all():
        return None
    return np.asarray(levels[..., 3] != 0)


def _check_pixels(width: int, height: int, config: PhotoConfig) -> None:
    limit = min(config.max_pixels, _OPENCV_MAX_PIXELS)
    if width * height > limit:
        raise InputError(
            f"{width} x {height} pixels, over the limit of {limit / 1e6:g} million; scale it down"
        )
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise InputError(
            f"{width} x {height} pixels, more than {_MAX_ASPECT} times as long as wide; cut it"
        )


def _ended(data: bytes) -> bytes:
    """Return a JPEG file with the end marker it lacks, if that is all it lacks.

    A decoder makes up missing pixels from whatever follows, so two fillers then give two pictures.

    Raises:
        InputError: when pixels are missing.
    """
    body = data.rstrip(b"\0")
    if body.endswith(b"\xff"):  # half of the marker, or a byte of pixels with its stuffing
        body = body[:-1] if len(body) == len(data) else body + b"\0"
    filler = np.random.default_rng(0).integers(1, 255, 1024, np.uint8).tobytes()
    whole, other = body + JPEG_END, body + filler + JPEG_END
    with _silent_stderr():
        one, two = (
            cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in (whole, other)
        )
    if one is None or two is None or not np.array_equal(one, two):
        raise InputError("damaged or cut short (JPEG, the file ends before the picture does)")
    return whole


def _reduction(header: ImageHeader, config: PhotoConfig) -> int:
    """Return the largest factor that leaves enough pixels for the view and divides both sides.

    Otherwise the last reduced column would reach beyond the photo, and the pixel map with it.
    """
    width, height = header.width, header.height
    shape = view_shape(width, height, view_size(config), config.patch_size)
    wanted = _REDUCED_MARGIN * max(shape.resized_width, shape.resized_height)
    for factor in _REDUCED_FLAGS:
        whole = width % factor == 0 and height % factor == 0
        if whole and max(width, height) / factor >= wanted:
            return factor
    return 1


def _decode_heic(data: bytes, config: PhotoConfig) -> Decoded:
    try:
        pillow_heif: Any = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise InputError("HEIC, which needs: pip install 'pillow-heif>=0.18'") from error
    try:
        image = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
        width, height = image.size
        _check_pixels(width, height, config)
        pixels = np.asarray(image)
    except (ValueError, RuntimeError, OSError, EOFError, SyntaxError) as error:
        raise InputError("damaged or cut short (HEIC data)") from error
    rgb = np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels[..., :3]
    # HEIC turns the picture by a property of its own, already applied here; its EXIF
    # orientation only repeats it (ISO/IEC 23008-12, 6.5.10).
    header = ImageHeader(
        format="heic",
        width=width,
        height=height,
        orientation=1,
        focal_px=focal_px(read_exif(image.info.get("exif") or b""), width, height),
    )
    rgb = np.ascontiguousarray(rgb, np.uint8)
    return Decoded(header=header, rgb=rgb, opaque=_opaque(pixels))


def _upright(stored: Decoded) -> Decoded:
    """Return the picture turned and mirrored as its EXIF orientation says, which then is 1."""
    header, opaque = stored.header, stored.opaque
    width, height = header.width, header.height
    if header.orientation >= 5:
        width, height = height, width
    if opaque is not None:
        opaque = _turned(opaque.view(np.uint8), header.orientation).view(np.bool_)
    return Decoded(
        header=replace(header, width=width, height=height, orientation=1),
        rgb=_turned(stored.rgb, header.orientation),
        opaque=opaque,
    )


def _turned(
    levels: UInt8[np.ndarray, "stored_height stored_width *channel"], orientation: int
) -> UInt8[np.ndarray, "height width *channel"]:
    if orientation >= 5:
        levels = np.asarray(cv2.transpose(levels), np.uint8)
    if orientation in _MIRROR:
        levels = np.asarray(cv2.flip(levels, _MIRROR[orientation]), np.uint8)
    return levels


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep off stderr what libjpeg writes there past Python and OpenCV."""
    with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there may be no stderr
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield
