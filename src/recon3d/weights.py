"""Weights on disk: safetensors beside a JSON config with a closed schema, loaded strictly.

`NAME.safetensors` holds the tensors (half or full precision), `NAME.json` the `ModelConfig`.
Nothing is executed: no pickle, every size is bounded before memory is taken.
"""

import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon3d.catalogue import (
    CATALOGUE,
    Published,
    folder_of,
    is_downloaded,
    sha256,
    verified,
)
from recon3d.checkpoint import Checkpoint, fill_aliases, read_checkpoint
from recon3d.config import ModelConfig
from recon3d.errors import UsageError, WeightsError
from recon3d.files import atomic_write
from recon3d.model import TwoViewModel
from recon3d.model_config import config_to_dict

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
LICENCE = "Apache-2.0"


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
        WeightsError: the packaged model is missing, or published weights are not downloaded or
            have changed since.
    """
    if name_or_path in CATALOGUE:
        return verified(name_or_path)
    if name_or_path != EMBEDDED:
        return Path(name_or_path)
    path = Path(str(files("recon3d") / "data" / "embedded.safetensors"))
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise WeightsError(
                f"the weights of the package are missing ({file}). "
                "Install recon3d again, or give the path of other weights."
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
            f"{checkpoint.file} is a CroCo checkpoint: it completes images and has no pointmaps. "
            "Use it as the start of a training."
        )
    # No memory is taken before the file has proved to hold what its config promises.
    with torch.device("meta"):
        model = TwoViewModel(checkpoint.config)
    load_tensors(model, checkpoint.tensors, str(checkpoint.file))
    return model


def save(
    model: TwoViewModel, path: Path, *, half: bool = False, metadata: dict[str, str] | None = None
) -> None:
    """Write `path` (.safetensors) and the config beside it; `half` stores fp16.

    Each file is complete or absent, never half-written.
    """
    from safetensors.torch import save as to_bytes

    dtype = torch.float16 if half else torch.float32
    tensors = {n: t.detach().to("cpu", dtype).contiguous() for n, t in model.state_dict().items()}
    payload = to_bytes(tensors, metadata={"format": "recon3d"} | (metadata or {}))
    text = json.dumps(config_to_dict(model.config), indent=2) + "\n"
    for file_path, content in ((path, payload), (path.with_suffix(".json"), text.encode())):
        with atomic_write(file_path) as file:
            file.write(content)


def convert(name_or_path: str, path: Path, *, half: bool = False, overwrite: bool = False) -> None:
    """Write two-view weights of any known layout as our own file and its config.

    The licence and the SHA-256 of the source are kept in the metadata of the file.

    Raises:
        UsageError: `path` is no .safetensors file, or it exists and `overwrite` is not set.
        WeightsError: the source cannot be loaded.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{str(path)!r} is no .safetensors file. Give the name of one to write.")
    for file in (path, path.with_suffix(".json")):
        if file.exists() and not overwrite:
            raise UsageError(f"{file} exists. Add --overwrite, or choose another name.")
    checkpoint = read_checkpoint(locate(name_or_path))
    metadata = {
        "licence": _licence(name_or_path, checkpoint),
        "converted_from_sha256": sha256(checkpoint.file),
    }
    save(build(checkpoint), path, half=half, metadata=metadata)


def describe(name_or_path: str) -> dict[str, Any]:
    """Return what `recon3d weights info` shows: sizes, parameters, licence, checksum, config."""
    if name_or_path in CATALOGUE and not is_downloaded(name_or_path):
        return _listed(CATALOGUE[name_or_path])
    checkpoint = read_checkpoint(locate(name_or_path))
    model = build(checkpoint)
    return {
        "name": model.config.name,
        "path": str(checkpoint.file),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(model.state_dict()),
        "bytes": checkpoint.file.stat().st_size,
        "sha256": sha256(checkpoint.file),
        "licence": _licence(name_or_path, checkpoint),
        "notes": list(checkpoint.notes),
        "config": config_to_dict(model.config),
    }


def listing() -> list[dict[str, Any]]:
    """Return the weights that have a name; `path` is None for those not downloaded."""
    embedded = describe(EMBEDDED)
    facts = {key: embedded[key] for key in ("path", "parameters", "bytes", "licence")}
    first = {"name": EMBEDDED, "image_size": embedded["config"]["image_size"], "gives": "points"}
    return [first | facts, *(_listed(entry) for entry in CATALOGUE.values())]


def _listed(entry: Published) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(folder_of(entry.name)) if is_downloaded(entry.name) else None,
        "parameters": entry.parameters,
        "bytes": entry.bytes,
        "image_size": entry.image_size,
        "gives": entry.gives,
        "licence": entry.licence.name,
        "licence_url": entry.licence.url,
        "source": entry.source,
        "repository": entry.repository,
    }


def _licence(name_or_path: str, checkpoint: Checkpoint) -> str:
    if name_or_path == EMBEDDED:
        return LICENCE
    if name_or_path in CATALOGUE:
        return CATALOGUE[name_or_path].licence.name
    return checkpoint.licence or "unknown: as granted by who trained them"
