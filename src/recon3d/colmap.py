"""Reading COLMAP's sparse models, text and binary: the only place that speaks their world2cam.

Only cameras and images are read; of the points in an image nothing is kept. The files are
untrusted: nothing is set aside on the word of a count, and every number is checked.

Source: COLMAP documentation, "Output Format"; camera models and their numbers as listed there.
"""

import math
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from jaxtyping import Float64

from recon3d.errors import UsageError

MODELS = (
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
    ("SIMPLE_FISHEYE", 3),
    ("FISHEYE", 4),
    ("EUCM", 6),
    ("EQUIRECTANGULAR", 2),
)
"""Names and numbers of parameters, by the number that binary files use."""

_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_PINHOLES = (*_ONE_FOCAL, "PINHOLE", "OPENCV", "FULL_OPENCV")
_MAX_LINE = 64 * 1024**2  # of text; the points of one image are one line
_MAX_NAME = 4096
_MAX_VALUE = 1e12
_POINT_BYTES = 24  # of a point in images.bin: two coordinates and an identifier

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class ColmapCamera:
    """A camera: `width` and `height` in pixels, `parameters` as its model orders them."""

    model: str
    width: int
    height: int
    parameters: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ColmapImage:
    """A placed image; `name` is its path relative to the image folder."""

    name: str
    camera_id: int
    cam2world: Float64[np.ndarray, "4 4"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColmapModel:
    """Cameras by their ids, and the images in the order of the file."""

    cameras: dict[int, ColmapCamera]
    images: tuple[ColmapImage, ...]


def find_model(folder: Path) -> Path | None:
    """Return where in `folder` a model lies: there, in `sparse/0` or in `sparse`; else None."""
    for place in (folder, folder / "sparse" / "0", folder / "sparse"):
        if any((place / f"images{suffix}").is_file() for suffix in (".bin", ".txt")):
            return place
    return None


def read_model(folder: Path) -> ColmapModel:
    """Read `cameras` and `images` of a model, .bin where both are there (as COLMAP does).

    Raises:
        UsageError: a file is missing, damaged, or holds an impossible value; names the file.
    """
    binary = all((folder / f"{name}.bin").is_file() for name in ("cameras", "images"))
    suffix = ".bin" if binary else ".txt"
    cameras_path, images_path = folder / f"cameras{suffix}", folder / f"images{suffix}"
    cameras = dict(_read(cameras_path, _binary_cameras if binary else _text_cameras))
    images = _read(images_path, _binary_images if binary else _text_images)
    for image in images:
        if image.camera_id not in cameras:
            raise UsageError(
                f"{images_path}: {image.name[:80]!r} has camera {image.camera_id}, which is not in"
                f" {cameras_path.name}. Give a whole COLMAP model."
            )
    return ColmapModel(cameras=cameras, images=tuple(images))


def pinhole(camera: ColmapCamera) -> tuple[Float64[np.ndarray, "3 3"], bool] | None:
    """Return the intrinsics in pixels of the camera's size, and whether it distorts as well.

    None for a model without a pinhole part (fisheye and the like).
    """
    if camera.model not in _PINHOLES:
        return None
    one = camera.model in _ONE_FOCAL
    fx, fy = camera.parameters[0], camera.parameters[0 if one else 1]
    cx, cy, *distortion = camera.parameters[1 if one else 2 :]
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)
    return intrinsics, any(value != 0 for value in distortion)


def _read(path: Path, parse: Callable[[BinaryIO], Iterator[Result]]) -> list[Result]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise UsageError(f"{path} is not a regular file. Give the folder of a COLMAP model.")
        with path.open("rb") as file:
            return list(parse(file))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}). Give the folder of a COLMAP model."
        ) from error
    except struct.error as error:
        raise UsageError(f"{path} is cut short. Give a whole COLMAP model.") from error
    except ValueError as error:  # of text that is not UTF-8 as well
        reason = str(error).replace("\n", " ")
        raise UsageError(f"{path} is damaged: {reason}. Give a whole COLMAP model.") from error


def _binary_cameras(file: BinaryIO) -> Iterator[tuple[int, ColmapCamera]]:
    (n_cameras,) = _take(file, "<Q")
    for _ in range(n_cameras):  # a false count ends with the file
        camera_id, model, width, height = _take(file, "<iiQQ")
        if not 0 <= model < len(MODELS):
            raise ValueError(f"unknown camera model {model}")
        name, n_parameters = MODELS[model]
        yield camera_id, _camera(name, width, height, _take(file, f"<{n_parameters}d"))


def _binary_images(file: BinaryIO) -> Iterator[ColmapImage]:
    n_bytes = os.fstat(file.fileno()).st_size
    (n_images,) = _take(file, "<Q")
    for _ in range(n_images):
        _, *pose, camera_id = _take(file, "<I7di")
        start = file.tell()
        name, end, _ = file.read(_MAX_NAME).partition(b"\0")
        if not end:
            raise ValueError("a name without an end")
        file.seek(start + len(name) + 1)
        (n_points,) = _take(file, "<Q")
        if n_points * _POINT_BYTES > n_bytes - file.tell():
            raise struct.error("points beyond the end")
        file.seek(n_points * _POINT_BYTES, os.SEEK_CUR)
        yield _image(name.decode("utf-8"), camera_id, tuple(pose))


def _take(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _text_cameras(file: BinaryIO) -> Iterator[tuple[int, ColmapCamera]]:
    for line in _lines(file):
        if line and not line.startswith("#"):
            words = line.split()
            if len(words) < 5:
                raise ValueError(f"{line[:80]!r} is not a camera")
            parameters = tuple(float(word) for word in words[4:])
            yield int(words[0]), _camera(words[1], int(words[2]), int(words[3]), parameters)


def _text_images(file: BinaryIO) -> Iterator[ColmapImage]:
    lines = _lines(file)
    for line in lines:
        if line and not line.startswith("#"):
            words = line.split(maxsplit=9)
            if len(words) < 10:
                raise ValueError(f"{line[:80]!r} is not an image")
            yield _image(words[9], int(words[8]), tuple(float(word) for word in words[1:8]))
            next(lines, None)  # its points, an empty line where there are none


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise ValueError(f"a line of more than {_MAX_LINE} bytes")
        yield line.decode("utf-8-sig").strip()


def _camera(model: str, width: int, height: int, parameters: tuple[float, ...]) -> ColmapCamera:
    wanted = dict(MODELS).get(model)
    if wanted is None:
        raise ValueError(f"unknown camera model {model[:40]!r}")
    if len(parameters) != wanted or not all(abs(value) < _MAX_VALUE for value in parameters):
        raise ValueError(f"{model} needs {wanted} finite parameters")
    n_focals = 1 if model.startswith(("SIMPLE", "RADIAL")) else 2
    if not (0 < width < 2**31 and 0 < height < 2**31 and min(parameters[:n_focals]) > 0):
        raise ValueError(f"{model} of {width} x {height} pixels, focal {parameters[0]:g}")
    return ColmapCamera(model=model, width=width, height=height, parameters=parameters)


def _image(name: str, camera_id: int, pose: tuple[float, ...]) -> ColmapImage:
    """Return the image; `pose` is the quaternion (wxyz) and translation of world2cam."""
    quaternion, translation = np.array(pose[:4]), np.array(pose[4:])
    length = math.hypot(*pose[:4])  # without overflow
    if not (1e-6 < length < 1e6 and (np.abs(translation) < _MAX_VALUE).all()):
        raise ValueError(f"the pose of {name[:80]!r} is impossible")
    w, x, y, z = quaternion / length
    world2cam = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    cam2world = np.eye(4)
    cam2world[:3, :3] = world2cam.T
    cam2world[:3, 3] = -world2cam.T @ translation
    return ColmapImage(name=name, camera_id=camera_id, cam2world=cam2world)
