"""What EXIF says that reconstruction needs: orientation and focal length.

EXIF is a TIFF directory inside another file; TIFF files are read through the same directory
reader. The bytes are untrusted: every read is checked against the end of the block.

Source: CIPA DC-008 (Exif 2.32), TIFF 6.0 section 2.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

ORIENTATION = 0x0112
"""The TIFF and EXIF tag that says how the stored picture is turned, 1 to 8."""
_EXIF_DIRECTORY = 0x8769
_FOCAL_MM = 0x920A
_FOCAL_35MM = 0xA405
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_PLANE_X_RESOLUTION = 0xA20E
_PLANE_UNIT = 0xA210

_FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # inch, centimetre; 4 and 5 are written by some
_FOCAL_RANGE = (0.2, 50.0)  # times the long edge: from fisheye to telescope
_MAX_ENTRIES = 1024

# TIFF type number -> struct letter of one value; text and opaque bytes are never needed.
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}
_RATIONALS = {5: "II", 10: "ii"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """First number of one directory entry, and where the entry lies in the block."""

    value: float
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Exif:
    """Orientation 1 to 8 (1 = upright) and the focal tags; None where absent or senseless."""

    orientation: int = 1
    focal_mm: float | None = None
    focal_35mm: float | None = None
    pixel_width: float | None = None
    pixel_height: float | None = None
    plane_pixels_per_mm: float | None = None


def byte_order(block: bytes) -> str:
    """Return the `struct` prefix of a TIFF block.

    Raises:
        ValueError: when the block does not start with a TIFF header.
    """
    for mark, order in ((b"II*\0", "<"), (b"MM\0*", ">")):
        if block.startswith(mark):
            return order
    raise ValueError("not a TIFF header")


def read_directory(block: bytes, offset: int | None = None) -> dict[int, Entry]:
    """Return the numeric entries of one directory by tag; of a repeated tag the first counts.

    Args:
        block: bytes from the TIFF header on; all offsets count from its start.
        offset: start of the directory, by default the first one. Entries that point outside
            the block are skipped.

    Raises:
        ValueError: when the header or the directory itself is damaged or cut short.
    """
    order = byte_order(block)
    try:
        if offset is None:
            (offset,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, offset)
    except struct.error as error:
        raise ValueError("TIFF directory outside the file") from error
    entries: dict[int, Entry] = {}
    for start in range(offset + 2, offset + 2 + 12 * min(count, _MAX_ENTRIES), 12):
        if start + 12 > len(block):
            break
        tag, kind, n_values = struct.unpack_from(order + "HHI", block, start)
        value = _read_value(block, order, kind, n_values, start + 8)
        if value is not None:
            entries.setdefault(tag, Entry(value=value, offset=start))
    return entries


def _read_value(block: bytes, order: str, kind: int, n_values: int, start: int) -> float | None:
    letters = _NUMBERS.get(kind) or _RATIONALS.get(kind)
    if letters is None or n_values == 0:
        return None
    layout = order + letters
    try:
        # Values of more than four bytes lie elsewhere, at the offset written in their place.
        if struct.calcsize(layout) * n_values > 4:
            (start,) = struct.unpack_from(order + "I", block, start)
        first, *rest = struct.unpack_from(layout, block, start)
    except struct.error:
        return None
    if not rest:
        return float(first)
    return float(first / rest[0]) if rest[0] else None


def upright_tag(block: bytes, offset: int) -> bytes:
    """Return the block with the entry at `offset` replaced by "orientation 1"."""
    patched = bytearray(block)
    struct.pack_into(byte_order(block) + "HHIHH", patched, offset, ORIENTATION, 3, 1, 1, 0)
    return bytes(patched)


def read_exif(block: bytes) -> Exif:
    """Return what an EXIF block says; a damaged block counts as one that says nothing.

    Args:
        block: from the TIFF header on, or with the `Exif` mark of JPEG in front.
    """
    block = block.removeprefix(b"Exif\0\0")
    try:
        main = read_directory(block)
    except ValueError:
        return Exif()
    camera: Mapping[int, Entry] = {}
    if (pointer := main.get(_EXIF_DIRECTORY)) is not None and pointer.value >= 8:
        try:
            camera = read_directory(block, int(pointer.value))
        except (ValueError, OverflowError):
            camera = {}

    def positive(tag: int) -> float | None:
        entry = camera.get(tag)
        return entry.value if entry is not None and 0 < entry.value < math.inf else None

    resolution = positive(_PLANE_X_RESOLUTION)
    unit_mm = _UNIT_MM.get(int(positive(_PLANE_UNIT) or 2))
    return Exif(
        orientation=orientation_of(main),
        focal_mm=positive(_FOCAL_MM),
        focal_35mm=positive(_FOCAL_35MM),
        pixel_width=positive(_PIXEL_WIDTH),
        pixel_height=positive(_PIXEL_HEIGHT),
        plane_pixels_per_mm=resolution / unit_mm if resolution and unit_mm else None,
    )


def orientation_of(entries: Mapping[int, Entry]) -> int:
    """Return the orientation 1 to 8; absent or senseless values count as upright."""
    entry = entries.get(ORIENTATION)
    return int(entry.value) if entry is not None and entry.value in range(1, 9) else 1


def focal_px(exif: Exif, width: int, height: int) -> float | None:
    """Return the focal length in pixels of a stored picture of `width` x `height`, or None.

    The 35 mm equivalent is defined by the diagonal of the picture (Exif 2.32, tag A405:
    36 mm x 24 mm film). Without it the pixel pitch of the sensor is used, scaled when the
    picture has been resized since. Values no lens has are dropped.
    """
    if exif.focal_35mm is not None:
        focal = exif.focal_35mm * math.hypot(width, height) / _FILM_DIAGONAL_MM
    elif exif.focal_mm is not None and exif.plane_pixels_per_mm is not None:
        focal = exif.focal_mm * exif.plane_pixels_per_mm * _shrinkage(exif, width, height)
    else:
        return None
    low, high = _FOCAL_RANGE
    long_edge = max(width, height)
    return focal if low * long_edge <= focal <= high * long_edge else None


def _shrinkage(exif: Exif, width: int, height: int) -> float:
    """Return by how much a picture became smaller since its EXIF data were written.

    It may have been turned upright since, and its sides with it.
    """
    if exif.pixel_width is None:
        return 1.0
    if exif.pixel_height is None:
        turned = width < height == exif.pixel_width
        return (height if turned else width) / exif.pixel_width
    return max(width, height) / max(exif.pixel_width, exif.pixel_height)
