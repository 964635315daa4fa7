"""Damaged and hostile files, and HEIC: a photo or one clear reason, never another exception."""

import os
import random
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest

from picture_bytes import (
    EXTENSIONS,
    encode,
    encode_transparent,
    exif_block,
    quarters,
    texture,
    with_exif,
)
from recon3d.config import PhotoConfig
from recon3d.errors import InputError
from recon3d.photos import read_photo
from recon3d.views import make_view

CONFIG = PhotoConfig(size=64)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read(folder: Path, data: bytes):
    return read_photo(write(folder, "file.bin", data), "file.bin", CONFIG)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_cut_short_is_unreadable(tmp_path, extension):
    alpha = np.eye(240, 320, dtype=np.uint8)
    for data in (
        encode(extension, texture(320, 240)),
        encode_transparent(extension, texture(320, 240), alpha),
    ):
        for share in (0.02, 0.3, 0.7, 0.98):
            with pytest.raises(InputError, match=r"damaged or cut short|not a photograph"):
                read(tmp_path, data[: int(len(data) * share)])


@pytest.mark.parametrize("progressive", [0, 1])
def test_jpeg_that_ends_early_or_is_filled_with_zeros(tmp_path, progressive):
    options = (cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    data = encode(".jpg", texture(320, 240), options)
    half = data[: len(data) // 2]
    for damaged in (
        data[:-3],
        data[:-9],
        data[:-99],
        half,
        half + bytes(len(half)),
        half + b"\xff",
    ):
        with pytest.raises(InputError, match=r"cut short .*the file ends before the picture does"):
            read(tmp_path, damaged)


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_jpeg_that_lacks_only_its_end_marker_is_whole(tmp_path, progressive, seed, capfd):
    pixels = np.random.default_rng(seed).integers(0, 256, (60 + seed, 80, 3)).astype(np.uint8)
    data = encode(".jpg", pixels, (cv2.IMWRITE_JPEG_PROGRESSIVE, progressive))
    whole = read(tmp_path, data)
    for damaged in (data[:-1], data[:-2], data[:-2] + bytes(500)):
        np.testing.assert_array_equal(read(tmp_path, damaged).rgb, whole.rgb)
    os.write(2, b"back")
    assert capfd.readouterr().err == "back"


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_fuzz_gives_a_photo_or_a_reason(tmp_path, extension, alpha):
    source = random.Random(extension)
    width, height = 48, 33
    whole = encode(extension, texture(width, height))
    if alpha:
        hidden = np.eye(height, width, dtype=np.uint8)
        whole = encode_transparent(extension, texture(width, height), hidden)
    if extension in (".jpg", ".png", ".webp"):
        block = exif_block(6, {0xA405: (3, 28), 0x920A: (5, 28, 1)})
        whole = with_exif(whole, block, width, height)
    config = PhotoConfig(size=64, max_pixels=20_000_000)
    read_well, reasons = 0, set()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(source.choice((1, 2, 8))):
            # Half of the damage goes to the headers, where it does the most.
            end = len(data) if source.random() < 0.5 else min(150, len(data))
            data[source.randrange(end)] = source.choice((0, 1, 127, 255, source.randrange(256)))
        if source.random() < 0.3:
            del data[source.randrange(len(data)) :]
        path = write(tmp_path, "fuzz.bin", bytes(data))
        try:
            photo = read_photo(path, "fuzz", config, reduce=True)
        except InputError as error:
            reasons.add(str(error))
            continue
        view = make_view(photo, 64, 16)
        assert view.image.isfinite().all()
        assert view.mask is None or view.mask.shape == view.image.shape[1:]
        read_well += 1
    assert 0 < read_well < 200
    assert not any("\n" in reason for reason in reasons)


def test_heic_without_its_reader_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(50)
    with pytest.raises(InputError, match=r"pip install .pillow-heif>="):
        read(tmp_path, data)


def test_heic_through_its_reader(tmp_path, monkeypatch):
    """The reader turns the picture itself, so its EXIF orientation is not applied again."""
    pixels = quarters(64, 48)
    info = {"exif": b"Exif\0\0" + exif_block(6, {0xA405: (3, 26)})}

    class Opened:
        size = (64, 48)

        def __init__(self):
            self.info = info

        def __array__(self, dtype=None, copy=None):
            return np.dstack((pixels, np.eye(48, 64, dtype=np.uint8)))

    def open_heif(data, *, convert_hdr_to_8bit):
        assert convert_hdr_to_8bit
        if len(data) < 60:
            raise ValueError("no meta box")
        return Opened()

    reader = types.SimpleNamespace(open_heif=open_heif)
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    head = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"
    photo = read(tmp_path, head + bytes(50))
    np.testing.assert_array_equal(photo.rgb, pixels)
    np.testing.assert_array_equal(photo.opaque, np.eye(48, 64) > 0)
    assert photo.focal_px == pytest.approx(26 / 43.2666 * 80, rel=1e-4)
    with pytest.raises(InputError, match="HEIC data"):
        read(tmp_path, head)
    path = write(tmp_path, "a.heic", head + bytes(50))
    with pytest.raises(InputError, match="over the limit"):
        read_photo(path, "a", PhotoConfig(max_pixels=1000))


def test_heic_file_of_the_real_library(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = quarters(96, 64)
    path = tmp_path / "a.heic"
    heif = pillow_heif.from_bytes("RGB", (96, 64), pixels.tobytes())
    heif.save(path, quality=90, exif=exif_block(1, {0xA405: (3, 26)}))
    photo = read_photo(path, "a.heic", CONFIG)
    assert np.abs(photo.rgb[8::16, 8::16].astype(int) - pixels[8::16, 8::16]).max() < 20
    assert photo.focal_px is not None
    with pytest.raises(InputError, match="HEIC data"):
        read(tmp_path, path.read_bytes()[:-40])
