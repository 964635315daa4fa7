"""What the files say that hold cameras: cameras.json, transforms.json and COLMAP models.

The files are untrusted: their size is limited and every value is checked.

Source of transforms.json: nerfstudio documentation, "Data conventions".
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from recon3d.cameras import FORMAT, VERSION
from recon3d.colmap import ColmapCamera, ColmapImage, find_model, pinhole, read_model
from recon3d.errors import UsageError

_MAX_FILE_BYTES = 64 * 1024 * 1024
_MAX_VALUE = 1e12
_WANTED = "Give cameras.json, transforms.json or the folder of a COLMAP model."
_PINHOLES = ("", "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_SHARED = (
    *("camera_model", "is_fisheye", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "w", "h"),
    *_DISTORTION,
)
# An OpenGL camera looks along -z with +y up; the world stays.
_OPENCV2OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Given:
    """What a file says of one camera; None is unknown.

    Pixels are those of an image of `width` x `height`, or of the photo where these are unknown,
    with the centre of the top-left one at (0.5, 0.5). `fov_x_rad` is the horizontal angle of view.
    `cam2world` is OpenCV, in the world of the file; nothing says yet that it is rigid.
    `no_pinhole` is the name of a camera model that is none, as fisheyes are; of such a camera no
    intrinsics are known.
    """

    name: str
    fx: float | None = None
    fy: float | None = None
    cx: float | None = None
    cy: float | None = None
    fov_x_rad: float | None = None
    width: float | None = None
    height: float | None = None
    cam2world: Float64[np.ndarray, "4 4"] | None = None
    distorts: bool = False
    no_pinhole: str | None = None


def read_given(path: Path) -> list[Given]:
    """Return the cameras of a .json file or of the COLMAP model in a folder.

    The axes of the cameras in transforms.json are turned from OpenGL to OpenCV; its world is kept.

    Raises:
        UsageError: a file that cannot be read, is of another format or holds impossible values.
    """
    return _read_model(path) if path.is_dir() else _read_json(path)


def _read_model(folder: Path) -> list[Given]:
    place = find_model(folder)
    if place is None:
        raise UsageError(
            f"{folder} holds no COLMAP model (cameras and images, .bin or .txt). {_WANTED}"
        )
    model = read_model(place)
    return [_of_image(image, model.cameras[image.camera_id]) for image in model.images]


def _of_image(image: ColmapImage, camera: ColmapCamera) -> Given:
    lens = pinhole(camera)
    given = Given(
        name=image.name,
        width=float(camera.width),
        height=float(camera.height),
        cam2world=image.cam2world,
    )
    if lens is None:
        return replace(given, no_pinhole=camera.model)
    matrix, distorts = lens
    fx, fy, cx, cy = (float(matrix[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return replace(given, fx=fx, fy=fy, cx=cx, cy=cy, distorts=distorts)


def _read_json(path: Path) -> list[Given]:
    try:
        if not path.is_file():
            raise UsageError(f"{path} is neither a file nor a folder. {_WANTED}")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than {_MAX_FILE_BYTES} bytes. {_WANTED}")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}). {_WANTED}") from error
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or no text at all
        raise UsageError(f"{path} is no JSON. {_WANTED}") from error
    try:
        if isinstance(document, dict) and document.get("format") == FORMAT:
            return list(_from_cameras(document))
        if isinstance(document, dict) and "frames" in document:
            return list(_from_transforms(document))
    except ValueError as error:
        raise UsageError(f"{path}: {error}. Correct it, or write the file anew.") from error
    raise UsageError(f'{path} has neither frames nor the format "{FORMAT}". {_WANTED}')


def _from_cameras(document: dict[str, Any]) -> Iterator[Given]:
    if document.get("version") != VERSION:
        raise ValueError(f"version {document.get('version')!r:.20}, not {VERSION}")
    for n, entry in enumerate(_records(document, "views")):
        name = _name(entry, "name", n)
        pinhole_part = entry.get("intrinsics")
        lens = {} if pinhole_part is None else pinhole_part
        if not isinstance(lens, dict):
            raise ValueError(f"the intrinsics of {name[:80]!r} are no object")
        given = Given(
            name=name,
            fx=_number(lens, "fx", name),
            fy=_number(lens, "fy", name),
            cx=_number(lens, "cx", name),
            cy=_number(lens, "cy", name),
            width=_size(entry, "width", name),
            height=_size(entry, "height", name),
            cam2world=_matrix(entry, "cam2world", name),
        )
        # nothing is known of a photo that was left out
        if any(value is not None for value in (given.fx, given.fy, given.cam2world)):
            yield given


def _from_transforms(document: dict[str, Any]) -> Iterator[Given]:
    shared = {key: document[key] for key in _SHARED if key in document}
    for n, frame in enumerate(_records(document, "frames")):
        name = _name(frame, "file_path", n)
        both = shared | frame  # what a frame says comes first
        model = str(both.get("camera_model") or "").upper()
        if both.get("is_fisheye") is True:  # instant-ngp's word for it
            model = "OPENCV_FISHEYE"
        opengl2world = _matrix(frame, "transform_matrix", name)
        yield Given(
            name=name,
            fx=_number(both, "fl_x", name),
            fy=_number(both, "fl_y", name),
            cx=_number(both, "cx", name),
            cy=_number(both, "cy", name),
            fov_x_rad=_angle(both, "camera_angle_x", name),
            width=_size(both, "w", name),
            height=_size(both, "h", name),
            cam2world=None if opengl2world is None else opengl2world @ _OPENCV2OPENGL,
            distorts=any(_number(both, key, name) for key in _DISTORTION),
            no_pinhole=None if model in _PINHOLES else model[:40],
        )


def _records(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    records = document.get(key)
    if not isinstance(records, list) or not all(isinstance(entry, dict) for entry in records):
        raise ValueError(f"{key} is no list of objects")
    return records


def _name(record: dict[str, Any], key: str, number: int) -> str:
    name = record.get(key)
    if not isinstance(name, str) or not name:
        raise ValueError(f"entry {number} has no {key}")
    return name


def _number(record: dict[str, Any], key: str, name: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    # the comparison is false for nan, and exact for integers beyond the range of floats
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MAX_VALUE:
        raise ValueError(f"{key} of {name[:80]!r} is no number")
    return float(value)


def _size(record: dict[str, Any], key: str, name: str) -> float | None:
    value = _number(record, key, name)
    if value is not None and value < 1:
        raise ValueError(f"{key} of {name[:80]!r} is {value:g} pixels")
    return value


def _angle(record: dict[str, Any], key: str, name: str) -> float | None:
    value = _number(record, key, name)
    if value is not None and not 0 < value < math.pi:
        raise ValueError(f"{key} of {name[:80]!r} is {value:g} rad, not between 0 and pi")
    return value


def _matrix(record: dict[str, Any], key: str, name: str) -> Float64[np.ndarray, "4 4"] | None:
    rows = record.get(key)
    if rows is None:
        return None
    fits = isinstance(rows, list) and len(rows) in (3, 4)
    if not fits or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise ValueError(f"{key} of {name[:80]!r} is no 4x4 matrix")
    values = [[_number({key: value}, key, name) for value in row] for row in rows]
    if any(value is None for row in values for value in row):
        raise ValueError(f"{key} of {name[:80]!r} has unknown entries")
    matrix = np.eye(4)
    matrix[: len(rows)] = values
    return matrix
