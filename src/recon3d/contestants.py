"""What is compared, each on one scene with ground truth: recon3d, SIFT pairs, COLMAP -> Result.

A method that fails keeps its place in the table: its cameras are missing, which counts as wrong.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from recon3d.baselines import Features, colmap_cameras, match, sift_features
from recon3d.cameras import photo_intrinsics
from recon3d.config import Baseline, PhotoConfig, RunConfig
from recon3d.errors import (
    InputError,
    MemoryShortageError,
    ReconstructionError,
    ResourceError,
)
from recon3d.essential import essential_pose
from recon3d.ground_truth import TruePhoto, TrueScene
from recon3d.measure import Cost, measured
from recon3d.metrics import focal_error_pct
from recon3d.photos import find_photos, read_photo
from recon3d.pipeline import reconstruct
from recon3d.score_table import Result
from recon3d.scores import Figures, camera_figures, pair_figures, surface_figures
from recon3d.two_view import KNOWN, UNKNOWN, VARIANTS, Answers, answer_pairs
from recon3d.types import Scene, View
from recon3d.views import make_view
from recon3d.weights import load

OURS = "recon3d"
"""The network and the alignment alone: what the weights are worth."""
REFINED = "recon3d --refine"
"""With the bundle adjustment on image features."""
MULTI = "multi_view"
_FAULTS = (InputError, ReconstructionError, ResourceError)
"""What counts as the failure of a method on a scene; all else ends the evaluation."""

Pairs = Sequence[tuple[int, int]]


def run_method(
    method: str, scene: TrueScene, pairs: Pairs, config: RunConfig, photos: PhotoConfig
) -> Result:
    """Return what a method makes of a scene.

    Args:
        method: `OURS`, `REFINED` or a `Baseline`.
        scene: photos and the truth about them.
        pairs: those that are solved one by one.
        config: how recon3d is run.
        photos: how it sees photos: `config.photos` with the size of the weights put in.
    """
    if method == Baseline.SIFT:
        return _sift(scene, pairs)
    if method == Baseline.COLMAP:
        return _colmap_pairs(scene, pairs) if scene.is_pair_set else _colmap(scene)
    if scene.is_pair_set and method == REFINED:
        return _our_refined_pairs(scene, pairs, config)
    if scene.is_pair_set:
        return _our_pairs(scene, pairs, config, photos)
    return _ours(method, scene, pairs, config, photos)


def _ours(
    method: str, scene: TrueScene, pairs: Pairs, config: RunConfig, photo_config: PhotoConfig
) -> Result:
    """Reconstruct a scene as `recon3d run` does; unrefined, then solve its pairs one by one."""
    config = replace(config, refine=method == REFINED)
    photos = scene.photos
    found: Scene | None = None
    failure: str | None = None
    with measured() as cost:
        try:
            found = reconstruct([str(photo.path) for photo in photos], config)
        except _FAULTS as error:
            failure = str(error)
    placed = [] if found is None else _places(found, photos)
    figures = _camera_blocks(*_cameras(found, photos), photos) | {"cost": _cost(cost)}
    if method == OURS:
        figures |= _unanswered(photos, pairs)
    deciles: tuple[float, ...] = ()
    try:
        views = [_view(photo, photo_config) for photo in photos]
        if method == OURS:
            figures |= _two_view(scene, views, pairs, config)[0]
        if found is not None:
            for k, n in enumerate(placed):
                views[n] = found.views[k]  # dense stereo makes them larger
        surface = surface_figures(found, placed, photos, views, config.fuse) if found else None
        if surface is not None:
            figures |= {"depth": surface.depth, "cloud": surface.cloud}
            deciles = surface.error_by_decile
    except _FAULTS as error:
        failure = failure or str(error)
    return Result(
        scene=scene.name, method=method, figures=figures, error_by_decile=deciles, failure=failure
    )


def _our_pairs(
    scene: TrueScene, pairs: Pairs, config: RunConfig, photo_config: PhotoConfig
) -> Result:
    """Solve the pairs of a pair set; the cost is that of the answers the product gives."""
    figures = _unanswered(scene.photos, pairs)
    focal_px = np.full((len(pairs), 2), np.nan)
    failure = None
    with measured() as cost:
        try:
            views = [_view(photo, photo_config) for photo in scene.photos]
            figures, answers = _two_view(scene, views, pairs, config)
        except _FAULTS as error:
            failure = str(error)
    if failure is None:
        cost.seconds -= answers.extra_s
        focal_px = answers.focal_px
    figures |= _pair_blocks(focal_px, scene.photos, pairs) | {"cost": _cost(cost)}
    return Result(scene=scene.name, method=OURS, figures=figures, failure=failure)


def _our_refined_pairs(scene: TrueScene, pairs: Pairs, config: RunConfig) -> Result:
    """Reconstruct each pair as `recon3d run` does, with unknown and with the true intrinsics.

    Cost and focal error are of the former, `failure` is that of its last pair that failed.
    """
    config = replace(config, refine=True, dense=False)
    twos = [[scene.photos[n] for n in pair] for pair in pairs]
    failed: list[str] = []
    with measured() as cost:
        unknown = [_refined_pair(two, config, failed) for two in twos]
    known = []
    for two in twos:
        with tempfile.TemporaryDirectory(prefix="recon3d-evaluate-") as scratch:
            lenses = Path(scratch) / "transforms.json"
            _write_lenses(lenses, two)
            known.append(_refined_pair(two, replace(config, cameras=str(lenses)), []))
    figures = {
        name: pair_figures(np.stack([cam2world for cam2world, _ in found]), scene.photos, pairs)
        for name, found in ((UNKNOWN, unknown), (KNOWN, known))
    }
    focal_px = np.stack([focal for _, focal in unknown])
    return Result(
        scene=scene.name,
        method=REFINED,
        figures=figures | _pair_blocks(focal_px, scene.photos, pairs) | {"cost": _cost(cost)},
        failure=f"{len(failed)} of {len(pairs)} pairs: {failed[-1]}" if failed else None,
    )


def _refined_pair(
    two: Sequence[TruePhoto], config: RunConfig, failed: list[str]
) -> tuple[Float64[np.ndarray, "photo 4 4"], Float64[np.ndarray, " photo"]]:
    """Return what `_cameras` says of two photos alone; a failure is added to `failed`."""
    try:
        return _cameras(reconstruct([str(photo.path) for photo in two], config), two)
    except _FAULTS as error:
        failed.append(str(error))
        return _cameras(None, two)


def _two_view(
    scene: TrueScene, views: Sequence[View], pairs: Pairs, config: RunConfig
) -> tuple[dict[str, Figures], Answers]:
    answers = answer_pairs(
        load(config.weights),
        views,
        pairs,
        [photo.intrinsics for photo in scene.photos],
        config.predict,
        config.align,
    )
    blocks = {
        name: pair_figures(cam2world, scene.photos, pairs)
        for name, cam2world in answers.cam2world.items()
    }
    return blocks, answers


def _unanswered(photos: Sequence[TruePhoto], pairs: Pairs) -> dict[str, Figures]:
    """Return the blocks of pairs none of which got an answer, in all variants."""
    nothing = np.full((len(pairs), 2, 4, 4), np.nan)
    return {name: pair_figures(nothing, photos, pairs) for name in VARIANTS}


def _sift(scene: TrueScene, pairs: Pairs) -> Result:
    """Essential matrices of single pairs, with the true intrinsics.

    For lack of a common world, the same pairs stand for its cameras under `multi_view`.
    """
    cam2world = np.full((len(pairs), 2, 4, 4), np.nan)
    failure = None
    features: dict[Path, Features] = {}
    with measured() as cost:
        try:
            for k, pair in enumerate(pairs):
                two = [scene.photos[n] for n in pair]
                for photo in two:
                    if photo.path not in features:
                        features[photo.path] = sift_features(photo)
                matches = match(*(features[photo.path] for photo in two))
                cam_j2cam_i = essential_pose(*matches, *(photo.intrinsics for photo in two))
                if cam_j2cam_i is not None:
                    cam2world[k] = np.eye(4), cam_j2cam_i
        except _FAULTS as error:
            failure = str(error)
    figures = {KNOWN: pair_figures(cam2world, scene.photos, pairs), "cost": _cost(cost)}
    if not scene.is_pair_set:
        figures[MULTI] = figures[KNOWN]
    return Result(scene=scene.name, method=Baseline.SIFT, figures=figures, failure=failure)


def _colmap(scene: TrueScene) -> Result:
    with measured() as cost:
        found = colmap_cameras(scene.photos)
    figures = _camera_blocks(found.cam2world, found.focal_px, scene.photos)
    return Result(
        scene=scene.name,
        method=Baseline.COLMAP,
        figures=figures | {"cost": _cost(cost)},
        failure=found.failure,
    )


def _colmap_pairs(scene: TrueScene, pairs: Pairs) -> Result:
    """COLMAP on each pair alone, with unknown and with the true intrinsics.

    Cost, focal error and `failure`, that of the last pair that failed, are of the former.
    """
    twos = [[scene.photos[n] for n in pair] for pair in pairs]
    with measured() as cost:
        unknown = [colmap_cameras(two) for two in twos]
    known = [colmap_cameras(two, known_intrinsics=True) for two in twos]
    figures = {
        name: pair_figures(np.stack([pair.cam2world for pair in found]), scene.photos, pairs)
        for name, found in ((UNKNOWN, unknown), (KNOWN, known))
    }
    focal_px = np.stack([pair.focal_px for pair in unknown])
    failed = [pair.failure for pair in unknown if pair.failure is not None]
    return Result(
        scene=scene.name,
        method=Baseline.COLMAP,
        figures=figures | _pair_blocks(focal_px, scene.photos, pairs) | {"cost": _cost(cost)},
        failure=f"{len(failed)} of {len(pairs)} pairs: {failed[-1]}" if failed else None,
    )


def _cameras(
    found: Scene | None, photos: Sequence[TruePhoto]
) -> tuple[Float64[np.ndarray, "photo 4 4"], Float64[np.ndarray, " photo"]]:
    """Return cam2world and the focal length, in pixels of the photo, of each; nan if not placed."""
    cam2world, focal_px = np.full((len(photos), 4, 4), np.nan), np.full(len(photos), np.nan)
    if found is None:
        return cam2world, focal_px
    for k, n in enumerate(_places(found, photos)):
        cam2world[n] = found.cam2world[k].double().numpy()
        in_photo = photo_intrinsics(found.intrinsics[k], found.views[k].photo2view)
        focal_px[n] = float((in_photo[0, 0] * in_photo[1, 1]).sqrt())
    return cam2world, focal_px


def _write_lenses(path: Path, photos: Sequence[TruePhoto]) -> None:
    """Write a transforms.json with the true intrinsics and no poses."""
    names = {place.absolute(): name for place, name in find_photos([str(p.path) for p in photos])}
    frames = [
        {
            "file_path": names[photo.path.absolute()],
            "fl_x": float(photo.intrinsics[0, 0]),
            "fl_y": float(photo.intrinsics[1, 1]),
            "cx": float(photo.intrinsics[0, 2]),
            "cy": float(photo.intrinsics[1, 2]),
        }
        for photo in photos
    ]
    path.write_text(json.dumps({"frames": frames}))


def _camera_blocks(
    cam2world: Float64[np.ndarray, "photo 4 4"],
    focal_px: Float64[np.ndarray, " photo"],
    photos: Sequence[TruePhoto],
) -> dict[str, Figures]:
    true_focal_px = np.array([photo.focal_px for photo in photos])
    return {MULTI: camera_figures(cam2world, photos), **_focal_blocks(focal_px, true_focal_px)}


def _pair_blocks(
    focal_px: Float64[np.ndarray, "pair 2"], photos: Sequence[TruePhoto], pairs: Pairs
) -> dict[str, Figures]:
    true_focal_px = np.array([[photos[n].focal_px for n in pair] for pair in pairs])
    return _focal_blocks(focal_px.ravel(), true_focal_px.ravel())


def _focal_blocks(
    focal_px: Float64[np.ndarray, " view"], true_focal_px: Float64[np.ndarray, " view"]
) -> dict[str, Figures]:
    """Return the median focal error of the views that were placed, and how many those are."""
    placed = np.isfinite(focal_px)
    n = int(placed.sum())
    blocks: dict[str, Figures] = {
        "photos": {"given": len(placed), "placed": n, "placed_share": n / len(placed)}
    }
    if n:
        error_pct = focal_error_pct(focal_px[placed], true_focal_px[placed])
        blocks["focal"] = {"error_pct": float(np.median(error_pct))}
    return blocks


def _cost(cost: Cost) -> Figures:
    return {name: value for name, value in asdict(cost).items() if np.isfinite(value)}


def _view(photo: TruePhoto, config: PhotoConfig) -> View:
    """Return what `load_views` makes of one photo; an error names the file."""
    assert config.size is not None
    try:
        read = read_photo(photo.path, photo.path.name, config, reduce=True)
    except (InputError, MemoryShortageError) as error:
        raise InputError(f"{photo.path} cannot be used: {error}.") from error
    return make_view(read, config.size, config.patch_size)


def _places(found: Scene, photos: Sequence[TruePhoto]) -> list[int]:
    """Return for each view of the scene its place among the photos."""
    place = {photo.path.absolute(): n for n, photo in enumerate(photos)}
    path_of = {name: path for path, name in find_photos([str(photo.path) for photo in photos])}
    return [place[path_of[view.name]] for view in found.views]
