"""What published checkpoints say about their network -> ModelConfig or CrocoConfig.

They carry the keyword arguments of a constructor: as text in a `.pth` of DUSt3R or MASt3R, as JSON
in a hub folder, as a dictionary in a CroCo file. The text is parsed, never evaluated. Numbers of
channels come from the shapes of the tensors, because the arguments do not name them all.
"""

import ast
import re
from collections.abc import Mapping
from math import inf
from typing import Any

from recon3d.config import CrocoConfig, HeadType, ModelConfig, PositionType
from recon3d.errors import WeightsError
from recon3d.model_config import check_sizes, config_from_dict, config_to_dict

Shapes = Mapping[str, tuple[int, ...]]

_CONSTRUCTORS = ("AsymmetricCroCo3DStereo", "AsymmetricMASt3R")
_MAX_TEXT = 8192
_MAX_VALUES, _MAX_VALUE_TEXT = 16, 200
"""Elements of an argument, and characters of a text in it."""
_HEAD_CHANNELS = 64
"""Channels of one attention head in every published two-view network."""
_NAMES = {
    "patch_size": "patch_size",
    "enc_embed_dim": "enc_dim",
    "enc_depth": "enc_depth",
    "enc_num_heads": "enc_heads",
    "dec_embed_dim": "dec_dim",
    "dec_depth": "dec_depth",
    "dec_num_heads": "dec_heads",
    "mlp_ratio": "mlp_ratio",
}
"""Their names of the sizes, and ours."""
_MODES = {
    "depth_mode": ("exp", -inf, inf),
    "conf_mode": ("exp", 1, inf),
    "desc_conf_mode": ("exp", 0, inf),
    "two_confs": True,
    "norm_im2_in_dec": True,
}
"""Arguments that change the arithmetic, with the one value that all published weights have."""
_IGNORED = {"landscape_only", "freeze", "patch_embed_cls", "desc_mode", "mask_ratio"}
"""Arguments of training, and descriptors of length 1, which every descriptor has."""


def parse_constructor(text: str, source: str) -> dict[str, Any]:
    """Return the keyword arguments of a constructor call given as text; all must be literals.

    Numbers, texts, booleans, None, `inf`, tuples and lists of these are literals; nothing is
    evaluated.

    Raises:
        WeightsError: another constructor, a positional argument or anything that is no literal.
    """
    fault = f"{source}: its model is described by {text[:60]!r}"
    if len(text) > _MAX_TEXT:
        raise WeightsError(f"{fault}..., longer than {_MAX_TEXT} characters.")
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise WeightsError(f"{fault}, which is no constructor call.") from error
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args):
        raise WeightsError(f"{fault}, which is no call with named arguments only.")
    if call.func.id not in _CONSTRUCTORS:
        raise WeightsError(f"{fault}, none of {', '.join(_CONSTRUCTORS)}.")
    options: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in options:
            raise WeightsError(f"{fault} with ** or an argument given twice.")
        options[keyword.arg] = _literal(keyword.value, f"{source}: {keyword.arg}")
    return options


def _literal(node: ast.expr, what: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Name) and node.id == "inf":
        return inf
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand, what)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(element, what) for element in node.elts)
    raise WeightsError(f"{what} is {ast.unparse(node)[:60]!r}, not a plain value.")


def two_view_config(
    shapes: Shapes, options: Mapping[str, Any], name: str, source: str
) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return the config of a DUSt3R or MASt3R checkpoint, and what had to be assumed.

    Args:
        shapes: of all tensors, by name.
        options: the arguments of its constructor, as far as they are known.
        name: for the config.
        source: for error messages.

    Raises:
        WeightsError: an argument with a value or a name that recon3d does not know, a tensor that
            is missing or has another rank, or a size out of bounds.
    """
    _check_options(options, source)
    output_mode = str(options.get("output_mode", "pts3d"))
    if not re.fullmatch(r"pts3d(\+desc\d{1,3})?", output_mode):
        raise WeightsError(f"{source}: output_mode is {output_mode!r}, not pts3d or pts3d+descN.")
    values = _backbone_from_shapes(shapes, source) | _head_from_shapes(shapes, source)
    values |= _named_sizes(options)
    notes = []
    for part in ("enc", "dec"):
        if f"{part}_num_heads" not in options:
            values[f"{part}_heads"] = max(1, values[f"{part}_dim"] // _HEAD_CHANNELS)
            notes.append(f"{part}oder heads taken to be {_HEAD_CHANNELS} channels wide")
    values["image_size"] = _image_size(options, source)
    if "img_size" not in options:
        notes.append(f"training size taken to be {values['image_size']} pixels")
    if "head_type" in options:
        values["head"] = options["head_type"]
    position, values["rope_base"] = _position(options, source)
    if position is not PositionType.ROPE:
        raise WeightsError(f"{source}: pos_embed is cosine, which two-view networks do not have.")
    default = config_to_dict(ModelConfig(name=name[:100]))
    return config_from_dict(default | values, source), tuple(notes)


def croco_config(options: Mapping[str, Any], name: str, source: str) -> CrocoConfig:
    """Return the config of a CroCo checkpoint from its `croco_kwargs`.

    Raises:
        WeightsError: a size that is missing or out of bounds, or an argument with a value or a
            name that recon3d does not know.
    """
    _check_options(options, source)
    values: dict[str, Any] = {"patch_size": 16, "mlp_ratio": 4} | _named_sizes(options)
    for theirs, ours in _NAMES.items():
        if ours not in values:
            raise WeightsError(f"{source}: its croco_kwargs lack {theirs!r}.")
    values["image_size"] = _image_size(options, source)
    check_sizes(values, source)
    position, rope_base = _position(options, source)
    mask_ratio = options.get("mask_ratio", CrocoConfig.mask_ratio)
    if not isinstance(mask_ratio, float) or not 0 < mask_ratio < 1:
        raise WeightsError(f"{source}: mask_ratio is {mask_ratio!r}, not between 0 and 1.")
    return CrocoConfig(
        name=name[:100],
        position=position,
        rope_base=rope_base,
        mask_ratio=mask_ratio,
        imagenet_input=True,
        **values,
    )


def _check_options(options: Mapping[str, Any], source: str) -> None:
    known = {*_NAMES, *_MODES, *_IGNORED, "img_size", "head_type", "output_mode", "pos_embed"}
    for key, value in options.items():
        if key not in known:
            raise WeightsError(f"{source}: its network has the unknown option {str(key)[:60]!r}.")
        if not _is_plain(value):
            raise WeightsError(f"{source}: {key} is no plain value. Get the weights again.")
        given = tuple(value) if isinstance(value, list) else value
        if key in _MODES and given != _MODES[key]:
            raise WeightsError(f"{source}: {key} is {value!r}, but only {_MODES[key]!r} is known.")


def _is_plain(value: object) -> bool:
    """Return whether a value may be compared and shown: a short literal, or a few of them."""
    literals = value if isinstance(value, tuple | list) else (value,)
    return len(literals) <= _MAX_VALUES and all(
        one is None
        or isinstance(one, float)
        or (isinstance(one, int) and one.bit_length() <= 64)  # Python shows none of 15,000 bits
        or (isinstance(one, str) and len(one) <= _MAX_VALUE_TEXT)
        for one in literals
    )


def _named_sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: options[theirs] for theirs, ours in _NAMES.items() if theirs in options}


def _image_size(options: Mapping[str, Any], source: str) -> int:
    """Return the long edge; 512 where nothing is said."""
    size = options.get("img_size", 512)
    sides = size if isinstance(size, tuple | list) else (size,)
    if not 1 <= len(sides) <= 2 or not all(type(side) is int for side in sides):
        raise WeightsError(f"{source}: img_size is {size!r}, not one or two whole numbers.")
    return max(sides)


def _position(options: Mapping[str, Any], source: str) -> tuple[PositionType, float]:
    text = str(options.get("pos_embed", "RoPE100"))
    if text == "cosine":
        return PositionType.COSINE, CrocoConfig.rope_base
    match = re.fullmatch(r"RoPE(\d{1,6}(?:\.\d{1,3})?)", text)
    if match is None or not 1 < float(match[1]) <= 1e6:
        raise WeightsError(f"{source}: pos_embed is {text[:60]!r}, not RoPE with its base.")
    return PositionType.ROPE, float(match[1])


def _backbone_from_shapes(shapes: Shapes, source: str) -> dict[str, Any]:
    enc_dim, _, patch_size, _ = _shape(shapes, "patch_embed.proj.weight", 4, source)
    dec_dim, _ = _shape(shapes, "decoder_embed.weight", 2, source)
    hidden, _ = _shape(shapes, "enc_blocks.0.mlp.fc1.weight", 2, source)
    return {
        "patch_size": patch_size,
        "enc_dim": enc_dim,
        "enc_depth": _count(shapes, "enc_blocks"),
        "dec_dim": dec_dim,
        "dec_depth": _count(shapes, "dec_blocks"),
        "mlp_ratio": hidden // max(1, enc_dim),
    }


def _head_from_shapes(shapes: Shapes, source: str) -> dict[str, Any]:
    prefix = "downstream_head1"
    if not any(name.startswith(f"{prefix}.dpt.") for name in shapes):
        return {"head": HeadType.LINEAR}

    def channels(name: str) -> int:
        return _shape(shapes, f"{prefix}.dpt.{name}.weight", 4, source)[0]

    values: dict[str, Any] = {
        "head": HeadType.DPT,
        "dpt_layer_dims": [channels(f"act_postprocess.{level}.0") for level in range(4)],
        "dpt_feature_dim": channels("scratch.refinenet1.out_conv"),
        "dpt_last_dim": channels("head.2"),
    }
    if any(name.startswith(f"{prefix}.head_local_features.") for name in shapes):
        out, _ = _shape(shapes, f"{prefix}.head_local_features.fc2.weight", 2, source)
        patch_size = _shape(shapes, "patch_embed.proj.weight", 4, source)[2]
        values["head"] = HeadType.CATMLP_DPT
        values["descriptor_dim"] = out // max(1, patch_size) ** 2 - 1
    return values


def _shape(shapes: Shapes, name: str, rank: int, source: str) -> tuple[int, ...]:
    what = "Give a checkpoint of DUSt3R, MASt3R or CroCo, or one saved by recon3d."
    if name not in shapes:
        raise WeightsError(f"{source} lacks the tensor {name}. {what}")
    if len(shapes[name]) != rank:
        raise WeightsError(f"{source}: {name} is {shapes[name]}, not of {rank} axes. {what}")
    return shapes[name]


def _count(shapes: Shapes, group: str) -> int:
    """Return how many blocks of a group the names speak of."""
    pattern = re.compile(rf"{group}\.(\d{{1,4}})\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})
