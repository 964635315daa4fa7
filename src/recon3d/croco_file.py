"""Weights of cross-view completion on disk: one safetensors file that carries its own config.

The tensors have the published names; the config is JSON under "croco" in the file's metadata, with
a closed schema. Nothing is executed, and sizes are bounded before memory is taken.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from recon3d.checkpoint import read_safetensors
from recon3d.config import CrocoConfig, ModelConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.errors import WeightsError
from recon3d.files import atomic_write
from recon3d.model_config import config_from_dict, config_to_dict

KEY = "croco"
_ADVICE = "Give a file written by `recon3d pretrain`, or a published CroCo checkpoint."


def save(model: CrocoModel, path: Path, *, half: bool = False) -> None:
    """Write `path` whole or not at all; `half` stores fp16."""
    from safetensors.torch import save as to_bytes

    dtype = torch.float16 if half else torch.float32
    tensors = {n: t.detach().to("cpu", dtype).contiguous() for n, t in model.state_dict().items()}
    metadata = {"format": "recon3d", KEY: json.dumps(asdict(model.config))}
    with atomic_write(path) as file:
        file.write(to_bytes(tensors, metadata=metadata))


def is_croco_file(path: Path) -> bool:
    """Return whether `path` is a safetensors file written by `save`."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read(path: Path) -> tuple[CrocoConfig, dict[str, Tensor]]:
    """Return the config and the tensors of a file: exactly those of the config's network.

    Raises:
        WeightsError: unreadable, or not what its config promises; names the first fault.
    """
    tensors, metadata = read_safetensors(path)
    if KEY not in metadata:
        raise WeightsError(f"{path} holds no weights of cross-view completion. {_ADVICE}")
    config = _config(metadata[KEY], str(path))
    check_tensors(tensors, config, str(path))
    return config, tensors


def check_tensors(tensors: dict[str, Tensor], config: CrocoConfig, source: str) -> None:
    """Check that these are the tensors of the config's network: all, no others, right, finite.

    Raises:
        WeightsError: naming the first that is not.
    """
    with torch.device("meta"):
        wanted = CrocoModel(config).state_dict()
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


def _config(text: str, source: str) -> CrocoConfig:
    """Return the config of a JSON text; every key of CrocoConfig and no other."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{source}: its config is not valid JSON ({error}).") from error
    known = {field.name for field in fields(CrocoConfig)}
    if not isinstance(values, dict) or set(values) != known:
        raise WeightsError(f"{source}: its config has not the keys {', '.join(sorted(known))}.")
    # What both networks have is checked as that of a two-view network.
    shared = {field.name for field in fields(ModelConfig)} & known
    config_from_dict(config_to_dict(ModelConfig()) | {k: values[k] for k in shared}, source)
    if values["position"] not in list(PositionType):
        raise WeightsError(f"{source}: position is {values['position']!r}, not cosine or rope.")
    ratio = values["mask_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise WeightsError(f"{source}: mask_ratio is {ratio!r}, not a number between 0 and 1.")
    if not isinstance(values["imagenet_input"], bool):
        raise WeightsError(f"{source}: imagenet_input is neither true nor false.")
    return CrocoConfig(**values | {"position": PositionType(values["position"])})
