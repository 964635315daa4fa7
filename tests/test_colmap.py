"""COLMAP models: hand-written text, hand-packed bytes, COLMAP's own library, hostile files."""

import math
import os
import struct

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from recon3d.colmap import MODELS, ColmapCamera, find_model, pinhole, read_model
from recon3d.errors import UsageError

CAMERAS = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]

1 PINHOLE 640 480 500.5 501 320 240.25
7 SIMPLE_RADIAL 800 600 700 400 300 -0.05
"""
# A camera at (1, 2, 3), turned by 90 degrees about y: its z axis is the world's x axis.
HALF = math.sqrt(0.5)
IMAGES = f"""# Image list with two lines of data per image:
3 {HALF} 0 {-HALF} 0 3 -2 -1 7 a b/IMG 1.jpg
1.5 2.5 -1 10 20 4
1 1 0 0 0 0 0 0 1 IMG_2.jpg

"""


def write_text(folder, cameras=CAMERAS, images=IMAGES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(cameras)
    (folder / "images.txt").write_text(images)
    return folder


def camera_bytes(camera_id=1, model=1, size=(640, 480), parameters=(500.5, 501, 320, 240.25)):
    layout = f"<iiQQ{len(parameters)}d"
    return struct.pack(layout, camera_id, model, *size, *parameters)


def image_bytes(name=b"IMG_2.jpg", pose=(1, 0, 0, 0, 0, 0, 0), camera_id=1, n_points=0):
    points = struct.pack("<ddq", 1.5, 2.5, -1) * n_points
    head = struct.pack("<I7di", 5, *pose, camera_id)
    return head + name + b"\0" + struct.pack("<Q", n_points) + points


def write_binary(folder, cameras, images):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.bin").write_bytes(struct.pack("<Q", len(cameras)) + b"".join(cameras))
    (folder / "images.bin").write_bytes(struct.pack("<Q", len(images)) + b"".join(images))
    return folder


def check(model):
    first, second = model.images
    assert (first.name, first.camera_id) == ("a b/IMG 1.jpg", 7)
    expected = [[0, 0, 1, 1], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(first.cam2world, expected, atol=1e-12)
    assert (second.name, second.camera_id) == ("IMG_2.jpg", 1)
    np.testing.assert_array_equal(second.cam2world, np.eye(4))
    assert model.cameras == {
        1: ColmapCamera(
            model="PINHOLE", width=640, height=480, parameters=(500.5, 501.0, 320.0, 240.25)
        ),
        7: ColmapCamera(
            model="SIMPLE_RADIAL", width=800, height=600, parameters=(700.0, 400.0, 300.0, -0.05)
        ),
    }


def test_text_by_hand(tmp_path):
    check(read_model(write_text(tmp_path)))


def test_binary_by_hand(tmp_path):
    cameras = [camera_bytes(), camera_bytes(7, 2, (800, 600), (700, 400, 300, -0.05))]
    first = image_bytes(b"a b/IMG 1.jpg", (HALF, 0, -HALF, 0, 3, -2, -1), 7, n_points=3)
    check(read_model(write_binary(tmp_path, cameras, [first, image_bytes()])))


def test_binary_is_read_where_both_are_there(tmp_path):
    write_text(tmp_path)
    write_binary(tmp_path, [camera_bytes()], [image_bytes(b"other.jpg")])
    assert [image.name for image in read_model(tmp_path).images] == ["other.jpg"]


def test_quaternions_of_any_length(tmp_path):
    turn = Rotation.random(rng=np.random.default_rng(0))
    x, y, z, w = 3 * turn.as_quat()
    folder = write_binary(tmp_path, [camera_bytes()], [image_bytes(pose=(w, x, y, z, 1, 2, 3))])
    cam2world = read_model(folder).images[0].cam2world
    np.testing.assert_allclose(cam2world[:3, :3], turn.inv().as_matrix(), atol=1e-12)
    np.testing.assert_allclose(turn.apply(cam2world[:3, 3]), [-1, -2, -3], atol=1e-12)


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_what_colmap_itself_writes(tmp_path, suffix):
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 2, 1, 3
    options.num_points3D = 20
    truth = pycolmap.synthesize_dataset(options)
    write = truth.write_text if suffix == "txt" else truth.write_binary
    write(str(tmp_path))
    model = read_model(tmp_path)
    assert len(model.images) == 6
    assert {image.name for image in model.images} == {i.name for i in truth.images.values()}
    for image in model.images:
        (same,) = [i for i in truth.images.values() if i.name == image.name]
        assert image.camera_id == same.camera_id
        expected = same.cam_from_world().inverse().matrix()
        np.testing.assert_allclose(image.cam2world[:3], expected, atol=1e-9)
        camera = truth.cameras[image.camera_id]
        ours = model.cameras[image.camera_id]
        assert (ours.model, ours.width, ours.height) == (
            camera.model.name,
            camera.width,
            camera.height,
        )
        np.testing.assert_allclose(ours.parameters, camera.params)
        np.testing.assert_allclose(pinhole(ours)[0], camera.calibration_matrix())


def test_numbers_of_parameters_are_those_of_colmap():
    pycolmap = pytest.importorskip("pycolmap")
    for number, (name, n_parameters) in enumerate(MODELS):
        model = getattr(pycolmap.CameraModelId, name)
        assert int(model) == number
        camera = pycolmap.Camera.create_from_model_id(1, model, 500.0, 640, 480)
        assert len(camera.params) == n_parameters


@pytest.mark.parametrize(
    ("model", "parameters", "diagonal", "distorted"),
    [
        ("SIMPLE_PINHOLE", (500, 3, 4), (500, 500), False),
        ("PINHOLE", (500, 600, 3, 4), (500, 600), False),
        ("SIMPLE_RADIAL", (500, 3, 4, 0), (500, 500), False),
        ("RADIAL", (500, 3, 4, 0, 0.1), (500, 500), True),
        ("OPENCV", (500, 600, 3, 4, 0, 0, 0, 1e-3), (500, 600), True),
        ("FULL_OPENCV", (500, 600, 3, 4, *[0] * 8), (500, 600), False),
    ],
)
def test_pinhole_part(model, parameters, diagonal, distorted):
    camera = ColmapCamera(
        model=model, width=10, height=10, parameters=tuple(float(value) for value in parameters)
    )
    found = pinhole(camera)
    assert found is not None
    intrinsics, distorts = found
    expected = [[diagonal[0], 0, 3], [0, diagonal[1], 4], [0, 0, 1]]
    np.testing.assert_array_equal(intrinsics, expected)
    assert distorts is distorted


@pytest.mark.parametrize(
    ("model", "parameters"),
    [("FOV", (1.0,) * 5), ("SIMPLE_DIVISION", (1.0,) * 4), ("EQUIRECTANGULAR", (9.0, 9.0))],
)
def test_cameras_without_a_pinhole_part(tmp_path, model, parameters):
    written = " ".join(str(value) for value in parameters)
    write_text(tmp_path, cameras=f"1 {model} 9 9 {written}\n", images="1 1 0 0 0 0 0 0 1 a.jpg\n\n")
    camera = read_model(tmp_path).cameras[1]
    assert (camera.model, camera.parameters) == (model, parameters)
    assert pinhole(camera) is None


@pytest.mark.parametrize("place", ["", "sparse", "sparse/0"])
def test_finding_the_model(tmp_path, place):
    assert find_model(tmp_path) is None
    write_text(tmp_path / place)
    assert find_model(tmp_path) == tmp_path / place


@pytest.mark.parametrize(
    ("cameras", "images", "words"),
    [
        ("1 PINHOLE 640 480 500 500 320\n", IMAGES, "PINHOLE needs 4 finite parameters"),
        ("1 PINHOLE 640 480 500 500 320 nan\n", IMAGES, "finite"),
        ("1 PINHOLE 640 480 500 -1 320 240\n", IMAGES, "640 x 480 pixels, focal 500"),
        ("1 SIMPLE_PINHOLE 640 0 500 320 240\n", IMAGES, "640 x 0 pixels"),
        ("1 LENS 640 480 500\n", IMAGES, "unknown camera model 'LENS'"),
        ("1 PINHOLE 640\n", IMAGES, "'1 PINHOLE 640' is not a camera"),
        ("x PINHOLE 640 480 500 500 320 240\n", IMAGES, "damaged"),
        (CAMERAS, "1 1 0 0 0 0 0 0 1\n\n", "is not an image"),
        (CAMERAS, "1 0 0 0 0 0 0 0 1 a.jpg\n\n", "the pose of 'a.jpg' is impossible"),
        (CAMERAS, "1 1 0 0 0 0 inf 0 1 a.jpg\n\n", "the pose of 'a.jpg' is impossible"),
        (CAMERAS, "1 1 0 0 0 0 0 0 2 a.jpg\n\n", "'a.jpg' has camera 2, which is not in"),
    ],
)
def test_damaged_text(tmp_path, cameras, images, words):
    with pytest.raises(UsageError, match=words) as caught:
        read_model(write_text(tmp_path, cameras, images))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_none(tmp_path):
    write_text(tmp_path)
    (tmp_path / "images.txt").write_bytes(b"\xff\xfe\x00\x80 1 2")
    with pytest.raises(UsageError, match=r"images.txt is damaged"):
        read_model(tmp_path)


def test_endless_lines_are_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("recon3d.colmap._MAX_LINE", 100)
    with pytest.raises(UsageError, match="a line of more than 100 bytes"):
        read_model(write_text(tmp_path, cameras="#" * 1000))


def test_missing_files(tmp_path):
    with pytest.raises(UsageError, match=r"cameras.txt cannot be read \(No such file"):
        read_model(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    write_text(tmp_path)
    (tmp_path / "images.txt").unlink()
    os.mkfifo(tmp_path / "images.txt")
    with pytest.raises(UsageError, match=r"images.txt is not a regular file"):
        read_model(tmp_path)


def test_every_cut_of_a_binary_model_is_refused(tmp_path):
    write_binary(tmp_path, [camera_bytes()] * 2, [image_bytes(n_points=2), image_bytes()])
    for name in ("cameras.bin", "images.bin"):
        whole = (tmp_path / name).read_bytes()
        for length in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(UsageError, match=f"{name} is (cut short|damaged)"):
                read_model(tmp_path)
        (tmp_path / name).write_bytes(whole)
    assert len(read_model(tmp_path).images) == 2


@pytest.mark.parametrize(
    ("cameras", "images", "words"),
    [
        ([camera_bytes(model=99)], [], "unknown camera model 99"),
        ([camera_bytes(model=-1)], [], "unknown camera model -1"),
        ([camera_bytes(size=(2**40, 1))], [], "pixels"),
        ([camera_bytes()], [image_bytes(b"x" * 5000)], "a name without an end"),
        ([camera_bytes()], [image_bytes(b"\xff.jpg")], "damaged"),
        ([camera_bytes()], [image_bytes(camera_id=4)], "has camera 4"),
        ([camera_bytes()], [image_bytes()[:-8] + struct.pack("<Q", 2**63)], "cut short"),
    ],
)
def test_hostile_binary(tmp_path, cameras, images, words):
    with pytest.raises(UsageError, match=words):
        read_model(write_binary(tmp_path, cameras, images))


def test_a_false_count_sets_nothing_aside(tmp_path):
    write_binary(tmp_path, [camera_bytes()], [image_bytes()])
    for name in ("cameras.bin", "images.bin"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(struct.pack("<Q", 2**62) + whole[8:])
        with pytest.raises(UsageError, match="cut short"):
            read_model(tmp_path)
        (tmp_path / name).write_bytes(whole)


def test_random_damage_gives_one_line_or_a_model(tmp_path):
    generator = np.random.default_rng(0)
    refused = []
    write_binary(tmp_path, [camera_bytes()] * 2, [image_bytes(n_points=2), image_bytes()])
    whole = bytearray((tmp_path / "images.bin").read_bytes())
    for _ in range(100):
        spoilt = bytearray(whole)
        for place in generator.integers(0, len(whole), 4):
            spoilt[place] = generator.integers(0, 256)
        (tmp_path / "images.bin").write_bytes(spoilt)
        try:
            images = read_model(tmp_path).images
        except UsageError as error:
            refused.append(str(error))
        else:
            assert all(np.isfinite(image.cam2world).all() for image in images)
    assert len(refused) > 10
    assert all("\n" not in text for text in refused)
