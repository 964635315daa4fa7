"""Every kind of weights file -> its config and its tensors: published checkpoints and our own.

- `NAME.safetensors` with `NAME.json`: a two-view network saved by recon3d.
- `NAME.safetensors` with a config inside: cross-view completion saved by recon3d.
- `NAME.pth`: DUSt3R, MASt3R (`model`, `args`) or CroCo (`model`, `croco_kwargs`).
- a folder with `config.json` and `model.safetensors`, as hubs lay them out.
- `NAME.safetensors` alone: the network is inferred from the shapes.

Nothing in a file is executed, and nothing is allocated by what it says before that is checked.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, no_type_check

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from recon3d.config import CrocoConfig, ModelConfig
from recon3d.errors import WeightsError
from recon3d.model_config import croco_from_text, read_config, read_json
from recon3d.published import Shapes, croco_config, parse_constructor, two_view_config
from recon3d.torch_file import as_tensors, read_torch_file

logger = logging.getLogger(__name__)

HUB_CONFIG, HUB_TENSORS = "config.json", "model.safetensors"
CROCO_KEY = "croco"
"""Where the metadata of a file of cross-view completion hold its config."""
_ALIAS = re.compile(r"(?P<head>.*\.scratch)\.layer_rn\.(?P<index>[0-3])\.weight")
_MAX_TENSORS = 20_000
_FILLS = {"uniform_", "normal_", "zero_", "fill_", "constant_", "kaiming_uniform_"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """Weights as they lie in a file, under the names of recon3d's own networks.

    `tensors` may be pages of the file: copy what is to be kept. `file` holds them, `notes` says
    what had to be assumed, `licence` is what the file says of it, or None.
    """

    kind: Literal["two_view", "croco"]
    config: ModelConfig | CrocoConfig
    tensors: dict[str, Tensor]
    file: Path
    notes: tuple[str, ...] = ()
    licence: str | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what is in a `.pth`, a `.safetensors` file or a hub folder.

    Names and shapes of the tensors are not yet compared with the config: weights.load_tensors does.

    Raises:
        WeightsError: missing, damaged, malicious, of another layout, or of sizes out of bounds.
    """
    if path.is_dir():
        return _read_hub(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _read_pth(path)
    if not path.exists():
        raise WeightsError(f"{path} does not exist. Give a file of weights or a name.")
    raise WeightsError(
        f"{str(path)!r} is no .safetensors or .pth file and no folder. Give one of these."
    )


class _Unfilled(TorchFunctionMode):
    """Leaves out what fills tensors: without memory it does nothing but load half of torch."""

    @no_type_check  # called for every operation of torch: checks would take longer than it does
    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Within the block, networks are made of the right shapes but without memory for them."""
    with torch.device("meta"), _Unfilled():
        yield


def fill_aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the DPT head's `layer_rn.K` names replaced by their twins.

    Published files hold one tensor under both names, or under either of them.

    Raises:
        WeightsError: two names of one tensor hold different values.
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


def with_second_decoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, with the first decoder's under the names of the second as well.

    So the published system starts from weights that have one decoder.
    """
    copied = {
        name.replace("dec_blocks.", "dec_blocks2.", 1): tensor
        for name, tensor in tensors.items()
        if name.startswith("dec_blocks.")
    }
    return tensors | copied


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a `.safetensors` file.

    Raises:
        WeightsError: missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WeightsError(f"{path} does not exist. Give the file of the weights.")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > _MAX_TENSORS:
                raise WeightsError(f"{path} has {len(names)} tensors, more than {_MAX_TENSORS}.")
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or no safetensors file ({error}).") from error


def _read_safetensors(path: Path) -> Checkpoint:
    """Read our own file, the file of a hub folder, or bare tensors."""
    own = path.with_suffix(".json")
    hub = path.parent / HUB_CONFIG
    if path.name == HUB_TENSORS and hub.is_file() and not own.is_file():
        return _read_hub(path.parent)
    tensors, metadata = read_safetensors(path)
    licence = "".join(c for c in metadata.get("licence", "")[:200] if c.isprintable()) or None
    if CROCO_KEY in metadata:
        config = croco_from_text(metadata[CROCO_KEY], str(path))
        return replace(_croco(path, config, tensors), licence=licence)
    if own.is_file():
        return replace(_two_view(path, read_config(own), tensors), licence=licence)
    if metadata.get("format") == "recon3d":
        raise WeightsError(f"{own} does not exist. Put the config saved with the weights there.")
    return _from_options(path, tensors, {})


def _read_hub(folder: Path) -> Checkpoint:
    path, config = folder / HUB_TENSORS, folder / HUB_CONFIG
    for file in (config, path):
        if not file.is_file():
            raise WeightsError(
                f"{folder} has no {file.name}. Give a folder with {HUB_CONFIG} and {HUB_TENSORS}."
            )
    options = read_json(config)
    if not isinstance(options, dict):
        raise WeightsError(f"{config} is not a JSON object. Get it again.")
    return _from_options(path, read_safetensors(path)[0], options, name=folder.resolve().name)


def _read_pth(path: Path) -> Checkpoint:
    content = read_torch_file(path)
    source = str(path)
    tensors = as_tensors(content.get("model", content), source)
    if "croco_kwargs" in content:
        options = content["croco_kwargs"]
        if not isinstance(options, dict):
            raise WeightsError(f"{source}: croco_kwargs is no dictionary.")
        return _croco(path, croco_config(options, path.stem, source), tensors)
    if "args" not in content:
        return _from_options(path, tensors, {})
    text = getattr(content["args"], "model", None)
    if not isinstance(text, str):
        # the shapes do not tell the number of heads, so a guess could give wrong points
        raise WeightsError(
            f"{source}: its args hold no text 'model' that describes the network. "
            "Get the file again, or save its tensors alone."
        )
    return _from_options(path, tensors, parse_constructor(text, source))


def _from_options(
    path: Path, tensors: dict[str, Tensor], options: dict[str, Any], name: str | None = None
) -> Checkpoint:
    shapes: Shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    config, notes = two_view_config(shapes, options, name or path.stem, str(path))
    checkpoint = _two_view(path, config, tensors, notes)
    if any(key.startswith("dec_blocks2.") for key in tensors):
        return checkpoint
    logger.info("%s has one decoder: the second is a copy of it", path)
    return replace(checkpoint, tensors=with_second_decoder(checkpoint.tensors))


def _two_view(
    path: Path, config: ModelConfig, tensors: dict[str, Tensor], notes: tuple[str, ...] = ()
) -> Checkpoint:
    tensors = fill_aliases(tensors)
    _check_held(path, tensors)
    return Checkpoint(kind="two_view", config=config, tensors=tensors, file=path, notes=notes)


def _croco(path: Path, config: CrocoConfig, tensors: dict[str, Tensor]) -> Checkpoint:
    _check_held(path, tensors)
    return Checkpoint(kind="croco", config=config, tensors=tensors, file=path)


def _check_held(path: Path, tensors: dict[str, Tensor]) -> None:
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if held > path.stat().st_size:  # many names for the same bytes
        raise WeightsError(f"{path} is smaller than its tensors, {held} bytes: it is damaged.")
