"""Matches -> one file: .npz for programs, .db for COLMAP. Pixels are those of the upright photos.

`.npz` (no pickle): `format` (a string with the version), `names` and `sizes` (width, height) of the
photos, `pairs` (first, second: indices into `names`), and one row per match in `pixels_i`,
`pixels_j` (x, y; centre of the top-left pixel at (0.5, 0.5)) and `confidence`. The matches of pair
k are the rows `offsets[k]` to `offsets[k + 1]`.

`.db`: an SQLite database with `cameras`, `images`, `keypoints` and `matches`, as COLMAP leaves it
before geometric verification. That comes next (`pycolmap.geometric_verification`, or `colmap
geometric_verifier`): without it COLMAP maps nothing. Confidence is not part of it.

Matches are the network's, as fine as the pixels that it saw; those of the image features that
refine the cameras are not among them.

Source: COLMAP documentation, "Database Format".
"""

import logging
import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from recon3d.errors import UsageError
from recon3d.files import atomic_write, not_writable, try_folder
from recon3d.matches import Matches
from recon3d.types import View
from recon3d.views import in_photo

logger = logging.getLogger(__name__)

FORMAT = "recon3d-matches/1"

_MAX_IMAGES = 2147483647  # COLMAP's number of a pair is first * this + second
_SIMPLE_PINHOLE, _PINHOLE = 0, 1  # COLMAP's numbers of the models with one focal length and two
_SQUARE = 1e-4  # relative difference of two focal lengths that are one
_USUAL_FOCAL = 1.2  # COLMAP's own start where EXIF says nothing, in long edges
_TABLES = """
CREATE TABLE cameras (camera_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    model INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, params BLOB,
    prior_focal_length INTEGER NOT NULL);
CREATE TABLE images (image_id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    name TEXT NOT NULL UNIQUE, camera_id INTEGER NOT NULL);
CREATE TABLE keypoints (image_id INTEGER PRIMARY KEY NOT NULL,
    rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB);
CREATE TABLE matches (pair_id INTEGER PRIMARY KEY NOT NULL,
    rows INTEGER NOT NULL, cols INTEGER NOT NULL, data BLOB);
"""


def check_match_output(output: str, *, overwrite: bool) -> None:
    """Check, before any work, that matches can be written to `output`.

    Raises:
        UsageError: an unknown ending, a folder, an existing file without `overwrite`, or a
            missing folder.
        ResourceError: the folder is not writable.
    """
    path = Path(output)
    if path.suffix.lower() not in (".npz", ".db"):
        raise UsageError(
            f"the matches {output!r} have no known ending. End it with .npz, or .db for COLMAP."
        )
    if path.is_dir():
        raise UsageError(f"{output} is a folder. Choose another name for the matches.")
    if path.exists() and not overwrite:
        raise UsageError(f"{output} exists; add --overwrite or choose another name.")
    if not path.parent.is_dir():
        raise UsageError(
            f"{output} cannot be written: there is no folder {path.parent}. Create it first."
        )
    try:
        try_folder(path.parent)
    except OSError as error:
        raise not_writable(path, error) from error


def write_matches(
    path: str | Path,
    matches: Sequence[Matches],
    views: Sequence[View],
    intrinsics: Sequence[Float[Tensor, "3 3"] | None] = (),
) -> None:
    """Write matches to `path`, whole or not at all; the ending decides the format.

    Args:
        path: ends with .npz or .db; an existing file is replaced.
        matches: one per unordered pair, as `merge_orders` returns them.
        views: all views that the matches index.
        intrinsics: what is known of each view's, in pixels of the photo; empty for nothing.

    Raises:
        UsageError: an unknown ending, or a photo whose name COLMAP cannot store.
        ResourceError: no space or no permission.
    """
    check_match_output(str(path), overwrite=True)
    with atomic_write(Path(path)) as file:
        if Path(path).suffix.lower() == ".npz":
            write_npz(matches, views, file)
        else:
            write_database(matches, views, file, intrinsics)
    count = sum(len(one.confidence) for one in matches)
    logger.info("wrote %d matches of %d pairs to %s", count, len(matches), path)


def write_match_files(
    paths: Sequence[str],
    matches: Sequence[Matches],
    views: Sequence[View],
    intrinsics: Sequence[Float[Tensor, "3 3"] | None] = (),
) -> None:
    """Write the same matches to every path, as `write_matches` does."""
    for path in paths:
        write_matches(path, matches, views, intrinsics)


def write_npz(matches: Sequence[Matches], views: Sequence[View], file: BufferedIOBase) -> None:
    """Write the arrays that the head of this module lists."""
    nothing = np.zeros((0, 2))
    counts = [len(one.confidence) for one in matches]
    np.savez(
        file,
        format=np.array(FORMAT),
        names=np.array([view.name for view in views], dtype=np.str_),
        sizes=_sizes(views),
        pairs=np.array([(one.i, one.j) for one in matches], dtype=np.int64).reshape(-1, 2),
        offsets=np.cumsum([0, *counts], dtype=np.int64),
        pixels_i=np.concatenate(
            [nothing, *(in_photo(one.pixels_i, views[one.i]) for one in matches)]
        ).astype(np.float32),
        pixels_j=np.concatenate(
            [nothing, *(in_photo(one.pixels_j, views[one.j]) for one in matches)]
        ).astype(np.float32),
        confidence=np.concatenate(
            [nothing[:, 0], *(one.confidence.numpy(force=True) for one in matches)]
        ).astype(np.float32),
    )


def write_database(
    matches: Sequence[Matches],
    views: Sequence[View],
    file: BufferedIOBase,
    intrinsics: Sequence[Float[Tensor, "3 3"] | None] = (),
) -> None:
    """Write a COLMAP database: a pinhole camera per photo, every matched pixel a keypoint once.

    A focal length that is given, else that of EXIF, is marked as known.
    """
    keypoints, rows = _keypoints(matches, views)
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_TABLES)
        for number, view in enumerate(views, start=1):
            width, height = view.photo_width, view.photo_height
            model, parameters, known = _camera(view, intrinsics[number - 1] if intrinsics else None)
            database.execute(
                "INSERT INTO cameras VALUES (?, ?, ?, ?, ?, ?)",
                (number, model, width, height, np.array(parameters, "<f8").tobytes(), known),
            )
            try:
                database.execute("INSERT INTO images VALUES (?, ?, ?)", (number, view.name, number))
            except UnicodeEncodeError as error:
                raise UsageError(
                    f"the photo {view.name!r} has a name that COLMAP cannot store. Rename it."
                ) from error
            data = keypoints[number - 1].astype("<f4")
            database.execute(
                "INSERT INTO keypoints VALUES (?, ?, ?, ?)", (number, len(data), 2, data.tobytes())
            )
        for one, indices in zip(matches, rows, strict=True):
            first, second = sorted((one.i + 1, one.j + 1))
            data = indices if one.i < one.j else indices[:, ::-1]
            database.execute(
                "INSERT INTO matches VALUES (?, ?, ?, ?)",
                (first * _MAX_IMAGES + second, len(data), 2, data.astype("<u4").tobytes()),
            )
        database.commit()
        file.write(database.serialize())


def _camera(
    view: View, intrinsics: Float[Tensor, "3 3"] | None
) -> tuple[int, tuple[float, ...], bool]:
    """Return COLMAP's model, its parameters, and whether the focal length is known."""
    width, height = view.photo_width, view.photo_height
    if intrinsics is None:
        focal_px = view.focal_px or _USUAL_FOCAL * max(width, height)
        known = view.focal_px is not None
        return _SIMPLE_PINHOLE, (focal_px, width / 2, height / 2), known
    (fx, _, cx), (_, fy, cy), _ = intrinsics.tolist()
    if math.isclose(fx, fy, rel_tol=_SQUARE):
        return _SIMPLE_PINHOLE, ((fx + fy) / 2, cx, cy), True
    return _PINHOLE, (fx, fy, cx, cy), True


def _sizes(views: Sequence[View]) -> Int64[np.ndarray, "view 2"]:
    sizes = [(view.photo_width, view.photo_height) for view in views]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _keypoints(
    matches: Sequence[Matches], views: Sequence[View]
) -> tuple[list[Float64[np.ndarray, "keypoint 2"]], list[Int64[np.ndarray, "match 2"]]]:
    """Return the distinct matched pixels of each photo, and each match as two rows of those."""
    sides = [((one.i, one.pixels_i), (one.j, one.pixels_j)) for one in matches]
    keypoints = []
    rows = [np.zeros((len(one.confidence), 2), dtype=np.int64) for one in matches]
    for n, view in enumerate(views):
        here = [
            (k, side, pixels)
            for k, both in enumerate(sides)
            for side, (owner, pixels) in enumerate(both)
            if owner == n
        ]
        pixels = [np.zeros((0, 2)), *(in_photo(some, view) for _, _, some in here)]
        distinct, place = np.unique(np.concatenate(pixels), axis=0, return_inverse=True)
        keypoints.append(distinct)
        ends = np.cumsum([len(some) for some in pixels])
        for (k, side, _), start, end in zip(here, ends[:-1], ends[1:], strict=True):
            rows[k][:, side] = place.reshape(-1)[start:end]
    return keypoints, rows
