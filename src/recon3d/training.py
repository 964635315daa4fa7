"""The loop that training and pretraining share: render, step, average, log, probe, save, resume.

Everything random in a step follows from the seed, the rank and the number of the step, so that a
resumed run is the uninterrupted one.
"""

import contextlib
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TextIO, TypeVar

import torch
from torch import Tensor, nn

from recon3d.batches import Batch, Source, image_shape, shape_of_step
from recon3d.config import LoopConfig
from recon3d.files import not_writable
from recon3d.progress import Track, silent
from recon3d.throughput import TRAINING_PASSES, Peak, peak_of
from recon3d.train_state import State
from recon3d.workers import Workers

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)

_HELD_OUT_SEED = 987_654_321


class Step(NamedTuple):
    """What one batch gave: a loss, the figures to log, its pairs, and the forward pass' cost."""

    loss: Tensor
    parts: dict[str, Tensor]
    n_pairs: int
    forward_flops: int


class Task(ABC, Generic[Network]):
    """What is learnt: a network, its loss, its probe, and how its weights are written."""

    name: str
    model: Network
    patch_size: int
    dtype: torch.dtype

    @abstractmethod
    def step(self, batch: Batch, progress: float, generator: torch.Generator) -> Step:
        """Return the loss of a batch; `progress` is the spent share of the budget."""

    @abstractmethod
    def probe(self, model: Network, batches: list[Batch]) -> dict[str, float]:
        """Judge the averaged model on held-out batches."""

    @abstractmethod
    def write(self, model: Network, out_dir: Path) -> None:
        """Write the averaged model where other commands read it."""


class Meter:
    """What was done since the last record, and how fast."""

    def __init__(self, peak: Peak, n_workers: int) -> None:
        self.peak, self.n_workers = peak, n_workers
        self.pairs, self.flops, self.seconds, self.render_s = 0, 0, 0.0, 0.0

    def add(self, step: Step, seconds: float, render_s: float) -> None:
        """Count one step of this worker; the others do as much in the same time."""
        self.pairs += step.n_pairs * self.n_workers
        self.flops += TRAINING_PASSES * step.forward_flops
        self.seconds += seconds
        self.render_s += render_s

    def take(self) -> dict[str, float]:
        """Return the figures of the time since the last call, and start again."""
        seconds = max(self.seconds, 1e-9)
        figures = {
            "pairs_per_s": self.pairs / seconds,
            "render_share": self.render_s / seconds,
            "gflop_per_pair": self.flops * self.n_workers / max(self.pairs, 1) / 1e9,
            "mfu": self.flops / seconds / self.peak.flops_per_s,
        }
        self.pairs, self.flops, self.seconds, self.render_s = 0, 0, 0.0, 0.0
        return figures


def stage_size(config: LoopConfig, progress: float) -> int:
    """Return the long edge of the images at a share of the budget."""
    return next(size for share, size in config.stages if progress <= share or share >= 1)


def ease_at(config: LoopConfig, progress: float) -> float:
    """Return how hard scenes are at a share of the budget: from 0.3 to 1."""
    return 1.0 if progress >= config.easy_share else 0.3 + 0.7 * progress / config.easy_share


def learning_rate(config: LoopConfig, step: int, progress: float) -> float:
    """Return the rate: linear warm-up, constant, then cosine over the last `decay_share`."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    left = (1 - progress) / max(config.decay_share, 1e-9)
    cool = 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, left)))
    return config.learning_rate * warm * max(cool, 0.01)


def open_folder(out_dir: Path) -> None:
    """Make the folder of a training.

    Raises:
        ResourceError: when it cannot be written.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(out_dir, error) from error


def run(
    task: Task[Network],
    config: LoopConfig,
    out_dir: Path,
    workers: Workers,
    *,
    track: Track = silent,
) -> None:
    """Train until the budget is spent; rank 0 leaves weights, state.safetensors and log.jsonl.

    Raises:
        UsageError: a resume without a state, or from that of another network.
        ResourceError: when `out_dir` cannot be written.
        FloatingPointError: when the loss is no longer finite.
    """
    device = workers.device
    workers.start_equal(task.model)
    state = State(task.model, config)
    if config.resume:
        state.load(out_dir)
    source = Source(config, device, config.seed + 1, workers.rank)
    source.served = state.step
    meter = Meter(peak_of(device, task.dtype), workers.size)
    held_out = _held_out(config, task.patch_size, workers)
    started = time.monotonic() - state.elapsed_s
    next_probe, next_save = state.elapsed_s + 30, state.elapsed_s + config.save_every_s
    with _journal(out_dir, workers) as log:
        _log(log, _opening(state, workers, task, meter.peak))
        while (progress := workers.agree(state.progress(config))) < 1:
            began = time.monotonic()
            size = stage_size(config, progress)
            shape = image_shape(size, *shape_of_step(config.seed, state.step), task.patch_size)
            batch = source.batch(*shape, ease=ease_at(config, progress))
            rendered = time.monotonic()
            step = task.step(batch, progress, source.generator)
            norm = _update(state, step.loss, progress, config, workers)
            state.pairs += step.n_pairs * workers.size
            ended = time.monotonic()
            state.elapsed_s = ended - started
            meter.add(step, ended - began, rendered - began)
            if not workers.leads:
                continue
            track(task.name, min(1000, int(1000 * progress)), 1000)
            record: dict[str, int | float] = {}
            if state.step % config.log_every_steps == 0:
                record = {name: float(value) for name, value in step.parts.items()}
                record |= {
                    "loss": float(step.loss.detach()),
                    "gradient_norm": float(norm),
                    "learning_rate": state.optimizer.param_groups[0]["lr"],
                    "height": shape[0],
                    "width": shape[1],
                }
                record |= meter.take()
            if state.elapsed_s >= next_probe:
                record |= task.probe(state.averaged_model(), held_out)
                next_probe = state.elapsed_s + config.probe_every_s
            if record:
                _log(log, _counters(state) | record)
            if state.elapsed_s >= next_save:
                _save(task, state, out_dir)
                next_save = state.elapsed_s + config.save_every_s
        if workers.leads:
            final = task.probe(state.averaged_model(), held_out)
            _log(log, _counters(state) | (meter.take() if meter.pairs else {}) | final)
            _save(task, state, out_dir)
            logger.info(
                "%s: %d pairs in %.0f s: %s", task.name, state.pairs, state.elapsed_s, final
            )


def _held_out(config: LoopConfig, patch_size: int, workers: Workers) -> list[Batch]:
    """Return the batches of the probe, the same for every seed; only rank 0 needs them."""
    if not workers.leads:
        return []
    source = Source(config, workers.device, seed=_HELD_OUT_SEED)
    shape = image_shape(config.probe_size, 3 / 4, False, patch_size)
    return [source.batch(*shape, ease=0.7) for _ in range(config.probe_batches)]


def _update(
    state: State[Network], loss: Tensor, progress: float, config: LoopConfig, workers: Workers
) -> Tensor:
    """Take one step of AdamW and move the average; return the norm of the gradient."""
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    workers.average_gradients(state.named.values())
    norm = torch.nn.utils.clip_grad_norm_(state.named.values(), config.gradient_clip)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"step {state.step}: loss {float(loss.detach())} is not finite")
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step, progress)
    state.optimizer.step()
    state.step += 1
    state.update_average(config.ema_decay)
    return norm


def _save(task: Task[Network], state: State[Network], out_dir: Path) -> None:
    state.save(out_dir)
    task.write(state.averaged_model(), out_dir)


def _journal(out_dir: Path, workers: Workers) -> contextlib.AbstractContextManager[TextIO | None]:
    if not workers.leads:
        return contextlib.nullcontext()
    try:
        return (out_dir / "log.jsonl").open("a")
    except OSError as error:
        raise not_writable(out_dir, error) from error


def _log(log: TextIO | None, record: Mapping[str, int | float | str]) -> None:
    if log is not None:
        log.write(json.dumps(record) + "\n")
        log.flush()
        logger.debug("%s", record)


def _counters(state: State[Network]) -> dict[str, int | float]:
    return {
        "step": state.step,
        "pairs": state.pairs,
        "elapsed_s": round(state.elapsed_s, 1),
    }


def _opening(
    state: State[Network], workers: Workers, task: Task[Network], peak: Peak
) -> dict[str, int | float | str]:
    return {
        **_counters(state),
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "processes": workers.size,
        "device": str(workers.device),
        "precision": str(task.dtype).removeprefix("torch."),
        "peak_tflops": round(peak.flops_per_s / 1e12, 4),
        "peak_source": peak.source,
    }
