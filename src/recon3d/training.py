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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TextIO, TypeVar

import torch
from torch import Tensor, nn

from recon3d.batches import Batch, Source, image_shape, shape_of_step, size_of_step
from recon3d.errors import DivergedError
from recon3d.files import not_writable
from recon3d.interrupt import Interrupt
from recon3d.model import DecoderBlock, EncoderBlock
from recon3d.progress import Track, silent
from recon3d.supply import supply_of, training_source
from recon3d.throughput import TRAINING_PASSES, Peak, peak_of
from recon3d.train_config import STATE_FILE, LoopConfig
from recon3d.train_state import State, state_file
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
        self._start_again()

    def _start_again(self) -> None:
        self.steps, self.pairs, self.flops, self.seconds, self.render_s = 0, 0, 0, 0.0, 0.0
        self.lost: list[Tensor] = []

    def add(self, step: Step, lost: Tensor, seconds: float, render_s: float) -> None:
        """Count one step of this worker; the others do as much in the same time."""
        self.steps += 1
        self.pairs += step.n_pairs * self.n_workers
        self.flops += TRAINING_PASSES * step.forward_flops
        self.seconds += seconds
        self.render_s += render_s
        self.lost.append(lost)

    def take(self, *, closing: bool = False) -> dict[str, int | float]:
        """Return the figures of the time since the last call, and start again.

        Raises:
            DivergedError: when the gradient of no step was finite, unless this is the last call,
                after steps that may be few.
        """
        seconds, n_lost = max(self.seconds, 1e-9), int(torch.stack(self.lost).sum())
        if n_lost == self.steps and not closing:
            raise DivergedError(f"no gradient of the last {self.steps} steps was finite")
        figures: dict[str, int | float] = {
            "pairs_per_s": self.pairs / seconds,
            "render_share": self.render_s / seconds,
            "gflop_per_pair": self.flops * self.n_workers / max(self.pairs, 1) / 1e9,
            "mfu": self.flops / seconds / self.peak.flops_per_s,
        }
        if n_lost:
            figures["steps_lost"] = n_lost
        self._start_again()
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


def open_folder(out_dir: Path, *, resume: bool) -> None:
    """Make the folder of a training, or find what is to be resumed.

    Raises:
        UsageError: there is nothing to resume.
        ResourceError: when the folder cannot be made.
    """
    if resume:
        state_file(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(out_dir, error) from error


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a transformer, in place: once for all, whatever number of tokens.

    Averages and saved weights are those of the plain network.
    """
    for module in model.modules():
        if isinstance(module, EncoderBlock | DecoderBlock):
            module.compile(dynamic=True)


def run(
    task: Task[Network],
    config: LoopConfig,
    out_dir: Path,
    workers: Workers,
    *,
    began: float | None = None,
    track: Track = silent,
) -> None:
    """Train until the budget is spent; rank 0 leaves weights, state.safetensors and log.jsonl.

    `began` is the `time.monotonic()` from which time counts, also that of compiling. The first
    Ctrl-C or SIGTERM ends the step, writes what there is, and then raises KeyboardInterrupt.

    Raises:
        UsageError: a resume without a state, or that of another network.
        WeightsError: a state that is damaged.
        ResourceError: when `out_dir` cannot be written.
        DivergedError: when no gradient between two records was finite, or no weight is.
    """
    began = time.monotonic() if began is None else began
    device = workers.device
    workers.start_equal(task.model)
    state = State(task.model, config)
    if config.resume:
        state.load(out_dir)
    elif workers.leads:
        (out_dir / STATE_FILE).unlink(missing_ok=True)  # else --resume would go on with the old one
    started = began - state.elapsed_s
    source = training_source(config, device, config.seed + 1, workers.rank)
    source.served = state.step
    meter = Meter(peak_of(device, task.dtype), workers.size)
    held_out = _held_out(config, task.patch_size, workers)
    next_probe, next_save = state.elapsed_s + 30, state.elapsed_s + config.save_every_s
    piece_ends = math.inf if config.stop_after is None else began + 60 * config.stop_after
    with (
        _journal(out_dir, workers, "a" if config.resume else "w") as log,
        Interrupt() as interrupt,
        supply_of(source, config.render_ahead) as supply,
    ):
        _log(log, _opening(state, workers, task, meter.peak))
        while True:
            state.elapsed_s = time.monotonic() - started
            # a rendering that was begun is used up: a resumed run would light another
            ends = interrupt.asked or time.monotonic() >= piece_ends
            ends = ends and state.step % config.uses == 0
            progress = workers.agree(math.inf if ends else state.progress(config))
            if progress >= 1:
                break
            asked = time.monotonic()
            batch = supply.take(partial(_plan, config, progress, task.patch_size))
            rendered = time.monotonic()
            step = task.step(batch, progress, source.chances(state.step))
            norm, lost = _update(state, step.loss, progress, config, workers)
            state.pairs += step.n_pairs * workers.size
            if not workers.leads:
                continue
            meter.add(step, lost, time.monotonic() - asked, rendered - asked)
            track(task.name, min(1000, int(1000 * progress)), 1000)
            state.elapsed_s = time.monotonic() - started
            record: dict[str, int | float] = {}
            if state.step % config.log_every_steps == 0:
                record = _values(step.parts | {"loss": step.loss, "gradient_norm": norm})
                record["learning_rate"] = learning_rate(config, state.step - 1, progress)
                record["height"], record["width"] = batch.images.shape[-2:]
                record |= meter.take()
            if state.elapsed_s >= next_probe:
                record |= task.probe(state.averaged_model(), held_out)
                next_probe = state.elapsed_s + config.probe_every_s
            if record:
                _log(log, _counters(state) | record)
            if state.elapsed_s >= next_save and state.step % config.uses == 0:
                _save(task, state, out_dir)
                next_save = state.elapsed_s + config.save_every_s
        if workers.leads:
            _save(task, state, out_dir)  # first of all: what follows takes time and may fail
            last: dict[str, int | float] = {}
            if meter.steps:
                last = _values(step.parts | {"loss": step.loss}) | meter.take(closing=True)
            if not interrupt.asked:
                last |= task.probe(state.averaged_model(), held_out)
            _log(log, _counters(state) | last)
            logger.info(
                "%s %s after %d pairs in %.0f s: %s; wrote %s",
                task.name,
                "ended" if state.progress(config) >= 1 else "paused (--resume goes on)",
                state.pairs,
                state.elapsed_s,
                ", ".join(f"{name} {value:.4g}" for name, value in last.items()),
                out_dir,
            )
    if interrupt.asked:
        raise KeyboardInterrupt


def _plan(
    config: LoopConfig, progress: float, patch_size: int, number: int
) -> tuple[int, int, float]:
    """Return height, width and ease of batch `number`."""
    rendering = number // config.uses
    size = size_of_step(config, stage_size(config, progress), rendering, patch_size)
    shape = image_shape(size, *shape_of_step(config.seed, rendering), patch_size)
    return *shape, ease_at(config, progress)


def _values(named: Mapping[str, Tensor]) -> dict[str, int | float]:
    """Return the numbers, for which the device is waited for but once."""
    together = torch.stack([value.detach().float() for value in named.values()])
    return dict(zip(named, together.tolist(), strict=True))


def _held_out(config: LoopConfig, patch_size: int, workers: Workers) -> list[Batch]:
    """Return the batches of the probe, the same for every seed; only rank 0 needs them.

    Two scenes at least: the probe shows one with a view of another.
    """
    if not workers.leads:
        return []
    config = replace(
        config,
        uses=1,
        scenes_per_step=max(2, config.scenes_per_step),
        usual_lenses=LoopConfig.usual_lenses,
    )
    source = Source(config, workers.device, seed=_HELD_OUT_SEED)
    shape = image_shape(config.probe_size, 3 / 4, False, patch_size)
    return [source.batch(*shape, ease=0.7) for _ in range(config.probe_batches)]


def _update(
    state: State[Network], loss: Tensor, progress: float, config: LoopConfig, workers: Workers
) -> tuple[Tensor, Tensor]:
    """Take one step and move the average; return the norm of the gradient.

    A gradient that is not finite counts as zero; the second result says whether it did. The device
    is not waited for.
    """
    state.model.zero_grad(set_to_none=True)
    loss.backward()
    workers.average_gradients(state.named.values())
    gradients = [p.grad for p in state.named.values() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (config.gradient_clip / (norm + 1e-6)).clamp_max(1.0))
    lost = ~torch.isfinite(norm)
    for gradient in gradients:
        gradient.masked_fill_(lost, 0.0)
    state.follow_gradient(learning_rate(config, state.step, progress))
    state.step += 1
    state.update_average(config.ema_decay)
    return norm, lost


def _save(task: Task[Network], state: State[Network], out_dir: Path) -> None:
    """Write state and weights, but never over good ones what is no longer finite."""
    if not all(bool(average.isfinite().all()) for average in state.average.values()):
        raise DivergedError(f"weights are no longer finite after {state.step} steps")
    state.save(out_dir)
    task.write(state.averaged_model(), out_dir)


def _journal(
    out_dir: Path, workers: Workers, mode: Literal["a", "w"]
) -> contextlib.AbstractContextManager[TextIO | None]:
    if not workers.leads:
        return contextlib.nullcontext()
    try:
        return (out_dir / "log.jsonl").open(mode)
    except OSError as error:
        raise not_writable(out_dir, error) from error


def _log(log: TextIO | None, record: Mapping[str, int | float | str]) -> None:
    """Write a line of JSON, in which what is not finite is null."""
    if log is not None:
        known = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        log.write(json.dumps(known, allow_nan=False) + "\n")
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
