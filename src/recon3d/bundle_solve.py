"""The bundle adjustment itself: cameras and tracks -> cameras, by COLMAP's solver.

Images are measured in thousandths of the long edge of the photo, from the principal point, so that
photos of all sizes and shapes weigh the same and may share a focal length.

Source: Triggs et al., Bundle adjustment: a modern synthesis, 1999; Schoenberger and Frahm,
Structure-from-motion revisited, CVPR 2016 (COLMAP).
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from recon3d.bundle_lens import first_of_each
from recon3d.bundle_prior import LikelyLens, remind_of_focals, remind_of_lenses
from recon3d.colmap_extra import require_pycolmap
from recon3d.config import RefineConfig
from recon3d.geometry import invert_rigid, transform_points
from recon3d.tracks import Tracks, ray_angle, select_observations, triangulate
from recon3d.types import Scene

UNIT = 1000.0
"""Long edge of every photo."""
MIN_ANGLE = math.radians(1.0)
"""Of the rays of a track; below, the distance of its point is guesswork."""
FOCAL_RANGE = (0.3 * UNIT, 6.0 * UNIT)
"""What a lens can be: 118 to 10 degrees."""
LOSS_SCALE = 1.0
"""Where Cauchy's loss bends, in thousandths: the noise of good features."""
INDEPENDENT = 0.1
"""Share of the observations whose errors are: a lens bends those of a region alike."""
_SPREAD = {"prior": 0.05, "exif": 0.05, "estimated": 0.2}
"""Standard deviation of the logarithm of a focal length, by where it comes from."""
_CENTRE_SPREAD = 7.0
"""Standard deviation of a principal point from the middle of the photo, x and y, in thousandths:
calibrated cameras are 5 to 10 off."""
_FINEST = 0.2  # thousandths; features are rarely more exact


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rig:
    """Cameras; focal lengths in thousandths."""

    cam2world: Float64[Tensor, "view 4 4"]
    focal: Float64[Tensor, " view"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """What no adjustment changes: `unit` is thousandths per pixel of a view, x and y.

    `lens` is the first view of those that share a focal length where it is adjusted, or that were
    given the same one.
    `likely_focal` is where focal lengths (thousandths) stay that no track holds, `focal_spread` the
    standard deviation of its logarithm; `centre_spread` is how far principal points probably are
    from `centre` (thousandths), 0 where lenses are known. With `free_centre`, `centre` was adjusted
    as well, and `centre_spread` is what was told of it before.
    """

    unit: Float64[Tensor, "view 2"]
    centre: Float64[Tensor, "view 2"]
    likely_focal: Float64[Tensor, " view"]
    focal_spread: Float64[Tensor, " view"]
    centre_spread: Float64[Tensor, " view"]
    lens: Int64[Tensor, " view"]
    constant_focal: Bool[Tensor, " view"]
    constant_pose: Bool[Tensor, " view"]
    config: RefineConfig
    free_centre: bool = False

    def camera(self, n: int) -> int:
        """Return the first view of the camera of view n: that of its lens, else its own."""
        return n if self.constant_focal[n] else int(self.lens[n])

    def image(self, tracks: Tracks) -> Float64[Tensor, "observation 2"]:
        """Return the observations in thousandths from the principal point."""
        return (tracks.pixels - self.centre[tracks.view]) * self.unit[tracks.view]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fit:
    """Points of tracks, and how far each observation is off in thousandths (inf: behind)."""

    points: Float64[Tensor, "track 3"]
    error: Float64[Tensor, " observation"]


def problem_of(
    scene: Scene,
    config: RefineConfig,
    fixed: Collection[int],
    calibrated: Collection[int] = (),
    lens: Int64[Tensor, " view"] | None = None,
) -> tuple[Problem, Rig]:
    """Return what stays and the cameras to start from.

    `fixed` views keep their place; of `calibrated` ones the whole lens is known, of others, where
    the focal length was given, that alone. Views with one number in `lens` share a focal length
    unless it is given; None has all share one, or none, as `config.shared_focal` says.
    """
    intrinsics = scene.intrinsics.double().cpu()
    focal_px = intrinsics[:, [0, 1], [0, 1]]
    unit_x = torch.tensor(
        [
            UNIT / (float(view.photo2view[0, 0]) * max(view.photo_width, view.photo_height))
            for view in scene.views
        ],
        dtype=torch.float64,
    )
    focal = focal_px[:, 0] * unit_x
    given = torch.tensor([verdict.focal_source == "given" for verdict in scene.verdicts])
    constant = given | (not config.refine_focal)
    spread = torch.tensor(
        [_SPREAD.get(verdict.focal_source, 1.0) for verdict in scene.verdicts], dtype=torch.float64
    )
    own = torch.arange(len(focal))
    if lens is None:
        lens = torch.zeros_like(own) if config.shared_focal else own
    for number in lens[~given].unique():
        # what the surest say of the lens, else one photo with EXIF would be held to guesses
        alike = (lens == number) & ~given
        least = spread[alike].min()
        focal = torch.where(alike, focal[alike & (spread == least)].median(), focal)
        spread = torch.where(alike, least, spread)
    is_calibrated = torch.tensor([n in calibrated for n in range(len(scene.views))])
    problem = Problem(
        unit=unit_x[:, None] * focal_px[:, :1] / focal_px,
        centre=intrinsics[:, :2, 2],
        likely_focal=focal,
        focal_spread=spread,
        centre_spread=torch.where(is_calibrated, 0.0, _CENTRE_SPREAD).double(),
        lens=first_of_each(torch.stack((lens, torch.where(constant, focal, 0.0).long()), dim=1)),
        constant_focal=constant,
        constant_pose=torch.tensor([n in fixed for n in range(len(scene.views))]),
        config=config,
    )
    return problem, Rig(cam2world=scene.cam2world.double().cpu(), focal=focal)


def fit_tracks(problem: Problem, rig: Rig, tracks: Tracks) -> Fit:
    """Return where the tracks lie by these cameras, and how far the observations are off."""
    image = problem.image(tracks)
    cam2world, focal = rig.cam2world[tracks.view], rig.focal[tracks.view]
    in_cam = torch.cat((image / focal[:, None], torch.ones(len(image), 1).double()), dim=1)
    direction = (cam2world[:, :3, :3] @ in_cam[..., None])[..., 0]
    points = triangulate(
        cam2world[:, :3, 3],
        torch.nn.functional.normalize(direction, dim=-1),
        tracks.track,
        tracks.n_tracks,
    )
    seen = depth_in_camera(points, rig, tracks)
    off = seen[:, :2] * (focal / seen[:, 2])[:, None] - image
    error = torch.where(seen[:, 2] > 0, off.norm(dim=-1), torch.inf)
    return Fit(points=points, error=error.nan_to_num(nan=torch.inf, posinf=torch.inf))


def seen_by_both(
    problem: Problem, tracks: Tracks, i: int, j: int
) -> tuple[Float64[np.ndarray, "match 2"], Float64[np.ndarray, "match 2"]]:
    """Return where views i and j see the tracks that both see, in thousandths."""
    pixels, number = problem.image(tracks).numpy(), tracks.track.numpy()
    in_i, in_j = ((tracks.view == n).numpy() for n in (i, j))
    _, row_i, row_j = np.intersect1d(number[in_i], number[in_j], return_indices=True)
    return pixels[in_i][row_i], pixels[in_j][row_j]


def depth_in_camera(
    points: Float64[Tensor, "track 3"], rig: Rig, tracks: Tracks
) -> Float64[Tensor, "observation 3"]:
    """Return the point of each observation in its camera."""
    world2cam = invert_rigid(rig.cam2world[tracks.view])
    return transform_points(world2cam, points[tracks.track, None])[:, 0]


def well_seen(rig: Rig, tracks: Tracks, fit: Fit, bound: float) -> Bool[Tensor, " observation"]:
    """Return the observations at most `bound` off, of points whose rays meet at an angle."""
    angle = ray_angle(fit.points, rig.cam2world[tracks.view, :3, 3], tracks.track)
    return (fit.error <= bound) & (angle >= MIN_ANGLE)[tracks.track]


def adjust(problem: Problem, rig: Rig, tracks: Tracks) -> Rig:
    """Return the cameras after one adjustment of all tracks that fit roughly.

    Cameras without tracks stay; so do all where fewer than `min_tracks` fit.
    """
    return _adjusted(problem, rig, tracks, None)[0]


def adjust_centres(
    problem: Problem,
    rig: Rig,
    tracks: Tracks,
    middle: Float64[Tensor, "view 2"],
    spread: Float64[Tensor, "view 2"],
) -> tuple[Problem, Rig]:
    """Do what `adjust` does, with principal points free where focal lengths are.

    They probably lie at `middle` (pixels of the views), with standard deviations `spread`
    (thousandths).
    """
    likely = (middle - problem.centre) * problem.unit
    rig, moved = _adjusted(problem, rig, tracks, (likely, spread))
    return replace(problem, centre=problem.centre + moved / problem.unit), rig


def _adjusted(
    problem: Problem,
    rig: Rig,
    tracks: Tracks,
    centres: tuple[Float64[Tensor, "view 2"], Float64[Tensor, "view 2"]] | None,
) -> tuple[Rig, Float64[Tensor, "view 2"]]:
    """Return the cameras, and how far principal points moved: not at all without `centres`.

    These say where they probably are (thousandths from where they were), and their spread.
    """
    pycolmap = require_pycolmap()
    moved = torch.zeros_like(problem.centre)
    fit = fit_tracks(problem, rig, tracks)
    bound = problem.config.max_error * UNIT
    error = min(bound, float(fit.error.median()))
    good = well_seen(rig, tracks, fit, bound)
    _, kept = tracks.track[good].unique(return_counts=True)
    if int((kept >= 2).sum()) < problem.config.min_tracks:
        return rig, moved
    tracks = select_observations(tracks, good)
    points = fit_tracks(problem, rig, tracks).points
    model = _model(pycolmap, problem, rig, tracks, points)
    setup = pycolmap.BundleAdjustmentConfig()
    views = list(model.images.items())
    for number, image in views:
        setup.add_image(number)
        if problem.constant_pose[number - 1]:
            setup.set_constant_rig_from_world_pose(image.frame_id)
        if problem.constant_focal[number - 1]:
            setup.set_constant_cam_intrinsics(image.camera_id)
    if not setup.num_constant_rig_from_world_poses():
        setup.set_constant_rig_from_world_pose(views[0][1].frame_id)
    # points and cameras follow the noise: of points that two views see, half of it shows
    n_values, n_unknown = 2 * len(tracks.view), 3 * tracks.n_tracks + 6 * len(views)
    shows = math.sqrt(max(n_values - n_unknown, 1) / n_values)
    noise = max(_FINEST, error) / shows
    in_place = moved, problem.centre_spread[:, None].expand(-1, 2)
    likely = _likely_lenses(model, problem, *(centres or in_place))
    options = _options(pycolmap, problem.config, max(LOSS_SCALE, error))
    if centres is None:
        remind_of_focals(pycolmap, model, setup, likely, noise)
    else:
        options.refine_principal_point = True
        remind_of_lenses(pycolmap, model, setup, likely, noise / INDEPENDENT**0.5)
    pycolmap.create_default_bundle_adjuster(options, setup, model).solve()
    cam2world, focal = rig.cam2world.clone(), rig.focal.clone()
    for number, image in views:
        world2cam = torch.eye(4, dtype=torch.float64)
        world2cam[:3] = torch.from_numpy(image.cam_from_world().matrix())
        cam2world[number - 1] = invert_rigid(world2cam)
        lens = torch.from_numpy(np.array(model.cameras[image.camera_id].params))
        focal[number - 1], moved[number - 1] = lens[0], lens[1:]
    return Rig(cam2world=cam2world, focal=focal), moved


def _likely_lenses(
    model: Any,
    problem: Problem,
    middle: Float64[Tensor, "view 2"],
    spread: Float64[Tensor, "view 2"],
) -> dict[int, LikelyLens]:
    """Return what is thought of each camera whose lens is adjusted, by its first view."""
    return {
        image.camera_id: LikelyLens(
            focal=float(problem.likely_focal[number - 1]),
            focal_spread=float(problem.focal_spread[number - 1]),
            centre=middle[number - 1].numpy(),
            centre_spread=spread[number - 1].numpy(),
        )
        for number, image in reversed(list(model.images.items()))
        if not problem.constant_focal[number - 1]
    }


def _options(pycolmap: ModuleType, config: RefineConfig, loss_scale: float) -> Any:
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_focal_length = config.refine_focal
    options.refine_extra_params = False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = loss_scale
    options.ceres.solver_options.max_num_iterations = config.max_iterations
    options.ceres.solver_options.function_tolerance = 1e-6
    options.ceres.solver_options.num_threads = 1  # sums in one order, the same on every run
    return options


def _model(
    pycolmap: ModuleType,
    problem: Problem,
    rig: Rig,
    tracks: Tracks,
    points: Float64[Tensor, "track 3"],
) -> Any:
    """Return COLMAP's model of the views that tracks see; image n + 1 is view n."""
    model = pycolmap.Reconstruction()
    image = problem.image(tracks)
    place = torch.zeros(len(image), dtype=torch.int64)  # of each observation in its image
    world2cam = invert_rigid(rig.cam2world)
    for n in tracks.view.unique().tolist():
        camera = problem.camera(n) + 1
        if camera not in model.cameras:
            model.add_camera_with_trivial_rig(
                pycolmap.Camera(
                    model="SIMPLE_PINHOLE",
                    width=int(UNIT),
                    height=int(UNIT),
                    params=[float(rig.focal[n]), 0.0, 0.0],
                    camera_id=camera,
                )
            )
        mine = tracks.view == n
        place[mine] = torch.arange(int(mine.sum()))
        model.add_image_with_trivial_frame(
            pycolmap.Image(
                name=str(n), keypoints=image[mine].numpy(), camera_id=camera, image_id=n + 1
            ),
            pycolmap.Rigid3d(world2cam[n, :3].numpy()),
        )
    members: list[list[object]] = [[] for _ in range(tracks.n_tracks)]
    observations = zip(tracks.track.tolist(), tracks.view.tolist(), place.tolist(), strict=True)
    for track, view, index in observations:
        members[track].append(pycolmap.TrackElement(view + 1, index))
    for point, elements in zip(points.numpy(), members, strict=True):
        model.add_point3D(point, pycolmap.Track(elements))
    return model
