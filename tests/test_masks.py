"""Masks: names, what counts as black, the way to the view's pixels, turned and hostile files."""

import hashlib
import logging
import math
import os
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from exact_scene import blank_view
from picture_bytes import encode, exif_block, png_header, quarters, with_exif
from recon3d.config import PhotoConfig
from recon3d.errors import InputError, UsageError
from recon3d.masks import read_masks, with_masks
from recon3d.photos import find_photos, read_photo
from recon3d.views import make_view


def view(name="a.jpg"):
    """Return a view of 8 x 6 pixels of a photo of 16 x 12."""
    return blank_view(name, (6, 8))


def levels(width=16, height=12, seed=0):
    """Return random blobs of 2 x 2 equal pixels, half of them black."""
    small = np.random.default_rng(seed).random((height // 2, width // 2)) < 0.5
    return np.where(small.repeat(2, 0).repeat(2, 1), 255, 0).astype(np.uint8)


def write(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(".png", levels() if pixels is None else pixels))
    return path.parent


def expected(pixels):
    """Return what the view should get of a mask of the photo's size in blobs of 2 x 2."""
    return torch.from_numpy(pixels[::2, ::2] > 0)


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.jpg"])
@pytest.mark.parametrize("file", ["a.jpg.png", "a.png", "sub/a.jpg.png", "sub/a.png"])
def test_names(tmp_path, name, file):
    if file.startswith("sub/") and name == "a.jpg":
        with pytest.raises(UsageError, match="holds no mask of any photo"):
            read_masks(write(tmp_path / file) and tmp_path, [view(name)])
        return
    write(tmp_path / file)
    (mask,) = read_masks(tmp_path, [view(name)])
    torch.testing.assert_close(mask, expected(levels()))


def test_masks_that_leave_nothing(tmp_path, caplog):
    black = np.zeros((12, 16), np.uint8)
    write(tmp_path / "a.jpg.png", black)
    write(tmp_path / "b.jpg.png")
    first, _ = read_masks(tmp_path, [view("a.jpg"), view("b.jpg")])
    assert not bool(first.any())
    assert "1 masks are black everywhere, their photos are not used ('a.jpg')" in caplog.text
    write(tmp_path / "b.jpg.png", black)
    with pytest.raises(UsageError, match=r"all 2 masks are black everywhere.* Paint white what"):
        read_masks(tmp_path, [view("a.jpg"), view("b.jpg")])


def transparent(name, opaque):
    return replace(view(name), mask=expected(opaque))


def test_what_is_opaque_and_what_is_painted_count_together(tmp_path):
    write(tmp_path / "a.jpg.png", levels(seed=1))
    write(tmp_path / "b.jpg.png", levels(seed=2))
    views = [
        transparent("a.jpg", levels()),
        view("b.jpg"),
        transparent("c.jpg", levels()),
        view("d.jpg"),
    ]
    both, painted, opaque, neither = with_masks(views, tmp_path)
    assert torch.equal(both.mask, expected(levels()) & expected(levels(seed=1)))
    assert torch.equal(painted.mask, expected(levels(seed=2)))
    assert torch.equal(opaque.mask, expected(levels()))
    assert neither.mask is None
    assert [one.mask is None for one in with_masks(views, None)] == [False, True, False, True]


def test_photos_that_are_transparent_everywhere(tmp_path, caplog):
    nothing = transparent("a.jpg", 0 * levels())
    first, second = with_masks([nothing, view("b.jpg")], None)
    assert not bool(first.mask.any())
    assert second.mask is None
    assert "1 photos are transparent everywhere and not used ('a.jpg')" in caplog.text
    with pytest.raises(InputError, match=r"all 2 photos are transparent everywhere, .* Give"):
        with_masks([nothing, nothing], None)
    # what the mask lets count is transparent
    write(tmp_path / "a.jpg.png")
    half = transparent("a.jpg", 255 - levels())
    with_masks([half, view("b.jpg")], tmp_path)
    assert "1 photos are transparent everywhere where their masks are not black" in caplog.text
    # what is black already is not named again
    write(tmp_path / "a.jpg.png", 0 * levels())
    caplog.clear()
    with_masks([half, view("b.jpg")], tmp_path)
    assert "transparent" not in caplog.text
    write(tmp_path / "b.jpg.png")
    with pytest.raises(InputError, match="all 2 photos are transparent everywhere where their"):
        with_masks([half, transparent("b.jpg", 255 - levels())], tmp_path)


def test_the_best_name_wins(tmp_path):
    for seed, file in enumerate(["s/a.jpg.png", "s/a.png", "a.jpg.png", "a.png"]):
        write(tmp_path / file, levels(seed=seed))
    for seed, file in enumerate(["s/a.jpg.png", "s/a.png", "a.jpg.png", "a.png"]):
        (mask,) = read_masks(tmp_path, [view("s/a.jpg")])
        torch.testing.assert_close(mask, expected(levels(seed=seed)))
        if file != "a.png":
            (tmp_path / file).unlink()


def test_a_mask_that_could_be_of_two_photos_is_of_none(tmp_path, caplog):
    for seed, file in enumerate(["1.jpg.png", "2.png", "3.jpg.png"]):
        write(tmp_path / file, levels(seed=seed))
    names = ["a/1.jpg", "b/1.jpg", "2.jpg", "2.png", "3.jpg"]
    *others, mask = read_masks(tmp_path, [view(name) for name in names])
    assert others == [None] * 4
    torch.testing.assert_close(mask, expected(levels(seed=2)))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("Name that of 'a/1.jpg' 'a/1.jpg.png'.")
    assert "4 photos without a mask ('a/1.jpg', 'b/1.jpg', '2.jpg', '2.png')" in (
        record.getMessage()
    )


@pytest.mark.parametrize("folders", [("d1", "d2"), ("p/d", "q/d"), (".", "d")])
def test_the_name_that_the_fault_gives_is_the_one_that_works(tmp_path, folders):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for folder in folders:
        (photos / folder).mkdir(parents=True, exist_ok=True)
        (photos / folder / "a.jpg").touch()
    found = find_photos([str(photos / folder) for folder in folders])
    views = [view(name) for _, name in found]
    write(masks / "a.jpg.png")  # of which of the two?
    with pytest.raises(UsageError, match="holds no mask of any photo") as caught:
        read_masks(masks, views)
    name, wanted = re.search(r"Name that of '(.*)' '(.*)'\.$", str(caught.value)).groups()
    write(masks / wanted)
    given = [
        one.name
        for one, mask in zip(views, read_masks(masks, views), strict=True)
        if mask is not None
    ]
    assert given == [name]


def test_names_do_not_lead_out_of_the_folder(tmp_path):
    write(tmp_path / "photos" / "a.png")
    inside = write(tmp_path / "masks" / "other.png")
    for name in (str(tmp_path / "photos" / "a.jpg"), "../photos/a.jpg"):
        with pytest.raises(UsageError, match="holds no mask"):
            read_masks(inside, [view(name)])


@pytest.mark.parametrize(
    "pixels",
    [
        levels(),
        (levels() > 0).astype(np.uint8),  # 0 and 1
        levels().astype(np.uint16) // 255,  # 16 bit, where 1 is nearly black
        np.stack([0 * levels(), 0 * levels(), levels()], -1),
        # black or white, transparent everywhere; OpenCV's own channel order does not matter
        np.stack([levels(), levels(), levels(), 0 * levels()], -1),
        np.stack([levels(), levels(), levels(), 0 * levels() + 255], -1),
    ],
    ids=["grey", "ones", "16bit", "colour", "transparent", "opaque"],
)
def test_only_black_is_ignored(tmp_path, pixels):
    done, data = cv2.imencode(".png", pixels)
    assert done
    (tmp_path / "a.png").write_bytes(data.tobytes())
    (mask,) = read_masks(tmp_path, [view()])
    torch.testing.assert_close(mask, expected(levels()))


@pytest.mark.parametrize("factor", [0.5, 1, 3])
def test_masks_of_any_scale(tmp_path, factor):
    size = (int(16 * factor), int(12 * factor))
    scaled = cv2.resize(levels(), size, interpolation=cv2.INTER_NEAREST)
    write(tmp_path / "a.png", scaled)
    (mask,) = read_masks(tmp_path, [view()])
    torch.testing.assert_close(mask, expected(levels()))


def test_equals_a_plain_loop_through_a_crop(tmp_path):
    generator = np.random.default_rng(1)
    pixels = (generator.random((77, 101)) < 0.5).astype(np.uint8)
    photo2view = torch.tensor([[0.3137, 0.0, -2.3], [0.0, 0.3291, -1.7], [0.0, 0.0, 1.0]])
    given = replace(
        blank_view("a.jpg", (20, 25)), photo2view=photo2view, photo_width=202, photo_height=154
    )
    write(tmp_path / "a.png", pixels)
    (mask,) = read_masks(tmp_path, [given])
    for y in range(20):
        for x in range(25):
            photo_x, photo_y = (x + 0.5 + 2.3) / 0.3137, (y + 0.5 + 1.7) / 0.3291
            row = min(max(math.floor(photo_y / 2), 0), 76)
            column = min(max(math.floor(photo_x / 2), 0), 100)
            assert bool(mask[y, x]) == bool(pixels[row, column])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fits_the_photo_whether_painted_upright_or_as_stored(tmp_path, orientation):
    """Whatever the photo's orientation, both kinds of mask agree with what the view shows."""
    stored = quarters(160, 96)
    block = exif_block(orientation)
    path = tmp_path / "photo.png"
    path.write_bytes(with_exif(encode(".png", stored), block, 160, 96))
    photo = read_photo(path, "a.jpg", PhotoConfig())
    given = make_view(photo, 96, 16)
    red = (np.abs(photo.rgb.astype(int) - (250, 10, 10)).sum(-1) < 30).astype(np.uint8)
    shown = given.image[0] > given.image[1:].amax(0) + 0.5
    # upright without EXIF data, upright with those of the photo
    for extra in (None, block):
        data = encode(".png", red)
        if extra is not None:
            data = with_exif(data, extra, *red.shape[::-1])
        (tmp_path / "a.png").write_bytes(data)
        (mask,) = read_masks(tmp_path, [given])
        assert (mask != shown).float().mean() < 0.05
    if orientation >= 5:  # as stored, with the EXIF data of the photo: its size tells
        painted = (np.abs(stored.astype(int) - (250, 10, 10)).sum(-1) < 30).astype(np.uint8)
        (tmp_path / "a.png").write_bytes(with_exif(encode(".png", painted), block, 160, 96))
        (mask,) = read_masks(tmp_path, [given])
        assert (mask != shown).float().mean() < 0.05


def test_a_turned_mask_without_orientation_is_refused(tmp_path):
    write(tmp_path / "a.png", levels(12, 16))
    with pytest.raises(UsageError, match=r"12 x 16 pixels, but the upright photo has 16 x 12"):
        read_masks(tmp_path, [view()])


def test_one_mask_in_many_is_enough(tmp_path):
    write(tmp_path / "7.jpg.png")
    masks = read_masks(tmp_path, [view(f"{n}.jpg") for n in range(20)])
    assert [n for n, mask in enumerate(masks) if mask is not None] == [7]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged|not a photograph"),
        (b"GIF89a", "not a photograph"),
        (encode(".jpg", levels()), "a JPEG file, not PNG"),
        (encode(".png", levels())[:-30], "damaged or cut short"),
        (png_header(16, 12), "damaged or cut short"),
        (png_header(160_000, 120_000), "160000 x 120000 pixels are too many"),
        (png_header(2**31 - 1, 1), "2147483647 x 1 pixels, but the upright photo"),
    ],
)
def test_bad_files(tmp_path, data, words):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        read_masks(tmp_path, [view()])
    assert str(tmp_path / "a.png") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_photo_itself_is_no_mask(tmp_path):
    data = encode(".png", levels())
    (tmp_path / "a.png").write_bytes(data)
    given = replace(view("a.png"), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(UsageError, match="it is the photo itself"):
        read_masks(tmp_path, [given])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UsageError, match="not a regular file"):
        read_masks(tmp_path, [view()])


def test_no_folder_and_long_names(tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        read_masks(tmp_path / "none", [view()])
    with pytest.raises(UsageError, match="holds no mask of any photo"):
        read_masks(tmp_path, [view("x" * 254)])
