"""Patches of features and their descriptors: what changes them, and what must not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from recon3d.errors import WeightsError
from recon3d.features import find_keypoints
from recon3d.patch_net import PatchNet, cut_patches, describe, packaged_patch_net, read_patch_net

HEIGHT, WIDTH = 300, 400


def texture(seed: int = 0) -> np.ndarray:
    """Return a grey picture with structure of all sizes."""
    chance = np.random.default_rng(seed)
    picture = sum(
        cv2.GaussianBlur(chance.standard_normal((HEIGHT, WIDTH)), (0, 0), sigma) * sigma
        for sigma in (1.5, 3, 6, 12, 24)
    )
    return (127 + 45 * picture / picture.std()).clip(0, 255).astype(np.uint8)


def unlikeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of each two patches, in grey levels."""
    return (one.float() - other.float()).abs().mean((1, 2))


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("angle_deg", [0.0, 90.0, 35.0])
def test_a_patch_looks_the_same_in_a_turned_and_scaled_picture(
    scale: float, angle_deg: float
) -> None:
    picture = texture()
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    turn = scale * np.array([[cos, -sin], [sin, cos]])
    centre = np.array([WIDTH, HEIGHT]) / 2
    matrix = np.c_[turn, centre - 0.5 - turn @ (centre - 0.5)]
    smooth = cv2.GaussianBlur(picture, (0, 0), 0.5 / scale)
    other = cv2.warpAffine(smooth, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC)
    pixels = np.random.default_rng(1).uniform(-60, 60, (50, 2)) + centre
    frames = np.eye(2) * np.array([4.0, 7, 3, 5, 9])[np.arange(50) % 5, None, None]
    one = cut_patches(picture, pixels, frames)
    two = cut_patches(other, (pixels - centre) @ turn.T + centre, turn @ frames)
    assert one.shape == (50, 32, 32)
    assert one.dtype == torch.uint8
    alike = unlikeness(one, two)
    assert float(alike.median()) < 4
    assert float(alike.median()) < 0.15 * float(unlikeness(one, two.roll(1, 0)).median())


def test_a_patch_is_the_neighbourhood_of_six_sigmas() -> None:
    """Brightness that rises by one level a pixel tells where each value of a patch comes from."""
    picture = np.tile(np.arange(200, dtype=np.uint8), (150, 1))
    (patch,) = cut_patches(picture, np.array([[100.0, 75.0]]), 3.0 * np.eye(2)[None]).float()
    at = 100.0 + 18 * ((torch.arange(32) + 0.5) / 16 - 1) - 0.5  # the centre of pixel 0 is at 0.5
    assert float((patch - at).abs().max()) < 1.2
    assert cut_patches(picture, np.zeros((0, 2)), np.zeros((0, 2, 2))).shape == (0, 32, 32)


def test_brightness_and_contrast_make_no_difference() -> None:
    pixels = np.random.default_rng(2).uniform((60, 60), (340, 240), (40, 2))
    frames = np.repeat(4.0 * np.eye(2)[None], 40, axis=0)
    bright = (0.5 * texture() + 90).astype(np.uint8)
    described = [describe(cut_patches(p, pixels, frames)) for p in (texture(), bright)]
    torch.testing.assert_close(described[0].norm(dim=1), torch.ones(40), rtol=1e-4, atol=1e-4)
    assert float((described[0] * described[1]).sum(1).min()) > 0.95
    assert describe(torch.zeros(0, 32, 32, dtype=torch.uint8)).shape == (0, 128)
    assert describe(torch.full((1, 32, 32), 7, dtype=torch.uint8)).isfinite().all()


def test_the_packaged_descriptor_tells_features_apart() -> None:
    """Features of a photo find their own in one that is seen from aside, noisy and darker."""
    picture = cv2.imread("sample_data/room/images/0001.jpg", cv2.IMREAD_GRAYSCALE)
    height, width = picture.shape
    squeeze = np.array([[0.7, 0.15], [-0.1, 0.9]])
    matrix = np.c_[squeeze, [60.0, 30.0]]
    other = 0.7 * cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_AREA)
    other = other + np.random.default_rng(3).normal(0, 4, other.shape)
    other = other.clip(0, 255).astype(np.uint8)
    keypoints, pixels = find_keypoints(picture, 400)
    frames = np.array([one.size / 2 for one in keypoints])[:, None, None] * np.eye(2)
    moved = (pixels - 0.5) @ squeeze.T + matrix[:, 2] + 0.5
    first = describe(cut_patches(picture, pixels, frames))
    # as far off in place, size and direction as features are
    chance = np.random.default_rng(4)
    angle = chance.normal(0, 0.15, len(pixels))
    turn = np.stack((np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)), -1)
    off = np.einsum("nab,nb->na", frames, chance.normal(0, 0.3, pixels.shape))
    jitter = turn.reshape(-1, 2, 2) * np.exp(chance.normal(0, 0.15, len(pixels)))[:, None, None]
    second = describe(cut_patches(other, moved + off @ squeeze.T, squeeze @ frames @ jitter))
    nearest = (first @ second.T).argmax(dim=1)
    away = np.linalg.norm(moved[nearest.numpy()] - moved, axis=1)
    share = float((away < 6).mean())
    assert len(pixels) > 200
    assert share > 0.8
    random = PatchNet().eval()
    blind = describe(cut_patches(picture, pixels, frames), random) @ second.T
    assert float((blind.argmax(1) == torch.arange(len(pixels))).float().mean()) < 0.1


def test_merged_normalisations_change_nothing() -> None:
    merged = packaged_patch_net()
    path = Path(__file__).parents[1] / "src" / "recon3d" / "data" / "descriptor.safetensors"
    plain = read_patch_net(path)
    patches = torch.randint(0, 256, (20, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(merged(patches), plain(patches), rtol=1e-4, atol=1e-4)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    with pytest.raises(WeightsError, match="cannot be read"):
        read_patch_net(path)
    path.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_patch_net(path)
    save_file({"layers.0.weight": torch.zeros(32, 4, 3, 3)}, path)
    with pytest.raises(WeightsError, match="does not hold"):
        read_patch_net(path)
