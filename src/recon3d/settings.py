"""Options and a TOML file -> RunConfig; an unknown name or an impossible value is a fault."""

import math
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from recon3d.config import CamerasAre, RunConfig
from recon3d.errors import UsageError

Config = TypeVar("Config")

OPTIONS = {
    "--weights": "weights",
    "--pairs": "pairs",
    "--deterministic": "deterministic",
    "--size": "photos.size",
    "--device": "predict.device",
    "--precision": "predict.precision",
    "--focal": "align.focal_px",
    "--shared-focal": "align.shared_focal",
    "--cameras": "cameras",
    "--cameras-are": "align.cameras_are",
    "--masks": "masks",
    "--scale-from": "scale_from",
    "--refine": "refine",
    "--dense": "dense",
    "--all-components": "all_components",
    "--seed": "align.seed",
    "--min-confidence": "fuse.min_confidence",
    "--confidence-percentile": "fuse.confidence_percentile",
    "--max-points": "fuse.max_points",
    "--voxel": "fuse.voxel",
}
"""Which field of RunConfig each option of `recon3d run` sets."""

LIMITS: dict[str, tuple[float, float]] = {
    "photos.size": (16, 8192),
    "photos.patch_size": (1, 256),
    "photos.max_pixels": (1, 2**30),
    "photos.max_bytes": (1, 2**40),
    "photos.threads": (1, 256),
    "predict.batch_size": (1, 4096),
    "align.focal_px": (1, 1e6),
    "align.max_map_bytes": (0, 2**50),
    "align.samples_per_edge": (3, 1e6),
    "align.max_iterations": (0, 1e6),
    "align.max_edge_residual": (0, math.inf),
    "align.max_edge_rotation_deg": (0, 180),
    "align.min_edge_confidence": (0, math.inf),
    "align.seed": (0, 2**63 - 1),
    "matches.stride": (1, 4096),
    "matches.min_confidence": (0, math.inf),
    "matches.max_distance": (0, math.inf),
    "matches.max_matches": (1, 2**40),
    "matches.max_bytes": (1, 2**50),
    "bundle.feature_size": (16, 2**16),
    "bundle.max_features": (1, 2**24),
    "bundle.search_radius": (0, 1),
    "bundle.max_ratio": (0, 1),
    "bundle.max_error": (0, 1),
    "bundle.held_out": (0, 0.9),
    "bundle.min_tracks": (1, 2**40),
    "bundle.max_tracks": (1, 2**40),
    "bundle.max_coarse": (0, 2**40),
    "bundle.max_partners": (1, 2**20),
    "bundle.max_all_pairs": (0, 2**20),
    "bundle.max_wide_pairs": (0, 2**20),
    "bundle.max_wide_views": (0, 2**20),
    "bundle.wide_size": (16, 2**16),
    "bundle.wide_features": (1, 2**24),
    "bundle.max_iterations": (1, 1e6),
    "bundle.seed": (0, 2**63 - 1),
    "stereo.size": (16, 2**13),
    "stereo.neighbours": (1, 64),
    "stereo.min_share": (0, 1),
    "fuse.min_confidence": (1, math.inf),
    "fuse.confidence_percentile": (0, 100),
    "fuse.depth_edge": (0, math.inf),
    "fuse.free_space": (0, 1),
    "fuse.max_points": (1, 2**40),
    "fuse.voxel": (0, math.inf),
}
"""Least and greatest value of each field that has them; checked before any work is done."""

_MOST_BITS = 64
"""Of whole numbers: longer ones neither fit into floats nor into an error of one line."""
_THRESHOLDS = ("min_confidence", "confidence_percentile")
"""Fields of `FuseConfig` of which the first, where it is set, takes the place of the second."""


def run_config(path: Path | None, options: Mapping[str, Any]) -> RunConfig:
    """Return the defaults, changed by the TOML file, changed by the options that are not None.

    The tables of the file are the fields of `RunConfig`: `weights = "embedded"` at the top,
    `size = 512` under `[photos]`.

    Args:
        path: the TOML file, or None.
        options: by their names on the command line, as in `OPTIONS`.

    Raises:
        UsageError: the file cannot be read, names something unknown, or a value has the wrong
            type, is out of range or excludes another; names the value and its place.
    """
    config = RunConfig()
    if path is not None:
        file = _read_toml(path)
        config = _apply(config, file, "", f"in {path}")
        _check_limits(config, f"in {path}")
        _check_exclusive(file.get("fuse", {}), _THRESHOLDS, f"in {path}")
    _check_exclusive(options, tuple(f"--{name.replace('_', '-')}" for name in _THRESHOLDS), "given")
    if options.get("--confidence-percentile") is not None:
        # else a least confidence in the file would win over the option
        config = replace(config, fuse=replace(config.fuse, min_confidence=None))
    for flag, value in options.items():
        if value is not None:
            tree: dict[str, Any] = {}
            *tables, name = OPTIONS[flag].split(".")
            leaf = tree
            for table in tables:
                leaf = leaf.setdefault(table, {})
            leaf[name] = value
            config = _apply(config, tree, "", f"given with {flag}")
            _check_limits(config, f"given with {flag}")
    _check_together(config)
    return config


def default(flag: str) -> str:
    """Return the default of an option as the help shows it."""
    value: Any = RunConfig()
    for name in OPTIONS[flag].split("."):
        value = getattr(value, name)
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. Give a TOML file with --config."
        ) from error
    except (ValueError, RecursionError) as error:  # also too many digits or brackets for Python
        raise UsageError(
            f"{path} is not valid TOML: {error}. Mend it or leave out --config."
        ) from error


def _apply(config: Config, table: Mapping[str, Any], prefix: str, where: str) -> Config:
    """Return `config` with the values of `table`; every key must be a field, of its type."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is not a configuration")
    kinds = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            raise UsageError(
                f"{name!r} {where} is not a setting. Known here: {', '.join(sorted(kinds))}."
            )
        if is_dataclass(kinds[key]):
            if not isinstance(value, Mapping):
                raise UsageError(f"{name!r} {where} must be a table: write [{name}].")
            changes[key] = _apply(getattr(config, key), value, f"{name}.", where)
        else:
            changes[key] = _converted(value, kinds[key], name, where)
    return replace(config, **changes)


def _converted(value: Any, kind: Any, name: str, where: str) -> Any:
    """Return `value` as `kind`, a plain type, a StrEnum, or either with None."""
    choices = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    (plain,) = (choice for choice in choices if choice is not types.NoneType)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise UsageError(f"{name} {where} is a number of {value.bit_length()} bits, far too large.")
    if issubclass(plain, StrEnum):
        if value in [member.value for member in plain]:
            return plain(value)
        wanted = "one of " + ", ".join(plain)
    elif plain is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        wanted = "a finite number"
    elif plain is str and value == "":
        wanted = "a text that is not empty"
    elif isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    else:
        wanted = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[
            plain
        ]
    raise UsageError(f"{name} is {value!r} {where}; it must be {wanted}.")


def _check_limits(config: RunConfig, where: str) -> None:
    for name, value in _leaves(config):
        if value is not None and name in LIMITS:
            low, high = LIMITS[name]
            if not low <= value <= high:
                top = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
                raise UsageError(f"{name} is {value:g} {where}; it must be {top}.")


def _check_exclusive(given: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Check that at most one of the names has a value."""
    both = [f"{name} {given[name]:g}" for name in names if given.get(name) is not None]
    if len(both) > 1:
        raise UsageError(
            f"{' and '.join(both)}, both {where}, exclude each other. Leave one of them out."
        )


def _check_together(config: RunConfig) -> None:
    if config.cameras is None and config.align.cameras_are is not CamerasAre.FIXED:
        raise UsageError(
            f"--cameras-are {config.align.cameras_are} says something of given cameras, but none"
            " are. Give them with --cameras, or leave it out."
        )
    if config.dense and config.refine is False and config.cameras is None:
        raise UsageError(
            "--dense needs exact cameras, but --no-refine leaves them as estimated and --cameras"
            " gives none. Leave --dense or --no-refine out, or give cameras."
        )


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value
