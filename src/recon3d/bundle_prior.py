"""What lenses probably are, told to COLMAP's solver, which knows no priors: as observations.

Images that nothing moves see points where they lie by the likely lens. All units are those of the
adjustment: thousandths of the long edge of the photo.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

_N_REMINDERS = 16  # observations that share the word of what is likely: none is an outlier
_SHORTEST = 1e-4  # of a focal length


class LikelyLens(NamedTuple):
    """A focal length, the deviation of its logarithm, a principal point and its deviations."""

    focal: float
    focal_spread: float
    centre: Float64[np.ndarray, "2"]
    centre_spread: Float64[np.ndarray, "2"]


def remind_of_focals(
    pycolmap: ModuleType, model: Any, setup: Any, likely: Mapping[int, LikelyLens], noise: float
) -> None:
    """Tell the solver what the focal lengths of cameras (by number) probably are.

    Principal points must not be free. The point is so close to the axis that an observation off by
    `noise` means a focal length off by its deviation.
    """
    first = max(model.images) + 1
    for number, (camera, lens) in enumerate(likely.items(), start=first):
        slope = noise / (lens.focal_spread * lens.focal * _N_REMINDERS**0.5)
        seen = np.zeros((_N_REMINDERS, 2))
        seen[:, 0] = slope * lens.focal
        _add_image(pycolmap, model, setup, number, camera, seen)
        track = pycolmap.Track([pycolmap.TrackElement(number, k) for k in range(_N_REMINDERS)])
        setup.add_constant_point(model.add_point3D(np.array([slope, 0.0, 1.0]), track))


def remind_of_lenses(
    pycolmap: ModuleType, model: Any, setup: Any, likely: Mapping[int, LikelyLens], noise: float
) -> None:
    """Tell the solver what focal lengths and principal points of cameras probably are.

    Each camera sees points left and right of its axis. So does another at the same place, of known
    lens but so short that it hardly holds the points: where the principal point is off by its
    deviation, or the focal length by its own, all together are off by `noise`. (All observations
    weigh the same, so a weak one has to be a poor one.)
    """
    first, short = max(model.images) + 1, max(model.cameras) + 1
    for place, (camera, lens) in enumerate(likely.items()):
        pull = noise / ((2 * _N_REMINDERS) ** 0.5 * lens.centre_spread)
        focal = lens.focal * np.clip(pull, _SHORTEST, 1.0)
        slope = lens.centre_spread[0] / (lens.focal_spread * lens.focal)
        aside = np.tile([[slope, 0.0], [-slope, 0.0]], (_N_REMINDERS, 1))
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                model="PINHOLE",
                width=1,
                height=1,
                params=[*focal, 0.0, 0.0],
                camera_id=short + place,
            )
        )
        setup.set_constant_cam_intrinsics(short + place)
        numbers = first + 2 * place, first + 2 * place + 1
        seen = lens.focal * aside + lens.centre, focal * aside
        for number, owner, keypoints in zip(numbers, (camera, short + place), seen, strict=True):
            _add_image(pycolmap, model, setup, number, owner, keypoints)
        for k, (x, y) in enumerate(aside):
            track = pycolmap.Track([pycolmap.TrackElement(number, k) for number in numbers])
            model.add_point3D(np.array([x, y, 1.0]), track)


def _add_image(
    pycolmap: ModuleType,
    model: Any,
    setup: Any,
    number: int,
    camera: int,
    keypoints: Float64[np.ndarray, "point 2"],
) -> None:
    """Add an image that stays at the origin."""
    image = pycolmap.Image(
        name=f"likely {number}", keypoints=keypoints, camera_id=camera, image_id=number
    )
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    setup.add_image(number)
    setup.set_constant_rig_from_world_pose(model.images[number].frame_id)
