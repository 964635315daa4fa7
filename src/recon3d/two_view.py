"""The relative pose of single pairs, by the product's own prediction and alignment.

Each pair is asked with unknown and with known intrinsics, and each of that twice: as the product
answers, which refuses pairs that do not hold together, and forced, where it must say something as
the published protocols (and five-point solvers) do.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64

from recon3d.align import align
from recon3d.cameras import photo_intrinsics
from recon3d.config import AlignConfig, PredictConfig
from recon3d.errors import ReconstructionError
from recon3d.model import TwoViewModel
from recon3d.predict import predict_pairs
from recon3d.progress import Track, silent
from recon3d.types import KnownCamera, PairPrediction, Scene, View

UNKNOWN, KNOWN = "two_view", "two_view_known"
UNKNOWN_FORCED, KNOWN_FORCED = "two_view_forced", "two_view_known_forced"
VARIANTS = (UNKNOWN, KNOWN, UNKNOWN_FORCED, KNOWN_FORCED)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """Cameras of the two views of every pair, nan where there is no answer.

    World is camera i. `focal_px`, in pixels of the photo, is that of the unknown intrinsics as the
    product answers. `extra_s` is the time that the other variants took.
    """

    cam2world: dict[str, Float64[np.ndarray, "pair 2 4 4"]]
    focal_px: Float64[np.ndarray, "pair 2"]
    extra_s: float


def answer_pairs(
    model: TwoViewModel,
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    intrinsics: Sequence[Float64[np.ndarray, "3 3"]],
    predict: PredictConfig,
    config: AlignConfig,
    *,
    track: Track = silent,
) -> Answers:
    """Return the cameras of every pair in all variants.

    Args:
        model: the network.
        views: what `pairs` index.
        pairs: each once.
        intrinsics: the true ones of every view, in pixels of its photo.
        predict: how the network is run.
        config: how a pair is aligned.
        track: told the stages of prediction.
    """
    cam2world = {name: np.full((len(pairs), 2, 4, 4), np.nan) for name in VARIANTS}
    focal_px = np.full((len(pairs), 2), np.nan)
    number = {frozenset(pair): k for k, pair in enumerate(pairs)}
    extra_s = 0.0
    predictions = predict_pairs(model, views, pairs, predict, track=track)
    for both in _both_orders(predictions):
        k = number[frozenset((both[0].i, both[0].j))]
        i, j = pairs[k]
        renamed = [replace(p, i=int(p.i == j), j=int(p.j == j)) for p in both]
        two = (views[i], views[j])
        scene = _solve(renamed, two, config, ())
        if scene is not None:
            focal_px[k] = [_focal_px(scene, n) for n in (0, 1)]
        began_s = time.perf_counter()
        cameras = tuple(
            KnownCamera(
                intrinsics=(view.photo2view.double() @ torch.from_numpy(intrinsics[n])).float(),
                cam2world=None,
            )
            for n, view in zip((i, j), two, strict=True)
        )
        known = _solve(renamed, two, config, cameras)
        found = {
            UNKNOWN: scene,
            KNOWN: known,
            UNKNOWN_FORCED: scene or _force(renamed, two, config, ()),
            KNOWN_FORCED: known or _force(renamed, two, config, cameras),
        }
        extra_s += time.perf_counter() - began_s
        for name, answer in found.items():
            if answer is not None:
                cam2world[name][k] = answer.cam2world.double().numpy()
    return Answers(cam2world=cam2world, focal_px=focal_px, extra_s=extra_s)


def _both_orders(predictions: Iterable[PairPrediction]) -> Iterator[list[PairPrediction]]:
    """Yield the two orders of each pair together; between them others may come."""
    waiting: dict[frozenset[int], PairPrediction] = {}
    for prediction in predictions:
        pair = frozenset((prediction.i, prediction.j))
        if pair in waiting:
            yield [waiting.pop(pair), prediction]
        else:
            waiting[pair] = prediction


def _solve(
    predictions: Sequence[PairPrediction],
    views: tuple[View, View],
    config: AlignConfig,
    cameras: tuple[KnownCamera, ...],
) -> Scene | None:
    """Return the scene of one pair, or None where the product refuses it."""
    try:
        return align(predictions, views, config, cameras=cameras)
    except ReconstructionError:
        return None


def _force(
    predictions: Sequence[PairPrediction],
    views: tuple[View, View],
    config: AlignConfig,
    cameras: tuple[KnownCamera, ...],
) -> Scene | None:
    """Return an answer in spite of all doubts.

    Where the two orders contradict each other beyond reconciling, the more confident one decides.
    """
    credulous = replace(
        config, min_edge_confidence=0.0, max_edge_residual=math.inf, max_edge_rotation_deg=180.0
    )
    surest = max(
        predictions, key=lambda p: float(p.confidence_i.nanmean() * p.confidence_j.nanmean())
    )
    return _solve(predictions, views, credulous, cameras) or _solve(
        [surest], views, credulous, cameras
    )


def _focal_px(scene: Scene, n: int) -> float:
    matrix = photo_intrinsics(scene.intrinsics[n], scene.views[n].photo2view)
    return math.sqrt(float(matrix[0, 0] * matrix[1, 1]))
