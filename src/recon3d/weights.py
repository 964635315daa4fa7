"""Weights on disk: safetensors beside a JSON config with a closed schema, loaded strictly.

`NAME.safetensors` holds the tensors (half or full precision), `NAME.json` the `ModelConfig`.
Nothing is executed: no pickle, every size is bounded before memory is taken.
"""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon3d.errors import WeightsError
from recon3d.files import atomic_write
from recon3d.model import TwoViewModel
from recon3d.model_config import config_to_dict, read_config

EMBEDDED = "embedded"
LICENCE = "Apache-2.0"
_ALIAS = re.compile(r"(?P<head>.*\.scratch)\.layer_rn\.(?P<index>[0-3])\.weight")


def fill_aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the DPT head's `layer_rn.K` names replaced by their twins.

    Published files hold one tensor under both names, or under either of them.
    """
    out = {}
    for name, tensor in tensors.items():
        match = _ALIAS.fullmatch(name)
        if match is None:
            out[name] = tensor
            continue
        twin = f"{match['head']}.layer{int(match['index']) + 1}_rn.weight"
        if twin in tensors and not torch.equal(tensors[twin], tensor):
            raise WeightsError(f"{twin} and its alias {name} differ: the file is damaged.")
        out[twin] = tensor
    return out


def load_tensors(model: TwoViewModel, tensors: dict[str, Tensor], source: str) -> None:
    """Give the model these tensors: all of them, of the right shapes, finite, and no others.

    The model may be on the meta device: its parameters are replaced, by copies in fp32.

    Raises:
        WeightsError: naming the first tensor that is missing, unexpected, misshapen or not finite.
    """
    tensors = fill_aliases(tensors)
    wanted = model.state_dict()
    missing, unexpected = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    what = "Give weights saved by recon3d with their config."
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
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise WeightsError(f"{source}: {name} holds values that are not finite numbers. {what}")
    # Copies, because the tensors may still be pages of the file they came from.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(copies, assign=True)


def locate(name_or_path: str) -> tuple[Path, Path]:
    """Return the paths of the tensors and of their config; "embedded" is the packaged model.

    Raises:
        WeightsError: when either is missing.
    """
    if name_or_path == EMBEDDED:
        path = Path(str(files("recon3d") / "data" / "embedded.safetensors"))
    else:
        path = Path(name_or_path)
        if path.suffix != ".safetensors":
            raise WeightsError(
                f"{name_or_path!r} is no .safetensors file. Give {EMBEDDED!r} or the path of one."
            )
    for file in (path, path.with_suffix(".json")):
        if file.is_file():
            continue
        if name_or_path == EMBEDDED:
            raise WeightsError(
                f"the weights of the package are missing ({file}). "
                "Install recon3d again, or give the path of a .safetensors file."
            )
        raise WeightsError(f"{file} does not exist. Give {EMBEDDED!r} or a file saved by recon3d.")
    return path, path.with_suffix(".json")


def load(name_or_path: str, device: torch.device | str = "cpu") -> TwoViewModel:
    """Return the model, in fp32 and evaluation mode, on `device`.

    Raises:
        WeightsError: missing, damaged, or of another layout.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, config_path = locate(name_or_path)
    config = read_config(config_path)
    # No memory is taken before the file has proved to hold what its config promises.
    with torch.device("meta"):
        model = TwoViewModel(config)
    expected = sum(p.numel() for p in model.parameters())
    if path.stat().st_size > 5 * expected + 1_000_000:
        raise WeightsError(f"{path} is larger than its config says ({expected} parameters).")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file ({error}).") from error
    load_tensors(model, tensors, str(path))
    return model.to(device).eval()


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


def describe(name_or_path: str) -> dict[str, Any]:
    """Return what `recon3d weights info` shows: sizes, parameters, licence, checksum, config."""
    path, config_path = locate(name_or_path)
    model = load(name_or_path)
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    licence = LICENCE if name_or_path == EMBEDDED else "unknown: as granted by who trained them"
    return {
        "name": model.config.name,
        "path": str(path),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(model.state_dict()),
        "bytes": path.stat().st_size,
        "sha256": checksum,
        "licence": licence,
        "config": config_to_dict(read_config(config_path)),
    }
