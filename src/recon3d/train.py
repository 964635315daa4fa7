"""Training of the two-view network on procedural scenes: its losses and its probe.

Loss: confidence-weighted, scale-normalised pointmap regression (DUSt3R, eqs. 2-4), and a
cross-entropy that makes one head of some cross-attention layers look at the true correspondences.
Without the latter a plain regression run ignores the other view for a very long time.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from recon3d import losses, weights
from recon3d.batches import MATCHED, Batch, matches_of, ordered_pairs, pair_targets
from recon3d.config import PRESETS, HeadType, ModelConfig
from recon3d.device import resolve_precision
from recon3d.errors import UsageError
from recon3d.geometry import rotation_angle, umeyama
from recon3d.lattice import Lattice
from recon3d.model import TwoViewModel, TwoViewOutput
from recon3d.progress import Track, silent
from recon3d.throughput import embedding_flops, encoder_flops, two_view_flops
from recon3d.train_config import TrainConfig
from recon3d.training import Step, Task, compile_blocks, open_folder, run
from recon3d.warm_start import sizes_of, start_from
from recon3d.workers import join_workers

NEGATIVE_ERROR = 1.0
"""Error charged to view j of an unrelated pair: confidence must fall, the points are free."""


def matching_loss_of(
    model: TwoViewModel, batch: Batch, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return the loss of the encoder alone: its tokens must match across views (first stage)."""
    device = batch.images.device
    i, j = ordered_pairs(batch)
    i_over_j, _ = matches_of(batch, i, j, model.config.patch_size)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        descriptors = model.decoder_embed(model.encode(batch.images.flatten(0, 1)))
    loss, right = losses.descriptor_loss(descriptors[i], descriptors[j], i_over_j)
    return loss, {"matching": loss.detach(), "right": right}, len(i)


def loss_of(
    model: TwoViewModel,
    batch: Batch,
    config: TrainConfig,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Return the loss of all ordered pairs of each scene, its parts, and the number of pairs.

    Of all pixels, points are compared at a lattice of them, another one every time: neighbours have
    much the same to tell.
    """
    n_scenes, n_views, _, height, width = batch.images.shape
    device = batch.images.device
    patch = model.config.patch_size
    grid = (height // patch, width // patch)
    i, j = ordered_pairs(batch)
    n_true = len(i)
    lattice = Lattice(
        config.pixel_step, *torch.randint(config.pixel_step, (2,), generator=generator).tolist()
    )
    target = pair_targets(batch, i, j, lattice)
    i_over_j, j_over_i = matches_of(batch, i, j, patch)
    n_negative = min(n_scenes, max(1, round(config.negative_share * n_true))) if n_scenes > 1 else 0
    chosen = torch.randperm(n_scenes, generator=generator)[:n_negative]
    chosen = chosen.to(device, non_blocking=True)
    i = torch.cat((i, chosen * n_views))
    j = torch.cat((j, (chosen + 1) % n_scenes * n_views))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        tokens = model.encode(batch.images.flatten(0, 1))
        descriptors = model.decoder_embed(tokens)  # keep the encoder's matches alive
        embedded = descriptors.to(tokens.dtype)  # once a view, not once a pair
        decoded = model.decode_tokens(
            tokens[i],
            tokens[j],
            grid,
            grid,
            frozenset(config.attention_layers),
            1,
            embedded=(embedded[i], embedded[j]),
        )
    out = model.heads(decoded, grid, grid, lattice=lattice)
    true = TwoViewOutput(*(value[:n_true] for value in out[:4]))
    regression, error_i, error_j = losses.regression_loss(
        (true.pointmap_i, true.pointmap_j),
        (true.confidence_i, true.confidence_j),
        (target.points_i, target.points_j),
        (target.valid_i, target.valid_j),
        config.alpha,
    )
    rays = losses.ray_loss(true.pointmap_i, target.points_i, target.valid_i)
    if n_negative:
        unrelated = out.confidence_j[n_true:]
        charge = torch.full_like(unrelated, NEGATIVE_ERROR)
        regression = (
            regression
            + config.negative_share * losses.confidence_loss(charge, unrelated, config.alpha).mean()
        )
    matching = torch.zeros((), device=device)
    for over_j, over_i in decoded.attention.values():
        matching = matching + losses.attention_loss(over_j[:n_true], i_over_j) / 2
        matching = matching + losses.attention_loss(over_i[:n_true], j_over_i) / 2
    matching = matching / max(1, len(decoded.attention))
    kept, right = losses.descriptor_loss(descriptors[i[:n_true]], descriptors[j[:n_true]], i_over_j)
    parts = {
        "error_i": error_i.detach(),
        "error_j": error_j.detach(),
        "rays": rays.detach(),
        "attention": matching.detach(),
        "matching": kept.detach(),
        "right": right,
        "confidence": true.confidence_j.mean().detach(),
        "seen": i_over_j.sum() / (n_true * grid[0] * grid[1] * (patch // MATCHED.step) ** 2),
    }
    loss = regression + config.attention_weight * (matching + kept)
    if config.ray_weight:  # else nothing is to be sent back through them
        loss = loss + config.ray_weight * rays
    return loss, parts, len(i)


@torch.no_grad()
def probe(model: TwoViewModel, batches: list[Batch], dtype: torch.dtype) -> dict[str, float]:
    """Measure on held-out pairs whether the network uses the other view.

    Returns view 2's error with the true view 1 and with another scene's (each normalised by view
    2's own mean distance), their ratio, and the median error of the relative rotation in degrees
    beside the median rotation itself. The relative pose comes from the two orders of a pair
    (Procrustes).
    """
    patch = model.config.patch_size
    true_errors: list[Tensor] = []
    wrong_errors: list[Tensor] = []
    angles, sizes = [], []
    for batch in batches:
        n_scenes, n_views, _, height, width = batch.images.shape
        device = batch.images.device
        grid = (height // patch, width // patch)
        first = torch.arange(n_scenes, device=device) * n_views
        target = pair_targets(batch, first, first + 1)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            tokens = model.encode(batch.images.flatten(0, 1))
        view_1, view_2 = tokens[first], tokens[first + 1]
        outputs = []
        for one, two in ((view_1, view_2), (view_1.roll(1, 0), view_2), (view_2, view_1)):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                decoded = model.decode_tokens(one, two, grid, grid)
            outputs.append(model.heads(decoded, grid, grid))
        forward, wrong, backward = outputs
        for output, errors in ((forward, true_errors), (wrong, wrong_errors)):
            (error,) = losses.pointmap_errors(
                (output.pointmap_j,), (target.points_j,), (target.valid_j,)
            )
            errors.append(losses.mean_where(error, target.valid_j))
        truth = target.cam_j2cam_i[:, :3, :3].cpu().double()
        sizes.append(rotation_angle(truth))
        if not all(bool(points.isfinite().all()) for points in (*forward[:2], *backward[:2])):
            angles.append(torch.full_like(sizes[-1], math.nan))
            continue
        # View 2's pixels in camera 1 (forward) and in camera 2 (backward): one similarity.
        weight = (forward.confidence_j * backward.confidence_i).log() * target.valid_j
        _, rotation, _ = umeyama(  # on the CPU: not every device has float64
            backward.pointmap_i.flatten(1, 2).cpu().double(),
            forward.pointmap_j.flatten(1, 2).cpu().double(),
            weight.flatten(1).cpu().double().clamp_min(1e-9),
        )
        angles.append(rotation_angle(rotation.mT @ truth))
    true_error, wrong_error = torch.stack(true_errors).mean(), torch.stack(wrong_errors).mean()
    return {
        "probe_true": float(true_error),
        "probe_wrong": float(wrong_error),
        "probe_ratio": float(true_error / wrong_error),
        "probe_rotation_deg": math.degrees(float(torch.cat(angles).median())),
        "probe_rotation_true_deg": math.degrees(float(torch.cat(sizes).median())),
    }


class PairTask(Task[TwoViewModel]):
    """Pointmaps of pairs; at first the encoder's correspondences alone."""

    name = "training"

    def __init__(self, model: TwoViewModel, config: TrainConfig, dtype: torch.dtype) -> None:
        self.model, self.config, self.dtype = model, config, dtype
        self.patch_size = model.config.patch_size
        if config.compile_network:
            compile_blocks(model)

    def step(self, batch: Batch, progress: float, generator: torch.Generator) -> Step:
        """Return the loss of all ordered pairs of the batch."""
        sizes, patch = self.model.config, self.patch_size
        n_scenes, n_views, _, height, width = batch.images.shape
        n_images, n_tokens = n_scenes * n_views, (height // patch) * (width // patch)
        if progress < self.config.matching_share:
            flops = encoder_flops(sizes, n_tokens, n_tokens) + embedding_flops(sizes, n_tokens)
            return Step(*matching_loss_of(self.model, batch, self.dtype), n_images * flops)
        loss, parts, n_pairs = loss_of(self.model, batch, self.config, self.dtype, generator)
        flops = two_view_flops(sizes, n_images, n_pairs, n_tokens, self.config.pixel_step)
        return Step(loss, parts, n_pairs, flops)

    def probe(self, model: TwoViewModel, batches: list[Batch]) -> dict[str, float]:
        """Measure on held-out pairs whether the network uses the other view."""
        return probe(model, batches, self.dtype)

    def write(self, model: TwoViewModel, out_dir: Path) -> None:
        """Write model.safetensors (fp16) and its config."""
        weights.save(model, out_dir / "model.safetensors", half=True)


def _sizes(out_dir: Path, config: TrainConfig) -> ModelConfig:
    """Return the sizes of the network: as said, or those of the weights that it goes on from.

    It has no descriptors: nothing here trains them.
    """
    if config.preset is not None:
        if config.preset not in PRESETS:
            raise UsageError(f"preset {config.preset!r} is unknown. Known: {', '.join(PRESETS)}.")
        return PRESETS[config.preset]
    written = out_dir / "model.safetensors"
    source = str(written) if config.resume and written.is_file() else config.init
    sizes = PRESETS["tiny"] if source is None else sizes_of(source)
    return replace(sizes, head=HeadType.DPT) if sizes.has_descriptors else sizes


def train(out_dir: Path, config: TrainConfig, *, track: Track = silent) -> None:
    """Train a model and leave model.safetensors, state.safetensors and log.jsonl in `out_dir`.

    Under torchrun the processes share the work, and the first one writes.

    Raises:
        UsageError: for an unknown preset, or a resume without a state.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all is written.
        WeightsError: for weights to start from that do not fit.
        ResourceError: when `out_dir` cannot be written.
        DivergedError: when gradients or weights are no longer finite.
    """
    began = time.monotonic()
    sizes = _sizes(out_dir, config)
    with join_workers(config.device) as workers:
        dtype = resolve_precision(config.precision, workers.device)
        torch.manual_seed(config.seed)
        model = TwoViewModel(replace(sizes, image_size=config.stages[-1][1]))
        if config.init is not None and not config.resume:
            start_from(model, config.init)
        open_folder(out_dir, resume=config.resume)
        task = PairTask(model.to(workers.device), config, dtype)
        run(task, config, out_dir, workers, began=began, track=track)
