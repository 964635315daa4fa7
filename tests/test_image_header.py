"""Sizes, orientation and focal length from the bytes of a file, whole, odd and hostile."""

import math
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picture_bytes import (
    encode,
    encode_transparent,
    exif_block,
    png_header,
    quarters,
    texture,
    tiff,
    with_exif,
)
from recon3d.errors import InputError
from recon3d.exif import Exif, focal_px, read_directory, read_exif
from recon3d.image_header import image_format, read_header

FOCAL_MM, FOCAL_35MM, PIXEL_WIDTH, PLANE_X, PLANE_UNIT = 0x920A, 0xA405, 0xA002, 0xA20E, 0xA210


@pytest.mark.parametrize(("width", "height"), [(1, 1), (37, 53), (300, 201)])
@pytest.mark.parametrize(
    ("extension", "options", "kind"),
    [
        (".jpg", (), "jpeg"),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "jpeg"),
        (".jpg", (cv2.IMWRITE_JPEG_RST_INTERVAL, 2), "jpeg"),
        (".png", (), "png"),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 80), "webp"),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101), "webp"),  # over 100 means lossless
        (".tif", (), "tiff"),
        (".bmp", (), "bmp"),
    ],
)
def test_size_is_what_was_written(extension, options, kind, width, height):
    header = read_header(encode(extension, texture(width, height), options))
    assert (header.format, header.width, header.height) == (kind, width, height)
    assert (header.orientation, header.focal_px) == (1, None)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_in_both_byte_orders(order):
    header = read_header(tiff(quarters(48, 32), order, orientation=6))
    assert (header.width, header.height, header.orientation) == (48, 32, 6)


def test_bmp_stored_from_the_top_and_old_bmp():
    data = bytearray(encode(".bmp", texture(30, 20)))
    struct.pack_into("<i", data, 22, -20)
    assert read_header(bytes(data)).height == 20
    old = b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 70, 50, 1, 24)
    assert (read_header(old).width, read_header(old).height) == (70, 50)


def test_huge_sizes_are_read_not_decoded():
    header = read_header(png_header(30000, 30000))
    assert (header.width, header.height) == (30000, 30000)
    data = bytearray(encode(".jpg", texture(64, 48)))
    frame = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, frame + 5, 30000, 29999)
    header = read_header(bytes(data))
    assert (header.width, header.height) == (29999, 30000)


LOSSLESS = (cv2.IMWRITE_WEBP_QUALITY, 101)


@pytest.mark.parametrize(
    ("extension", "options"),
    [(".png", ()), (".webp", ()), (".webp", LOSSLESS), (".tif", ())],
)
def test_alpha_is_told_by_the_header(extension, options):
    rgb, alpha = texture(30, 20), np.full((20, 30), 9, np.uint8)
    assert not read_header(encode(extension, rgb, options)).has_alpha
    assert read_header(encode_transparent(extension, rgb, alpha, options)).has_alpha


def test_alpha_of_odd_files():
    rgb, alpha = texture(30, 20), np.full((20, 30), 9, np.uint8)
    # lossless WebP in a container
    inside = with_exif(encode_transparent(".webp", rgb, alpha, LOSSLESS), exif_block(1), 30, 20)
    assert read_header(inside).has_alpha
    plain = with_exif(encode(".webp", rgb, LOSSLESS), exif_block(1), 30, 20)
    assert not read_header(plain).has_alpha
    four = np.dstack((rgb, alpha))
    # undeclared, unspecified (infrared, say), premultiplied, and plain alpha
    told = [read_header(tiff(four, "<", fourth=k)).has_alpha for k in (None, 0, 1, 2)]
    assert told == [True, False, True, True]
    cmyk = bytearray(tiff(four, "<"))
    colours = cmyk.rindex(struct.pack("<HHI", 262, 3, 1)) + 8
    struct.pack_into("<H", cmyk, colours, 5)
    assert not read_header(bytes(cmyk)).has_alpha
    palette = bytearray(png_header(30, 20, colour_type=3))
    assert not read_header(bytes(palette)).has_alpha
    palette[33:33] = struct.pack(">I", 1) + b"tRNS" + bytes(5)
    assert read_header(bytes(palette)).has_alpha


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_exif_is_found_in_every_container(extension, order):
    plain = encode(extension, texture(64, 48))
    block = exif_block(8, {FOCAL_35MM: (3, 28)}, order)
    header = read_header(with_exif(plain, block, 64, 48))
    assert (header.width, header.height, header.orientation) == (64, 48, 8)
    assert header.focal_px == pytest.approx(28 * 80 / math.hypot(36, 24))


def test_jpeg_with_a_film_behind_the_end_is_whole():
    data = encode(".jpg", texture(64, 48))
    assert read_header(data + b"ftypmp42" + bytes(5000)).width == 64


@pytest.mark.parametrize("padding", [b"\0\0", b"\xff\xff", b"\xff\0", b"nothing"])
def test_jpeg_with_bytes_between_its_segments_is_read_as_decoders_do(padding):
    data = encode(".jpg", texture(64, 48))
    (length,) = struct.unpack_from(">H", data, 4)
    padded = data[: 4 + length] + padding + data[4 + length :]
    header = read_header(padded)
    assert (header.width, header.height, header.has_end) == (64, 48, True)
    decoded = cv2.imdecode(np.frombuffer(padded, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (48, 64, 3)


@pytest.mark.parametrize("data", [b"", b"\xff", b"hello, I am text\n" * 20, b"GIF89a" + bytes(50)])
def test_other_files_are_no_photographs(data):
    assert image_format(data) is None
    with pytest.raises(InputError, match="not a photograph in a known format"):
        read_header(data)


def test_png_chunk_longer_than_the_file_is_not_left_to_the_decoder():
    data = bytearray(encode(".png", texture(64, 48)))
    struct.pack_into(">I", data, data.index(b"IDAT") - 4, 0x7FFFFFFF)
    with pytest.raises(InputError, match="PNG header"):
        read_header(bytes(data))


def test_size_of_zero_is_damage():
    with pytest.raises(InputError, match="0 x 7"):
        read_header(png_header(0, 7))


def test_focal_from_sensor_pitch():
    # 50 mm on a sensor of 4000 pixels in 36 mm; the picture was halved afterwards.
    pitch = {FOCAL_MM: (5, 50, 1), PLANE_X: (5, 40000, 36), PLANE_UNIT: (3, 4)}
    exif = read_exif(exif_block(camera=pitch | {PIXEL_WIDTH: (4, 4000)}))
    assert focal_px(exif, 4000, 3000) == pytest.approx(50 * 40000 / 36)
    assert focal_px(exif, 2000, 1500) == pytest.approx(50 * 40000 / 36 / 2)


@pytest.mark.parametrize(
    "sides", [{PIXEL_WIDTH: (4, 4000)}, {PIXEL_WIDTH: (4, 4000), 0xA003: (4, 3000)}]
)
def test_a_picture_turned_since_has_the_focal_length_that_it_had(sides):
    pitch = {FOCAL_MM: (5, 50, 1), PLANE_X: (5, 40000, 36), PLANE_UNIT: (3, 4)}
    exif = read_exif(exif_block(camera=pitch | sides))
    assert focal_px(exif, 3000, 4000) == pytest.approx(50 * 40000 / 36)
    assert focal_px(exif, 4000, 3000) == pytest.approx(50 * 40000 / 36)
    if len(sides) == 2:
        assert focal_px(exif, 1500, 2000) == pytest.approx(50 * 40000 / 36 / 2)


@pytest.mark.parametrize(("unit", "mm"), [(2, 25.4), (3, 10.0)])
def test_sensor_pitch_in_inches_and_centimetres(unit, mm):
    camera = {FOCAL_MM: (5, 35, 10), PLANE_X: (5, 9000, 1), PLANE_UNIT: (3, unit)}
    focal = focal_px(read_exif(exif_block(camera=camera)), 1000, 1000)
    assert focal == pytest.approx(3.5 * 9000 / mm)


def test_35mm_equivalent_wins_and_a_full_frame_picture_gives_its_width():
    exif = Exif(focal_35mm=36.0, focal_mm=4.0, plane_pixels_per_mm=100.0)
    # On 36 mm x 24 mm film a 36 mm lens has a focal length of one picture width.
    assert focal_px(exif, 3600, 2400) == pytest.approx(3600)


@pytest.mark.parametrize(
    "camera",
    [
        {FOCAL_35MM: (3, 0)},  # 0 means unknown
        {FOCAL_35MM: (3, 60000)},
        {FOCAL_35MM: (12, math.nan)},
        {FOCAL_35MM: (12, math.inf)},
        {FOCAL_MM: (5, 50, 0), PLANE_X: (5, 4000, 36)},
        {FOCAL_MM: (5, 50, 1), PLANE_X: (5, 4000, 36), PLANE_UNIT: (3, 9)},
        {FOCAL_MM: (5, 50, 1)},
        {FOCAL_MM: (10, -50, 1), PLANE_X: (5, 100, 1)},
    ],
)
def test_senseless_focal_tags_give_none(camera):
    assert focal_px(read_exif(exif_block(camera=camera)), 4000, 3000) is None


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_upright(orientation):
    assert read_exif(exif_block(orientation)).orientation == 1


def test_of_a_repeated_tag_the_first_counts():
    block = b"II*\0" + struct.pack("<IH", 8, 2)
    block += struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    assert read_exif(block).orientation == 3


@pytest.mark.parametrize("pointer", [0, 1, 8, 10**9, 2**32 - 1])
def test_pointers_out_of_the_block_and_into_itself(pointer):
    block = b"II*\0" + struct.pack("<IH", 8, 2)
    block += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x8769, 4, 1, pointer)
    exif = read_exif(block)
    assert exif.orientation == 6
    assert exif.focal_mm is None


def test_directory_that_lies_outside_is_an_error():
    with pytest.raises(ValueError, match="outside the file"):
        read_directory(b"II*\0" + struct.pack("<I", 4000))
    with pytest.raises(ValueError, match="not a TIFF header"):
        read_directory(b"what?")


@given(st.binary(max_size=300), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]))
def test_any_bytes_are_safe_exif(data, head):
    exif = read_exif(head + data)
    assert exif.orientation in range(1, 9)
    focal = focal_px(exif, 640, 480)
    assert focal is None or 0.2 * 640 <= focal <= 50 * 640


@given(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"\xff\xd8\xff",
            b"\xff\xd8\xff\xc0",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            b"RIFF\0\0\0\0WEBPVP8 ",
            b"RIFF\0\0\0\0WEBPVP8L",
            b"RIFF\0\0\0\0WEBPVP8X",
            b"II*\0\x08\0\0\0",
            b"MM\0*\0\0\0\x08",
            b"BM",
        ]
    ),
)
def test_any_bytes_give_a_header_or_a_reason(data, head):
    try:
        header = read_header(head + data)
    except InputError:
        return  # nothing else may be raised
    assert min(header.width, header.height) > 0


def test_tiff_size_that_is_no_number_is_damage():
    width = struct.pack("<HHII", 256, 12, 1, 100)
    height = struct.pack("<HHII", 257, 3, 1, 5)
    data = b"II*\0" + struct.pack("<IH", 8, 2) + width + height
    for value in (np.inf, np.nan):
        with pytest.raises(InputError, match="damaged"):
            read_header(data.ljust(100, b"\0") + struct.pack("<d", value))
