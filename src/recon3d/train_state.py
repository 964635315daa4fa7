"""What a training can be resumed from: weights, their running average, moments and counters."""

import copy
import json
import os
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from recon3d.errors import UsageError, WeightsError
from recon3d.files import not_writable
from recon3d.muon import Muon
from recon3d.train_config import STATE_FILE, LoopConfig, Optimizer

Network = TypeVar("Network", bound=nn.Module)

_MOMENTS = {
    Optimizer.ADAMW: {"updates": "step", "first": "exp_avg", "second": "exp_avg_sq"},
    Optimizer.MUON: {"momentum": "momentum_buffer"},
}
"""What an optimiser remembers of a parameter: names in the file, and in torch."""


def optimizers_of(
    named: dict[str, nn.Parameter], config: LoopConfig
) -> dict[Optimizer, torch.optim.Optimizer]:
    """Return what steps the parameters; matrices decay, biases and the scales of norms do not.

    Muon suits what maps tokens to tokens: the matrices of the blocks.
    """
    rate, decay = config.learning_rate, config.weight_decay
    chosen: dict[Optimizer, torch.optim.Optimizer] = {}
    rest = dict(named)
    if config.optimizer is Optimizer.MUON:
        inner = [n for n, p in named.items() if "_blocks" in n and p.ndim == 2]
        chosen[Optimizer.MUON] = Muon([rest.pop(n) for n in inner], rate, decay)
    groups = [
        {"params": [p for p in rest.values() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in rest.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused: one call, for which the device is not waited, instead of some thousand
    chosen[Optimizer.ADAMW] = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    return chosen


def state_file(out_dir: Path) -> Path:
    """Return the file that a training in the folder is resumed from.

    Raises:
        UsageError: there is none.
    """
    path = out_dir / STATE_FILE
    if not path.is_file():
        raise UsageError(f"{path} does not exist. Leave out --resume to start a new training.")
    return path


class State(Generic[Network]):
    """Everything a resumed run needs: weights, their average, moments, and counters."""

    def __init__(self, model: Network, config: LoopConfig) -> None:
        self.model = model
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.named.items()}
        self.optimizers = optimizers_of(self.named, config)
        self.step, self.pairs, self.elapsed_s = 0, 0, 0.0
        self.seed = config.seed

    def follow_gradient(self, rate: float) -> None:
        """Take one step of all optimisers."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def moments(self) -> dict[str, Tensor]:
        """Return what the optimisers remember, under its names in the file."""
        kept: dict[str, Tensor] = {}
        for kind, optimizer in self.optimizers.items():
            for name, parameter in self.named.items():
                moments = optimizer.state.get(parameter, {})
                kept |= {f"{k}.{name}": moments[v] for k, v in _MOMENTS[kind].items() if moments}
        return kept

    def progress(self, config: LoopConfig) -> float:
        """Return the spent share of the budget, of time or of pairs."""
        return max(self.elapsed_s / (config.minutes * 60), self.pairs / config.pairs)

    def update_average(self, decay: float) -> None:
        """Move the average towards the weights; faster at the start."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.values()), [p.detach() for p in self.named.values()], 1 - decay
        )

    def averaged_model(self) -> Network:
        """Return a copy of the model that holds the averaged weights."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average, strict=False)
        return model.eval()

    def save(self, out_dir: Path) -> None:
        """Write state.safetensors to resume from.

        Raises:
            ResourceError: no space or no permission.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {f"weight.{n}": p.detach() for n, p in self.named.items()}
        tensors |= {f"average.{n}": p for n, p in self.average.items()}
        tensors |= self.moments()
        counters = {
            "step": self.step,
            "pairs": self.pairs,
            "elapsed_s": self.elapsed_s,
            "seed": self.seed,
        }
        path, partial = out_dir / STATE_FILE, out_dir / f".{STATE_FILE}.tmp"
        try:
            save_file(
                {n: t.contiguous().cpu() for n, t in tensors.items()},
                partial,
                metadata={"counters": json.dumps(counters)},
            )
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            fault = error if isinstance(error, OSError) else OSError(0, str(error))
            raise not_writable(path, fault) from error

    def load(self, out_dir: Path) -> None:
        """Continue from state.safetensors.

        Raises:
            UsageError: there is none, or that of another network or seed.
            WeightsError: it is damaged.
        """
        from safetensors import SafetensorError

        path = state_file(out_dir)
        try:
            self._load(path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{path} is damaged ({type(error).__name__}: {error}). Start a new training from"
                " the weights beside it: --init model.safetensors, in another folder."
            ) from error

    def _load(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            counters = json.loads(file.metadata()["counters"])
            seed = int(counters.get("seed", self.seed))
            if seed != self.seed:
                raise UsageError(
                    f"{path} has the seed {seed}, not {self.seed}: give --seed {seed} to resume."
                )
            for name, parameter in self.named.items():
                if f"weight.{name}" not in names:
                    raise UsageError(f"{path} lacks {name}: it belongs to another preset.")
                shape = tuple(file.get_slice(f"weight.{name}").get_shape())
                if shape != tuple(parameter.shape):
                    raise UsageError(
                        f"{path}: {name} is {shape}, not {tuple(parameter.shape)}: it belongs to "
                        "another preset."
                    )
                with torch.no_grad():
                    parameter.copy_(file.get_tensor(f"weight.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
            self._load_moments(file)
        self.step, self.pairs = int(counters["step"]), int(counters["pairs"])
        self.elapsed_s = float(counters["elapsed_s"])

    def _load_moments(self, file: Any) -> None:
        """Remember what the file holds; not of what was not trained, or by another optimiser."""
        stored = set(file.keys())
        names_of = {parameter: name for name, parameter in self.named.items()}
        for kind, optimizer in self.optimizers.items():
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                named = {v: f"{k}.{names_of[parameter]}" for k, v in _MOMENTS[kind].items()}
                if stored.issuperset(named.values()):
                    optimizer.state[parameter] = {
                        key: file.get_tensor(name).to(parameter) for key, name in named.items()
                    }
