"""Pretraining by cross-view completion on procedural scenes: its loss and its probe."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from recon3d import croco_file
from recon3d.batches import Batch, ordered_pairs
from recon3d.config import PRESETS, CrocoConfig, ModelConfig
from recon3d.croco import CrocoModel, completion_loss, random_hidden, shared_sizes
from recon3d.device import resolve_precision
from recon3d.errors import UsageError
from recon3d.progress import Track, silent
from recon3d.throughput import completion_flops
from recon3d.train_config import PretrainConfig
from recon3d.training import Step, Task, compile_blocks, open_folder, run
from recon3d.workers import join_workers

_PROBE_MASK_SEED = 20_260_101


def croco_config(sizes: ModelConfig, config: PretrainConfig) -> CrocoConfig:
    """Return the completion network (v2) whose encoder and decoder a two-view network can take."""
    known = CrocoConfig(**shared_sizes(sizes))
    return replace(known, image_size=config.stages[-1][1], mask_ratio=config.mask_ratio)


def completion_loss_of(
    model: CrocoModel,
    batch: Batch,
    i: Tensor,
    j: Tensor,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Tensor:
    """Return the loss of completing the views `i` (flat indices) from the views `j`.

    A blank guess costs just under 1.
    """
    images, patch = batch.images.flatten(0, 1), model.config.patch_size
    grid = model.grid_of(images)
    hidden = random_hidden(len(i), grid[0] * grid[1], model.config.mask_ratio, generator)
    hidden = hidden.to(images.device, non_blocking=True)
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        whole = model.encode(images)  # once each, though a view serves several pairs
        seen = model.encode(images[i], hidden)
        features = model.decode(seen, whole[j], hidden, grid, grid)
        predicted = model.prediction_head(features)
    return completion_loss(predicted.float(), images[i], hidden, patch)


@torch.no_grad()
def probe(model: CrocoModel, batches: list[Batch], dtype: torch.dtype) -> dict[str, float]:
    """Measure on held-out pairs whether the network uses the other view.

    Returns the loss with the true other view and with one of another scene, and their ratio: 1
    means that the other view is ignored.
    """
    true: list[Tensor] = []
    wrong: list[Tensor] = []
    for batch in batches:
        i, j = ordered_pairs(batch)
        elsewhere = (j + batch.images.shape[1]) % len(batch.images.flatten(0, 1))
        for other, found in ((j, true), (elsewhere, wrong)):
            generator = torch.Generator().manual_seed(_PROBE_MASK_SEED)  # the same masks for both
            found.append(completion_loss_of(model, batch, i, other, dtype, generator))
    true_loss, wrong_loss = float(torch.stack(true).mean()), float(torch.stack(wrong).mean())
    return {
        "probe_true": true_loss,
        "probe_wrong": wrong_loss,
        "probe_ratio": true_loss / wrong_loss,
    }


class CompletionTask(Task[CrocoModel]):
    """Cross-view completion of all ordered pairs of each scene."""

    name = "pretraining"

    def __init__(self, model: CrocoModel, dtype: torch.dtype, *, compiled: bool = False) -> None:
        self.model, self.dtype = model, dtype
        self.patch_size = model.config.patch_size
        if compiled:
            compile_blocks(model)

    def step(self, batch: Batch, progress: float, generator: torch.Generator) -> Step:
        """Return the loss of all ordered pairs of the batch."""
        i, j = ordered_pairs(batch)
        loss = completion_loss_of(self.model, batch, i, j, self.dtype, generator)
        n_images = len(batch.images.flatten(0, 1))
        rows, columns = self.model.grid_of(batch.images)
        n_tokens = rows * columns
        n_visible = n_tokens - int(self.model.config.mask_ratio * n_tokens)
        flops = completion_flops(self.model.config, n_images, len(i), n_tokens, n_visible)
        return Step(loss, {}, len(i), flops)

    def probe(self, model: CrocoModel, batches: list[Batch]) -> dict[str, float]:
        """Measure on held-out pairs whether the network uses the other view."""
        return probe(model, batches, self.dtype)

    def write(self, model: CrocoModel, out_dir: Path) -> None:
        """Write croco.safetensors (fp16), which carries its config."""
        croco_file.save(model, out_dir / "croco.safetensors", half=True)


def pretrain(out_dir: Path, config: PretrainConfig, *, track: Track = silent) -> None:
    """Pretrain and leave croco.safetensors, state.safetensors and log.jsonl in `out_dir`.

    Under torchrun the processes share the work, and the first one writes.

    Raises:
        UsageError: for an unknown preset, or a resume without a state.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all is written.
        ResourceError: when `out_dir` cannot be written.
        DivergedError: when gradients or weights are no longer finite.
    """
    began = time.monotonic()
    if config.preset not in PRESETS:
        raise UsageError(f"preset {config.preset!r} is unknown. Known: {', '.join(PRESETS)}.")
    with join_workers(config.device) as workers:
        dtype = resolve_precision(config.precision, workers.device)
        open_folder(out_dir, resume=config.resume)
        torch.manual_seed(config.seed)
        model = CrocoModel(croco_config(PRESETS[config.preset], config)).to(workers.device)
        task = CompletionTask(model, dtype, compiled=config.compile_network)
        run(task, config, out_dir, workers, began=began, track=track)
