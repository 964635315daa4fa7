"""Match files: what is read back is what was matched, in pixels of the photos."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_scene import blank_view
from recon3d.errors import ReconError, UsageError
from recon3d.match_file import check_match_output, write_matches
from recon3d.matches import Matches

# a photo of 400 x 300, halved and cropped by 10 and 20 pixels
PHOTO2VIEW = torch.tensor([[0.5, 0.0, -10.0], [0.0, 0.5, -20.0], [0.0, 0.0, 1.0]])
VIEWS = (
    replace(blank_view("a.jpg", (120, 180)), photo2view=PHOTO2VIEW, focal_px=500.0),
    blank_view("sub/ü b.jpg", (64, 64)),
    blank_view("c.jpg", (48, 64)),
)


def one(i: int, j: int, pixels_i: list[list[float]], pixels_j: list[list[float]]) -> Matches:
    return Matches(
        i=i,
        j=j,
        pixels_i=torch.tensor(pixels_i).reshape(-1, 2),
        pixels_j=torch.tensor(pixels_j).reshape(-1, 2),
        confidence=torch.arange(len(pixels_i)) + 1.5,
    )


MATCHES = [
    one(0, 1, [[0.5, 0.5], [7.5, 3.5]], [[1.5, 2.5], [3.5, 4.5]]),
    one(0, 2, [], []),
    one(2, 1, [[9.5, 8.5], [1.0, 2.0]], [[3.5, 4.5], [5.5, 6.5]]),
]
PAIRS_IN_PHOTOS = {  # by hand: x_photo = 2 (x + 10), y_photo = 2 (y + 20) in a.jpg, else doubled
    ("a.jpg", "sub/ü b.jpg"): [[21, 41, 3, 5], [35, 47, 7, 9]],
    ("a.jpg", "c.jpg"): [],
    ("c.jpg", "sub/ü b.jpg"): [[19, 17, 7, 9], [2, 4, 11, 13]],
}


def test_npz_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    write_matches(path, MATCHES, VIEWS)
    with np.load(path, allow_pickle=False) as file:
        read = dict(file)
    assert str(read["format"]) == "recon3d-matches/1"
    assert read["sizes"].tolist() == [[v.photo_width, v.photo_height] for v in VIEWS]
    assert read["confidence"].tolist() == [1.5, 2.5, 1.5, 2.5]
    found = {}
    for k, (first, second) in enumerate(read["pairs"]):
        rows = slice(read["offsets"][k], read["offsets"][k + 1])
        both = np.concatenate((read["pixels_i"][rows], read["pixels_j"][rows]), axis=1)
        found[str(read["names"][first]), str(read["names"][second])] = both.tolist()
    assert found == PAIRS_IN_PHOTOS
    # and back through the map of the view
    back = np.c_[read["pixels_i"][:2], np.ones(2)] @ PHOTO2VIEW.double().numpy().T
    assert np.allclose(back[:, :2], MATCHES[0].pixels_i.numpy())


def as_pairs(path: Path) -> dict[tuple[str, str], list[list[float]]]:
    """Read the matched pixels of a COLMAP database by its documented layout."""
    connection = sqlite3.connect(path)
    names = dict(connection.execute("SELECT image_id, name FROM images"))
    pixels = {
        number: np.frombuffer(data, "<f4").reshape(rows, cols)
        for number, rows, cols, data in connection.execute("SELECT * FROM keypoints")
    }
    found = {}
    for pair, rows, cols, data in connection.execute("SELECT * FROM matches"):
        first, second = divmod(pair, 2147483647)
        a, b = np.frombuffer(data, "<u4").reshape(rows, cols).T
        both = np.concatenate((pixels[first][a], pixels[second][b]), axis=1)
        found[names[first], names[second]] = both.tolist()
    connection.close()
    return found


def test_database_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    write_matches(path, MATCHES, VIEWS)
    expected = {
        **{pair: rows for pair, rows in PAIRS_IN_PHOTOS.items() if pair[0] == "a.jpg"},
        # COLMAP wants the lower number first
        ("sub/ü b.jpg", "c.jpg"): [[7, 9, 19, 17], [11, 13, 2, 4]],
    }
    assert as_pairs(path) == expected


def test_colmap_reads_the_database(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra colmap")
    path = tmp_path / "m.db"
    write_matches(path, MATCHES, VIEWS)
    database = pycolmap.Database.open(path)
    try:
        images = {image.image_id: image for image in database.read_all_images()}
        assert [images[n].name for n in (1, 2, 3)] == [view.name for view in VIEWS]
        camera = database.read_camera(images[1].camera_id)
        assert (camera.width, camera.height) == (360, 240)
        assert camera.params.tolist() == [500, 180, 120]
        assert camera.has_prior_focal_length
        assert not database.read_camera(images[2].camera_id).has_prior_focal_length
        # (3.5, 4.5) of the second photo is in two pairs but one keypoint
        assert database.read_keypoints(2)[:, :2].tolist() == [[3, 5], [7, 9], [11, 13]]
        assert database.read_matches(2, 3).tolist() == [[1, 1], [2, 0]]
        assert database.read_matches(1, 3).shape == (0, 2)
    finally:
        database.close()


def test_colmap_verifies_the_database_which_holds_nothing_verified(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="needs the extra colmap")
    path = tmp_path / "m.db"
    views = (blank_view("a.jpg", (240, 320)), blank_view("b.jpg", (240, 320)))
    points = np.random.default_rng(0).uniform((-1, -0.7, 3), (1, 0.7, 5), size=(200, 3))
    pixels = [
        (300 * seen[:, :2] / seen[:, 2:] + (160, 120)).tolist()
        for seen in (points, points + np.array([0.5, 0, 0]))
    ]
    wrong = 40
    pixels[1][:wrong] = pixels[1][:wrong][::-1]
    write_matches(path, [one(0, 1, *pixels)], views)
    with closing(sqlite3.connect(path)) as file:
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
    assert "matches" in tables
    assert "two_view_geometries" not in tables
    pycolmap.geometric_verification(path)
    with closing(sqlite3.connect(path)) as file:
        ((rows,),) = file.execute("SELECT rows FROM two_view_geometries").fetchall()
    assert 0.9 * (len(points) - wrong) < rows < len(points)


@pytest.mark.parametrize("suffix", [".npz", ".db"])
def test_no_match_at_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    write_matches(path, [], VIEWS)
    if suffix == ".db":
        assert as_pairs(path) == {}
    else:
        with np.load(path) as file:
            assert file["pairs"].shape == (0, 2)
            assert file["offsets"].tolist() == [0]


def test_given_lenses_are_cameras_with_a_known_focal_length(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    square = torch.tensor([[614.0, 0, 320], [0, 614.0, 240], [0, 0, 1]])
    wide = torch.tensor([[600.0, 0, 310], [0, 620.0, 250], [0, 0, 1]])
    write_matches(path, MATCHES, VIEWS, [square, wide, None])
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT model, params, prior_focal_length FROM cameras").fetchall()
    found = [(model, np.frombuffer(data).tolist(), known) for model, data, known in rows]
    assert found == [
        (0, [614.0, 320.0, 240.0], 1),
        (1, [600.0, 620.0, 310.0, 250.0], 1),
        (0, [1.2 * 128, 64.0, 48.0], 0),
    ]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    views = (replace(VIEWS[0], name="b\udcffd.jpg"), *VIEWS[1:])
    write_matches(tmp_path / "m.npz", MATCHES, views)
    with np.load(tmp_path / "m.npz") as file:
        assert str(file["names"][0]) == "b\udcffd.jpg"
    with pytest.raises(UsageError, match="name that COLMAP cannot store"):
        write_matches(tmp_path / "m.db", MATCHES, views)
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def test_outputs_are_checked_before_any_work(tmp_path: Path) -> None:
    there = tmp_path / "there.npz"
    there.write_bytes(b"old")
    (tmp_path / "folder.db").mkdir()
    check_match_output(str(tmp_path / "new.DB"), overwrite=False)
    check_match_output(str(there), overwrite=True)
    for name, text in (("m.txt", "ending"), ("there.npz", "--overwrite"), ("folder.db", "folder")):
        with pytest.raises(UsageError, match=text):
            check_match_output(str(tmp_path / name), overwrite=False)
    with pytest.raises(UsageError, match="there is no folder"):
        check_match_output(str(tmp_path / "none" / "m.db"), overwrite=False)
    with pytest.raises(UsageError, match="ending"):
        write_matches(tmp_path / "m.txt", MATCHES, VIEWS)
    assert there.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no file")
def test_a_folder_that_takes_no_file_is_refused_before_any_work() -> None:
    with pytest.raises(ReconError, match=r"/proc/m\.db cannot be written"):
        check_match_output("/proc/m.db", overwrite=False)
