"""Weights on disk: safetensors beside a JSON config with a closed schema, loaded strictly.

`NAME.safetensors` holds the tensors (half or full precision), `NAME.json` the `ModelConfig`.
Nothing is executed: no pickle, every size is bounded before memory is taken.
"""

import json
import logging
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from recon3d.catalogue import CATALOGUE, verified
from recon3d.checkpoint import Checkpoint, fill_aliases, read_checkpoint, without_memory
from recon3d.config import ModelConfig
from recon3d.errors import WeightsError
from recon3d.files import atomic_write
from recon3d.model import TwoViewModel
from recon3d.model_config import config_to_dict

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"


def load_tensors(model: TwoViewModel, tensors: dict[str, Tensor], source: str) -> None:
    """Give the model these tensors: all of them, of the right shapes, finite, and no others.

    The model may be on the meta device: its parameters are replaced, by copies in fp32.

    Raises:
        WeightsError: naming the first tensor that is missing, unexpected, misshapen or not finite.
    """
    tensors = fill_aliases(tensors)
    wanted = model.state_dict()
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    what = "Give a published checkpoint, or weights saved by recon3d with their config."
    if missing:
        raise WeightsError(f"{source} lacks {len(missing)} tensors, the first {missing[0]}. {what}")
    if unexpected:
        raise WeightsError(
            f"{source} has {len(unexpected)} unexpected tensors, the first {unexpected[0]}. {what}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise WeightsError(
                f"{source}: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}. "
                f"{what}"
            )
    copies = {}
    for name, tensor in tensors.items():
        # a copy, because the tensor may still be pages of the file it came from
        copies[name] = tensor.to(torch.float32, copy=True)
        if not tensor.is_floating_point() or not copies[name].isfinite().all():
            raise WeightsError(f"{source}: {name} holds values that are not finite numbers. {what}")
    model.load_state_dict(copies, assign=True)


def locate(name_or_path: str) -> Path:
    """Return the file or folder of some weights: "embedded", a name of the catalogue, or a path.

    Raises:
        WeightsError: an unknown name, the packaged model is missing, or published weights
            are not downloaded or have changed since.
    """
    if name_or_path in CATALOGUE:
        return verified(name_or_path)
    if name_or_path != EMBEDDED:
        path = Path(name_or_path)
        if not path.suffix and not path.exists():  # meant as a name, most likely
            names = ", ".join([EMBEDDED, *CATALOGUE])
            raise WeightsError(f"{path} does not exist. Give a file of weights, or one of {names}.")
        return path
    path = Path(str(files("recon3d") / "data" / "embedded.safetensors"))
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise WeightsError(
                f"the weights of the package are missing ({file}). "
                "Install recon3d from its repository again, or give the path of other weights."
            )
    return path


def load(name_or_path: str, device: torch.device | str = "cpu") -> TwoViewModel:
    """Return the model, in fp32 and evaluation mode, on `device`.

    Args:
        name_or_path: "embedded", a name of the catalogue, or what checkpoint.read_checkpoint reads.
        device: where to put it.

    Raises:
        WeightsError: missing, damaged, or of another layout.
    """
    checkpoint = read_checkpoint(locate(name_or_path))
    for note in checkpoint.notes:
        logger.warning("%s: %s", checkpoint.file, note)
    return build(checkpoint).to(device).eval()


def build(checkpoint: Checkpoint) -> TwoViewModel:
    """Return the two-view network of a checkpoint, on the CPU, in fp32.

    Raises:
        WeightsError: it is no two-view checkpoint, or its tensors are not those of its config.
    """
    if not isinstance(checkpoint.config, ModelConfig):
        raise WeightsError(
            f"{checkpoint.file} holds weights of cross-view completion (CroCo), which give no "
            "points. Give those of a two-view network, or train one from them (`train --init`)."
        )
    # No memory is taken before the file has proved to hold what its config promises.
    with without_memory():
        model = TwoViewModel(checkpoint.config)
    load_tensors(model, checkpoint.tensors, str(checkpoint.file))
    return model


def save(
    model: TwoViewModel, path: Path, *, half: bool = False, metadata: dict[str, str] | None = None
) -> None:
    """Write `path` (.safetensors) and the config beside it; `half` stores fp16.

    Each file is complete or absent, never half-written.

    Raises:
        WeightsError: a value that is too large for fp16.
    """
    from safetensors.torch import save as to_bytes

    dtype = torch.float16 if half else torch.float32
    tensors = {n: t.detach().to("cpu", dtype).contiguous() for n, t in model.state_dict().items()}
    lost = [name for name, t in tensors.items() if half and not bool(t.isfinite().all())]
    if lost:
        raise WeightsError(
            f"{path} is not written: {lost[0]} has values beyond {torch.finfo(dtype).max:g}, the"
            " largest in half precision. Keep full precision."
        )
    payload = to_bytes(tensors, metadata={"format": "recon3d"} | (metadata or {}))
    text = json.dumps(config_to_dict(model.config), indent=2) + "\n"
    for file_path, content in ((path, payload), (path.with_suffix(".json"), text.encode())):
        with atomic_write(file_path) as file:
            file.write(content)
