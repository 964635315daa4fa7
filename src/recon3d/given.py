"""Cameras that the user knows: which belongs to which photo, in pixels of the views."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Float64

from recon3d.errors import UsageError
from recon3d.given_files import Given, read_given
from recon3d.types import KnownCamera, View

logger = logging.getLogger(__name__)

MAX_ASPECT_DIFFERENCE = 0.01
"""Relative difference of aspect ratio up to which a given camera is that of a scaled photo."""
MAX_SKEW = 0.01
"""How far a given rotation may be from the nearest true one, in any entry of the matrix."""

_N_NAMED = 5  # names that one line of warning holds


def read_cameras(path: Path, views: Sequence[View]) -> tuple[KnownCamera | None, ...]:
    """Return what `path` says of the camera of each view, None where it says nothing.

    A camera belongs to the photo of the same relative name, else to the one whose file name is
    equal where only one camera and one photo have it (without suffix where the camera has none).
    Cameras of a scaled photo are scaled with it. Lens distortion is not applied; it, and names
    without a partner, are warned of.

    Args:
        path: cameras.json, transforms.json (OpenGL axes; its world is kept as it is) or a folder
            with a COLMAP model in it, in `sparse` or in `sparse/0`.
        views: of the upright photos.

    Returns:
        Intrinsics in pixels of `View.image`; cam2world in the world and the units of the file.

    Raises:
        UsageError: a file that cannot be read or holds impossible values, a camera of an image
            of another shape than the photo or without a pinhole part, or no camera that belongs
            to a photo.
    """
    given = read_given(path)
    if not given:
        raise UsageError(f"{path} holds no cameras. Give one that does, or leave --cameras out.")
    names = [_tidy(entry.name) for entry in given]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UsageError(f"{path} names {_listed(repeated)} more than once. Keep one camera each.")
    partner = _match(names, [_tidy(view.name) for view in views])
    if not partner:
        raise UsageError(
            f"{path} has no camera of any of these photos: its names are"
            f" {_listed(names)}, the photos'"
            f" {_listed([view.name for view in views])}. Give cameras with the names of the photos."
        )
    _warn(path, given, views, partner)
    return tuple(
        _known(path, given[partner[n]], view) if n in partner else None
        for n, view in enumerate(views)
    )


def _match(given: Sequence[str], views: Sequence[str]) -> dict[int, int]:
    """Return the index of the given camera for each index of a view that has one."""
    place = {name: n for n, name in enumerate(given)}
    partner = {n: place[name] for n, name in enumerate(views) if name in place}
    taken = set(partner.values())
    view_bases = [PurePosixPath(name).name for name in views]
    of_base = _unique(view_bases)
    of_stem = _unique([PurePosixPath(base).stem for base in view_bases])
    of_given = _unique([PurePosixPath(name).name for name in given])
    # whole file names before those without suffix, which could take their photo
    for base, n_given in sorted(
        of_given.items(), key=lambda item: not PurePosixPath(item[0]).suffix
    ):
        n_view = of_base.get(base)
        if n_view is None and not PurePosixPath(base).suffix:
            n_view = of_stem.get(base)
        if n_view is not None and n_view not in partner and n_given not in taken:
            partner[n_view] = n_given
    return partner


def _tidy(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _unique(names: Sequence[str]) -> dict[str, int]:
    count = Counter(names)
    return {name: n for n, name in enumerate(names) if count[name] == 1}


def _warn(
    path: Path, given: Sequence[Given], views: Sequence[View], partner: dict[int, int]
) -> None:
    used = set(partner.values())
    idle = [entry.name for n, entry in enumerate(given) if n not in used]
    bare = [view.name for n, view in enumerate(views) if n not in partner]
    parts = []
    if idle:
        parts.append(f"{len(idle)} cameras without a photo ({_listed(idle)})")
    if bare:
        parts.append(f"{len(bare)} photos without a camera ({_listed(bare)})")
    if parts:
        logger.warning("%s: %s", path, ", ".join(parts))
    distorted = sum(given[n].distorts for n in used)
    if distorted:
        logger.warning(
            "%s: the lens distortion of %d cameras is not applied; undistort the photos first",
            path,
            distorted,
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:_N_NAMED])
    return f"{shown} and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else shown


def _known(path: Path, given: Given, view: View) -> KnownCamera:
    if given.no_pinhole is not None:
        raise UsageError(
            f"{path}: the camera model {given.no_pinhole} of {given.name[:80]!r} is not supported."
            " Undistort the photos, and give their cameras as pinholes."
        )
    intrinsics = _photo_intrinsics(path, given, view)
    if intrinsics is not None:
        intrinsics = view.photo2view.double().numpy() @ intrinsics
    cam2world = None if given.cam2world is None else _rigid(path, given.name, given.cam2world)
    return KnownCamera(
        intrinsics=None if intrinsics is None else torch.from_numpy(intrinsics),
        cam2world=None if cam2world is None else torch.from_numpy(cam2world),
    )


def _photo_intrinsics(path: Path, given: Given, view: View) -> Float64[np.ndarray, "3 3"] | None:
    """Return intrinsics in pixels of the photo; what is missing is taken from the common case.

    That is square pixels, and the principal point in the middle.
    """
    photo = (view.photo_width, view.photo_height)
    width = photo[0] if given.width is None else given.width
    height = photo[1] if given.height is None else given.height
    if abs(width * photo[1] / (height * photo[0]) - 1) > MAX_ASPECT_DIFFERENCE:
        raise UsageError(
            f"{path} has the camera of {given.name[:80]!r} for an image of {width:g} x {height:g}"
            f" pixels, but the upright photo has {photo[0]} x {photo[1]}."
            " Give cameras of the photos themselves."
        )
    fx, fy = given.fx, given.fy
    if fx is None and given.fov_x_rad is not None:
        fx = width / 2 / math.tan(given.fov_x_rad / 2)
    if fx is None and fy is None:
        return None
    fx, fy = fy if fx is None else fx, fx if fy is None else fy
    cx = width / 2 if given.cx is None else given.cx
    cy = height / 2 if given.cy is None else given.cy
    # the corner of the top-left pixel is (0, 0) in both images, so there is no shift
    scaled = np.diag([photo[0] / width, photo[1] / height, 1.0])
    intrinsics: Float64[np.ndarray, "3 3"] = scaled @ np.array(
        [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64
    )
    if not (min(intrinsics[0, 0], intrinsics[1, 1]) > 0 and np.isfinite(intrinsics).all()):
        raise UsageError(
            f"{path}: the focal length of {given.name[:80]!r} is {fx:g} x {fy:g} pixels, which is"
            " impossible. Correct it."
        )
    return intrinsics


def _rigid(
    path: Path, name: str, cam2world: Float64[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "4 4"]:
    """Return the pose with the nearest true rotation; files round theirs."""
    u, _, vt = np.linalg.svd(cam2world[:3, :3])
    rigid = np.eye(4)
    rigid[:3, :3], rigid[:3, 3] = u @ vt, cam2world[:3, 3]
    if np.linalg.det(u @ vt) < 0 or np.abs(rigid - cam2world).max() > MAX_SKEW:
        raise UsageError(
            f"{path}: the pose of {name[:80]!r} is no rotation and translation."
            " Take off scale and mirroring."
        )
    return rigid
