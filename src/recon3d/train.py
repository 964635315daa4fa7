"""Training on procedural scenes: one visible loop that runs wherever torch runs.

Loss: confidence-weighted, scale-normalised pointmap regression (DUSt3R, eqs. 2-4), and a
cross-entropy that makes one head of some cross-attention layers look at the true correspondences.
Without the latter a plain regression run ignores the other view for a very long time.
"""

import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from recon3d import losses, weights
from recon3d.batches import (
    Batch,
    Source,
    image_shape,
    matches_of,
    ordered_pairs,
    pair_targets,
    random_shapes,
)
from recon3d.config import PRESETS, TrainConfig
from recon3d.errors import UsageError
from recon3d.files import not_writable
from recon3d.geometry import (
    rotation_angle,
    umeyama,
)
from recon3d.model import TwoViewModel, TwoViewOutput
from recon3d.predict import resolve_device, resolve_precision
from recon3d.progress import Track, silent

logger = logging.getLogger(__name__)

NEGATIVE_ERROR = 1.0
"""Error charged to view j of an unrelated pair: confidence must fall, the points are free."""


def matching_loss_of(
    model: TwoViewModel, batch: Batch, dtype: torch.dtype
) -> tuple[Tensor, dict[str, float], int]:
    """Return the loss of the encoder alone: its tokens must match across views (first stage)."""
    device = batch.images.device
    i, j = ordered_pairs(batch)
    i_over_j, _ = matches_of(batch, pair_targets(batch, i, j), i, j, model.config.patch_size)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        descriptors = model.decoder_embed(model.encode(batch.images.flatten(0, 1)))
    loss, right = losses.descriptor_loss(descriptors[i], descriptors[j], i_over_j)
    return loss, {"matching": float(loss.detach()), "right": float(right)}, len(i)


def loss_of(
    model: TwoViewModel,
    batch: Batch,
    config: TrainConfig,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float], int]:
    """Return the loss of all ordered pairs of each scene, its parts, and the number of pairs."""
    n_scenes, n_views, _, height, width = batch.images.shape
    device = batch.images.device
    patch = model.config.patch_size
    grid = (height // patch, width // patch)
    i, j = ordered_pairs(batch)
    n_true = len(i)
    target = pair_targets(batch, i, j)
    i_over_j, j_over_i = matches_of(batch, target, i, j, patch)
    n_negative = min(n_scenes, max(1, round(config.negative_share * n_true))) if n_scenes > 1 else 0
    chosen = torch.randperm(n_scenes, generator=generator)[:n_negative].to(device)
    i = torch.cat((i, chosen * n_views))
    j = torch.cat((j, (chosen + 1) % n_scenes * n_views))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        tokens = model.encode(batch.images.flatten(0, 1))
        descriptors = model.decoder_embed(tokens)  # keep the encoder's matches alive
        decoded = model.decode_tokens(
            tokens[i], tokens[j], grid, grid, frozenset(config.attention_layers)
        )
    out = model.heads(decoded, grid, grid)
    true = TwoViewOutput(*(value[:n_true] for value in out[:4]))
    error_i, error_j = losses.pointmap_errors(
        (true.pointmap_i, true.pointmap_j),
        (target.points_i, target.points_j),
        (target.valid_i, target.valid_j),
    )
    parts_i = losses.confidence_loss(error_i, true.confidence_i, config.alpha)[target.valid_i]
    parts_j = losses.confidence_loss(error_j, true.confidence_j, config.alpha)[target.valid_j]
    regression = parts_i.mean() + parts_j.mean()
    if n_negative:
        unrelated = out.confidence_j[n_true:]
        charge = torch.full_like(unrelated, NEGATIVE_ERROR)
        regression = (
            regression
            + config.negative_share * losses.confidence_loss(charge, unrelated, config.alpha).mean()
        )
    matching = torch.zeros((), device=device)
    for over_j, over_i in decoded.attention.values():
        matching = matching + losses.attention_loss(over_j[:n_true, :1], i_over_j) / 2
        matching = matching + losses.attention_loss(over_i[:n_true, :1], j_over_i) / 2
    matching = matching / max(1, len(decoded.attention))
    kept, right = losses.descriptor_loss(descriptors[i[:n_true]], descriptors[j[:n_true]], i_over_j)
    parts = {
        "error_i": float(error_i[target.valid_i].mean().detach()),
        "error_j": float(error_j[target.valid_j].mean().detach()),
        "attention": float(matching.detach()),
        "matching": float(kept.detach()),
        "right": float(right),
        "confidence": float(true.confidence_j.mean().detach()),
        "seen": float(i_over_j.sum() / (n_true * grid[0] * grid[1] * (patch // 4) ** 2)),
    }
    return regression + config.attention_weight * (matching + kept), parts, len(i)


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
            errors.append(error[target.valid_j].mean())
        # View 2's pixels in camera 1 (forward) and in camera 2 (backward): one similarity.
        weight = (forward.confidence_j * backward.confidence_i).log() * target.valid_j
        _, rotation, _ = umeyama(
            backward.pointmap_i.flatten(1, 2).double(),
            forward.pointmap_j.flatten(1, 2).double(),
            weight.flatten(1).double().clamp_min(1e-9),
        )
        truth = target.cam_j2cam_i[:, :3, :3].double()
        angles.append(rotation_angle(rotation.mT @ truth))
        sizes.append(rotation_angle(truth))
    true_error, wrong_error = torch.stack(true_errors).mean(), torch.stack(wrong_errors).mean()
    return {
        "probe_true": float(true_error),
        "probe_wrong": float(wrong_error),
        "probe_ratio": float(true_error / wrong_error),
        "probe_rotation_deg": math.degrees(float(torch.cat(angles).median())),
        "probe_rotation_true_deg": math.degrees(float(torch.cat(sizes).median())),
    }


def _stage(config: TrainConfig, progress: float) -> int:
    return next(size for share, size in config.stages if progress <= share or share >= 1)


def _rate(config: TrainConfig, step: int, progress: float) -> float:
    """Learning rate: linear warm-up, constant, then cosine over the last `decay_share`."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    left = (1 - progress) / max(config.decay_share, 1e-9)
    cool = 0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, left)))
    return config.learning_rate * warm * max(cool, 0.01)


class State:
    """Everything a resumed run needs: weights, their average, AdamW's moments, and counters."""

    def __init__(self, model: TwoViewModel, config: TrainConfig) -> None:
        self.model = model
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.named.items()}
        decayed = [p for p in self.named.values() if p.ndim > 1]
        plain = [p for p in self.named.values() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
        )
        self.step, self.pairs, self.elapsed_s = 0, 0, 0.0

    def update_average(self, decay: float) -> None:
        """Move the average towards the weights; faster at the start."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.named.values()], 1 - decay
        )

    def averaged_model(self) -> TwoViewModel:
        """Return a copy of the model that holds the averaged weights."""
        model = TwoViewModel(self.model.config).to(next(iter(self.named.values())).device)
        model.load_state_dict(self.model.state_dict())
        model.load_state_dict(self.average, strict=False)
        return model.eval()

    def save(self, out_dir: Path) -> None:
        """Write model.safetensors (averaged, fp16) and state.safetensors to resume from."""
        from safetensors.torch import save_file

        tensors = {f"weight.{n}": p.detach() for n, p in self.named.items()}
        tensors |= {f"average.{n}": p for n, p in self.average.items()}
        for name, parameter in self.named.items():
            moments = self.optimizer.state.get(parameter)
            if moments:
                tensors[f"first.{name}"] = moments["exp_avg"]
                tensors[f"second.{name}"] = moments["exp_avg_sq"]
        counters = {"step": self.step, "pairs": self.pairs, "elapsed_s": self.elapsed_s}
        path, partial = out_dir / "state.safetensors", out_dir / ".state.safetensors.tmp"
        save_file(
            {n: t.contiguous().cpu() for n, t in tensors.items()},
            partial,
            metadata={"counters": json.dumps(counters)},
        )
        partial.replace(path)
        weights.save(self.averaged_model(), out_dir / "model.safetensors", half=True)

    def load(self, out_dir: Path) -> None:
        """Continue from state.safetensors."""
        from safetensors import safe_open

        path = out_dir / "state.safetensors"
        if not path.is_file():
            raise UsageError(f"{path} does not exist. Leave out --resume to start a new training.")
        with safe_open(path, framework="pt") as file:
            counters = json.loads(file.metadata()["counters"])
            missing = {f"weight.{n}" for n in self.named} - set(file.keys())
            if missing:
                raise UsageError(f"{path} lacks {min(missing)}: it belongs to another preset.")
            for name, parameter in self.named.items():
                with torch.no_grad():
                    parameter.copy_(file.get_tensor(f"weight.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
                if f"first.{name}" in file.keys():  # noqa: SIM118  (not a dict)
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(counters["step"])),
                        "exp_avg": file.get_tensor(f"first.{name}").to(parameter.device),
                        "exp_avg_sq": file.get_tensor(f"second.{name}").to(parameter.device),
                    }
        self.step, self.pairs = int(counters["step"]), int(counters["pairs"])
        self.elapsed_s = float(counters["elapsed_s"])


def train(out_dir: Path, config: TrainConfig, *, track: Track = silent) -> None:
    """Train a model and leave model.safetensors, state.safetensors and log.jsonl in `out_dir`.

    Raises:
        UsageError: for an unknown preset, or a resume without a state.
        ResourceError: when `out_dir` cannot be written.
        FloatingPointError: when the loss is no longer finite.
    """
    if config.preset not in PRESETS:
        raise UsageError(f"preset {config.preset!r} is unknown. Known: {', '.join(PRESETS)}.")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(out_dir, error) from error
    device = resolve_device(config.device)
    dtype = resolve_precision(config.precision, device)
    torch.manual_seed(config.seed)
    final_size = config.stages[-1][1]
    model = TwoViewModel(replace(PRESETS[config.preset], image_size=final_size)).to(device)
    state = State(model, config)
    if config.resume:
        state.load(out_dir)
    patch = model.config.patch_size
    held_out = Source(config, device, seed=987_654_321)
    source = Source(config, device, seed=config.seed + 1 + state.step)
    shapes = random_shapes(source.generator)
    probe_batches = [
        held_out.batch(*image_shape(160, 3 / 4, False, patch), ease=0.7) for _ in range(6)
    ]
    budget_s = config.minutes * 60
    started = time.monotonic() - state.elapsed_s
    next_probe, next_save = state.elapsed_s + 30, state.elapsed_s + config.save_every_s
    with (out_dir / "log.jsonl").open("a") as log:
        while True:
            progress = max(state.elapsed_s / budget_s, state.pairs / config.pairs)
            if progress >= 1:
                break
            aspect, portrait = next(shapes)
            shape = image_shape(_stage(config, progress), aspect, portrait, patch)
            ease = min(1.0, 0.3 + 1.2 * progress)
            began = time.monotonic()
            batch = source.batch(*shape, ease=ease)
            rendered = time.monotonic()
            if progress < config.matching_share:
                loss, parts, n_pairs = matching_loss_of(model, batch, dtype)
            else:
                loss, parts, n_pairs = loss_of(model, batch, config, dtype, source.generator)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(state.named.values(), config.gradient_clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    f"step {state.step}: loss {float(loss.detach())} is not finite"
                )
            for group in state.optimizer.param_groups:
                group["lr"] = _rate(config, state.step, progress)
            state.optimizer.step()
            state.step, state.pairs = state.step + 1, state.pairs + n_pairs
            state.update_average(config.ema_decay)
            ended = time.monotonic()
            state.elapsed_s = ended - started
            track("training", min(1000, int(1000 * progress)), 1000)
            record: dict[str, float] = {}
            if state.step % 20 == 0:
                record = parts | {
                    "loss": float(loss.detach()),
                    "gradient_norm": float(norm),
                    "learning_rate": state.optimizer.param_groups[0]["lr"],
                    "height": shape[0],
                    "width": shape[1],
                    "pairs_per_s": n_pairs / (ended - began),
                    "render_share": (rendered - began) / (ended - began),
                }
            if state.elapsed_s >= next_probe:
                record |= probe(state.averaged_model(), probe_batches, dtype)
                next_probe = state.elapsed_s + config.probe_every_s
            if record:
                record = {
                    "step": state.step,
                    "pairs": state.pairs,
                    "elapsed_s": round(state.elapsed_s, 1),
                } | record
                log.write(json.dumps(record) + "\n")
                log.flush()
                logger.debug("%s", record)
            if state.elapsed_s >= next_save:
                state.save(out_dir)
                next_save = state.elapsed_s + config.save_every_s
        final = probe(state.averaged_model(), probe_batches, dtype)
        log.write(json.dumps({"step": state.step, "pairs": state.pairs} | final) + "\n")
    state.save(out_dir)
    logger.info("trained %d pairs in %.0f s: %s", state.pairs, state.elapsed_s, final)
