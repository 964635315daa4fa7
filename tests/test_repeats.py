"""Copies of a photo count once, however they were saved; photos from nearby are no copies."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from picture_bytes import encode, texture
from recon3d.config import PhotoConfig
from recon3d.errors import InputError
from recon3d.photos import load_views

CONFIG = PhotoConfig(size=224)
QUALITY = cv2.IMWRITE_JPEG_QUALITY


def scene(seed: int = 0, left: int = 0) -> np.ndarray:
    """Return a picture of large and small things, from 896 pixels wide; `left` moves it."""
    wide = texture(1000, 640, seed=seed)
    fine = cv2.resize(
        np.random.default_rng(seed).integers(0, 90, (160, 250, 3)).astype(np.float32), (1000, 640)
    )
    return (0.6 * wide + fine).astype(np.uint8)[:, left : left + 896]


def left_out(folder: Path, pictures: dict[str, bytes]) -> dict[str, str]:
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    views, unusable = load_views([str(folder)], CONFIG)
    reasons = {entry.name: entry.reason for entry in unusable}
    assert {view.name for view in views} | set(reasons) == set(pictures)
    return reasons


def test_of_copies_the_largest_is_used(tmp_path: Path) -> None:
    picture = scene()
    half = cv2.resize(picture, (448, 320), interpolation=cv2.INTER_AREA)
    reasons = left_out(
        tmp_path,
        {
            "0 half.png": encode(".png", half),
            "1.png": encode(".png", picture),
            "2 again.jpg": encode(".jpg", picture, (QUALITY, 50)),
            "3 small.jpg": encode(".jpg", half, (QUALITY, 60)),
            "4.png": encode(".png", scene(1)),
        },
    )
    assert reasons == dict.fromkeys(
        ("0 half.png", "2 again.jpg", "3 small.jpg"), "same picture as 1.png"
    )


def test_what_is_moved_a_little_or_blank_is_no_copy(tmp_path: Path) -> None:
    grey = {f"grey{n}.png": np.full((640, 896, 3), 100 + n, np.uint8) for n in range(2)}
    moved = {f"{n}.png": scene(left=6 * n) for n in range(3)}  # by 0.7 % of the width
    pictures = {name: encode(".png", rgb) for name, rgb in (grey | moved).items()}
    assert left_out(tmp_path, pictures) == {}


def test_copies_alone_are_too_few(tmp_path: Path) -> None:
    copies = {f"{q}.jpg": encode(".jpg", scene(), (QUALITY, q)) for q in (60, 90)}
    with pytest.raises(InputError, match=r"only one is .*90\.jpg: same picture as 60\.jpg"):
        left_out(tmp_path, copies)
