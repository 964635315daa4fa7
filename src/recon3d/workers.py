"""Many processes that train one network: each on its own batches, with averaged gradients.

`torchrun --nproc-per-node N -m recon3d train ...` starts the processes and says in the environment
who each one is. Without torchrun there is one worker and nothing to average.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from recon3d.device import resolve_device
from recon3d.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The place of this process among `size` equal ones; the one of rank 0 logs and saves."""

    rank: int = 0
    size: int = 1
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process logs and saves."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """Return the value that rank 0 has; every worker must ask."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def start_equal(self, model: nn.Module) -> None:
        """Give every worker the tensors of rank 0."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the workers, which all must have the same ones.

        One exchange of one flat tensor: our networks are small beside what a link carries.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))


@contextlib.contextmanager
def join_workers(device_name: str) -> Iterator[Workers]:
    """Join the processes that torchrun started, for the length of the block.

    Under torchrun "auto" and "cuda" mean the GPU of the process' number on its machine.

    Raises:
        UsageError: a device that cannot be used, or that all processes would share.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Workers(device=resolve_device(device_name))
        return
    if device_name == "cuda" or (device_name == "auto" and torch.cuda.is_available()):
        device_name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif device_name.startswith("cuda:"):
        raise UsageError(
            f"{size} processes cannot share the device {device_name!r}. Use --device cuda."
        )
    device = resolve_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(rank=distributed.get_rank(), size=distributed.get_world_size(), device=device)
    finally:
        distributed.destroy_process_group()
