"""Folders of photos with ground truth: `gt.json` (a scene) or `pairs.json` (separate pairs).

gt.json: `images`, a list of {file, width, height, fx, fy, cx, cy, world_to_camera (4x4), depth?};
pairs.json: `pairs`, a list of {image0, image1, width, height, K0, K1, T_0to1}, where T_0to1 maps
camera 0 to camera 1. Both: OpenCV axes; intrinsics in pixels of the stored image with integer
coordinates at pixel centres, so 0.5 is added here; `units` "metric" or "arbitrary"; paths relative
to the folder. Depth: `.npy`, z, as large as the photo, 0 = unknown.

The files may come from anywhere: sizes and ranges are checked before anything is believed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from recon3d.errors import InputError
from recon3d.image_header import read_header

SCENE_FILE, PAIRS_FILE = "gt.json", "pairs.json"
_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_PHOTO_BYTES = 512 * 1024 * 1024
_MAX_PHOTOS = 2_000
_MAX_SIDE = 100_000
_MAX_LENGTH = 1e9
_KINDS = {list: "list", int: "whole number"}
_ORTHONORMAL = 1e-3
"""Largest deviation of R R^T from the identity; published files carry five digits."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TruePhoto:
    """A photo and its exact camera; intrinsics in pixels of the photo, top-left centre (0.5, 0.5).

    `cam2world` is in the units of the scene.
    """

    path: Path
    width: int
    height: int
    intrinsics: Float64[np.ndarray, "3 3"]
    cam2world: Float64[np.ndarray, "4 4"]
    depth_path: Path | None = None

    @property
    def focal_px(self) -> float:
        """The geometric mean of fx and fy."""
        return math.sqrt(float(self.intrinsics[0, 0] * self.intrinsics[1, 1]))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrueScene:
    """All photos of a folder with one world; of a pair set each two photos share a world.

    `pairs` index `photos`; in a scene they are all pairs (i, j), i < j.
    """

    name: str
    photos: tuple[TruePhoto, ...]
    pairs: tuple[tuple[int, int], ...]
    is_pair_set: bool
    metric: bool
    gt_kind: str


def find_scenes(inputs: Sequence[Path], names: Sequence[str] = ()) -> list[Path]:
    """Return the scene folders among the inputs and directly inside them, by path.

    Args:
        inputs: folders.
        names: keep only the scene folders called so; empty keeps all.

    Raises:
        InputError: an input that is no folder or holds no scene, or a name that is not there.
    """
    found: dict[Path, Path] = {}
    for folder in inputs:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder. Give a folder of scenes with gt.json.")
        inside = [folder] if _is_scene(folder) else sorted(filter(_is_scene, folder.iterdir()))
        if not inside:
            raise InputError(
                f"{folder} holds neither {SCENE_FILE} nor {PAIRS_FILE}, nor do its folders."
                " Give a folder with ground truth."
            )
        found.update({entry.resolve(): entry for entry in inside})
    scenes = list(found.values())
    known = {_scene_name(scene) for scene in scenes}
    for name in names:
        if name not in known:
            raise InputError(f"there is no scene {name!r}. Known: {', '.join(sorted(known))}.")
    return [scene for scene in scenes if not names or _scene_name(scene) in names]


def read_scene(folder: Path) -> TrueScene:
    """Return the ground truth of one folder; sizes of photos and depth maps are checked.

    Raises:
        InputError: names the file, the entry and what is wrong with it.
    """
    files = [folder / name for name in (SCENE_FILE, PAIRS_FILE) if (folder / name).is_file()]
    if len(files) != 1:
        raise InputError(f"{folder} must hold either {SCENE_FILE} or {PAIRS_FILE}.")
    (file,) = files
    document = _read_json(file)
    is_pair_set = file.name == PAIRS_FILE
    entries = _member(document, "pairs" if is_pair_set else "images", list, str(file))
    least = 1 if is_pair_set else 2
    if not least <= len(entries) <= _MAX_PHOTOS:
        raise InputError(f"{file} has {len(entries)} entries; it must have {least}..{_MAX_PHOTOS}.")
    photos: list[TruePhoto] = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is not an object.")
        photos += _pair(folder, entry, where) if is_pair_set else [_photo(folder, entry, where)]
    if not is_pair_set and len({photo.path for photo in photos}) < len(photos):
        raise InputError(f"{file} lists a photo twice. Keep one entry a photo.")
    n = len(photos)
    in_scene = ((i, j) for i in range(n) for j in range(i + 1, n))
    in_set = ((i, i + 1) for i in range(0, n, 2))
    return TrueScene(
        name=_scene_name(folder),
        photos=tuple(photos),
        pairs=tuple(in_set if is_pair_set else in_scene),
        is_pair_set=is_pair_set,
        metric=document.get("units") == "metric",
        gt_kind=str(document.get("gt_kind", ""))[:300],
    )


def read_depth(photo: TruePhoto) -> Float[np.ndarray, "height width"]:
    """Return the true z of every pixel of the photo; 0, also for what is not finite, is unknown.

    Raises:
        InputError: no .npy file of floats of the photo's size.
        ValueError: a photo without depth.
    """
    values = np.array(_mapped_depth(photo), dtype=np.float32)
    values[~(np.isfinite(values) & (values > 0))] = 0
    return values


def _mapped_depth(photo: TruePhoto) -> Float[np.ndarray, "height width"]:
    """Return what the file of depth holds, without reading it; raises as `read_depth` does."""
    if photo.depth_path is None:
        raise ValueError(f"{photo.path} has no depth")
    try:
        # mapped, so a header that promises more than the file holds takes no memory
        depth = np.load(photo.depth_path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{photo.depth_path} is no readable .npy file ({error}).") from error
    is_array = isinstance(depth, np.ndarray) and np.issubdtype(depth.dtype, np.floating)
    if not is_array or depth.shape != (photo.height, photo.width):
        raise InputError(
            f"{photo.depth_path} must hold {photo.height} x {photo.width} floats, as many as the"
            " photo has pixels."
        )
    return depth


def _is_scene(folder: Path) -> bool:
    return (folder / SCENE_FILE).is_file() or (folder / PAIRS_FILE).is_file()


def _scene_name(folder: Path) -> str:
    return folder.resolve().name


def _read_json(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise InputError(f"{file} has {size} bytes, over the limit of {_MAX_JSON_BYTES}.")
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON ({error}).") from error
    if not isinstance(document, dict):
        raise InputError(f"{file} is not a JSON object.")
    return document


def _photo(folder: Path, entry: dict[str, Any], where: str) -> TruePhoto:
    fx, fy, cx, cy = (_number(entry, key, where) for key in ("fx", "fy", "cx", "cy"))
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)
    world2cam = _rigid(entry, "world_to_camera", where)
    depth = entry.get("depth")
    photo = TruePhoto(
        **_stored(folder, entry, "file", where),
        intrinsics=_checked_intrinsics(matrix, where),
        cam2world=_inverse(world2cam),
        depth_path=None if depth is None else _path(folder, depth, "depth", where),
    )
    if depth is not None:
        _mapped_depth(photo)
    return photo


def _pair(folder: Path, entry: dict[str, Any], where: str) -> list[TruePhoto]:
    cam2world = (np.eye(4), _inverse(_rigid(entry, "T_0to1", where)))
    return [
        TruePhoto(
            **_stored(folder, entry, f"image{k}", where),
            intrinsics=_checked_intrinsics(_matrix(entry, f"K{k}", 3, where), where),
            cam2world=cam2world[k],
        )
        for k in (0, 1)
    ]


def _stored(folder: Path, entry: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """Return path, width and height of a photo after comparing them with the file itself."""
    path = _path(folder, entry.get(key), key, where)
    size = []
    for side in ("width", "height"):
        value = _member(entry, side, int, where)
        if isinstance(value, bool) or not 1 <= value <= _MAX_SIDE:
            raise InputError(f"{where}: {side} is {value!r}; it must be 1..{_MAX_SIDE}.")
        size.append(value)
    try:
        if path.stat().st_size > _MAX_PHOTO_BYTES:
            raise InputError(f"over the limit of {_MAX_PHOTO_BYTES} bytes")
        header = read_header(path.read_bytes())
    except (OSError, InputError) as error:
        raise InputError(f"{where}: {path} cannot be used ({error}).") from error
    if header.orientation != 1:
        raise InputError(
            f"{where}: {path} is turned by EXIF; store it upright, as the cameras are."
        )
    if (header.width, header.height) != (size[0], size[1]):
        raise InputError(
            f"{where}: {path} has {header.width} x {header.height} pixels,"
            f" not {size[0]} x {size[1]}. Mend the ground truth."
        )
    return {"path": path, "width": size[0], "height": size[1]}


def _path(folder: Path, text: object, key: str, where: str) -> Path:
    """Return a file inside the folder, never one elsewhere."""
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{where}: {key} is {text!r}; it must be a path inside the folder.")
    path = folder / text
    if Path(text).is_absolute() or ".." in Path(text).parts:
        raise InputError(f"{where}: {key} is {text!r}, outside of the folder.")
    if not path.is_file():
        raise InputError(f"{where}: {path} does not exist.")
    return path


def _member(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if not isinstance(entry.get(key), kind):
        raise InputError(f"{where} needs {key!r}, a {_KINDS[kind]}.")
    return entry[key]


def _number(entry: dict[str, Any], key: str, where: str) -> float:
    value = entry.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not is_number or not abs(value) <= _MAX_LENGTH:  # also nan
        raise InputError(f"{where}: {key} is {value!r}; it must be a number.")
    return float(value)


def _matrix(entry: dict[str, Any], key: str, size: int, where: str) -> Float64[np.ndarray, "_ _"]:
    rows = entry.get(key)
    lists = [row for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
    if [len(row) for row in lists] != [size] * size or lists != rows:
        raise InputError(f"{where}: {key} must be {size} rows of {size} numbers.")
    values = [[_number({key: value}, key, where) for value in row] for row in lists]
    return np.array(values, dtype=np.float64)


def _rigid(entry: dict[str, Any], key: str, where: str) -> Float64[np.ndarray, "4 4"]:
    """Return a rigid transform whose rotation is made exactly orthonormal."""
    matrix = _matrix(entry, key, 4, where)
    rotation = matrix[:3, :3]
    near = np.abs(rotation @ rotation.T - np.eye(3)).max() <= _ORTHONORMAL
    if not near or np.linalg.det(rotation) < 0 or (matrix[3] != (0, 0, 0, 1)).any():
        raise InputError(f"{where}: {key} is not a rotation with a translation.")
    u, _, vh = np.linalg.svd(rotation)
    matrix[:3, :3] = u @ vh
    return matrix


def _inverse(a2b: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    b2a = np.eye(4)
    b2a[:3, :3] = a2b[:3, :3].T
    b2a[:3, 3] = -a2b[:3, :3].T @ a2b[:3, 3]
    return b2a


def _checked_intrinsics(
    integer_centred: Float64[np.ndarray, "3 3"], where: str
) -> Float64[np.ndarray, "3 3"]:
    """Return intrinsics with pixel centres at +0.5."""
    matrix = integer_centred.copy()
    if not 1 <= min(matrix[0, 0], matrix[1, 1]) <= max(matrix[0, 0], matrix[1, 1]) <= 1e6:
        raise InputError(f"{where}: the focal lengths must be from 1 to 1e6 pixels.")
    rest = (matrix[1, 0], matrix[2, 0], matrix[2, 1], matrix[2, 2] - 1)
    if any(rest) or abs(matrix[0, 1]) > 1e-3 * matrix[0, 0]:
        raise InputError(f"{where}: the intrinsics must be a pinhole camera without skew.")
    matrix[0, 1] = 0.0
    matrix[:2, 2] += 0.5
    return matrix
