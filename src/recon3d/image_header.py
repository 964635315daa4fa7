"""Size, orientation and focal length of a picture from its first bytes, before decoding.

The size is known, and can be refused, before any memory is set aside for pixels. Formats are
told apart by their content, never by the name of the file. The bytes are untrusted.

Source: ITU-T T.81 annex B (JPEG), PNG 3rd edition, RFC 9649 (WebP), TIFF 6.0, BITMAPINFOHEADER.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from recon3d.errors import InputError
from recon3d.exif import (
    ORIENTATION,
    Exif,
    focal_px,
    read_directory,
    read_exif,
    upright_tag,
)

JPEG_END = b"\xff\xd9"
"""The marker behind the last pixel."""

_MAX_STEPS = 200_000  # segments or chunks walked in one file: hostile files hold millions
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_COLOURS, _TIFF_SAMPLES, _TIFF_EXTRA = 256, 257, 262, 277, 338
_TIFF_RGB, _TIFF_NO_ALPHA = 2, 0  # colours are RGB; the fourth sample is something else
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """Size in pixels as stored, before `orientation` (EXIF, 1 to 8) is applied.

    `has_alpha` says that pixels may be transparent. `has_end` is false for a JPEG file without its
    end marker: cut short, or only that was lost.
    """

    format: str
    width: int
    height: int
    orientation: int
    focal_px: float | None
    has_alpha: bool = False
    has_end: bool = True


class _Found(NamedTuple):
    """What one kind of file says of its picture."""

    width: int
    height: int
    exif: Exif
    has_alpha: bool = False


def image_format(data: bytes) -> str | None:
    """Return "jpeg", "png", "webp", "tiff", "bmp" or "heic", None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    if data.startswith(b"BM"):
        return "bmp"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "heic"
    return None


def read_header(data: bytes) -> ImageHeader:
    """Return the header of a JPEG, PNG, WebP, TIFF or BMP file given as its whole bytes.

    Raises:
        InputError: when the file is of another format, damaged or cut short; the text is the
            reason alone, without a file name.
    """
    kind = image_format(data)
    if kind not in _READERS:
        raise InputError("not a photograph in a known format (JPEG, PNG, WebP, TIFF, BMP)")
    try:
        width, height, exif, has_alpha = _READERS[kind](data)
    except (struct.error, IndexError, ValueError, OverflowError) as error:
        raise InputError(f"damaged or cut short ({kind.upper()} header)") from error
    if width <= 0 or height <= 0:
        raise InputError(f"damaged (the header says {width} x {height} pixels)")
    return ImageHeader(
        format=kind,
        width=width,
        height=height,
        orientation=exif.orientation,
        focal_px=focal_px(exif, width, height),
        has_alpha=has_alpha,
        has_end=kind != "jpeg" or _has_jpeg_end(data),
    )


def without_tiff_orientation(data: bytes) -> bytes:
    """Return a TIFF file with its orientation tag set to upright.

    OpenCV's TIFF decoder turns the picture whatever its flags say; without the tag there is
    nothing left to turn, and the orientation is applied once, where all formats get it.
    """
    entry = read_directory(data).get(ORIENTATION)
    if entry is None or entry.value == 1:
        return data
    return upright_tag(data, entry.offset)


def _read_jpeg(data: bytes) -> _Found:
    size: tuple[int, int] | None = None
    exif: Exif | None = None
    for code, offset in _jpeg_segments(data):
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if code == 0xE1 and exif is None and data[offset + 4 : offset + 10] == b"Exif\0\0":
            exif = read_exif(data[offset + 4 : offset + 2 + length])
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack_from(">HH", data, offset + 5)
            size = (width, height)
    if size is None:
        raise ValueError("no frame header")
    return _Found(*size, exif or Exif())


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield code and offset of each segment with content, up to the start of the first scan."""
    offset = 2
    for _ in range(_MAX_STEPS):
        offset = data.index(b"\xff", offset)  # decoders pass over bytes that pad a segment
        code = data[offset + 1]
        if code == 0xFF:  # fill byte
            offset += 1
            continue
        if code in (0x00, 0x01) or 0xD0 <= code <= 0xD8:  # padding, markers without content
            offset += 2
            continue
        yield code, offset
        if code == 0xDA:  # start of scan: no more headers
            return
        (length,) = struct.unpack_from(">H", data, offset + 2)
        offset += 2 + max(length, 2)


def _has_jpeg_end(data: bytes) -> bool:
    *_, (_, scan) = _jpeg_segments(data)
    # Searched from the end, so instant for whole files; cameras append films after the marker.
    return data.rfind(JPEG_END, scan) >= 0


def _read_png(data: bytes) -> _Found:
    if data[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    exif = Exif()
    has_alpha = bool(data[25] & 4)  # the bit of the colour type
    offset = 8
    for _ in range(_MAX_STEPS):
        (length,) = struct.unpack_from(">I", data, offset)
        kind = data[offset + 4 : offset + 8]
        if kind == b"IEND":
            return _Found(width, height, exif, has_alpha)
        has_alpha |= kind == b"tRNS"
        if kind == b"eXIf":
            exif = read_exif(data[offset + 8 : offset + 8 + length])
        # A length beyond the file ends the walk with an error at the next read. The decoder
        # would believe it, and spend gigabytes and many seconds on a file of a few bytes.
        offset += 12 + length
    raise ValueError("more chunks than any photograph has")


def _read_webp(data: bytes) -> _Found:
    kind = data[12:16]
    if kind == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise ValueError("no key frame")
        width, height = struct.unpack_from("<HH", data, 26)
        return _Found(width & 0x3FFF, height & 0x3FFF, Exif())
    if kind == b"VP8L":
        mark, bits = struct.unpack_from("<BI", data, 20)
        if mark != 0x2F:
            raise ValueError("no lossless signature")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return _Found(width, height, Exif(), bool(bits >> 28 & 1))
    if kind != b"VP8X" or len(data) < 30:
        raise ValueError("unknown first chunk")
    width = int.from_bytes(data[24:27], "little") + 1
    height = int.from_bytes(data[27:30], "little") + 1
    has_alpha = bool(data[20] & 0x10)
    offset = 12
    for _ in range(_MAX_STEPS):
        if offset + 8 > len(data):
            break
        (length,) = struct.unpack_from("<I", data, offset + 4)
        if data[offset : offset + 4] == b"EXIF":
            exif = read_exif(data[offset + 8 : offset + 8 + length])
            return _Found(width, height, exif, has_alpha)
        offset += 8 + length + length % 2
    return _Found(width, height, Exif(), has_alpha)


def _read_tiff(data: bytes) -> _Found:
    entries = read_directory(data)
    width, height = entries.get(_TIFF_WIDTH), entries.get(_TIFF_HEIGHT)
    if width is None or height is None:
        raise ValueError("no size")
    colours, samples, extra = (
        entries[tag].value if tag in entries else None
        for tag in (_TIFF_COLOURS, _TIFF_SAMPLES, _TIFF_EXTRA)
    )
    has_alpha = colours == _TIFF_RGB and samples == 4 and extra != _TIFF_NO_ALPHA
    return _Found(int(width.value), int(height.value), read_exif(data), has_alpha)


def _read_bmp(data: bytes) -> _Found:
    (header_size,) = struct.unpack_from("<I", data, 14)
    layout = "<HH" if header_size == 12 else "<ii"
    width, height = struct.unpack_from(layout, data, 18)
    return _Found(width, abs(height), Exif())  # a negative height means stored from the top


_READERS = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "webp": _read_webp,
    "tiff": _read_tiff,
    "bmp": _read_bmp,
}
