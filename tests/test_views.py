"""The shape of a view, its map back to the photo, and its pixels."""

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from picture_bytes import texture
from recon3d.types import Photo
from recon3d.views import MAX_STRETCH, MIN_PATCHES, make_view, view_shape

FIXTURES = Path(
    os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures")
)
SIZES = FIXTURES / "load_images_sizes.json"
CASES = json.loads(SIZES.read_text()) if SIZES.is_file() else []
"""Photos that the published program loaded; no case, and no test of them, without the folder."""


def photo(rgb: np.ndarray, factor: int = 1) -> Photo:
    height, width, _ = rgb.shape
    return Photo(
        path=Path("a.png"),
        name="a.png",
        sha256="0" * 64,
        rgb=rgb,
        width=width * factor,
        height=height * factor,
        focal_px=None,
    )


def reference_picture(width: int, height: int) -> np.ndarray:
    """Return the picture that the reference sizes were measured on (fixtures README)."""
    y, x = np.mgrid[:height, :width]
    blue = 255 * ((x // 7 + y // 5) % 2)
    return np.stack((x * 255 // (width - 1), y * 255 // (height - 1), blue), axis=-1).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    ("photo_wh", "size", "expected_wh"),
    [
        ((4000, 3000), 512, (512, 384)),
        ((3000, 4000), 512, (384, 512)),
        ((4000, 3000), 224, (224, 160)),  # 168 rows, cut to whole patches
        ((1000, 1000), 512, (512, 512)),  # the published protocol cuts squares to 512 x 384
        ((100, 100), 224, (224, 224)),
        ((4000, 1000), 224, (256, 64)),  # 56 rows alone would be 3 patches
        ((1000, 4000), 224, (64, 256)),
        ((7000, 1000), 224, (448, 64)),
        ((9000, 1000), 224, (448, 48)),  # twice the size is the end of stretching
        ((100000, 100), 224, (448, 16)),  # and here the ends are cut
    ],
)
def test_shapes_worked_out_by_hand(photo_wh, size, expected_wh):
    shape = view_shape(*photo_wh, size, 16)
    assert (shape.width, shape.height) == expected_wh


@given(
    st.integers(1, 20000),
    st.integers(1, 20000),
    st.integers(64, 1024),
    st.sampled_from([8, 14, 16]),
)
def test_shape_laws(width, height, size, patch_size):
    shape = view_shape(width, height, size, patch_size)
    assert shape.width % patch_size == shape.height % patch_size == 0
    assert patch_size <= min(shape.width, shape.height)
    assert max(shape.width, shape.height) <= MAX_STRETCH * size
    for resized, cropped, start in (
        (shape.resized_width, shape.width, shape.crop_left),
        (shape.resized_height, shape.height, shape.crop_top),
    ):
        assert abs((resized - cropped) - 2 * start) <= 1  # centred
        if max(width, height) / min(width, height) < MAX_STRETCH * size / patch_size:
            assert resized - cropped < patch_size  # content is kept
    if max(width, height) / min(width, height) < size / (MIN_PATCHES * patch_size + 1):
        assert max(shape.resized_width, shape.resized_height) == size
    turned = view_shape(height, width, size, patch_size)
    assert (turned.width, turned.height) == (shape.height, shape.width)


@pytest.mark.parametrize("arguments", [(0, 5, 224, 16), (5, 5, 15, 16), (5, 5, 224, 0)])
def test_impossible_shapes_are_refused(arguments):
    with pytest.raises(ValueError, match="no view of"):
        view_shape(*arguments)


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda c: (
        f"{c['in_wh'][0]}x{c['in_wh'][1]} at {c['size']}, patch {c['patch_size']}"
        + (", square ok" if c["square_ok"] else "")
    ),
)
def test_shapes_and_pixels_equal_the_reference(case):
    width, height = case["in_wh"]
    if case["size"] == 224 and width != height:
        pytest.skip("not followed: at 224 the published program cuts photos to their middle square")
    if case["size"] != 224 and width == height and not case["square_ok"]:
        pytest.skip("not followed: the published program cuts square photos to 4:3")
    view = make_view(photo(reference_picture(width, height)), case["size"], case["patch_size"])
    assert list(view.image.shape[1:]) == case["out_hw"]
    mean = view.image.mean(dim=(1, 2)).tolist()
    assert mean == pytest.approx(case["mean_per_channel"], abs=0.01)
    # Red and green are ramps, which every filter keeps. Blue is squares of a few pixels: to enlarge
    # them both programs use the bicubic filter, to shrink them the published one uses Lanczos'.
    shrunk = max(width, height) > case["size"]
    levels = (view.image * 127.5 + 127.5).round()
    middle = [side // 2 for side in case["out_hw"]]
    places = {"tl": (0, 0), "tr": (0, -1), "bl": (-1, 0), "br": (-1, -1), "mid": middle}
    for name, (row, column) in places.items():
        *ramps, blue = levels[:, row, column].tolist()
        assert ramps == pytest.approx(case[f"rgb_{name}"][:2], abs=2), name
        assert blue == pytest.approx(case[f"rgb_{name}"][2], abs=24 if shrunk else 1), name


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize(("x", "y"), [(317.3, 902.8), (1901.7, 88.2), (1000.5, 600.5)])
def test_a_dot_lands_where_the_map_says(factor, x, y):
    height, width = 1208, 2000
    grid_y, grid_x = np.mgrid[:height, :width] + 0.5
    dot = 200 * np.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / (2 * 15.0**2))
    # Exact reduced decoding: means over blocks of factor x factor pixels.
    blocks = dot.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3))
    rgb = np.repeat(blocks.round().astype(np.uint8)[..., None], 3, axis=-1)
    view = make_view(photo(rgb, factor), 224, 16)
    weight = (view.image[0].double() + 1).numpy()
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    seen = [(weight * axis).sum() / weight.sum() for axis in (columns, rows)]
    expected = view.photo2view @ torch.tensor([x, y, 1.0])
    assert seen == pytest.approx(expected[:2].tolist(), abs=0.03)


def test_map_is_scale_then_crop():
    view = make_view(photo(texture(333, 517)), 512, 16)
    # 333 x 517 becomes 330 x 512, then 320 x 512: five columns are cut on the left.
    expected = [[330 / 333, 0, -5], [0, 512 / 517, 0], [0, 0, 1]]
    torch.testing.assert_close(view.photo2view, torch.tensor(expected))
    assert view.image.shape == (3, 512, 320)


def test_transparent_pixels_are_masked_where_view_pixels_have_their_centres():
    opaque = np.random.default_rng(0).random((517, 333)) < 0.5
    whole = photo(texture(333, 517))
    assert make_view(whole, 224, 16).mask is None
    view = make_view(replace(whole, opaque=opaque), 224, 16)
    assert torch.equal(view.image, make_view(whole, 224, 16).image)
    view2photo = torch.linalg.inv(view.photo2view.double())
    for y in range(view.image.shape[1]):
        for x in range(view.image.shape[2]):
            column, row, _ = (view2photo @ torch.tensor([x + 0.5, y + 0.5, 1.0]).double()).tolist()
            assert bool(view.mask[y, x]) == bool(opaque[int(row), int(column)])


def test_transparency_of_a_photo_decoded_at_half_its_size():
    opaque = np.random.default_rng(0).random((256, 192)) < 0.5
    view = make_view(replace(photo(texture(192, 256), factor=2), opaque=opaque), 128, 16)
    np.testing.assert_array_equal(view.mask, opaque[1::2, 1::2])


def test_range_and_layout_of_the_image():
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = 255, 51
    image = make_view(photo(rgb), 64, 16).image
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    torch.testing.assert_close(image.amin(dim=(1, 2)), torch.tensor([1.0, -0.6, -1.0]))
    torch.testing.assert_close(image.amax(dim=(1, 2)), torch.tensor([1.0, -0.6, -1.0]))


def test_shrinking_does_not_alias():
    # One-pixel stripes have no place in a view a quarter as large: it must be even grey.
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    image = make_view(photo(stripes), 128, 16).image
    inside = image[:, :, 2:-2]  # at the border the filter is cut off, as Pillow's is
    assert float(inside.abs().max()) < 0.01
    assert float(image.abs().max()) < 0.08
    naive = cv2.resize(stripes, (128, 128), interpolation=cv2.INTER_NEAREST)
    assert naive.max() == naive.min() == 255  # what aliasing would give


@pytest.mark.parametrize("wh", [(1008, 756), (512, 384), (333, 251), (2000, 1501)])
def test_pixels_are_those_of_pillow_bicubic(wh):
    image = pytest.importorskip("PIL.Image")
    rgb = texture(*wh)
    view = make_view(photo(rgb), 512, 16)
    shape = view_shape(*wh, 512, 16)
    resized = image.fromarray(rgb).resize(
        (shape.resized_width, shape.resized_height), image.Resampling.BICUBIC
    )
    expected = np.asarray(resized)[shape.crop_top :, shape.crop_left :]
    expected = expected[: shape.height, : shape.width].astype(float)
    levels = (view.image.permute(1, 2, 0).double() * 127.5 + 127.5).numpy()
    assert np.abs(levels - expected).max() < 2.001  # both round twice, in their own ways
    assert np.abs(levels - expected).mean() < 0.05


def test_a_picture_that_cannot_be_written_to_is_taken_without_a_warning():
    rgb = texture(256, 192)
    rgb.flags.writeable = False
    before = rgb.copy()
    view = make_view(photo(rgb[:, ::-1]), 128, 16)
    same = make_view(photo(before), 128, 16)
    torch.testing.assert_close(view.image.flip(2), same.image, rtol=0, atol=0.02)
    assert np.array_equal(rgb, before)
