"""The whole program: photographs -> views -> pairs -> predictions -> scene."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from recon3d.align import align
from recon3d.config import RunConfig
from recon3d.pairs import pair_graph
from recon3d.photos import load_views
from recon3d.predict import predict_pairs, resolve_device, resolve_precision
from recon3d.progress import Track, silent
from recon3d.types import Scene, View
from recon3d.weights import load

logger = logging.getLogger(__name__)


def reconstruct(
    inputs: Sequence[str], config: RunConfig | None = None, *, track: Track = silent
) -> Scene:
    """Return the scene that the photographs show; units are arbitrary.

    Args:
        inputs: folders, files or patterns.
        config: all settings; None takes the defaults.
        track: told the stages "weights", "photos", "encode", "pairs" and "align".

    Returns:
        The placed views in the order of their names; `left_out` names every photograph that is
        unreadable, a duplicate, or without confident overlap, with its reason.

    Raises:
        UsageError: a setting that cannot be used.
        InputError: fewer than two usable photographs.
        WeightsError: weights that are missing, damaged or of an unknown layout.
        DisconnectedError: no two photographs overlap confidently.
        ResourceError: memory is missing after all fall-backs.
    """
    config = config or RunConfig()
    with _reproducible(config):
        device = resolve_device(config.predict.device)
        dtype = resolve_precision(config.predict.precision, device)
        model = load(config.weights)
        track("weights", 1, 1)
        photos = replace(
            config.photos,
            size=config.photos.size or model.config.image_size,
            patch_size=model.config.patch_size,
        )
        views, unusable = load_views(inputs, photos, track=track)
        pairs = pair_graph(config.pairs, len(views))
        logger.info(
            "network %s (%.0f M parameters) on %s in %s; %d views of %s px, %d pairs (%s); "
            "about %.0f MB for weights and predictions",
            model.config.name,
            _n_parameters(model) / 1e6,
            device,
            str(dtype).removeprefix("torch."),
            len(views),
            photos.size,
            len(pairs),
            config.pairs,
            (_prediction_bytes(views, pairs) + 4 * _n_parameters(model)) / 1e6,
        )
        started_s = time.perf_counter()
        predictions = predict_pairs(model, views, pairs, config.predict, track=track)
        scene = align(predictions, views, config.align, track=track)
        logger.info(
            "placed %d of %d views; prediction and alignment took %.1f s",
            len(scene.views),
            len(views),
            time.perf_counter() - started_s,
        )
    return replace(scene, left_out=unusable + scene.left_out)


def _n_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _prediction_bytes(views: Sequence[View], pairs: Sequence[tuple[int, int]]) -> int:
    """Return the size of all predictions: 3 coordinates and a confidence, fp16, both orders."""
    pixels = [view.image.shape[-2] * view.image.shape[-1] for view in views]
    return sum(2 * (pixels[i] + pixels[j]) * 4 * 2 for i, j in pairs)


@contextlib.contextmanager
def _reproducible(config: RunConfig) -> Iterator[None]:
    """Within the block, use only deterministic kernels if the config asks for them."""
    if not config.deterministic:
        yield
        return
    # cuBLAS reads it when CUDA starts, which is later than this
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.align.seed)
            yield
    finally:
        torch.use_deterministic_algorithms(before)
