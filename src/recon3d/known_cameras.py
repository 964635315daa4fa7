"""What the user gave of the cameras: one focal length (`--focal`), or all of each (`--cameras`)."""

import logging
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.cameras import photo_intrinsics
from recon3d.config import AlignConfig, CamerasAre
from recon3d.errors import UsageError
from recon3d.types import KnownCamera, View

logger = logging.getLogger(__name__)

_ONE_SIZE = 1.02
"""Ratio of long edges up to which photos count as of one size: undistortion cuts off that much."""


def poses_of(
    cameras: Sequence[KnownCamera | None], members: Iterable[int]
) -> dict[int, Float[Tensor, "4 4"]]:
    """Return the cam2world of those members of which a pose was given, by their numbers."""
    return {
        n: camera.cam2world
        for n in members
        if cameras and (camera := cameras[n]) is not None and camera.cam2world is not None
    }


def is_calibrated(camera: KnownCamera | None) -> bool:
    """Say whether the lens of a camera was given, its principal point too."""
    return camera is not None and camera.intrinsics is not None


def is_fixed(camera: KnownCamera | None, config: AlignConfig) -> bool:
    """Say whether a camera was given whose focal length is exact; `--focal` then does not count."""
    return is_calibrated(camera) and config.cameras_are is CamerasAre.FIXED


def is_exact(camera: KnownCamera | None, config: AlignConfig) -> bool:
    """Say whether a camera was given in full, its place too, and stays as it is."""
    return camera is not None and camera.cam2world is not None and is_fixed(camera, config)


def all_given(cameras: Sequence[KnownCamera | None], config: AlignConfig) -> bool:
    """Say whether every camera was given in full and stays as it is: nothing is to be refined."""
    return bool(cameras) and all(is_exact(camera, config) for camera in cameras)


def check_focal(
    views: Sequence[View], cameras: Sequence[KnownCamera | None], config: AlignConfig
) -> None:
    """Check that `--focal` can be the focal length of all photos that it is for.

    Raises:
        UsageError: every photo has a given camera, or the photos are of several sizes: in pixels
            one lens has a focal length for each.
    """
    if config.focal_px is None:
        return
    known = [is_fixed(camera, config) for camera in cameras] or [False] * len(views)
    if all(known):
        raise UsageError(
            f"--focal {config.focal_px:g} contradicts --cameras, which gives the focal lengths of"
            f" all {len(views)} photos. Leave one of them out."
        )
    if any(known):
        logger.warning(
            "--focal %g is for the %d photos without one in --cameras; the other %d keep theirs",
            config.focal_px,
            known.count(False),
            known.count(True),
        )
    others = [view for view, has_own in zip(views, known, strict=True) if not has_own]
    least, most = min(others, key=_long_edge), max(others, key=_long_edge)
    if _long_edge(most) > _ONE_SIZE * _long_edge(least):
        raise UsageError(
            f"--focal {config.focal_px:g} (pixels) cannot be right for photos of several sizes:"
            f" {least.name} has {least.photo_width} x {least.photo_height},"
            f" {most.name} {most.photo_width} x {most.photo_height}."
            " Give photos of one size, or the camera of each with --cameras."
        )


def _long_edge(view: View) -> int:
    return max(view.photo_width, view.photo_height)


def given_intrinsics(
    views: Sequence[View], cameras: Sequence[KnownCamera | None], config: AlignConfig
) -> tuple[Float[Tensor, "3 3"] | None, ...]:
    """Return the intrinsics that were given, in pixels of the photos; None where none were."""
    found: list[Float[Tensor, "3 3"] | None] = []
    for view, camera in zip(views, cameras or [None] * len(views), strict=True):
        matrix: Float[Tensor, "3 3"] | None = None
        if camera is not None and camera.intrinsics is not None:
            matrix = photo_intrinsics(camera.intrinsics, view.photo2view)
        if config.focal_px is not None and not is_fixed(camera, config):
            if matrix is None:
                matrix = torch.eye(3, dtype=torch.float64)
                matrix[:2, 2] = torch.tensor([view.photo_width / 2, view.photo_height / 2])
            matrix[[0, 1], [0, 1]] = config.focal_px
        found.append(matrix)
    return tuple(found)
