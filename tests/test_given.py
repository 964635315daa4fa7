"""Given cameras: round trip with our own file, hand-made files of the others, names, bad input."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from exact_scene import blank_view, exact_scene
from recon3d.cameras import write_cameras
from recon3d.errors import UsageError
from recon3d.given import read_cameras
from recon3d.types import LeftOut, Scene, Verdict

EYE = np.eye(4).tolist()


def ours(name, **changes):
    lens = {"fx": 100.0, "fy": 110.0, "cx": 60.0, "cy": 50.0}
    entry = {"name": name, "width": 128, "height": 96, "intrinsics": lens, "cam2world": EYE}
    return entry | changes


def write(path, *, views=None, frames=None, **shared):
    if frames is not None:
        document = {"frames": frames} | shared
    else:
        document = {"format": "recon3d-cameras", "version": 1, "views": views} | shared
    path.write_text(json.dumps(document))
    return path


def view(name="a.jpg"):
    """Return a view of 64 x 48 pixels of a photo of 128 x 96."""
    return blank_view(name, (48, 64))


def test_round_trip_with_our_own_writer(tmp_path):
    truth = exact_scene(4)
    photo2view = torch.tensor([[0.31, 0.0, -7.0], [0.0, 0.29, -3.0], [0.0, 0.0, 1.0]])
    views = tuple(replace(v, photo2view=photo2view, photo_width=300) for v in truth.views)
    scene = Scene(
        views=views,
        cam2world=truth.cam2world,
        intrinsics=torch.stack([truth.intrinsics(n) for n in range(4)]),
        depth=truth.depth,
        confidence=tuple(2 * torch.ones_like(depth) for depth in truth.depth),
        verdicts=(
            Verdict(residual=0.1, edges=1, rotation_uncertainty_deg=1.0, focal_source="exif"),
        )
        * 4,
        left_out=(LeftOut(name="left.jpg", reason="no overlap"),),
    )
    file = io.BytesIO()
    write_cameras(scene, file)
    path = tmp_path / "cameras.json"
    path.write_bytes(file.getvalue())
    left = replace(views[0], name="left.jpg")
    *known, nothing = read_cameras(path, [*views, left])
    assert nothing is None
    for n, camera in enumerate(known):
        torch.testing.assert_close(camera.intrinsics, truth.intrinsics(n), atol=1e-9, rtol=0)
        torch.testing.assert_close(camera.cam2world, truth.cam2world[n], atol=1e-12, rtol=0)


def test_pixels_of_the_photo_become_those_of_the_view(tmp_path):
    path = write(tmp_path / "cameras.json", views=[ours("a.jpg")])
    (camera,) = read_cameras(path, [view()])
    expected = [[50.0, 0, 30], [0, 55, 25], [0, 0, 1]]
    np.testing.assert_allclose(camera.intrinsics, expected)


def test_cameras_of_a_smaller_copy_are_scaled(tmp_path):
    """Of a quarter of the size each pixel is four of the photo's; pixel edges coincide."""
    path = write(tmp_path / "cameras.json", views=[ours("a.jpg", width=32, height=24)])
    (camera,) = read_cameras(path, [view()])
    expected = [[200.0, 0, 120], [0, 220, 100], [0, 0, 1]]
    np.testing.assert_allclose(camera.intrinsics, expected)


def test_parts_may_be_missing(tmp_path):
    path = write(
        tmp_path / "cameras.json",
        views=[
            ours("pose.jpg", intrinsics=None),
            ours("focal.jpg", intrinsics={"fx": 100}, cam2world=None, width=None, height=None),
            ours("nothing.jpg", intrinsics=None, cam2world=None),
        ],
    )
    pose, focal, nothing = read_cameras(
        path, [view("pose.jpg"), view("focal.jpg"), view("nothing.jpg")]
    )
    assert pose.intrinsics is None
    np.testing.assert_array_equal(pose.cam2world, np.eye(4))
    # square pixels and the middle of the photo
    np.testing.assert_allclose(focal.intrinsics, [[50, 0, 32], [0, 50, 24], [0, 0, 1]])
    assert focal.cam2world is None
    assert nothing is None


def test_transforms_by_hand(tmp_path):
    """An OpenGL camera at (1, 2, 3) that looks along the world's -z, up along +y."""
    matrix = np.eye(4)
    matrix[:3, 3] = 1, 2, 3
    frame = {"file_path": "./images/a.jpg", "transform_matrix": matrix.tolist()}
    lens = {"fl_x": 100, "fl_y": 110, "cx": 60, "cy": 50, "w": 128, "h": 96}
    path = write(tmp_path / "transforms.json", frames=[frame], camera_model="OPENCV", **lens)
    (camera,) = read_cameras(path, [view()])
    np.testing.assert_allclose(camera.intrinsics, [[50, 0, 30], [0, 55, 25], [0, 0, 1]])
    # one unit ahead of an OpenCV camera is one unit down the world's z; down is the world's -y
    cam2world = camera.cam2world.numpy()
    np.testing.assert_array_equal(cam2world @ [0, 0, 1, 1], [1, 2, 2, 1])
    np.testing.assert_array_equal(cam2world @ [0, 1, 0, 1], [1, 1, 3, 1])
    np.testing.assert_array_equal(cam2world @ [1, 0, 0, 1], [2, 2, 3, 1])


def test_a_frame_has_the_last_word(tmp_path):
    frames = [
        {"file_path": "a.jpg", "transform_matrix": EYE, "fl_x": 90},
        {"file_path": "b.jpg", "transform_matrix": EYE[:3]},
    ]
    path = write(tmp_path / "transforms.json", frames=frames, fl_x=100)
    a, b = read_cameras(path, [view("a.jpg"), view("b.jpg")])
    assert float(a.intrinsics[0, 0]) == 45
    assert float(b.intrinsics[0, 0]) == 50
    np.testing.assert_array_equal(b.cam2world, np.diag([1, -1, -1, 1]))


def test_transforms_with_an_angle_and_names_without_suffix(tmp_path):
    frames = [{"file_path": "./train/r_0", "transform_matrix": EYE}]
    path = write(tmp_path / "t.json", frames=frames, camera_angle_x=math.radians(90))
    (camera,) = read_cameras(path, [view("r_0.png")])
    np.testing.assert_allclose(camera.intrinsics, [[32, 0, 32], [0, 32, 24], [0, 0, 1]])


def test_a_colmap_model(tmp_path, caplog):
    folder = tmp_path / "sparse" / "0"
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text("1 SIMPLE_RADIAL 128 96 100 60 50 0.1\n")
    (folder / "images.txt").write_text("1 0 1 0 0 1 2 3 1 images/a.jpg\n\n")
    (camera,) = read_cameras(tmp_path, [view()])
    np.testing.assert_allclose(camera.intrinsics, [[50, 0, 30], [0, 50, 25], [0, 0, 1]])
    expected = [[1, 0, 0, -1], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(camera.cam2world, expected, atol=1e-12)
    (record,) = caplog.records
    assert "lens distortion of 1 cameras is not applied" in record.getMessage()


def test_a_camera_that_no_photo_has_is_of_no_matter(tmp_path):
    (tmp_path / "cameras.txt").write_text(
        "1 PINHOLE 128 96 100 100 60 50\n2 OPENCV_FISHEYE 9 9 1 1 1 1 0 0 0 0\n"
    )
    (tmp_path / "images.txt").write_text("1 0 1 0 0 1 2 3 1 images/a.jpg\n\n")
    (camera,) = read_cameras(tmp_path, [view()])
    np.testing.assert_allclose(camera.intrinsics, [[50, 0, 30], [0, 50, 25], [0, 0, 1]])


def test_a_fisheye_is_no_pinhole(tmp_path):
    frames = [{"file_path": "a.jpg", "transform_matrix": EYE}]
    path = write(tmp_path / "t.json", frames=frames, fl_x=50, is_fisheye=True)
    with pytest.raises(UsageError, match=r"t\.json: the camera model OPENCV_FISHEYE of 'a\.jpg'"):
        read_cameras(path, [view()])


def test_the_fisheye_of_a_photo_that_is_not_there_is_of_no_matter(tmp_path):
    frames = [{"file_path": name, "transform_matrix": EYE, "fl_x": 50} for name in ("a.jpg", "b")]
    frames[1]["is_fisheye"] = True
    (camera,) = read_cameras(write(tmp_path / "t.json", frames=frames), [view()])
    assert camera.intrinsics is not None
    (tmp_path / "cameras.txt").write_text(
        "1 PINHOLE 128 96 100 100 60 50\n2 EUCM 9 9 1 1 1 1 0 0\n"
    )
    (tmp_path / "images.txt").write_text("1 0 1 0 0 1 2 3 1 a.jpg\n\n2 0 1 0 0 1 2 3 2 b.jpg\n\n")
    (camera,) = read_cameras(tmp_path, [view()])
    assert camera.intrinsics is not None
    words = r"the camera model EUCM of 'b\.jpg' is not supported"
    with pytest.raises(UsageError, match=words):
        read_cameras(tmp_path, [view(), view("b.jpg")])


def test_relative_names_come_before_file_names(tmp_path):
    path = write(
        tmp_path / "cameras.json",
        views=[
            ours("left/1.jpg", intrinsics={"fx": 10}),
            ours("right\\1.jpg", intrinsics={"fx": 20}),
            ours("./deep/2.jpg", intrinsics={"fx": 30}),
        ],
    )
    views = [view("right/1.jpg"), view("left/1.jpg"), view("2.jpg")]
    focals = [float(camera.intrinsics[0, 0]) for camera in read_cameras(path, views)]
    assert focals == [10, 5, 15]


def test_file_names_count_only_where_they_are_unique(tmp_path, caplog):
    path = write(
        tmp_path / "cameras.json",
        views=[ours("x/1.jpg"), ours("y/1.jpg"), ours("2.jpg"), ours("3.jpg")],
    )
    views = [view("1.jpg"), view("a/2.jpg"), view("b/2.jpg"), view("3.jpg")]
    cameras = read_cameras(path, views)
    assert [camera is not None for camera in cameras] == [False, False, False, True]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path}: 3 cameras without a photo ('x/1.jpg', 'y/1.jpg', '2.jpg'),"
        " 3 photos without a camera ('1.jpg', 'a/2.jpg', 'b/2.jpg')"
    )


def test_a_name_without_suffix_does_not_take_the_photo_of_another(tmp_path):
    views = [ours("n/1", intrinsics={"fx": 10}), ours("n/1.jpg", intrinsics={"fx": 20})]
    path = write(tmp_path / "cameras.json", views=views)
    (camera,) = read_cameras(path, [view("1.jpg")])
    assert float(camera.intrinsics[0, 0]) == 10


def test_long_warnings_are_cut(tmp_path, caplog):
    path = write(tmp_path / "cameras.json", views=[ours(f"{n}.jpg") for n in range(40)])
    read_cameras(path, [view("0.jpg")])
    assert caplog.records[0].getMessage().endswith("'5.jpg' and 34 more)")


def test_no_warning_without_reason(tmp_path, caplog):
    read_cameras(write(tmp_path / "cameras.json", views=[ours("a.jpg")]), [view()])
    assert not caplog.records


def test_rounded_rotations_are_made_whole(tmp_path):
    matrix = np.eye(4)
    matrix[:2, :2] = [[0.87, -0.5], [0.5, 0.87]]
    path = write(tmp_path / "cameras.json", views=[ours("a.jpg", cam2world=matrix.tolist())])
    rotation = read_cameras(path, [view()])[0].cam2world[:3, :3].numpy()
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation, matrix[:3, :3], atol=0.01)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ((2 * np.eye(4)).tolist(), "no rotation and translation"),
        (np.diag([1.0, 1, -1, 1]).tolist(), "no rotation and translation"),
        (np.zeros((4, 4)).tolist(), "no rotation and translation"),
        (np.eye(3).tolist(), "no 4x4 matrix"),
        ("identity", "no 4x4 matrix"),
        ([[1, 0, 0, "0"], *EYE[1:]], "no number"),
        ([[1, 0, 0, None], *EYE[1:]], "unknown entries"),
        ([[1, 0, 0, math.nan], *EYE[1:]], "no number"),
        ([[1, 0, 0, 10**400], *EYE[1:]], "no number"),
        ([[True, 0, 0, 0], *EYE[1:]], "no number"),
    ],
)
def test_bad_poses(tmp_path, matrix, words):
    path = write(tmp_path / "cameras.json", views=[ours("a.jpg", cam2world=matrix)])
    with pytest.raises(UsageError, match=words) as caught:
        read_cameras(path, [view()])
    assert str(path) in str(caught.value)
    assert "'a.jpg'" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 96, "height": 128}, "96 x 128 pixels, but the upright photo has 128 x 96"),
        ({"width": 0}, "0 pixels"),
        ({"width": "128"}, "width of 'a.jpg' is no number"),
        ({"intrinsics": {"fx": -5}}, "focal length of 'a.jpg' is -5"),
        ({"intrinsics": {"fx": math.inf}}, "no number"),
        ({"intrinsics": [1, 2]}, "are no object"),
        ({"name": None}, "entry 0 has no name"),
    ],
)
def test_bad_lenses(tmp_path, changes, words):
    path = write(tmp_path / "cameras.json", views=[ours("a.jpg") | changes])
    with pytest.raises(UsageError, match=words):
        read_cameras(path, [view()])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE of 'a.jpg' is not supported"),
        ({"camera_angle_x": 4}, "4 rad, not between 0 and pi"),
        ({"k1": "0.1"}, "k1 of 'a.jpg' is no number"),
    ],
)
def test_bad_transforms(tmp_path, changes, words):
    frame = {"file_path": "a.jpg", "transform_matrix": EYE, "fl_x": 5} | changes
    with pytest.raises(UsageError, match=words):
        read_cameras(write(tmp_path / "t.json", frames=[frame]), [view()])


def test_distortion_is_warned_of_once(tmp_path, caplog):
    frames = [
        {"file_path": f"{n}.jpg", "transform_matrix": EYE, "fl_x": 5, "p2": 0.1 * (n < 2)}
        for n in range(3)
    ]
    path = write(tmp_path / "t.json", frames=frames, k1=0.0)
    read_cameras(path, [view(f"{n}.jpg") for n in range(3)])
    (record,) = caplog.records
    assert "lens distortion of 2 cameras" in record.getMessage()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "neither frames nor the format"),
        ('{"format": "recon3d-cameras", "version": 2, "views": []}', "version 2, not 1"),
        ('{"format": "recon3d-cameras", "version": 1, "views": {}}', "views is no list"),
        ('{"format": "recon3d-cameras", "version": 1, "views": []}', "holds no cameras"),
        ('{"frames": [1]}', "frames is no list of objects"),
        ("\x00\x01", "is no JSON"),
    ],
)
def test_files_that_are_none(tmp_path, text, words):
    path = tmp_path / "cameras.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_cameras(path, [view()])
    assert "\n" not in str(caught.value)


def test_paths_that_hold_nothing(tmp_path):
    with pytest.raises(UsageError, match="holds no COLMAP model"):
        read_cameras(tmp_path, [view()])
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        read_cameras(tmp_path / "none.json", [view()])


def test_no_camera_of_these_photos(tmp_path):
    path = write(tmp_path / "cameras.json", views=[ours("b.jpg")])
    with pytest.raises(UsageError, match=r"its names are 'b.jpg', the photos' 'a.jpg'"):
        read_cameras(path, [view()])


def test_the_same_name_twice(tmp_path):
    path = write(tmp_path / "cameras.json", views=[ours("a.jpg"), ours("./a.jpg")])
    with pytest.raises(UsageError, match=r"names 'a.jpg' more than once"):
        read_cameras(path, [view()])


def test_large_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("recon3d.given_files._MAX_FILE_BYTES", 10)
    path = write(tmp_path / "cameras.json", views=[ours("a.jpg")])
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        read_cameras(path, [view()])
