"""Features of compressed photos: where they lie, what their frames say, and what is left out."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from exact_scene import blank_view
from recon3d import wide_features
from recon3d.config import RefineConfig
from recon3d.features import find_features
from recon3d.types import View
from recon3d.wide_features import (
    N_PICTURES,
    WideFeatures,
    find_wide_features,
    find_wide_patches,
)

HEIGHT, WIDTH = 240, 320
VIEW = blank_view("0.png", (HEIGHT // 2, WIDTH // 2))
BLOBS = ((60, 60, 4), (240, 60, 14), (160, 180, 8), (250, 190, 6))
CONFIG = RefineConfig(wide_features=300)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def blobs() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    picture = np.full((HEIGHT, WIDTH), 100.0)
    for x, y, sigma in BLOBS:
        picture += 100 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return rgb(picture)


def found(picture: np.ndarray, config: RefineConfig = CONFIG) -> WideFeatures:
    return find_wide_features(VIEW, lambda _: picture, config)


def test_every_compression_finds_the_same_places() -> None:
    features = found(blobs())
    centres = torch.tensor([[x / 2, y / 2] for x, y, _ in BLOBS])
    off = features.pixels[:, None] - centres
    distance, nearest = off.norm(dim=-1).min(dim=1)
    assert len(distance) > 100  # ASIFT's 42 pictures and the photo see four blobs
    for n in range(len(BLOBS)):
        own = (nearest == n) & (distance < 1.5)
        assert int(own.sum()) > 20
        # half a pixel of any of the pictures, taken for another, would show
        assert float(off[own, n].mean(0).norm()) < 0.1
        assert float(distance[own].median()) < 0.25


def test_masked_features_are_left_out() -> None:
    mask = torch.ones(VIEW.image.shape[1:], dtype=torch.bool)
    mask[:, 80:] = False
    masked = find_wide_features(replace(VIEW, mask=mask), lambda _: blobs(), CONFIG)
    everywhere = found(blobs())
    kept = everywhere.pixels[:, 0] < 80
    assert torch.equal(masked.pixels, everywhere.pixels[kept])
    assert torch.equal(masked.frames, everywhere.frames[kept])
    assert torch.equal(masked.descriptors, everywhere.descriptors[kept])
    assert 0 < len(masked.pixels) < len(kept)


def test_the_uncompressed_photo_has_the_features_of_plain_sift() -> None:
    config = RefineConfig(max_features=200, wide_features=200)
    plain = find_features(VIEW, lambda _: blobs(), config)
    apart = plain.pixels[:, None] - found(blobs(), config).pixels
    assert float(apart.abs().sum(-1).min(dim=1).values.max()) < 1e-4


@pytest.mark.parametrize("angle_deg", [0, 30])
def test_frames_follow_an_affine_map(angle_deg: float) -> None:
    """A picture compressed by 2.5: frames of similar features say by how much, and where to."""
    generator = np.random.default_rng(0)
    picture = sum(
        cv2.GaussianBlur(generator.standard_normal((HEIGHT, WIDTH)), (0, 0), sigma) * sigma
        for sigma in (3, 6, 12)
    )
    picture = 127 + 45 * picture / picture.std()
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    turn = np.array([[cos, -sin], [sin, cos]])
    squeeze = turn.T @ np.diag((1 / 2.5, 1.0)) @ turn
    middle = np.array([WIDTH / 2, HEIGHT / 2])
    matrix = np.c_[squeeze, middle - 0.5 - squeeze @ (middle - 0.5)]
    other = cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderValue=127)
    first, second = found(rgb(picture)), found(rgb(other))
    similarity, partner = (first.descriptors @ second.descriptors.T).max(dim=1)
    best = similarity.argsort(descending=True)[:100]
    maps = second.frames[partner[best]] @ torch.linalg.inv(first.frames[best])
    expected = torch.from_numpy(squeeze).float()
    assert float((maps - expected).flatten(1).norm(dim=1).median()) < 0.25
    landed = (first.pixels[best] - torch.from_numpy(middle / 2).float()) @ expected.T
    off = landed + torch.from_numpy(middle / 2).float() - second.pixels[partner[best]]
    assert float(off.norm(dim=1).median()) < 0.3


def test_the_border_of_the_photo_has_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undistorted photos have a black rim, the same in all."""
    picture = rgb(127 + 40 * np.random.default_rng(1).standard_normal((HEIGHT, WIDTH)))
    size = torch.tensor([WIDTH / 2, HEIGHT / 2])
    least = []
    for margin in (0.01, 0.1):
        monkeypatch.setattr("recon3d.wide_features.RIM", margin)
        pixels = found(picture).pixels
        least.append(float(torch.minimum(pixels, size - pixels).min()))
    assert 0.01 * WIDTH / 2 < least[0] < 0.1 * WIDTH / 2 < least[1]


def test_an_empty_picture_has_no_features() -> None:
    features = found(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    assert features.pixels.shape == (0, 2)
    assert features.frames.shape == (0, 2, 2)
    assert features.descriptors.shape == (0, 128)


def test_a_photo_of_a_dark_room_has_features() -> None:
    """A few grey levels of texture, where plain features see next to nothing."""
    chance = np.random.default_rng(3)
    texture = cv2.GaussianBlur(chance.standard_normal((HEIGHT, WIDTH)), (0, 0), 3)
    dark = rgb(12 + 2 * texture / texture.std())
    assert len(find_features(VIEW, lambda _: dark, CONFIG).pixels) < 10
    assert len(found(dark).pixels) > 300


def test_all_pictures_of_a_photo_are_counted() -> None:
    grey = blobs()[..., 0]
    everywhere = find_wide_patches(grey, 50)
    apart = [find_wide_patches(grey, 50, {n}) for n in range(N_PICTURES)]
    assert all(len(one.pixels) for one in apart)
    assert sum(len(one.pixels) for one in apart) == len(everywhere.pixels)
    assert everywhere.patches.shape == (len(everywhere.pixels), 32, 32)
    assert not len(find_wide_patches(grey, 50, {N_PICTURES}).pixels)


def test_a_large_photo_is_reduced() -> None:
    picture = rgb(127 + 40 * np.random.default_rng(2).standard_normal((HEIGHT, WIDTH)))
    small, large = (
        found(picture, RefineConfig(wide_features=3000, wide_size=size)) for size in (160, 320)
    )
    assert 0 < len(small.pixels) < 0.5 * len(large.pixels)
    assert float(small.pixels[:, 0].max()) > 0.45 * WIDTH  # of the whole view, though


@pytest.mark.parametrize(("width", "height"), [(400, 100), (100, 400), (200, 200)])
def test_photos_of_all_shapes_get_as_many_pixels(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    long_edge = []

    def grey(view: View, rgb_of: object, most: int) -> tuple[np.ndarray, np.ndarray]:
        long_edge.append(most)
        return np.zeros((10, 10), np.uint8), np.eye(3)

    monkeypatch.setattr(wide_features, "grey_photo", grey)
    view = replace(VIEW, photo_width=width, photo_height=height)
    find_wide_features(view, lambda _: np.zeros((height, width, 3)), RefineConfig(wide_size=50))
    scale = long_edge[0] / max(width, height)
    assert scale**2 * width * height == pytest.approx(50**2, rel=0.02)
