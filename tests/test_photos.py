"""Finding, reading and turning photographs; hostile and damaged files."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from picture_bytes import (
    MARKS,
    encode,
    encode_transparent,
    exif_block,
    png_header,
    quarters,
    texture,
    tiff,
    with_exif,
)
from recon3d.config import PhotoConfig
from recon3d.errors import InputError, MemoryShortageError, UsageError
from recon3d.photos import find_photos, load_views, photo_reader, read_photo
from recon3d.types import LeftOut
from recon3d.views import make_view

FIXTURES = Path(
    os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures")
)
CONFIG = PhotoConfig(size=64)

# EXIF 2.32, tag 0112: what must be done to the stored picture so that it stands upright.
TURNS = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: np.rot90,
}


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read(folder: Path, data: bytes, **options):
    return read_photo(write(folder, "file.bin", data), "file.bin", CONFIG, **options)


def two_photos(folder: Path) -> None:
    for k in range(2):
        write(folder, f"good{k}.png", encode(".png", texture(96, 64, seed=100 + k)))


# --- finding -----------------------------------------------------------------------------------


def test_folder_in_natural_order_without_hidden_files_and_folders(tmp_path):
    names = ["img10.jpg", "img2.JPG", "img1.Png", "a b.tiff", "größe.webp", "x.BMP", "y.HEIC"]
    for name in [*names, "notes.txt", "gt.json", "._img1.jpg", "movie.mp4"]:
        write(tmp_path, name, b"")
    (tmp_path / "folder.jpg").mkdir()
    write(tmp_path / "folder.jpg", "deep.jpg", b"")
    found = find_photos([str(tmp_path)])
    assert [name for _, name in found] == [
        "a b.tiff",
        "größe.webp",
        "img1.Png",
        "img2.JPG",
        "img10.jpg",
        "x.BMP",
        "y.HEIC",
    ]
    assert [path for path, _ in found] == [tmp_path / name for _, name in found]


def test_files_patterns_and_folder_give_the_same(tmp_path, monkeypatch):
    for name in ("9.jpg", "10.jpg", "notes.txt"):
        write(tmp_path, name, b"")
    monkeypatch.chdir(tmp_path)
    expected = find_photos(["."])
    assert [name for _, name in expected] == ["9.jpg", "10.jpg"]
    assert find_photos(["10.jpg", "9.jpg"]) == expected
    assert find_photos(["*"]) == expected
    assert find_photos([str(tmp_path / "[0-9]*.jpg"), str(tmp_path), "9.jpg"]) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    path = write(tmp_path, "photo[1].jpg", b"")
    write(tmp_path, "photo1.jpg", b"")
    assert find_photos([str(path)]) == [(path, "photo[1].jpg")]


def test_equal_names_get_their_folder(tmp_path):
    for folder in ("left", "right", "deep/left"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder, "1.jpg", b"")
    write(tmp_path / "left", "2.jpg", b"")
    found = find_photos([str(tmp_path / "left"), str(tmp_path / "right")])
    assert [name for _, name in found] == ["left/1.jpg", "2.jpg", "right/1.jpg"]
    names = [name for _, name in find_photos([str(tmp_path / "**" / "*.jpg")])]
    assert len(names) == len(set(names)) == 4


def test_nothing_to_find_is_one_clear_line(tmp_path):
    for text, words in (
        (str(tmp_path), "holds no photographs"),
        (str(tmp_path / "none"), "does not exist"),
        (str(tmp_path / "*.jpg"), "matches no photographs"),
        ("\0", "does not exist"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            find_photos([text])
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_empty_input_is_not_the_current_folder(tmp_path, monkeypatch):
    write(tmp_path, "1.jpg", b"")
    monkeypatch.chdir(tmp_path)
    assert len(find_photos(["."])) == 1
    with pytest.raises(UsageError, match="an input is empty"):
        find_photos([""])


# --- reading one photo ---------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", "tiff <", "tiff >"])
def test_orientation_is_applied_once(tmp_path, extension, orientation):
    stored = quarters(48, 32)
    if extension.startswith("tiff"):
        data = tiff(stored, extension[-1], orientation)
    else:
        block = exif_block(orientation, {0xA405: (3, 50)}, ">" if orientation % 2 else "<")
        data = with_exif(encode(extension, stored), block, 48, 32)
    photo = read(tmp_path, data)
    expected = TURNS[orientation](stored)
    assert (photo.height, photo.width) == photo.rgb.shape[:2] == expected.shape[:2]
    # Away from the borders of the quarters lossy formats keep the colours.
    seen = photo.rgb[4::8, 4::8].astype(int)
    assert np.abs(seen - expected[4::8, 4::8]).max() < 40
    if not extension.startswith("tiff"):
        assert photo.focal_px == pytest.approx(50 / 43.2666 * np.hypot(48, 32), rel=1e-4)


@pytest.mark.parametrize("size", [512, 224])
def test_orientation_of_the_reference_photo(size):
    path = FIXTURES / "exif6_80x48.jpg"
    if not path.is_file():
        pytest.skip("no folder of fixtures")
    if size == 224:
        pytest.skip("not followed: at 224 the published program cuts photos to their middle square")
    config = PhotoConfig(size=512)
    photo = read_photo(path, "a", config)
    assert (photo.width, photo.height) == (48, 80)
    view = make_view(photo, 512, 16)
    expected = json.loads((FIXTURES / "load_images_photos.json").read_text())
    expected = expected["exif6_80x48.jpg_512"]
    assert list(view.image.shape) == expected["shape"][1:]
    mean = view.image.mean(dim=(1, 2)).tolist()
    assert mean == pytest.approx(expected["mean_per_channel"], abs=0.01)
    corner = (view.image[:, 0, 0] * 127.5 + 127.5).tolist()
    assert corner == pytest.approx(expected["corner_tl_4x4_rgb_uint8"][0][0], abs=6)


def test_colour_grey_16_bit_alpha_and_hash(tmp_path):
    rgb = texture(60, 40)
    data = encode(".png", rgb)
    photo = read(tmp_path, data)
    np.testing.assert_array_equal(photo.rgb, rgb)
    assert photo.sha256 == hashlib.sha256(data).hexdigest()
    deep = rgb.astype(np.uint16) * 257
    for extension in (".png", ".tif"):
        np.testing.assert_array_equal(read(tmp_path, encode(extension, deep)).rgb, rgb)
        grey = read(tmp_path, encode(extension, deep[..., 0])).rgb
        np.testing.assert_array_equal(grey, np.repeat(rgb[..., :1], 3, axis=-1))
    with pytest.raises(InputError, match="TIFF data; of 32 bits or more it cannot be read"):
        read(tmp_path, encode(".tif", rgb.astype(np.float32)))
    with_alpha = np.dstack((rgb[..., ::-1], np.full((40, 60), 7, np.uint8)))
    np.testing.assert_array_equal(read(tmp_path, encode(".png", with_alpha)).rgb, rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", [".png", ".webp", "tiff <", "tiff >"])
def test_transparent_pixels_are_turned_with_the_photo(tmp_path, extension, orientation):
    stored = quarters(48, 32)
    shown = (stored != MARKS[0]).any(-1)  # not the red quarter
    alpha = np.where(shown, np.uint8(255), np.uint8(0))
    alpha[16:, :] = 1  # hardly opaque
    if extension.startswith("tiff"):
        data = tiff(np.dstack((stored, alpha)), extension[-1], orientation, fourth=1)
    else:
        lossless = (cv2.IMWRITE_WEBP_QUALITY, 101) if extension == ".webp" else ()
        data = encode_transparent(extension, stored, alpha, lossless)
        data = with_exif(data, exif_block(orientation), 48, 32)
    photo = read(tmp_path, data)
    np.testing.assert_array_equal(photo.opaque, TURNS[orientation](shown))
    np.testing.assert_array_equal(photo.rgb[photo.opaque], TURNS[orientation](stored)[photo.opaque])


def test_transparency_of_grey_palette_and_16_bit(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rgb, alpha = texture(60, 40), np.zeros((40, 60), np.uint8)
    alpha[10:, 20:] = 200
    path = tmp_path / "a.png"
    image.fromarray(np.dstack((rgb, alpha))).convert("LA").save(path)
    np.testing.assert_array_equal(read_photo(path, "a", CONFIG).opaque, alpha > 0)
    colours = image.fromarray(rgb).quantize(16)
    colours.save(path, transparency=bytes([0, 1]))
    np.testing.assert_array_equal(read_photo(path, "a", CONFIG).opaque, np.asarray(colours) > 0)
    deep = np.dstack((rgb[..., ::-1].astype(np.uint16) * 257 - 1, alpha.astype(np.uint16)))
    for extension in (".png", ".tif"):
        photo = read(tmp_path, encode(extension, deep))
        plain = read(tmp_path, encode(extension, deep[..., 2::-1]))
        np.testing.assert_array_equal(photo.opaque, alpha > 0)
        if extension == ".png":  # TIFF multiplies its colours by alpha
            np.testing.assert_array_equal(photo.rgb, plain.rgb)


@pytest.mark.parametrize(
    ("extension", "options"),
    [(".png", ()), (".webp", ()), (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)), (".tif", ())],
)
def test_an_opaque_photo_with_alpha_is_the_photo_without(tmp_path, extension, options):
    rgb, alpha = texture(60, 40), np.full((40, 60), 255, np.uint8)
    photo = read(tmp_path, encode_transparent(extension, rgb, alpha, options))
    plain = read(tmp_path, encode(extension, rgb, options))
    assert photo.opaque is None
    assert make_view(photo, 64, 16).mask is None
    np.testing.assert_array_equal(photo.rgb, plain.rgb)


def test_a_fourth_channel_that_is_not_alpha_hides_nothing(tmp_path):
    four = np.dstack((texture(60, 40), np.zeros((40, 60), np.uint8)))
    assert read(tmp_path, tiff(four, "<", fourth=0)).opaque is None


def test_sizes_are_checked_before_transparency_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match="30000 x 30000 pixels, over the limit"):
        read(tmp_path, png_header(30000, 30000, colour_type=6))


def test_a_strip_of_pixels_is_no_photo(tmp_path):
    limit = read(tmp_path, encode(".png", np.zeros((2000, 2, 3), np.uint8)))
    assert limit.rgb.shape == (2000, 2, 3)
    with pytest.raises(InputError, match="2001 x 2 pixels, more than 1000 times as long as wide"):
        read(tmp_path, encode(".png", np.zeros((2, 2001, 3), np.uint8)))


@pytest.mark.parametrize("reduce", [False, True])
def test_cmyk_jpeg_has_natural_colours(tmp_path, reduce):
    image = pytest.importorskip("PIL.Image")
    stored = quarters(512, 512)
    path = tmp_path / "cmyk.jpg"
    image.fromarray(stored).convert("CMYK").save(path, quality=95)  # Adobe: stored inverted
    photo = read_photo(path, "cmyk.jpg", CONFIG, reduce=reduce)
    factor = 512 // photo.rgb.shape[0]
    assert (factor > 1) == reduce
    seen = photo.rgb[20 // factor :: 128 // factor, 20 // factor :: 128 // factor].astype(int)
    assert np.abs(seen - stored[20::128, 20::128]).max() < 8


def test_palette_and_one_bit(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for mode in ("P", "1", "LA"):
        path = tmp_path / f"{mode}.png"
        image.fromarray(texture(40, 30)).convert(mode).save(path)
        with image.open(path) as opened:
            expected = np.asarray(opened.convert("RGB"))
        np.testing.assert_array_equal(read_photo(path, "a", CONFIG).rgb, expected)


def test_reduced_decoding_is_close_and_maps_the_same(tmp_path):
    rgb = texture(2000, 1200)
    path = write(tmp_path, "a.jpg", encode(".jpg", rgb, (cv2.IMWRITE_JPEG_QUALITY, 95)))
    for size, factor in ((64, 8), (128, 8), (224, 4), (512, 2), (600, 1)):
        config = PhotoConfig(size=size)
        whole = read_photo(path, "a.jpg", config)
        reduced = read_photo(path, "a.jpg", config, reduce=True)
        assert whole.rgb.shape == (1200, 2000, 3)
        assert reduced.rgb.shape == (1200 // factor, 2000 // factor, 3)
        assert (reduced.width, reduced.height) == (2000, 1200)
        views = [make_view(photo, size, 16) for photo in (whole, reduced)]
        assert torch.equal(views[0].photo2view, views[1].photo2view)
        assert float((views[0].image - views[1].image).abs().mean()) < 0.02


def test_sides_that_do_not_divide_are_decoded_whole(tmp_path):
    path = write(tmp_path, "a.jpg", encode(".jpg", texture(2001, 1200)))
    assert read_photo(path, "a", CONFIG, reduce=True).rgb.shape == (1200, 2001, 3)
    path = write(tmp_path, "b.jpg", encode(".jpg", texture(2000, 1202)))
    assert read_photo(path, "b", CONFIG, reduce=True).rgb.shape == (601, 1000, 3)


# --- a folder of photos --------------------------------------------------------------------------


def test_views_of_a_mixed_folder(tmp_path, caplog):
    two_photos(tmp_path)
    turned = with_exif(encode(".jpg", texture(64, 96)), exif_block(6), 64, 96)
    write(tmp_path, "ünï cödé 3.JPG", turned)
    write(tmp_path, "10.bmp", encode(".bmp", texture(64, 64, seed=3)))
    write(tmp_path, "bomb.png", png_header(30000, 30000))
    write(tmp_path, "copy.png", (tmp_path / "good0.png").read_bytes())
    write(tmp_path, "empty.jpg", b"")
    write(tmp_path, "text.jpg", b"I am a text.\n")
    write(tmp_path, "cut.jpg", encode(".jpg", texture(64, 64))[:-300])
    (tmp_path / "link.png").symlink_to(tmp_path / "good1.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nowhere.png")
    steps = []
    views, left_out = load_views([str(tmp_path)], CONFIG, track=lambda *step: steps.append(step))
    # Of equal files the first in natural order stays: "copy" comes before "good0".
    assert [view.name for view in views] == ["10.bmp", "copy.png", "good1.png", "ünï cödé 3.JPG"]
    assert [tuple(view.image.shape) for view in views] == [
        (3, 64, 64),
        (3, 64, 96),
        (3, 64, 96),
        (3, 64, 96),
    ]
    assert (views[3].photo_width, views[3].photo_height) == (96, 64)
    assert left_out == (
        LeftOut(
            name="bomb.png",
            reason="30000 x 30000 pixels, over the limit of 300 million; scale it down",
        ),
        LeftOut(
            name="cut.jpg",
            reason="damaged or cut short (JPEG, the file ends before the picture does)",
        ),
        LeftOut(name="empty.jpg", reason="empty file"),
        LeftOut(name="good0.png", reason="same content as copy.png"),
        LeftOut(name="link.png", reason="same content as good1.png"),
        LeftOut(name="lost.png", reason="cannot be read (No such file or directory)"),
        LeftOut(
            name="text.jpg",
            reason="not a photograph in a known format (JPEG, PNG, WebP, TIFF, BMP)",
        ),
    )
    assert steps == [("photos", done, 11) for done in range(1, 12)]
    assert all(out.name in caplog.text for out in left_out)


def test_pipes_limits_and_permissions(tmp_path):
    two_photos(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    big = write(tmp_path, "big.bmp", encode(".bmp", texture(200, 200)))
    config = PhotoConfig(size=64, max_bytes=big.stat().st_size - 1)
    _, left_out = load_views([str(tmp_path)], config)
    assert {out.name: out.reason for out in left_out} == {
        "big.bmp": f"{big.stat().st_size} bytes, over the limit of {big.stat().st_size - 1}",
        "pipe.jpg": "not a regular file",
    }
    _, left_out = load_views([str(tmp_path)], PhotoConfig(size=64, max_pixels=39_999))
    assert any("200 x 200 pixels, over the limit of 0.039999" in out.reason for out in left_out)


def test_threads_change_nothing(tmp_path):
    for k in range(8):
        write(tmp_path, f"{k}.jpg", encode(".jpg", texture(640, 480, seed=k)))
    one, _ = load_views([str(tmp_path)], PhotoConfig(size=64, threads=1))
    many, _ = load_views([str(tmp_path)], PhotoConfig(size=64, threads=8))
    assert [view.name for view in one] == [f"{k}.jpg" for k in range(8)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(one, many, strict=True))


@pytest.mark.parametrize(
    ("processors", "asked", "expected"), [(1, None, 2), (9, None, 4), (2, 8, 8)]
)
def test_threads_are_as_many_as_pay_unless_given(
    tmp_path, monkeypatch: pytest.MonkeyPatch, processors: int, asked: int | None, expected: int
):
    two_photos(tmp_path)
    started: list[int] = []

    def pool(n_threads: int) -> ThreadPoolExecutor:
        started.append(n_threads)
        return ThreadPoolExecutor(n_threads)

    monkeypatch.setattr("recon3d.photos.ThreadPoolExecutor", pool)
    monkeypatch.setattr("recon3d.photos.n_processors", lambda: processors)
    load_views([str(tmp_path)], PhotoConfig(size=64, threads=asked))
    assert started == [expected]


def test_the_default_size_is_that_of_the_embedded_weights(tmp_path):
    two_photos(tmp_path)
    views, _ = load_views([str(tmp_path)], PhotoConfig())
    assert max(views[0].image.shape) == 224


def test_a_very_wide_photo_gets_enough_pixels_from_reduced_decoding(tmp_path):
    for k in range(2):
        write(tmp_path, f"{k}.jpg", encode(".jpg", texture(4096, 512, seed=k)))
    views, _ = load_views([str(tmp_path)], PhotoConfig(size=224))
    assert tuple(views[0].image.shape) == (3, 48, 448)
    photo = read_photo(tmp_path / "0.jpg", "0", PhotoConfig(size=224), reduce=True)
    assert photo.rgb.shape[1] >= 1.9 * 448


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.png": encode(".png", texture(32, 32))}, r"one photograph is not enough \(a.png\)"),
        ({"a.jpg": b"text"}, r"of 1 file none is a usable photograph \(a.jpg: not a photo"),
        (
            {f"{k}.png": encode(".png", texture(32, 32)) for k in range(3)},
            r"of 3 files only one .* \(1.png: same content as 0.png; 2.png: same",
        ),
        (
            {f"{k}.jpg": b"text" for k in range(5)},
            r"of 5 files none is .* \(0.jpg: not a photograph .*; and 2 more\)",
        ),
    ],
)
def test_too_few_photos(tmp_path, files, words):
    for name, data in files.items():
        write(tmp_path, name, data)
    with pytest.raises(InputError, match=words) as caught:
        load_views([str(tmp_path)], CONFIG)
    assert "Give at least 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_that_cannot_be_read_are_mentioned(tmp_path, caplog):
    two_photos(tmp_path)
    for name in ("good0.CR2", ".hidden.gif", "notes.txt"):
        write(tmp_path, name, b"")
    load_views([str(tmp_path)], CONFIG)
    assert "passed over" not in caplog.text
    for name in ("b.gif", "a.DNG"):
        write(tmp_path, name, b"")
    views, left_out = load_views([str(tmp_path)], CONFIG)
    assert "passed over 2 pictures of kinds that cannot be read ('a.DNG', 'b.gif')" in caplog.text
    assert (len(views), left_out) == (2, ())


@pytest.mark.parametrize("size", [0, -5, 15, 8193])
def test_sizes_out_of_range(tmp_path, size):
    two_photos(tmp_path)
    with pytest.raises(UsageError, match=f"{size} pixels is out of range"):
        load_views([str(tmp_path)], PhotoConfig(size=size))


@pytest.mark.parametrize("fault", [MemoryError(), cv2.error("Insufficient memory")])
def test_too_little_memory_is_no_fault_of_the_photo(tmp_path, monkeypatch, fault):
    two_photos(tmp_path)
    views, _ = load_views([str(tmp_path)], CONFIG)
    again = photo_reader([str(tmp_path)], CONFIG)
    np.testing.assert_array_equal(
        again(views[0]), read_photo(tmp_path / "good0.png", "good0.png", CONFIG).rgb
    )

    def too_large(*_):
        fault.code = cv2.Error.StsNoMem
        raise fault

    monkeypatch.setattr(cv2, "imdecode", too_large)
    with pytest.raises(MemoryShortageError, match=r"^needs more memory than is free$"):
        again(views[0])
    with pytest.raises(InputError, match=r"good0\.png: needs more memory"):
        load_views([str(tmp_path)], CONFIG)


def test_a_photo_that_changes_while_it_is_worked_on_is_named(tmp_path):
    two_photos(tmp_path)
    views, _ = load_views([str(tmp_path)], CONFIG)
    again = photo_reader([str(tmp_path)], CONFIG)
    write(tmp_path, "good0.png", encode(".png", texture(64, 64)))
    with pytest.raises(InputError, match=r"^good0\.png was changed .* other content\. Leave"):
        again(views[0])
    (tmp_path / "good1.png").unlink()
    with pytest.raises(InputError, match=r"^good1\.png was changed .*: .* Leave"):
        again(views[1])
    with pytest.raises(InputError, match=r"^good1\.png was changed .*: it is gone\. Leave"):
        photo_reader([str(tmp_path)], CONFIG)(views[1])


def test_opencv_speaks_as_before_afterwards(tmp_path, capfd):
    log = getattr(cv2.utils, "logging", cv2)
    before = log.getLogLevel()
    two_photos(tmp_path)
    write(tmp_path, "cut.bmp", encode(".bmp", texture(64, 64))[:-500])
    load_views([str(tmp_path)], CONFIG)
    assert log.getLogLevel() == before
    assert "ERROR" not in capfd.readouterr().err


def test_marks_are_in_their_quarters():
    """The picture the orientation tests rely on is itself what they say."""
    picture = quarters(48, 32)
    corners = [picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1]]
    assert [tuple(map(int, corner)) for corner in corners] == list(MARKS)
