"""A whole Scene <-> one .npz file, loss-free, without pickle.

Layout: `format` (a string with the version), `meta` (ASCII JSON as bytes), `cam2world`,
`intrinsics`, and per view k `image_k`, `photo2view_k`, `depth_k`, `confidence_k`. Members are
stored uncompressed, so a file can never unfold into more memory than it has bytes.
"""

import json
import zipfile
from io import BufferedIOBase
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import torch

from recon3d.errors import InputError
from recon3d.files import atomic_write
from recon3d.types import EdgeVerdict, LeftOut, Scene, Verdict, View

FORMAT = "recon3d-scene/1"
_PER_VIEW = ("image", "photo2view", "depth", "confidence")
_FLOATS = tuple(np.dtype(name) for name in ("float16", "float32", "float64"))
_VIEW: dict[str, type | UnionType] = {
    "name": str,
    "sha256": str,
    "photo_width": int,
    "photo_height": int,
    "focal_px": float | None,
}
_VERDICT: dict[str, type | UnionType] = {
    "residual": float,
    "edges": int,
    "rotation_uncertainty_deg": float,
    "focal_source": str,
    "inliers": float,
    "position_uncertainty": float,
}
_EDGE: dict[str, type | UnionType] = {
    "first": str,
    "second": str,
    "used": bool,
    "reason": str,
    "confidence": float,
    "residual": float,
    "rotation_error_deg": float,
    "inliers": float,
}
_LEFT_OUT: dict[str, type | UnionType] = {"name": str, "reason": str}
_META: dict[str, type | UnionType] = {
    "metric": bool,
    "views": list,
    "verdicts": list,
    "left_out": list,
    "edges": list,
}


def save_scene(scene: Scene, path: str | Path) -> None:
    """Write the scene to `path`, whole or not at all; an existing file is replaced.

    Raises:
        ResourceError: no space or no permission.
    """
    with atomic_write(Path(path)) as file:
        write_scene(scene, file)


def write_scene(scene: Scene, file: BufferedIOBase) -> None:
    """Write the scene as .npz; every tensor keeps its type and its bits."""
    meta = {
        "metric": scene.metric,
        "views": [_fields(view, _VIEW) for view in scene.views],
        "verdicts": [_fields(verdict, _VERDICT) for verdict in scene.verdicts],
        "left_out": [_fields(entry, _LEFT_OUT) for entry in scene.left_out],
        "edges": [_fields(edge, _EDGE) for edge in scene.edges],
    }
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        # ASCII JSON: a file name that is no valid UTF-8 survives as an escape
        "meta": np.frombuffer(json.dumps(meta).encode("ascii"), dtype=np.uint8),
        "cam2world": scene.cam2world.numpy(force=True),
        "intrinsics": scene.intrinsics.numpy(force=True),
    }
    for index, view in enumerate(scene.views):
        tensors = (view.image, view.photo2view, scene.depth[index], scene.confidence[index])
        for name, tensor in zip(_PER_VIEW, tensors, strict=True):
            arrays[f"{name}_{index}"] = tensor.numpy(force=True)
    np.savez(file, **arrays)


def load_scene(path: str | Path) -> Scene:
    """Read a scene that `save_scene` wrote; tensors on the CPU with the types they had.

    Raises:
        InputError: missing, damaged, or not such a file; no field is trusted unchecked.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Give a scene.npz of `recon3d run`.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    with file:
        try:
            with zipfile.ZipFile(file) as members:
                if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                    raise ValueError("a member is compressed")
            with np.load(file, allow_pickle=False) as archive:
                return _read({name: archive[name] for name in archive.files})
        except _DAMAGE as error:
            reason = str(error).replace("\n", " ") or type(error).__name__
            raise InputError(
                f"{path} is damaged or no scene of recon3d ({reason}). "
                "Give a scene.npz that `recon3d run` wrote with this version."
            ) from error


# what numpy, zipfile and json raise on bytes they cannot read
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
)


def _read(arrays: dict[str, np.ndarray]) -> Scene:
    """Return the scene in `arrays`; raises ValueError, TypeError or KeyError on any misfit."""
    if str(arrays["format"]) != FORMAT:
        raise ValueError(f"format {str(arrays['format'])[:40]!r}, expected {FORMAT!r}")
    meta = _checked(json.loads(arrays["meta"].tobytes()), _META)
    n_views = len(meta["views"])
    per_view = {f"{name}_{index}" for name in _PER_VIEW for index in range(n_views)}
    if set(arrays) != {"format", "meta", "cam2world", "intrinsics"} | per_view:
        raise ValueError("its members do not fit its number of views")
    views = []
    for index, entry in enumerate(meta["views"]):
        height, width = arrays[f"image_{index}"].shape[1:]
        views.append(
            View(
                **_checked(entry, _VIEW),
                image=_tensor(arrays, f"image_{index}", (3, height, width)),
                photo2view=_tensor(arrays, f"photo2view_{index}", (3, 3)),
            )
        )
    sizes = [tuple(view.image.shape[1:]) for view in views]
    return Scene(
        views=tuple(views),
        cam2world=_tensor(arrays, "cam2world", (n_views, 4, 4)),
        intrinsics=_tensor(arrays, "intrinsics", (n_views, 3, 3)),
        depth=tuple(_tensor(arrays, f"depth_{k}", size) for k, size in enumerate(sizes)),
        confidence=tuple(_tensor(arrays, f"confidence_{k}", size) for k, size in enumerate(sizes)),
        verdicts=tuple(Verdict(**_checked(entry, _VERDICT)) for entry in meta["verdicts"]),
        left_out=tuple(LeftOut(**_checked(entry, _LEFT_OUT)) for entry in meta["left_out"]),
        edges=tuple(EdgeVerdict(**_checked(entry, _EDGE)) for entry in meta["edges"]),
        metric=meta["metric"],
    )


def _tensor(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    array = arrays[name]
    if array.shape != shape or array.dtype not in _FLOATS:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected {shape}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _fields(value: Any, schema: dict[str, type | UnionType]) -> dict[str, Any]:
    fields = {name: getattr(value, name) for name in schema}
    # 500 and 500.0 are one focal length; the file always says 500.0
    return {
        name: float(field) if schema[name] in (float, float | None) and field is not None else field
        for name, field in fields.items()
    }


def _checked(entry: Any, schema: dict[str, type | UnionType]) -> dict[str, Any]:
    """Return `entry` if it is an object with exactly the schema's keys and types."""
    if not isinstance(entry, dict) or set(entry) != set(schema):
        raise ValueError(f"expected an object with {', '.join(schema)}")
    for name, kind in schema.items():
        if not isinstance(entry[name], kind) or (
            isinstance(entry[name], bool) and kind is not bool
        ):
            raise ValueError(f"{name} is {str(entry[name])[:40]!r}")
    return entry
