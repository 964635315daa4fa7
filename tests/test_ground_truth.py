"""Folders of ground truth: what they say, and every way in which they can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from picture_bytes import encode, exif_block, with_exif
from recon3d.errors import InputError
from recon3d.ground_truth import find_scenes, read_depth, read_scene

KIT = Path(__file__).parents[2] / "shared" / "data"
WIDTH, HEIGHT = 8, 6


def entry(number: int) -> dict[str, Any]:
    world2cam = np.eye(4)
    world2cam[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    world2cam[0, 3] = number
    return {
        "file": f"images/{number}.png",
        "width": WIDTH,
        "height": HEIGHT,
        "fx": 10.0,
        "fy": 40.0,
        "cx": 3.5,
        "cy": 2.5,
        "world_to_camera": world2cam.tolist(),
    }


def write_photo(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole scene of three photos, the first with depth."""
    scene = tmp_path / "scene"
    for number in range(3):
        write_photo(scene / "images" / f"{number}.png")
    (scene / "depth").mkdir()
    depth = np.full((HEIGHT, WIDTH), 2, np.float16)
    depth[0, :4] = [np.nan, np.inf, -1, 0]
    np.save(scene / "depth" / "0.npy", depth)
    first = entry(0) | {"depth": "depth/0.npy"}
    write(scene, {"units": "metric", "gt_kind": "made up", "images": [first, entry(1), entry(2)]})
    return scene


def write(scene: Path, document: object, name: str = "gt.json") -> None:
    (scene / name).write_text(json.dumps(document))


def read(scene: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((scene / "gt.json").read_text())
    return document


@pytest.fixture
def pair_folder(tmp_path: Path) -> Path:
    scene = tmp_path / "pairs"
    pairs = []
    for number in range(2):
        for k in (0, 1):
            write_photo(scene / f"{number}-{k}.png")
        first2second = np.eye(4)
        first2second[2, 3] = -3.0 - number
        pairs.append(
            {
                "image0": f"{number}-0.png",
                "image1": f"{number}-1.png",
                "width": WIDTH,
                "height": HEIGHT,
                "K0": [[10.0, 0, 4], [0, 10, 3], [0, 0, 1]],
                "K1": [[20.0, 0, 4], [0, 20, 3], [0, 0, 1]],
                "T_0to1": first2second.tolist(),
            }
        )
    write(scene, {"units": "arbitrary", "pairs": pairs}, "pairs.json")
    return scene


def test_a_scene_is_read_as_it_says(folder: Path) -> None:
    scene = read_scene(folder)
    assert (scene.name, scene.metric, scene.is_pair_set) == ("scene", True, False)
    assert scene.gt_kind == "made up"
    assert scene.pairs == ((0, 1), (0, 2), (1, 2))
    photo = scene.photos[1]
    assert photo.path == folder / "images" / "1.png"
    # integer pixel centres in the file, +0.5 inside
    assert photo.intrinsics.tolist() == [[10.0, 0, 4.0], [0, 40.0, 3.0], [0, 0, 1]]
    assert photo.focal_px == 20.0
    # a quarter turn with x_cam = -y_world + 1: the camera sits at y_world = 1
    assert photo.cam2world[:3, 3].tolist() == [0.0, 1.0, 0.0]
    assert photo.cam2world[:3, 0].tolist() == [0.0, -1.0, 0.0]


def test_depth_is_zero_where_it_means_nothing(folder: Path) -> None:
    photo = read_scene(folder).photos[0]
    depth = read_depth(photo)
    assert depth.shape == (HEIGHT, WIDTH)
    assert depth[0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="no depth"):
        read_depth(read_scene(folder).photos[1])


def test_a_pair_set_is_read_as_it_says(pair_folder: Path) -> None:
    scene = read_scene(pair_folder)
    assert scene.is_pair_set
    assert not scene.metric
    assert scene.pairs == ((0, 1), (2, 3))
    assert scene.photos[2].cam2world.tolist() == np.eye(4).tolist()
    # camera 1 is where x1 = 0: z0 = 3 and 4
    assert [scene.photos[k].cam2world[2, 3] for k in (1, 3)] == [3.0, 4.0]
    assert [photo.focal_px for photo in scene.photos] == pytest.approx([10, 20, 10, 20])


def test_scenes_are_found_in_a_folder_of_folders(folder: Path, pair_folder: Path) -> None:
    parent = folder.parent
    (parent / "empty").mkdir()
    assert find_scenes([parent]) == [pair_folder, folder]
    assert find_scenes([folder, parent]) == [folder, pair_folder]  # each once
    assert find_scenes([parent], ["scene"]) == [folder]
    with pytest.raises(InputError, match=r"no scene 'kitchen'. Known: pairs, scene"):
        find_scenes([parent], ["kitchen"])
    with pytest.raises(InputError, match="holds neither"):
        find_scenes([parent / "empty"])
    with pytest.raises(InputError, match="not a folder"):
        find_scenes([parent / "nowhere"])


def changed(**changes: object) -> Callable[[Path], None]:
    """Return what replaces fields of the second photo."""

    def change(scene: Path) -> None:
        document = read(scene)
        document["images"][1].update(changes)
        write(scene, document)

    return change


def world2cam(row: int, column: int, value: float) -> list[list[float]]:
    matrix: list[list[float]] = entry(1)["world_to_camera"]
    matrix[row][column] = value
    return matrix


def text(content: str) -> Callable[[Path], None]:
    return lambda scene: (scene / "gt.json").write_text(content)  # type: ignore[return-value]


def listed_twice(scene: Path) -> None:
    document = read(scene)
    document["images"][2]["file"] = document["images"][1]["file"]
    write(scene, document)


def turned(scene: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    data = with_exif(encode(".jpg", pixels), exif_block(6), WIDTH, HEIGHT)
    (scene / "images" / "1.jpg").write_bytes(data)
    changed(file="images/1.jpg")(scene)


def not_a_photo(scene: Path) -> None:
    (scene / "images" / "1.png").write_text("this is no picture")


def both_kinds(scene: Path) -> None:
    write(scene, {"pairs": []}, "pairs.json")


def test_a_byte_order_mark_is_no_part_of_the_truth(folder: Path) -> None:
    file = folder / "gt.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_scene(folder).photos) == 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (text("{"), "not valid JSON"),
        (text("[]"), "not a JSON object"),
        (text("[" * 100_000), "not valid JSON"),
        (text("{}"), "'images', a list"),
        (text('{"images": [1]}'), "has 1 entries"),
        (text('{"images": [1, 2]}'), "entry 0 is not an object"),
        (text('{"images": [' + "1," * 3000 + "1]}"), "has 3001 entries"),
        (both_kinds, "either gt.json or pairs.json"),
        (listed_twice, "lists a photo twice"),
        (turned, "turned by EXIF"),
        (not_a_photo, "cannot be used"),
        (changed(file=None), "must be a path"),
        (changed(file="images/9.png"), "does not exist"),
        (changed(file="../scene/images/1.png"), "outside of the folder"),
        (changed(file="/etc/hostname"), "outside of the folder"),
        (changed(depth="depth/1.npy"), "does not exist"),
        (changed(width="8"), "needs 'width', a whole number"),
        (changed(width=True), "width is True"),
        (changed(height=10**9), "height is 1000000000"),
        (changed(width=9), "has 8 x 6 pixels, not 9 x 6"),
        (changed(fx=0.0), "focal lengths"),
        (changed(fx=1e8), "focal lengths"),
        (changed(fy="forty"), "fy is 'forty'"),
        (changed(cx=float("nan")), "cx is nan"),
        (changed(world_to_camera=[[1, 0, 0, 0]]), "4 rows of 4"),
        (changed(world_to_camera=None), "4 rows of 4"),
        (changed(world_to_camera=world2cam(0, 0, 0.5)), "not a rotation"),
        (changed(world_to_camera=world2cam(2, 2, -1.0)), "not a rotation"),  # a mirror
        (changed(world_to_camera=world2cam(3, 0, 1.0)), "not a rotation"),
        (changed(world_to_camera=world2cam(0, 3, 1e30)), "must be a number"),
    ],
)
def test_a_scene_that_is_wrong_is_refused(
    folder: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=words) as caught:
        read_scene(folder)
    assert "\n" not in str(caught.value)


def test_the_second_entry_is_named(folder: Path) -> None:
    changed(fx=0.0)(folder)
    with pytest.raises(InputError, match="entry 1"):
        read_scene(folder)


def test_a_pair_with_skew_is_refused(pair_folder: Path) -> None:
    document = json.loads((pair_folder / "pairs.json").read_text())
    document["pairs"][1]["K1"][0][1] = 3.0
    write(pair_folder, document, "pairs.json")
    with pytest.raises(InputError, match=r"entry 1: .*without skew"):
        read_scene(pair_folder)


def promise_more_than_there_is(path: Path) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**9}, {10**6}), }}"
    header = header.ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("this is no array"),
        lambda path: np.save(path, np.ones((HEIGHT, WIDTH), np.int32)),
        lambda path: np.save(path, np.ones((WIDTH, HEIGHT), np.float32)),
        lambda path: np.save(path, np.array([{"a": 1}]), allow_pickle=True),
        promise_more_than_there_is,
    ],
)
def test_depth_that_is_wrong_is_refused(folder: Path, spoil: Callable[[Path], object]) -> None:
    photo = read_scene(folder).photos[0]
    assert photo.depth_path is not None
    spoil(photo.depth_path)
    with pytest.raises(InputError, match=r"0\.npy"):
        read_depth(photo)
    with pytest.raises(InputError, match=r"0\.npy"):
        read_scene(folder)  # before any work is done


@pytest.mark.skipif(not KIT.is_dir(), reason="needs the evaluation kit in ../shared/data")
@pytest.mark.parametrize(
    ("name", "n_photos", "n_pairs", "n_depth"),
    [
        ("scannet_pairs_public", 16, 8, 0),
        ("slambook_dining", 5, 10, 5),
        ("stereo_piano", 2, 1, 1),
        ("strecha_castle_p19", 19, 171, 0),
    ],
)
def test_the_kit_is_read(name: str, n_photos: int, n_pairs: int, n_depth: int) -> None:
    scene = read_scene(KIT / name)
    assert len(scene.photos) == n_photos
    assert len(scene.pairs) == n_pairs
    with_depth = [photo for photo in scene.photos if photo.depth_path is not None]
    assert len(with_depth) == n_depth
    for photo in with_depth[:1]:
        depth = read_depth(photo)
        assert (depth > 0).mean() > 0.2
        assert 0.1 < np.median(depth[depth > 0]) < 30


@pytest.mark.skipif(not KIT.is_dir(), reason="needs the evaluation kit in ../shared/data")
def test_all_of_the_kit_is_found() -> None:
    assert len(find_scenes([KIT])) == len([entry for entry in KIT.iterdir() if entry.is_dir()])
