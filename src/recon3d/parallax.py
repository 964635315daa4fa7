"""Whether photos show parallax: those turned or zoomed on the spot do not, and tell no positions.

Between two photos from one place, rays only turn, however far the points are: pixels move by the
homography K_j R K_i^-1. It then fits the matches as well as an epipolar geometry does, which has
freedom for parallax besides. A flat wall seen from two places gives a homography too, but none of
a rotation, unless the motion is so small that the photos do not tell one from the other.

Source: Hartley and Zisserman, Multiple View Geometry, 2nd ed., sections 8.4 and 11.4.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from recon3d.essential import sampson_distance
from recon3d.matches import Matches

_MIN_MATCHES = 20  # that a pair needs to be heard
_MAX_MATCHES = 150  # of a pair that are looked at
_MIN_SHARE = 0.9  # of the pairs, that a rotation must explain
_AS_WELL = 5.0  # times the distance from epipolar lines; for noise alone it would be 2.5
_OUTLYING = 8.0  # times the median error that one match of ten may reach; for noise alone 1.8
_FOCAL_RANGE = (0.4, 2.5)  # in long edges, 103 to 23 degrees: beyond, moving sideways looks alike
_STARTS = (0.7, 1.3)  # focal lengths in long edges to start from
_NOISE = 5e-4  # of features, in long edges; below, nothing can be told apart
_LEAST_DEPTH = 1e-3  # of a ray that was turned: behind the camera is as far off as it can be
_ANY = 4.0  # radians: no bound


def show_parallax(
    matches: Sequence[Matches],
    centre: Float64[Tensor, "view 2"],
    edges: Float64[Tensor, "view 2"],
) -> bool | None:
    """Say whether the photos were taken from more places than one; None where they do not tell.

    Args:
        matches: of image features, on common epipolar lines; coarser ones cannot tell.
        centre: the principal point of each view in its pixels.
        edges: the long edges of the photo that a pixel of each view is, along x and y; they differ
            where focal lengths do.
    """
    pairs = [one for one in matches if len(one.confidence) >= _MIN_MATCHES]
    moved = 0
    for one in pairs:
        moved += not _is_rotation(
            *(
                _normalised(pixels, centre[n], edges[n])
                for n, pixels in ((one.i, one.pixels_i), (one.j, one.pixels_j))
            )
        )
        if len(pairs) - moved < _MIN_SHARE * len(pairs):
            return True
    return False if pairs else None


def _normalised(
    pixels: Float[Tensor, "match 2"], centre: Float64[Tensor, "2"], edges: Float64[Tensor, "2"]
) -> Float64[np.ndarray, "some 2"]:
    """Return some pixels relative to the principal point, in long edges of the photo."""
    some = pixels[:: -(-len(pixels) // _MAX_MATCHES)].double().cpu()
    found: np.ndarray = ((some - centre) * edges).numpy(force=True)
    return found


def _is_rotation(
    first: Float64[np.ndarray, "match 2"], second: Float64[np.ndarray, "match 2"]
) -> bool:
    """Say whether a rotation and two lenses explain the matches as well as epipolar lines do."""
    errors = min((_rotation_errors(first, second, focal) for focal in _STARTS), key=np.median)
    middle, most = np.quantile(errors, (0.5, 0.9))
    noise = max(_epipolar_error(first, second), _NOISE / _AS_WELL)
    # where only the foreground shows parallax, its errors stand out
    return bool(middle < _AS_WELL * noise and most < _OUTLYING * max(middle, _NOISE))


def _rotation_errors(
    first: Float64[np.ndarray, "match 2"], second: Float64[np.ndarray, "match 2"], focal: float
) -> Float64[np.ndarray, " match"]:
    """Return how far matches are off under the best rotation and two focal lengths."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    def rays(pixels: np.ndarray, log_focal: float) -> np.ndarray:
        return np.column_stack((pixels, np.full(len(pixels), np.exp(log_focal))))

    def off(guess: np.ndarray) -> np.ndarray:
        turned = rays(first, guess[3]) @ Rotation.from_rotvec(guess[:3]).as_matrix().T
        seen = np.exp(guess[4]) * turned[:, :2] / np.maximum(turned[:, 2:], _LEAST_DEPTH)
        return (seen - second).ravel()

    log_focal = np.log(focal)
    ends = [rays(pixels, log_focal) for pixels in (second, first)]
    start, _ = Rotation.align_vectors(*(e / np.linalg.norm(e, axis=1, keepdims=True) for e in ends))
    low, high = np.log(_FOCAL_RANGE)
    found = least_squares(
        off,
        [*start.as_rotvec(), log_focal, log_focal],
        bounds=([-_ANY, -_ANY, -_ANY, low, low], [_ANY, _ANY, _ANY, high, high]),
        loss="cauchy",
        f_scale=_NOISE,
    )
    errors: np.ndarray = np.linalg.norm(off(found.x).reshape(-1, 2), axis=1)
    return errors


def _epipolar_error(
    first: Float64[np.ndarray, "match 2"], second: Float64[np.ndarray, "match 2"]
) -> float:
    """Return the median (Sampson) distance of matches from the epipolar geometry of them all."""
    matrix, _ = cv2.findFundamentalMat(first, second, cv2.FM_8POINT)
    if matrix is None:
        return 0.0
    return float(np.median(sampson_distance(second, first, matrix[:3])))
