"""Run recon3d and the classical baselines over folders with ground truth -> Table."""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from recon3d.baselines import require_colmap
from recon3d.colmap_extra import require_pycolmap
from recon3d.config import Baseline, EvaluateConfig
from recon3d.contestants import MULTI, OURS, REFINED, run_method
from recon3d.errors import UsageError
from recon3d.ground_truth import TrueScene, find_scenes, read_scene
from recon3d.predict import resolve_device, resolve_precision
from recon3d.progress import Track, silent
from recon3d.score_table import Result, Table
from recon3d.two_view import KNOWN, UNKNOWN_FORCED
from recon3d.weights import load

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def evaluate(data: Path, config: EvaluateConfig, *, track: Track = silent) -> Table:
    """Return how well recon3d and the baselines find the cameras and surfaces of known scenes.

    Args:
        data: a folder with ground truth, or a folder of such folders (see `ground_truth`).
        config: what takes part, and how recon3d is run.
        track: told the stage "evaluate" after each method on each scene.

    Raises:
        InputError: no scene, a name that is not there, or ground truth that is wrong.
        UsageError: a setting that cannot be used, or a baseline that is not installed.
        WeightsError: weights that are missing, damaged or of an unknown layout.
    """
    _check(config)
    folders = find_scenes([data], config.scenes)
    scenes = tuple(thinned(read_scene(folder), config) for folder in folders)
    network = load(config.run.weights).config  # not kept: `reconstruct` loads them as users do
    photos = replace(
        config.run.photos,
        size=config.run.photos.size or network.image_size,
        patch_size=network.patch_size,
    )
    device = resolve_device(config.run.predict.device)
    dtype = resolve_precision(config.run.predict.precision, device)
    ours = (OURS, REFINED) if _is_refining(config) else (OURS,)
    contests = [
        (scene, method) for scene in scenes for method in (*ours, *dict.fromkeys(config.baselines))
    ]
    results: list[Result] = []
    for scene, method in contests:
        pairs = spread(scene.pairs, config.max_pairs)
        with _only_warnings():
            results.append(run_method(method, scene, pairs, config.run, photos))
        logger.info("%s, %s: %s", scene.name, method, _in_short(results[-1]))
        track("evaluate", len(results), len(contests))
    return Table(
        scenes=scenes,
        results=tuple(results),
        settings={
            "weights": config.run.weights,
            "network": network.name,
            "size": photos.size,
            "pairs": config.run.pairs,
            "device": str(device),
            "precision": str(dtype).removeprefix("torch."),
            "max_photos": config.max_photos,
            "max_pairs": config.max_pairs,
        },
    )


def _is_refining(config: EvaluateConfig) -> bool:
    """Return whether the bundle adjustment has a row of its own: unless unwanted or impossible."""
    if config.run.refine is None:
        return importlib.util.find_spec("pycolmap") is not None
    return config.run.refine


def thinned(scene: TrueScene, config: EvaluateConfig) -> TrueScene:
    """Return the scene with at most `max_photos` photos, or `max_photos` / 2 pairs of a set."""
    limit = config.max_photos
    if limit is None or limit >= len(scene.photos):
        return scene
    if not scene.is_pair_set:
        photos = spread(scene.photos, limit)
        pairs = [(i, j) for i in range(limit) for j in range(i + 1, limit)]
        return replace(scene, photos=tuple(photos), pairs=tuple(pairs))
    kept = spread(scene.pairs, limit // 2)
    return replace(
        scene,
        photos=tuple(scene.photos[n] for pair in kept for n in pair),
        pairs=tuple((2 * k, 2 * k + 1) for k in range(len(kept))),
    )


def spread(items: Sequence[Item], limit: int) -> Sequence[Item]:
    """Return at most `limit` items, evenly spread, with the first and the last if two or more."""
    n = len(items)
    if n <= limit:
        return items
    step = (n - 1) / max(limit - 1, 1)
    return [items[round(k * step)] for k in range(limit)]


def _check(config: EvaluateConfig) -> None:
    if config.max_photos is not None and config.max_photos < 2:
        raise UsageError(f"at most {config.max_photos} photos make no pair. Give at least 2.")
    if config.max_pairs < 1:
        raise UsageError(f"at most {config.max_pairs} pairs is too few. Give at least 1.")
    if Baseline.COLMAP in config.baselines:
        require_colmap()
    if config.run.refine:
        require_pycolmap()


def _in_short(result: Result) -> str:
    """Return the one figure that says most, with the seconds."""
    seconds = f"{result.figures.get('cost', {}).get('seconds', 0):.1f} s"
    for block, name, words in (
        (MULTI, "maa_30", "mAA@30"),
        (UNKNOWN_FORCED, "auc_20", "AUC@20"),
        (KNOWN, "auc_20", "AUC@20"),
        ("two_view", "auc_20", "AUC@20"),
    ):
        if block in result.figures:
            return f"{words} {result.figures[block][name]:.3f} in {seconds}"
    return f"nothing in {seconds}"


@contextlib.contextmanager
def _only_warnings() -> Iterator[None]:
    """Keep the lines of each stage of each pair out of the log, unless all is asked for."""
    package = logging.getLogger("recon3d")
    level = package.level
    if level == logging.INFO:
        package.setLevel(logging.WARNING)
    try:
        yield
    finally:
        package.setLevel(level)
