"""The whole program: photographs -> views -> pairs -> predictions -> scene."""

import contextlib
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.align import align_groups
from recon3d.align_samples import Cameras
from recon3d.bundle_check import RefineReport
from recon3d.colmap_extra import require_pycolmap
from recon3d.config import RunConfig
from recon3d.dense import DenseReport, dense_scene
from recon3d.device import unless_out_of_memory
from recon3d.errors import DisconnectedError
from recon3d.fitting import Fit, smaller_and_smaller
from recon3d.given import read_cameras
from recon3d.known_cameras import (
    all_given,
    check_focal,
    given_intrinsics,
    is_calibrated,
)
from recon3d.masks import with_masks
from recon3d.matches import Matches, collect_matches, merge_orders
from recon3d.memory import alignment_bytes, free_device_bytes, thinned
from recon3d.model import TwoViewModel
from recon3d.pairs import needs_similarity, pair_graph
from recon3d.photos import photo_reader
from recon3d.predict import (
    EncodedViews,
    encode_views,
    predict_encoded,
    resolve_device,
    resolve_precision,
)
from recon3d.progress import Track, silent
from recon3d.refinement import (
    Material,
    exact_views,
    from_features_alone,
    is_refining,
    posed_names,
    refined,
    refined_with_strays,
    warn_of_given,
    with_warnings,
    without_doubtful,
)
from recon3d.retrieval import pooled_similarity
from recon3d.scale import parse_scale_from, scale_scenes, with_names
from recon3d.two_step import predict_in_two_steps
from recon3d.types import KnownCamera, LeftOut, PairPrediction, Scene, View
from recon3d.weights import load

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """Scenes, largest first; all readable `views`.

    `refinements` says what became of the bundle adjustment of each scene; empty without one.
    `dense` says how much of the depth of each scene its photos confirm; None without exact cameras.
    `cameras_given` says that all cameras of the scenes were given and fixed.
    """

    scenes: tuple[Scene, ...]
    refinements: tuple[RefineReport, ...]
    dense: tuple[DenseReport | None, ...]
    views: tuple[View, ...]
    cameras_given: bool = False


OnMatches = Callable[
    [Sequence[Matches], Sequence[View], Sequence[Float[Tensor, "3 3"] | None]], None
]
"""Takes matches, the views they index, and the intrinsics that were given, in pixels of the photos;
None for a view without."""


def reconstruct(
    inputs: Sequence[str], config: RunConfig | None = None, *, track: Track = silent
) -> Scene:
    """Return the scene that most of the photographs show; units are arbitrary.

    Args:
        inputs: folders, files or patterns.
        config: all settings; None takes the defaults.
        track: told the stages "weights", "photos", "encode", "pairs" and "align", with a
            refinement also "features", "matching", "refine" and "dense".

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
    config = replace(config or RunConfig(), all_components=False)
    return reconstruct_groups(inputs, config, track=track).scenes[0]


def reconstruct_groups(
    inputs: Sequence[str],
    config: RunConfig,
    *,
    on_matches: OnMatches | None = None,
    track: Track = silent,
) -> Reconstruction:
    """Return the scene of every group of photographs, or of the largest.

    Arguments and errors as for `reconstruct`. With several scenes `left_out` of the first names
    the photographs that are in none. `on_matches` is given the network's matches, one per unordered
    pair, as soon as they are known, whether or not a scene comes of them.
    """
    known_size = None if config.scale_from is None else parse_scale_from(config.scale_from)
    if config.refine:
        require_pycolmap()  # now, not after all the network's work
    with _reproducible(config):
        device = resolve_device(config.predict.device)
        dtype = resolve_precision(config.predict.precision, device)
        model = load(config.weights)
        track("weights", 1, 1)
        aligned: _Aligned | None = None
        fits = smaller_and_smaller(inputs, config, model.config, device, dtype, track=track)
        while aligned is None:
            fit = next(fits)
            if known_size is not None:
                known_size = with_names(known_size, list(fit.photos), fit.unusable)
            keep = on_matches is not None
            attempt = functools.partial(_aligned, model, fit, device, dtype, keep, track)
            aligned = unless_out_of_memory(attempt)
        config, views, scenes = fit.config, aligned.views, aligned.scenes
        matches = merge_orders(aligned.matches)
        if on_matches is not None:
            on_matches(matches, views, given_intrinsics(views, aligned.cameras, config.align))
        refinements: tuple[RefineReport, ...] = ()
        material = Material(
            views=views,
            matches=matches,
            cameras=aligned.cameras,
            own=_predictor_of_one(model, aligned.encoded, config),
            rgb_of=photo_reader(inputs, config.photos),
        )
        refining = _refines(config, aligned.cameras, len(views))
        if aligned.doubt is not None:
            if not refining or posed_names(material):
                raise aligned.doubt
            logger.info("the network joins no two photos; trying image features alone")
            doubt = aligned.doubt
            result = unless_out_of_memory(
                lambda: from_features_alone(doubt, material, config, track=track)
            )
            if result is None:
                logger.warning("out of memory while trying image features")
                raise doubt
            scenes, refinements = (result[0],), (result[1],)
        elif refining:
            results = [_refined(scene, material, config, track) for scene in scenes]
            scenes = tuple(
                without_doubtful(before, after, report, material)
                for before, (after, report) in zip(scenes, results, strict=True)
            )
            refinements = tuple(report for _, report in results)
        scenes = tuple(map(with_warnings, scenes, refinements)) if refinements else scenes
        for scene in scenes:
            unless_out_of_memory(
                functools.partial(warn_of_given, scene, material, config, track=track)
            )
        scenes, dense = zip(
            *(
                _densified(scene, report, material, config, track)
                for scene, report in itertools.zip_longest(scenes, refinements)
            ),
            strict=True,
        )
    if known_size is not None:
        scenes = scale_scenes(scenes, known_size, with_poses=posed_names(material))
    placed = {view.name for scene in scenes for view in scene.views}
    of_placed = [
        camera for view, camera in zip(views, aligned.cameras, strict=False) if view.name in placed
    ]
    return Reconstruction(
        scenes=_with_left_out(scenes, fit.unusable),
        refinements=refinements,
        dense=dense,
        views=views,
        cameras_given=all_given(of_placed, config.align),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Aligned:
    """What network and alignment say of the masked views; `doubt` is why there are no scenes."""

    views: tuple[View, ...]
    encoded: EncodedViews
    cameras: tuple[KnownCamera | None, ...]
    matches: list[Matches]
    scenes: tuple[Scene, ...]
    doubt: DisconnectedError | None


def _aligned(
    model: TwoViewModel,
    fit: Fit,
    device: torch.device,
    dtype: torch.dtype,
    keep_matches: bool,
    track: Track,
) -> _Aligned:
    """Predict the pairs of all views and align them."""
    config = fit.config
    views = with_masks(fit.views, None if config.masks is None else Path(config.masks))
    masks = tuple(view.mask for view in views)
    cameras = () if config.cameras is None else read_cameras(Path(config.cameras), views)
    check_focal(views, cameras, config.align)
    started_s = time.perf_counter()
    encoded = encode_views(model, views, config.predict, track=track)
    similarity = None
    if needs_similarity(config.pairs, len(views)):
        similarity = pooled_similarity([encoded.tokens[n] for n in range(len(views))])
    pairs = pair_graph(config.pairs, len(views), similarity, photos=fit.photos)
    if fit.most_pairs is not None:
        pairs = list(thinned(pairs, fit.most_pairs))
    logger.info(
        "network %s (%.0f M parameters) on %s in %s; %d views of %s px, %d pairs (%s)",
        model.config.name,
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        device,
        str(dtype).removeprefix("torch."),
        len(views),
        config.photos.size,
        len(pairs),
        config.pairs,
    )
    if config.pairs == "auto" and len(pairs) < len(views) * (len(views) - 1) // 2:
        predictions = predict_in_two_steps(
            model,
            encoded,
            pairs,
            config.predict,
            similarity=similarity,
            min_confidence=config.align.min_edge_confidence,
            most_pairs=fit.most_pairs,
            track=track,
        )
    else:
        predictions = predict_encoded(model, encoded, pairs, config.predict, track=track)
    found: list[Matches] = []
    if keep_matches or _refines(config, cameras, len(views)):
        predictions = collect_matches(predictions, found, config.matches, masks)
    scenes: tuple[Scene, ...] = ()
    doubt: DisconnectedError | None = None
    try:
        scenes = align_groups(
            predictions,
            views,
            config.align,
            cameras=cameras,
            masks=masks,
            limit=None if config.all_components else 1,
            device=_device_to_align_on(device, len(pairs), config),
            track=track,
        )
    except DisconnectedError as error:
        doubt = error
    logger.info(
        "placed %d of %d views; prediction and alignment took %.1f s",
        sum(len(scene.views) for scene in scenes),
        len(views),
        time.perf_counter() - started_s,
    )
    return _Aligned(
        views=views, encoded=encoded, cameras=cameras, matches=found, scenes=scenes, doubt=doubt
    )


def _refines(config: RunConfig, cameras: Cameras, n_views: int) -> bool:
    """Say whether there is a bundle adjustment; it cannot change what is given and fixed."""
    return not all_given(cameras, config.align) and is_refining(config, n_views)


def _device_to_align_on(
    device: torch.device, n_pairs: int, config: RunConfig
) -> torch.device | None:
    """Return the GPU where it has room beside the network; mps has no float64."""
    # both orders of every pair, and as many again as a second step may add
    needed = alignment_bytes(4 * n_pairs, config.align.samples_per_edge)
    free = free_device_bytes(device) if device.type == "cuda" else None
    return device if free is not None and needed < free // 2 else None


def _refined(
    scene: Scene, material: Material, config: RunConfig, track: Track
) -> tuple[Scene, RefineReport]:
    """Return the scene with refined cameras; as it is, where memory does not suffice."""
    # with several groups a photo outside of one may belong to another
    refine = refined if config.all_components else refined_with_strays
    found = unless_out_of_memory(lambda: refine(scene, material, config, track=track))
    if found is not None:
        return found
    logger.warning("out of memory while refining: the cameras stay as they were aligned")
    reason = "memory ran out"
    return scene, RefineReport(improved=False, reason=reason, sharp_pairs=0, n_tracks=0)


def _densified(
    scene: Scene, report: RefineReport | None, material: Material, config: RunConfig, track: Track
) -> tuple[Scene, DenseReport | None]:
    """Return the scene with depth from the photos, where its cameras are exact.

    Where memory does not suffice, views are half as large, or as large as those of the network, or
    depth stays that of the network.
    """
    names = exact_views(scene, report, material, config)
    if config.dense and len(names) < 2:
        logger.warning(
            "--dense: no two cameras are exact (refined, or given in full and fixed), so that depth"
            " stays that of the network"
        )
    if config.dense is False or len(names) < 2:
        return scene, None
    calibrated = any(map(is_calibrated, material.cameras))
    attempt = functools.partial(
        dense_scene, scene, names, rgb_of=material.rgb_of, calibrated=calibrated, track=track
    )
    least = max(max(view.image.shape) for view in scene.views)  # stereo makes no view smaller
    for size in dict.fromkeys(max(least, config.stereo.size // by) for by in (1, 2)):
        stereo = replace(config.stereo, size=size)
        made = unless_out_of_memory(functools.partial(attempt, config=stereo))
        if made is not None:
            break
        logger.warning("out of memory in dense stereo with views of %d pixels", size)
    if made is None:
        logger.warning("depth stays that of the network")
        return scene, None
    better, found = made
    if not found.used and all_given(material.cameras, config.align):
        logger.warning(
            "with the given cameras the photos confirm only %.0f %% of the depth. Check that"
            " --cameras gives those of these photos.",
            100 * found.share,
        )
    return better, found


def _predictor_of_one(
    model: TwoViewModel, encoded: EncodedViews, config: RunConfig
) -> Callable[[int], PairPrediction]:
    """Return a function that predicts some pair of which the given view is the first."""

    def predict(view: int) -> PairPrediction:
        other = 0 if view else 1
        both = predict_encoded(model, encoded, [(view, other)], config.predict)
        return next(prediction for prediction in both if prediction.i == view)

    return predict


def _with_left_out(scenes: Sequence[Scene], unusable: tuple[LeftOut, ...]) -> tuple[Scene, ...]:
    """Return the scenes, of which the first names all photographs that are in none."""
    placed = {view.name for scene in scenes for view in scene.views}
    outside = tuple(entry for entry in scenes[0].left_out if entry.name not in placed)
    first = replace(scenes[0], left_out=unusable + outside)
    return (first, *(replace(scene, left_out=()) for scene in scenes[1:]))


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
