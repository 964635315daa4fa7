"""Weights of cross-view completion on disk: one safetensors file that carries its own config.

The tensors have the published names; the config is JSON in the file's metadata. Reading is
checkpoint.py's: nothing is executed, and sizes are bounded before memory is taken.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from recon3d.checkpoint import CROCO_KEY, Checkpoint, without_memory
from recon3d.config import CrocoConfig
from recon3d.croco import CrocoModel
from recon3d.errors import WeightsError
from recon3d.files import atomic_write
from recon3d.model_config import config_to_dict

_ADVICE = "Give a file written by `recon3d pretrain`, or a published CroCo checkpoint."


def save(
    model: CrocoModel, path: Path, *, half: bool = False, metadata: dict[str, str] | None = None
) -> None:
    """Write `path` whole or not at all; `half` stores fp16."""
    from safetensors.torch import save as to_bytes

    dtype = torch.float16 if half else torch.float32
    tensors = {n: t.detach().to("cpu", dtype).contiguous() for n, t in model.state_dict().items()}
    own = {"format": "recon3d", CROCO_KEY: json.dumps(config_to_dict(model.config))}
    with atomic_write(path) as file:
        file.write(to_bytes(tensors, metadata=own | (metadata or {})))


def checked_tensors(checkpoint: Checkpoint) -> tuple[CrocoConfig, dict[str, Tensor]]:
    """Return config and tensors, which are those of the config's network: all, right, finite.

    Raises:
        WeightsError: no checkpoint of cross-view completion, or naming the first wrong tensor.
    """
    source, tensors = str(checkpoint.file), checkpoint.tensors
    if not isinstance(checkpoint.config, CrocoConfig):
        raise WeightsError(f"{source} holds no weights of cross-view completion. {_ADVICE}")
    with without_memory():
        wanted = CrocoModel(checkpoint.config).state_dict()
    odd = sorted(set(wanted) ^ set(tensors))
    if odd:
        state = "lacks" if odd[0] in wanted else "has the unexpected tensor"
        raise WeightsError(f"{source} {state} {odd[0]}. {_ADVICE}")
    for name, like in wanted.items():
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise WeightsError(
                f"{source}: {name} is {tuple(tensor.shape)}, not {tuple(like.shape)}. {_ADVICE}"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise WeightsError(
                f"{source}: {name} holds values that are not finite numbers. {_ADVICE}"
            )
    return checkpoint.config, tensors


def build(checkpoint: Checkpoint) -> CrocoModel:
    """Return the network of cross-view completion, on the CPU, in fp32.

    Raises:
        WeightsError: as `checked_tensors`.
    """
    config, tensors = checked_tensors(checkpoint)
    with without_memory():
        model = CrocoModel(config)
    # copies, because the tensors may still be pages of their file
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(copies, assign=True)
    return model
