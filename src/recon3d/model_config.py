"""Configs as JSON, with a closed schema and bounds: what a file says is checked before use."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from recon3d.config import CrocoConfig, HeadType, ModelConfig, PositionType
from recon3d.errors import WeightsError

_MAX_BYTES = 65_536
_LATER = {"descriptor_dim": 24}
"""Keys that files of earlier versions lack."""
_BOUNDS: dict[str, tuple[int, int]] = {
    "image_size": (32, 4096),
    "patch_size": (4, 64),
    "enc_dim": (8, 4096),
    "enc_depth": (1, 64),
    "enc_heads": (1, 64),
    "dec_dim": (8, 4096),
    "dec_depth": (1, 64),
    "dec_heads": (1, 64),
    "mlp_ratio": (1, 8),
    "dpt_feature_dim": (2, 1024),
    "dpt_last_dim": (1, 1024),
    "descriptor_dim": (1, 256),
}


def config_from_dict(values: object, source: str) -> ModelConfig:
    """Return the config of a parsed JSON object; every key of ModelConfig and no other.

    Raises:
        WeightsError: naming the key that is missing, unknown, of a wrong type or out of bounds.
    """
    if not isinstance(values, dict):
        raise WeightsError(
            f"{source} is not a JSON object. Give the config saved with the weights."
        )
    values = _LATER | values
    known = {field.name for field in fields(ModelConfig)}
    for key in sorted(known ^ set(values)):
        state = "lacks" if key in known else "has the unknown key"
        raise WeightsError(f"{source} {state} {key!r}. Give the config saved with the weights.")
    check_sizes(values, source)
    dims = values["dpt_layer_dims"]
    if not isinstance(dims, list) or len(dims) != 4:
        raise WeightsError(f"{source}: dpt_layer_dims is {dims!r}, not 4 numbers.")
    for dim in dims:
        _check_int(dim, 1, 4096, f"{source}: dpt_layer_dims")
    base = values["rope_base"]
    if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base <= 1e6:
        raise WeightsError(f"{source}: rope_base is {base!r}, not a number above 1 and up to 1e6.")
    if not isinstance(values["name"], str) or len(values["name"]) > 100:
        raise WeightsError(f"{source}: name is not a text of at most 100 characters.")
    if values["head"] not in list(HeadType):
        raise WeightsError(
            f"{source}: head is {values['head']!r}, not one of {', '.join(HeadType)}."
        )
    return ModelConfig(**values | {"head": HeadType(values["head"]), "dpt_layer_dims": tuple(dims)})


def croco_from_text(text: str, source: str) -> CrocoConfig:
    """Return the config of a JSON text; every key of CrocoConfig and no other.

    Raises:
        WeightsError: no JSON object, other keys, or a value of a wrong type or out of bounds.
    """
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


def check_sizes(values: Mapping[str, Any], source: str) -> None:
    """Check the whole numbers of a network's config, and that heads divide their dimension.

    Raises:
        WeightsError: naming the key that is of a wrong type or out of bounds.
    """
    for key, (low, high) in _BOUNDS.items():
        if key in values:
            _check_int(values[key], low, high, f"{source}: {key}")
    for part in ("enc", "dec"):
        dim, heads = values[f"{part}_dim"], values[f"{part}_heads"]
        if dim % (4 * heads):
            raise WeightsError(
                f"{source}: {part}_dim {dim} is no multiple of 4 x {part}_heads {heads}."
            )


def _check_int(value: object, low: int, high: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise WeightsError(f"{what} is {value!r}, not a whole number from {low} to {high}.")


def config_to_dict(config: ModelConfig | CrocoConfig) -> dict[str, Any]:
    """Return the JSON object of a config."""
    values = asdict(config)
    return {
        key: str(value)
        if isinstance(value, StrEnum)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in values.items()
    }


def read_config(path: Path) -> ModelConfig:
    """Return the config of a JSON file of at most 64 KiB.

    Raises:
        WeightsError: unreadable, too large, no JSON, or not a model config.
    """
    return config_from_dict(read_json(path), str(path))


def read_json(path: Path) -> object:
    """Return what a JSON file of at most 64 KiB holds; `Infinity` is read as a number.

    Raises:
        WeightsError: unreadable, too large or no JSON.
    """
    what = "Give the config saved with the weights."
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise WeightsError(f"{path} is larger than {_MAX_BYTES} bytes. {what}")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}). Check its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON ({error}). {what}") from error
