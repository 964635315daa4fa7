"""Cameras anew from tracks alone: COLMAP's incremental mapping, for want of a good start.

Source: Schoenberger and Frahm, Structure-from-motion revisited, CVPR 2016 (COLMAP).
"""

import logging
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from recon3d.bundle_solve import FOCAL_RANGE, UNIT, Problem, Rig
from recon3d.colmap_extra import require_pycolmap
from recon3d.geometry import invert_rigid
from recon3d.tracks import Tracks

logger = logging.getLogger(__name__)

USUAL_FOCAL = 1.2 * UNIT
"""COLMAP's guess, second to that of the network."""
_CENTRE = UNIT / 2  # COLMAP wants pixels inside of the image
_MIN_SHARE = 0.5  # of the views, that a model must hold
_FULL_SHARE = 0.9  # ... that end the search
_CHANGED = 0.02  # of a focal length: with more its camera is elsewhere
_MAX_MODELS = 3  # starts from other pairs of views
_MAX_TRIALS = 30  # pairs of views to start from; COLMAP tries 200, which on nonsense takes long
# COLMAP's own limits are made for many photos; of few, each pair of views must be put to use: a car
# that drives straight on, two eyes of a stereo camera, a view that only a narrow strip joins. The
# check finds out what is wrong.
_MIN_START = 30  # inliers of the first pair (COLMAP: 100) ...
_MIN_START_DEG = 4.0  # ... and the angle of its rays (16)
_MIN_PLACING = 15  # inliers of a view (30) ...
_MIN_PLACING_SHARE = 0.15  # ... and their share (0.25)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mapped:
    """Cameras of the views that COLMAP placed; the others are as they were."""

    rig: Rig
    placed: Bool[Tensor, " view"]


def map_cameras(
    problem: Problem,
    start: Rig,
    tracks: Tracks,
    pairs: Collection[tuple[int, int]],
    *,
    trusted_focal: Bool[Tensor, " view"],
) -> Mapped | None:
    """Return cameras placed anew, None where no model holds half of the views.

    Of `start` only the focal lengths are used, and the places of the fixed views, which set the
    world: with none of them it is COLMAP's.

    Args:
        problem: what stays.
        start: the cameras of the scene.
        tracks: without those kept aside for the check.
        pairs: of views that matched; tracks are not believed to join others.
        trusted_focal: whose focal length is given or in the photo's metadata, and with it that of
            their lens. Of the others the median is tried first, then the usual one, then the median
            as if it were given.
    """
    pycolmap = require_pycolmap()
    n_views = len(start.focal)
    constant = trusted_focal | problem.constant_focal
    constant = (constant & (problem.lens[:, None] == problem.lens)).any(1)
    own = float(start.focal[~constant].median()) if not constant.all() else 0.0
    # the last for photos that tell nothing of the focal length: moved sideways, not turned
    guesses = [(own, False), (USUAL_FOCAL, False), (own, True)][: 1 if constant.all() else 3]
    best = None
    for guess, believed in guesses:
        focal = torch.where(constant, start.focal, guess)
        model = _largest_model(
            pycolmap, problem, focal, constant, tracks, pairs, keep_focal=believed
        )
        if model is not None and (best is None or model.num_reg_images() > best.num_reg_images()):
            best = model
        if best is not None and best.num_reg_images() >= _FULL_SHARE * n_views:
            break
    if best is None or best.num_reg_images() < max(2, _MIN_SHARE * n_views):
        return None
    logger.info("COLMAP places %d of %d photos anew", best.num_reg_images(), n_views)
    return _in_world(_mapped(best, problem, start), problem, start)


def _largest_model(
    pycolmap: ModuleType,
    problem: Problem,
    focal: Float64[Tensor, " view"],
    trusted_focal: Bool[Tensor, " view"],
    tracks: Tracks,
    pairs: Collection[tuple[int, int]],
    *,
    keep_focal: bool,
) -> Any:
    """Return COLMAP's model of the most views, or None; image n + 1 is view n."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = 2
    options.max_num_models = _MAX_MODELS
    options.extract_colors = False
    # with few photos most points are seen by two alone; the check judges what comes of them
    options.triangulation.ignore_two_view_tracks = False
    options.init_num_trials = _MAX_TRIALS
    options.mapper.init_min_num_inliers = _MIN_START
    options.mapper.init_min_tri_angle = _MIN_START_DEG
    options.mapper.init_max_forward_motion = 1.0
    options.mapper.abs_pose_min_num_inliers = _MIN_PLACING
    options.mapper.abs_pose_min_inlier_ratio = _MIN_PLACING_SHARE
    options.min_focal_length_ratio, options.max_focal_length_ratio = (f / UNIT for f in FOCAL_RANGE)
    options.random_seed = problem.config.seed
    options.num_threads = 1  # the same on every run
    options.ba_refine_focal_length = problem.config.refine_focal and not keep_focal
    options.ba_refine_extra_params = False
    # an image that joins would have its focal length refined, constant or not
    options.mapper.abs_pose_refine_focal_length = not bool(problem.constant_focal.all())
    with tempfile.TemporaryDirectory(prefix="recon3d-map-") as scratch:
        path = Path(scratch) / "database.db"
        trusted = trusted_focal | keep_focal
        cameras = _write(pycolmap, path, problem, focal, trusted, tracks, pairs)
        options.constant_cameras = {
            camera
            for camera, fixed in zip(cameras, problem.constant_focal.tolist(), strict=True)
            if fixed
        }
        pycolmap.set_random_seed(problem.config.seed)
        models = pycolmap.incremental_mapping(path, Path(scratch), Path(scratch), options=options)
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def _write(
    pycolmap: ModuleType,
    path: Path,
    problem: Problem,
    focal: Float64[Tensor, " view"],
    trusted_focal: Bool[Tensor, " view"],
    tracks: Tracks,
    pairs: Collection[tuple[int, int]],
) -> list[int]:
    """Write COLMAP's database of cameras, keypoints and matches; return each view's camera."""
    pixels = (problem.image(tracks) + _CENTRE).numpy()
    tracks_of, cameras = [], []
    with pycolmap.Database.open(path) as database:
        for n, focal_n in enumerate(focal.tolist()):
            cameras.append(problem.camera(n) + 1)
            if cameras[-1] == n + 1:
                camera = pycolmap.Camera(
                    model="SIMPLE_PINHOLE",
                    width=int(UNIT),
                    height=int(UNIT),
                    params=[focal_n, _CENTRE, _CENTRE],
                    camera_id=n + 1,
                )
                camera.has_prior_focal_length = bool(trusted_focal[n])
                database.write_camera(camera, use_camera_id=True)
                rig = pycolmap.Rig(rig_id=n + 1)
                rig.add_ref_sensor(camera.sensor_id)
                database.write_rig(rig, use_rig_id=True)
            image = pycolmap.Image(name=str(n), camera_id=cameras[-1], image_id=n + 1)
            database.write_image(image, use_image_id=True)
            frame = pycolmap.Frame(frame_id=n + 1, rig_id=cameras[-1])
            frame.add_data_id(image.data_id)
            database.write_frame(frame, use_frame_id=True)
            mine = (tracks.view == n).numpy()
            tracks_of.append(tracks.track.numpy()[mine])
            database.write_keypoints(n + 1, pixels[mine].astype(np.float32))
        for i, j in sorted(pairs):
            _, row_i, row_j = np.intersect1d(
                tracks_of[i], tracks_of[j], assume_unique=True, return_indices=True
            )
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
            geometry.inlier_matches = np.stack((row_i, row_j), axis=1).astype(np.uint32)
            if len(row_i):
                database.write_matches(i + 1, j + 1, geometry.inlier_matches)
                database.write_two_view_geometry(i + 1, j + 1, geometry)
    return cameras


def _mapped(model: Any, problem: Problem, start: Rig) -> Mapped:
    """Return COLMAP's cameras, without those for which it changed a focal length that stays."""
    cam2world, focal = start.cam2world.clone(), start.focal.clone()
    placed = torch.zeros(len(focal), dtype=torch.bool)
    for number in model.reg_image_ids():
        image = model.images[number]
        own = float(model.cameras[image.camera_id].params[0])
        if (
            problem.constant_focal[number - 1]
            and abs(own / float(focal[number - 1]) - 1) > _CHANGED
        ):
            continue
        world2cam = torch.eye(4, dtype=torch.float64)
        world2cam[:3] = torch.from_numpy(image.cam_from_world().matrix())
        cam2world[number - 1] = invert_rigid(world2cam)
        if not problem.constant_focal[number - 1]:
            focal[number - 1] = own
        placed[number - 1] = True
    return Mapped(rig=Rig(cam2world=cam2world, focal=focal), placed=placed)


def _in_world(mapped: Mapped, problem: Problem, start: Rig) -> Mapped:
    """Return the cameras in the world in which the fixed ones are where they were.

    One alone leaves the scale as it is; from two on, centres set it.
    """
    pinned = (problem.constant_pose & mapped.placed).nonzero().flatten()
    if not len(pinned):
        return mapped
    old, new = start.cam2world[pinned], mapped.rig.cam2world[pinned]
    u, _, vh = torch.linalg.svd((old[:, :3, :3] @ new[:, :3, :3].mT).sum(0))
    turn = u @ torch.diag(torch.tensor([1.0, 1.0, torch.linalg.det(u @ vh)]).double()) @ vh
    centre_old, centre_new = old[:, :3, 3].mean(0), new[:, :3, 3].mean(0)
    spread_old, spread_new = (
        (ends[:, :3, 3] - middle).norm() for ends, middle in ((old, centre_old), (new, centre_new))
    )
    scale = float(spread_old / spread_new) if len(pinned) > 1 and spread_new > 0 else 1.0
    cam2world = mapped.rig.cam2world.clone()
    cam2world[:, :3, :3] = turn @ cam2world[:, :3, :3]
    cam2world[:, :3, 3] = scale * (cam2world[:, :3, 3] - centre_new) @ turn.mT + centre_old
    kept = problem.constant_pose | ~mapped.placed
    cam2world[kept] = start.cam2world[kept]
    return Mapped(rig=Rig(cam2world=cam2world, focal=mapped.rig.focal), placed=mapped.placed)
