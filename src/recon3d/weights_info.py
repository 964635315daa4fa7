"""What `recon3d weights` says of any weights, and their conversion to recon3d's own files."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from recon3d import croco_file, weights
from recon3d.catalogue import CATALOGUE, Published, folder_of, is_downloaded, sha256
from recon3d.checkpoint import Checkpoint, read_checkpoint
from recon3d.config import CrocoConfig, ModelConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.errors import UsageError
from recon3d.model import TwoViewModel
from recon3d.model_config import config_to_dict

LICENCE = "Apache-2.0"
_UNKNOWN_LICENCE = (
    "unknown: as granted by who trained them (CroCo's, DUSt3R's and MASt3R's own: CC BY-NC-SA 4.0)"
)


def convert(
    name_or_path: str, path: Path, *, half: bool = False, overwrite: bool = False
) -> tuple[Path, ...]:
    """Write weights of any known layout as our own file, and return the files written.

    Those of a two-view network get their config beside them, those of cross-view completion hold
    it. Stored in fp16 if `half`, or if the source is. The licence and the SHA-256 of the source are
    kept in the metadata of the file.

    Raises:
        UsageError: `path` is no .safetensors file, or a file exists and `overwrite` is not set.
        WeightsError: the source cannot be loaded.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{str(path)!r} is no .safetensors file. Give the name of one to write.")
    checkpoint = read_checkpoint(weights.locate(name_or_path))
    beside = (path.with_suffix(".json"),) if checkpoint.kind == "two_view" else ()
    for file in (path, *beside):
        if file.exists() and not overwrite:
            raise UsageError(f"{file} exists. Add --overwrite, or choose another name.")
    metadata = {
        "licence": _licence(name_or_path, checkpoint),
        "converted_from_sha256": sha256(checkpoint.file),
    }
    half = half or all(tensor.dtype is torch.float16 for tensor in checkpoint.tensors.values())
    model = _build(checkpoint)
    if isinstance(model, CrocoModel):
        croco_file.save(model, path, half=half, metadata=metadata)
    else:
        weights.save(model, path, half=half, metadata=metadata)
    return (path, *beside)


def describe(name_or_path: str) -> dict[str, Any]:
    """Return what `recon3d weights info` shows: sizes, parameters, licence, checksum, config."""
    if name_or_path in CATALOGUE and not is_downloaded(name_or_path):
        return _listed(CATALOGUE[name_or_path])
    checkpoint = read_checkpoint(weights.locate(name_or_path))
    model: nn.Module = _build(checkpoint)
    return {
        "name": checkpoint.config.name,
        "path": str(checkpoint.file),
        "gives": _gives(checkpoint.config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(model.state_dict()),
        "bytes": checkpoint.file.stat().st_size,
        "sha256": sha256(checkpoint.file),
        "licence": _licence(name_or_path, checkpoint),
        "notes": list(checkpoint.notes),
        "config": config_to_dict(checkpoint.config),
    }


def listing() -> list[dict[str, Any]]:
    """Return the weights that have a name; `path` is None for those not downloaded."""
    embedded = describe(weights.EMBEDDED)
    facts = {key: embedded[key] for key in ("path", "parameters", "bytes", "gives", "licence")}
    first = {"name": weights.EMBEDDED, "image_size": embedded["config"]["image_size"]}
    return [first | facts, *(_listed(entry) for entry in CATALOGUE.values())]


def _build(checkpoint: Checkpoint) -> TwoViewModel | CrocoModel:
    if checkpoint.kind == "croco":
        return croco_file.build(checkpoint)
    return weights.build(checkpoint)


def _gives(config: ModelConfig | CrocoConfig) -> str:
    if isinstance(config, CrocoConfig):
        version = "v1" if config.position is PositionType.COSINE else "v2"
        return f"completed images (CroCo {version}), no points: a start for `recon3d train --init`"
    return "points, descriptors" if config.has_descriptors else "points"


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
    if name_or_path == weights.EMBEDDED or _is_embedded(checkpoint.file):
        return LICENCE
    if name_or_path in CATALOGUE:
        return CATALOGUE[name_or_path].licence.name
    return checkpoint.licence or _UNKNOWN_LICENCE


def _is_embedded(file: Path) -> bool:
    """Say whether the file is a copy of the packaged weights."""
    packaged = weights.locate(weights.EMBEDDED)
    same_size = file.stat().st_size == packaged.stat().st_size
    return same_size and sha256(file) == sha256(packaged)
