"""Picture files as bytes, written by hand where no library would write them."""

import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np

EXTENSIONS = (".jpg", ".png", ".webp", ".tif", ".bmp")
MARKS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10))  # red green blue yellow


def quarters(width: int = 48, height: int = 32) -> np.ndarray:
    """Return a picture of four plain quarters: red green over blue yellow."""
    rgb = np.empty((height, width, 3), np.uint8)
    for k, colour in enumerate(MARKS):
        rows = slice(height // 2) if k < 2 else slice(height // 2, None)
        columns = slice(width // 2) if k % 2 == 0 else slice(width // 2, None)
        rgb[rows, columns] = colour
    return rgb


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return a smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(extension: str, rgb: np.ndarray, options: Sequence[int] = ()) -> bytes:
    bgr = np.ascontiguousarray(rgb[..., ::-1]) if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb
    done, data = cv2.imencode(extension, bgr, list(options))
    assert done
    return data.tobytes()


def encode_transparent(
    extension: str, rgb: np.ndarray, alpha: np.ndarray, options: Sequence[int] = ()
) -> bytes:
    """Return a file with an alpha channel; the colours of transparent pixels are kept."""
    return encode(extension, np.dstack((rgb[..., ::-1], alpha)), options)


def directory(order: str, entries: dict[int, tuple], start: int) -> bytes:
    """Return a TIFF directory at offset `start`; values are ints (SHORT, LONG) or fractions."""
    body = struct.pack(order + "H", len(entries))
    tail = b""
    tail_start = start + 2 + 12 * len(entries) + 4
    for tag, (kind, *values) in sorted(entries.items()):
        letter = {3: "H", 4: "I", 5: "I", 10: "i", 12: "d"}[kind]
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        count = len(values) // 2 if kind in (5, 10) else len(values)
        body += struct.pack(order + "HHI", tag, kind, count)
        if len(packed) <= 4:
            body += packed.ljust(4, b"\0")
        else:
            body += struct.pack(order + "I", tail_start + len(tail))
            tail += packed
    return body + struct.pack(order + "I", 0) + tail


def exif_block(
    orientation: int | None = None, camera: dict[int, tuple] | None = None, order: str = "<"
) -> bytes:
    """Return an EXIF block from the TIFF header on; `camera` are tags of the Exif directory."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entries: dict[int, tuple] = {}
    if orientation is not None:
        entries[0x0112] = (3, orientation)
    if camera is None:
        return head + directory(order, entries, 8)
    entries[0x8769] = (4, 8 + 2 + 12 * (len(entries) + 1) + 4)
    main = directory(order, entries, 8)
    return head + main + directory(order, camera, 8 + len(main))


def with_exif(data: bytes, block: bytes, width: int, height: int) -> bytes:
    """Return a JPEG, PNG or WebP file of that size with an EXIF block put in."""
    if data.startswith(b"\xff\xd8"):
        content = b"Exif\0\0" + block
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]
    if data.startswith(b"\x89PNG"):
        chunk = b"eXIf" + block
        head = struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return data[:33] + head + data[33:]
    has_alpha = data[12:16] == b"VP8L" and data[24] & 16
    extended = bytes([24 if has_alpha else 8, 0, 0, 0])  # the flags "has alpha", "has EXIF"
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"VP8X" + struct.pack("<I", len(extended)) + extended + data[12:]
    chunks += b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def tiff(
    rgb: np.ndarray, order: str, orientation: int | None = None, fourth: int | None = None
) -> bytes:
    """Return an uncompressed TIFF in the given byte order; the orientation tag is optional.

    `fourth` says what a fourth channel is (ExtraSamples: 0 unspecified, 2 alpha).
    """
    height, width, n_channels = rgb.shape
    pixels = rgb.tobytes()
    entries: dict[int, tuple] = {
        256: (3, width),
        257: (3, height),
        258: (3, *(8,) * n_channels),
        259: (3, 1),
        262: (3, 2),
        273: (4, 8),
        277: (3, n_channels),
        278: (3, height),
        279: (4, len(pixels)),
        284: (3, 1),
    }
    if orientation is not None:
        entries[274] = (3, orientation)
    if fourth is not None:
        entries[338] = (3, fourth)
    head = b"II*\0" if order == "<" else b"MM\0*"
    start = 8 + len(pixels)
    return head + struct.pack(order + "I", start) + pixels + directory(order, entries, start)


def png_header(width: int, height: int, colour_type: int = 2) -> bytes:
    """Return a PNG that claims a size and holds hardly any data; type 2 is RGB, 6 RGBA."""
    chunks = b""
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(content)) + kind + content
        chunks += struct.pack(">I", zlib.crc32(kind + content))
    return b"\x89PNG\r\n\x1a\n" + chunks
