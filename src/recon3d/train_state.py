"""What a training can be resumed from: weights, their running average, moments and counters."""

import copy
import json
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from recon3d.config import LoopConfig
from recon3d.errors import UsageError
from recon3d.files import not_writable

Network = TypeVar("Network", bound=nn.Module)


class State(Generic[Network]):
    """Everything a resumed run needs: weights, their average, AdamW's moments, and counters."""

    def __init__(self, model: Network, config: LoopConfig) -> None:
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
        for name, parameter in self.named.items():
            moments = self.optimizer.state.get(parameter)
            if moments:
                tensors[f"first.{name}"] = moments["exp_avg"]
                tensors[f"second.{name}"] = moments["exp_avg_sq"]
                tensors[f"updates.{name}"] = moments["step"]
        counters = {"step": self.step, "pairs": self.pairs, "elapsed_s": self.elapsed_s}
        path, partial = out_dir / "state.safetensors", out_dir / ".state.safetensors.tmp"
        try:
            save_file(
                {n: t.contiguous().cpu() for n, t in tensors.items()},
                partial,
                metadata={"counters": json.dumps(counters)},
            )
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            fault = error if isinstance(error, OSError) else OSError(str(error))
            raise not_writable(path, fault) from error

    def load(self, out_dir: Path) -> None:
        """Continue from state.safetensors.

        Raises:
            UsageError: there is none, or that of another network.
        """
        from safetensors import safe_open

        path = out_dir / "state.safetensors"
        if not path.is_file():
            raise UsageError(f"{path} does not exist. Leave out --resume to start a new training.")
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            counters = json.loads(file.metadata()["counters"])
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
                if f"first.{name}" not in names:
                    continue  # not yet trained when the file was written
                updates = torch.tensor(float(counters["step"]))
                if f"updates.{name}" in names:
                    updates = file.get_tensor(f"updates.{name}")
                self.optimizer.state[parameter] = {
                    "step": updates,
                    "exp_avg": file.get_tensor(f"first.{name}").to(parameter.device),
                    "exp_avg_sq": file.get_tensor(f"second.{name}").to(parameter.device),
                }
        self.step, self.pairs = int(counters["step"]), int(counters["pairs"])
        self.elapsed_s = float(counters["elapsed_s"])
