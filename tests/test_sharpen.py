"""Sharpening: features of a warped picture, whose true places are known to any precision."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from exact_scene import blank_view
from recon3d.config import RefineConfig
from recon3d.features import Features, find_features, view_rgb
from recon3d.matches import Matches
from recon3d.sharpen import guided_matches, sharpen_matches
from recon3d.types import View

HEIGHT, WIDTH = 240, 320  # of the photos
# first photo -> second photo, pixel centres at +0.5: turned, tilted, shifted, a little smaller
HOMOGRAPHY = np.array([[0.93, -0.12, 30.0], [0.1, 0.9, -5.0], [1e-4, 5e-5, 1.0]])
CENTRES = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV's centre of a pixel is at 0


def texture(seed: int) -> np.ndarray:
    """Return blobs of all sizes."""
    generator = np.random.default_rng(seed)
    picture = sum(
        cv2.GaussianBlur(generator.standard_normal((HEIGHT, WIDTH)), (0, 0), sigma) * sigma
        for sigma in (1.5, 3, 6, 12)
    )
    grey = 127 + 45 * picture / picture.std()
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def warped(picture: np.ndarray) -> np.ndarray:
    return cv2.warpPerspective(
        picture,
        np.linalg.inv(CENTRES) @ HOMOGRAPHY @ CENTRES,
        (WIDTH, HEIGHT),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT,
    )


def move(pixels: Tensor) -> Tensor:
    """Map pixels of the first view to the second; views have half the size of the photos."""
    photo = np.c_[2 * pixels.double().numpy(), np.ones(len(pixels))] @ HOMOGRAPHY.T
    return torch.from_numpy(photo[:, :2] / photo[:, 2:] / 2).float()


def coarse(error_px: float) -> Matches:
    """Return true matches on a grid, moved at random."""
    y, x = torch.meshgrid(torch.arange(2, 118, 4), torch.arange(2, 158, 4), indexing="ij")
    pixels_i = torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5
    pixels_j = move(pixels_i) + error_px * torch.randn(len(pixels_i), 2)
    inside = ((pixels_j > 0) & (pixels_j < torch.tensor([160.0, 120.0]))).all(-1)
    return Matches(
        i=0,
        j=1,
        pixels_i=pixels_i[inside],
        pixels_j=pixels_j[inside],
        confidence=torch.ones(int(inside.sum())),
    )


PICTURES = {"0.png": texture(0), "1.png": warped(texture(0)), "2.png": texture(1)}
VIEWS = tuple(blank_view(name, (HEIGHT // 2, WIDTH // 2)) for name in PICTURES)


def rgb_of(view: View) -> np.ndarray:
    return PICTURES[view.name]


def test_sharp_matches_are_exact_to_a_fraction_of_a_pixel() -> None:
    rough = coarse(1.5)
    (sharp,) = sharpen_matches([rough], VIEWS, rgb_of, RefineConfig())
    assert (sharp.i, sharp.j) == (0, 1)
    assert len(sharp.confidence) > 150
    off = (move(sharp.pixels_i) - sharp.pixels_j).norm(dim=-1)
    assert float(off.median()) < 0.1
    assert float(off.quantile(0.95)) < 0.5
    # no bias, as a mistake by half a pixel would leave
    assert float((move(sharp.pixels_i) - sharp.pixels_j).median(dim=0).values.abs().max()) < 0.04
    assert len(sharp.pixels_i.unique(dim=0)) == len(sharp.pixels_j.unique(dim=0)) == len(off)
    assert float(sharp.confidence.min()) >= 0.8


def test_features_lie_where_the_blobs_are() -> None:
    """A blob's centre is found in photos of any size, and in the view through its crop."""
    true = np.array([[100.3, 61.8], [220.0, 150.5]])  # x, y in the full photo
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    grey = 20 + sum(200 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * 5**2)) for a, b in true)
    photo = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    crop = torch.tensor([[0.5, 0.0, -8.0], [0.0, 0.5, -4.0], [0.0, 0.0, 1.0]])
    view = replace(blank_view("b.png", (112, 144)), photo2view=crop)
    view = replace(view, photo_width=WIDTH, photo_height=HEIGHT)
    half = cv2.resize(photo, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    for rgb, config in (
        (photo, RefineConfig()),
        (half, RefineConfig()),
        (photo, RefineConfig(feature_size=200)),
    ):
        found = find_features(view, lambda _, rgb=rgb: rgb, config).pixels
        expected = torch.from_numpy(true / 2 - [8, 4]).float()
        assert float(torch.cdist(expected, found).amin(1).max()) < 0.1


def test_features_outside_the_view_are_dropped() -> None:
    crop = torch.tensor([[1.0, 0.0, -100.0], [0.0, 1.0, -60.0], [0.0, 0.0, 1.0]])
    view = replace(blank_view("0.png", (64, 96)), photo2view=crop)
    view = replace(view, photo_width=WIDTH, photo_height=HEIGHT)
    found = find_features(view, rgb_of, RefineConfig())
    assert len(found.pixels) > 10
    assert len(found.descriptors) == len(found.pixels)
    assert (found.pixels >= 0).all()
    assert (found.pixels < torch.tensor([96.0, 64.0])).all()


def test_the_view_stands_in_for_the_photo() -> None:
    image = torch.from_numpy(texture(0)).permute(2, 0, 1)[:, :64, :64] / 127.5 - 1
    view = replace(blank_view("v.png", (64, 64)), image=image)
    assert np.array_equal(view_rgb(view), texture(0)[:64, :64])
    # the view is a crop of a wide photo: its shape is not the photo's
    view = replace(view, photo_width=300, photo_height=128)
    assert len(find_features(view, view_rgb, RefineConfig()).pixels) > 5
    with pytest.raises(ValueError, match="neither the photo"):
        find_features(view, lambda _: np.zeros((100, 100, 3), np.uint8), RefineConfig())


def test_pairs_without_texture_or_without_overlap_are_left_out() -> None:
    rough = coarse(1.5)
    no_overlap = replace(rough, j=2)
    nothing = replace(
        rough, pixels_i=rough.pixels_i[:0], pixels_j=rough.pixels_j[:0], confidence=torch.zeros(0)
    )
    kept = sharpen_matches([nothing, no_overlap, rough], VIEWS, rgb_of, RefineConfig())
    assert [(one.i, one.j) for one in kept] == [(0, 1)]
    flat = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert sharpen_matches([rough], VIEWS, lambda _: flat, RefineConfig()) == []


def slow_guided(one: Matches, first: Features, second: Features, config: RefineConfig) -> set:
    """Compare every feature with every other, one at a time."""
    radius = config.search_radius * max(VIEWS[0].image.shape[-2:])
    root = [
        (f.descriptors.double() / f.descriptors.double().sum(-1, keepdim=True)).sqrt()
        for f in (first, second)
    ]
    similarity = -torch.ones(len(root[0]), len(root[1])).double()
    for m, pixel in enumerate(first.pixels):
        distance = (one.pixels_i - pixel).norm(dim=-1)
        for k in distance.argsort()[:3].tolist():
            guess = one.pixels_j[k] + pixel - one.pixels_i[k]
            for n, other in enumerate(second.pixels):
                if distance[k] <= radius and (guess - other).norm() <= radius:
                    similarity[m, n] = root[0][m] @ root[1][n]
    found = set()
    for m, row in enumerate(similarity):
        n = int(row.argmax())
        best, other = (2 - 2 * row.topk(2).values).clamp_min(0).sqrt().tolist()
        mutual = int(similarity[:, n].argmax()) == m
        if mutual and row[n] >= 0.8 and best <= config.max_ratio * other:
            found.add((*first.pixels[m].tolist(), *second.pixels[n].tolist()))
    return found


def test_guided_search_against_a_slow_one() -> None:
    config = RefineConfig(max_features=60)
    rough = coarse(2.0)
    first, second = (find_features(view, rgb_of, config) for view in VIEWS[:2])
    found = guided_matches(rough, first, second, VIEWS, config)
    rows = {tuple(row) for row in torch.cat((found.pixels_i, found.pixels_j), dim=1).tolist()}
    slow = slow_guided(rough, first, second, config)
    assert len(rows) > 10
    assert rows <= slow  # equal but for pixels with two orientations, of which one stays
    assert {row[:2] for row in rows} == {row[:2] for row in slow}
