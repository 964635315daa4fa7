"""A `.pth` file opened without trust: tensors and plain values, nothing in it is executed.

Such a file is a zip archive of a pickle, which names functions to call, and of the tensors' bytes.
The pickle is read as a list of instructions first: it may name what builds tensors, dictionaries
and `argparse.Namespace`, nothing else. Then torch reads it, with the same restriction of its own.
"""

import logging
import pickletools
import zipfile
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from recon3d.errors import WeightsError

logger = logging.getLogger(__name__)

_MAX_ENTRIES = 20_000
_MAX_PICKLE_BYTES = 16 * 1024 * 1024
_MAX_INSTRUCTIONS = 1_000_000
"""Of the pickle; 38 list a tensor, and one alone may make an object of many times its size."""
_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Byte", "Char", "Bool")
_ALLOWED = {
    "argparse Namespace",
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in _STORAGES),
}
_IMPORTS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
"""Instructions of a pickle that look up a function or a class."""


def read_torch_file(path: Path) -> dict[str, object]:
    """Return the dictionary in a file written by torch.save; its tensors are pages of the file.

    Raises:
        WeightsError: unreadable, damaged, compressed, in the format of torch before 1.6, or its
            pickle asks for anything but tensors, plain values and Namespace; names what.
    """
    try:
        _check_archive(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}). Check the path.") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise WeightsError(
            f"{path} is damaged or not written by torch 1.6 or later ({error}). Get it again."
        ) from error
    try:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(  # noqa: TID251  (this is the one place, and restricted)
                path, map_location="cpu", weights_only=True, mmap=True
            )
    except Exception as error:  # a malformed pickle can fail anywhere inside torch's reader
        logger.debug("%s: torch says: %s", path, error)
        raise WeightsError(
            f"{path} is damaged: what it lists are not tensors and plain values, or their data are "
            "not all there. Get it again."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no dictionary of tensors. Give a checkpoint of a model.")
    return {str(key): value for key, value in content.items()}


def as_tensors(values: object, source: str) -> dict[str, Tensor]:
    """Return a state dict, every entry a dense tensor of numbers that its file really holds.

    Raises:
        WeightsError: naming the entry that is not.
    """
    if not isinstance(values, dict) or not values:
        raise WeightsError(f"{source} holds no tensors. Give a checkpoint of a model.")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{source}: {str(name)[:100]!r} is no tensor.")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise WeightsError(f"{source}: {name} is no dense tensor.")
        # a stride of 0 would make a few bytes look like a tensor of any size
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(
                f"{source}: {name} is {tuple(value.shape)} but its data are "
                f"{value.untyped_storage().nbytes()} bytes."
            )
    return dict(values)


def _check_archive(path: Path) -> None:
    """Check the archive's table and its pickle before torch sees the file."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise ValueError(f"{len(entries)} entries")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed entries")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("entries larger than the file")
        pickles = [e for e in entries if e.filename.lower().rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} files data.pkl")
        if pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"data.pkl of {pickles[0].file_size} bytes")
        instructions = archive.read(pickles[0])
    for count, (operation, argument, _) in enumerate(pickletools.genops(instructions)):
        if count == _MAX_INSTRUCTIONS:
            raise ValueError(f"data.pkl of more than {count} instructions")
        if isinstance(argument, int) and argument.bit_length() > 64:
            raise ValueError(f"a number of {argument.bit_length()} bits")
        if operation.name in _IMPORTS and str(argument) not in _ALLOWED:
            asked = str(argument or operation.name)[:100].replace(" ", ".")
            raise WeightsError(
                f"{path} asks for {asked}, which weights do not need, so it may be malicious. "
                "Do not use it unless its author explains why."
            )
