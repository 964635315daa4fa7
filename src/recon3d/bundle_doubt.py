"""How well the tracks hold each camera: the covariance of the adjustment, points marginalised.

Source: Triggs et al., Bundle adjustment: a modern synthesis, 1999, sections 6 (Schur complement)
and 9 (gauge: covariances relative to all cameras together); Tapley, Schutz and Born, Statistical
orbit determination, 2004, section 6.3 (what is neither known nor estimated: consider covariance).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from recon3d.bundle_solve import (
    INDEPENDENT,
    LOSS_SCALE,
    UNIT,
    Problem,
    Rig,
    depth_in_camera,
    fit_tracks,
    well_seen,
)
from recon3d.tracks import Tracks, select_observations

MAX_VIEWS = 200
"""Beyond, the eigenvectors of all cameras take too long."""
_MIN_NOISE = 0.05  # thousandths; features are never more exact
_RAYLEIGH_MEDIAN = math.sqrt(2 * math.log(2))  # of the length of a 2D error with deviation 1
_CHUNK = 1000  # tracks at a time
_N_PARAMETERS = 10  # of a view
_BEND_SPREAD = 0.02
"""Standard deviation of the radial distortion k that photos may have left, where pixels are
f r (1 + k r^2): on 15 scenes with ground truth, this much explains how wrong cameras are."""
_FAR_OFF = 2.0
"""How much further focal lengths of two views are off than `focal_spread` says: of 100 pairs of
photos of 13 scenes 0.35 in the mean square and 0.09 in the median, as telephoto lenses are rare."""


def camera_doubt(problem: Problem, rig: Rig, tracks: Tracks) -> Float64[Tensor, "view 2"]:
    """Return the standard deviations of each camera's rotation (degrees) and centre (of `rig`).

    Relative to all cameras together (their mean rotation, place and distance from each other), or
    to the fixed ones, from the scatter of the observations about their points, and from what is not
    known of the lenses: focal lengths, and what no adjustment moves, a little radial distortion and
    (but for `Problem.free_centre`) principal points. The tracks of two views say nothing here of
    focal lengths. nan for views without tracks and beyond `MAX_VIEWS` views; 0 for fixed ones.
    """
    n_views = len(rig.focal)
    doubt = torch.full((n_views, 2), torch.nan, dtype=torch.float64)
    fit = fit_tracks(problem, rig, tracks)
    good = well_seen(rig, tracks, fit, problem.config.max_error * UNIT)
    tracks = select_observations(tracks, good)
    held = tracks.view.unique()
    if not len(held) or n_views > MAX_VIEWS:
        return doubt
    parameters = _parameters(problem, held.tolist())
    normal, length = _normal_matrix(problem, rig, tracks, parameters)
    fixed = problem.constant_pose[held]
    adjusted = slice(parameters.n_adjusted)
    covariance = _inverse(
        normal[adjusted, adjusted], n_free_directions=(7, 1, 0)[min(2, int(fixed.sum()))]
    )
    moved = covariance @ normal[adjusted, parameters.n_adjusted :] * parameters.spread
    covariance = covariance + moved @ moved.mT
    variance = torch.zeros(len(normal) + 1, dtype=torch.float64)
    variance[adjusted] = covariance.diagonal()
    both = variance[parameters.place[held, :6]].unflatten(1, (2, 3)).sum(-1).clamp_min(0).sqrt()
    doubt[held, 0] = torch.rad2deg(both[:, 0]).clamp_max(180.0)  # no two rotations are further
    doubt[held, 1] = both[:, 1] * length
    return doubt


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Parameters:
    """Where each view's parameters are: 3 of rotation, 3 of centre, 1 focal length, 3 of lens.

    The latter, principal point (in long edges) and radial distortion, are not adjusted, unless
    principal points are: they come last, and have `spread` for a standard deviation. So does the
    focal length (its logarithm) of two views: these fit any so well that a little distortion
    decides. What is known, such as a focal length that was given, has the place after the last.
    """

    place: Int64[Tensor, "view 10"]
    n_adjusted: int
    spread: Float64[Tensor, " considered"]


def _parameters(problem: Problem, held: list[int]) -> _Parameters:
    """Return the parameters of the views that tracks see."""
    place = torch.full((len(problem.unit), _N_PARAMETERS), -1, dtype=torch.int64)
    n_adjusted = 0
    for n in held:
        if not problem.constant_pose[n]:
            place[n, :6] = torch.arange(n_adjusted, n_adjusted + 6)
            n_adjusted += 6

    def first_fixed(views: list[int]) -> int:
        """Return which of a lens's parameters is the first that is not adjusted."""
        if len(held) <= 2:
            return 6
        return 9 if problem.free_centre and problem.centre_spread[views[0]] > 0 else 7

    by_focal = [n for n in held if not problem.constant_focal[n]]
    by_centre = [n for n in held if problem.constant_focal[n] and problem.centre_spread[n] > 0]
    lenses = [(first_fixed(views), views) for views in _lenses(by_focal, problem)]
    for first, views in lenses:
        place[views, 6:first] = n_adjusted + torch.arange(first - 6)
        n_adjusted += first - 6
    lenses += [(7, views) for views in _lenses(by_centre, problem)]
    centre_spread = problem.centre_spread / UNIT
    bend_spread = torch.where(centre_spread > 0, _BEND_SPREAD, 0.0)
    focal_spread = _FAR_OFF * problem.focal_spread  # matters for two views alone
    spread = torch.stack((focal_spread, centre_spread, centre_spread, bend_spread), dim=1)
    considered = [torch.zeros(0, dtype=torch.float64)]
    n_all = n_adjusted
    for start, views in lenses:
        place[views, start:] = n_all + torch.arange(_N_PARAMETERS - start)
        considered.append(spread[views[0], start - 6 :])
        n_all += _N_PARAMETERS - start
    return _Parameters(
        place=torch.where(place < 0, n_all, place),
        n_adjusted=n_adjusted,
        spread=torch.cat(considered),
    )


def _lenses(views: list[int], problem: Problem) -> list[list[int]]:
    """Return which of the views share a lens."""
    lens = problem.lens.tolist()
    return [[n for n in views if lens[n] == one] for one in sorted({lens[n] for n in views})]


def _normal_matrix(
    problem: Problem, rig: Rig, tracks: Tracks, parameters: _Parameters
) -> tuple[Float64[Tensor, "parameter parameter"], float]:
    """Return the normal matrix of the cameras, and the length in which their centres are measured.

    That length, the median distance of the points, makes centres and angles comparable.
    """
    index, n_adjusted = parameters.place, parameters.n_adjusted
    fit = fit_tracks(problem, rig, tracks)
    in_cam = depth_in_camera(fit.points, rig, tracks)
    length = float(in_cam[:, 2].median())
    # points and cameras bend towards the noise, the more so the fewer observations there are
    n_free = 2 * len(tracks.track) - 3 * tracks.n_tracks - n_adjusted
    bent = 2 * len(tracks.track) / max(1, n_free)
    noise = max(_MIN_NOISE, float(fit.error.median()) / _RAYLEIGH_MEDIAN * bent**0.5)
    # Cauchy's weights, as in the adjustment
    weight = INDEPENDENT**0.5 / (noise * (1 + (fit.error / max(LOSS_SCALE, noise)).square()).sqrt())
    by_camera, by_point = _jacobians(rig, tracks, in_cam, length)
    by_camera, by_point = by_camera * weight[:, None, None], by_point * weight[:, None, None]
    size = n_adjusted + len(parameters.spread) + 1  # the last takes what is known, and is cut off
    normal = torch.zeros(size, size, dtype=torch.float64)
    ends = torch.searchsorted(tracks.track, torch.arange(0, tracks.n_tracks + _CHUNK, _CHUNK))
    for first, start, end in zip(
        range(0, tracks.n_tracks, _CHUNK), ends[:-1].tolist(), ends[1:].tolist(), strict=False
    ):
        here = slice(start, end)
        place = index[tracks.view[here]]
        track = tracks.track[here] - first
        n_tracks = int(track.max()) + 1
        own = by_camera[here].mT @ by_camera[here]
        normal.index_put_((place[:, :, None], place[:, None, :]), own, accumulate=True)
        cross = torch.zeros(n_tracks, 3, size, dtype=torch.float64)
        cross.index_put_(
            (track[:, None, None], torch.arange(3)[None, :, None], place[:, None, :]),
            by_point[here].mT @ by_camera[here],
            accumulate=True,
        )
        inner = torch.zeros(n_tracks, 3, 3, dtype=torch.float64)
        inner.index_add_(0, track, by_point[here].mT @ by_point[here])
        # a track with a single good observation, or none, fixes no point and tells nothing
        ridge = 1e-9 * inner.diagonal(dim1=1, dim2=2).sum(-1) + 1e-30
        inner += ridge[:, None, None] * torch.eye(3, dtype=torch.float64)
        normal -= cross.flatten(0, 1).mT @ torch.linalg.solve(inner, cross).flatten(0, 1)
    # what `adjust` is told of focal lengths, and `adjust_centres` of principal points
    centre_spread = problem.centre_spread / UNIT
    for column, spread in ((6, problem.focal_spread), (7, centre_spread), (8, centre_spread)):
        own = index[tracks.view.unique(), column].unique()
        for place in own[own < n_adjusted].tolist():
            known = spread[index[:, column] == place].min()
            normal[place, place] += 1 / known.square()
    return normal[:-1, :-1], length


def _jacobians(
    rig: Rig, tracks: Tracks, in_cam: Float64[Tensor, "observation 3"], length: float
) -> tuple[Float64[Tensor, "observation 2 10"], Float64[Tensor, "observation 2 3"]]:
    """Return the derivatives of the pixels (thousandths) by camera and by point.

    The camera turns about its own axes, its centre moves in the world by multiples of `length`,
    its focal length grows by a factor whose logarithm counts, its principal point moves by
    multiples of the long edge, its picture bends by multiples of the third power of the tangent.
    """
    x, y, z = in_cam.unbind(-1)
    zero, focal = torch.zeros_like(z), rig.focal[tracks.view]
    slope = (focal / z)[:, None, None]
    by_in_cam = slope * torch.stack(
        (torch.stack((z, zero, -x), -1), torch.stack((zero, z, -y), -1)), 1
    ) / z[:, None, None]  # fmt: skip
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    world2cam = rig.cam2world[tracks.view, :3, :3].mT
    by_point = by_in_cam @ world2cam
    by_focal = slope * in_cam[:, :2, None]
    by_centre = UNIT * torch.eye(2, dtype=torch.float64).expand(len(z), 2, 2)
    square = (in_cam[:, :2] / z[:, None]).square().sum(-1)
    by_bend = square[:, None, None] * by_focal  # r^2 times the picture itself, as by COLMAP's k
    by_camera = (by_in_cam @ cross, -length * by_point, by_focal, by_centre, by_bend)
    return torch.cat(by_camera, dim=2), by_point


def _inverse(
    normal: Float64[Tensor, "parameter parameter"], n_free_directions: int
) -> Float64[Tensor, "parameter parameter"]:
    """Return the inverse without the directions that nothing holds: the world's place and scale."""
    value, vector = torch.linalg.eigh((normal + normal.mT) / 2)
    value = value.clamp_min(1e-12 * float(value[-1]))
    inverse = 1 / value
    inverse[:n_free_directions] = 0
    return (vector * inverse) @ vector.mT
