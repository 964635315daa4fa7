"""Where the network runs and in which arithmetic, and what running out of memory looks like."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from recon3d.config import Precision
from recon3d.errors import MemoryShortageError, UsageError

Result = TypeVar("Result")


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: "auto" (best at hand), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        UsageError: an unknown name, or a device that this machine or this torch cannot use.
    """
    if name == "auto":
        best = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else best
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"the device {name!r} is unknown. Use auto, cpu, cuda, cuda:1 or mps.")
    try:
        # an attempt also sees missing drivers, wrong indices and GPUs this torch has no code for
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).strip().split("\n")[0].rstrip(".")
        if device.type == "mps" and not torch.backends.mps.is_available():
            # torch lists all backends that it has instead
            reason = "no Apple GPU, or a torch without support for it"
        raise UsageError(
            f"the device {name!r} cannot be used: {reason}. Use --device auto or cpu."
        ) from error
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type the network computes in on `device`.

    AUTO is bf16 on CUDA devices and processors with bf16 arithmetic, fp16 on mps, else fp32.

    Raises:
        UsageError: fp16 on the CPU, which has no fast fp16 arithmetic.
    """
    if precision is Precision.FP16 and device.type == "cpu":
        raise UsageError("--precision fp16 does not work on the CPU. Use auto, bf16 or fp32.")
    named = {
        Precision.FP32: torch.float32,
        Precision.BF16: torch.bfloat16,
        Precision.FP16: torch.float16,
    }
    if precision is not Precision.AUTO:
        return named[precision]
    if device.type == "mps":
        return torch.float16
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


def unless_out_of_memory(compute: Callable[[], Result]) -> Result | None:
    """Return what `compute` returns, or None when memory ran out.

    The error, and with it the frames that hold the memory, is gone when this returns.
    """
    try:
        return compute()
    except (RuntimeError, MemoryError, MemoryShortageError) as error:
        if is_out_of_memory(error):
            return None
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | MemoryShortageError):
        return True
    # the CPU and mps allocators raise a bare RuntimeError
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough mem")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def synchronize(device: torch.device) -> None:
    """Wait until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def fp32_products(*, exact: bool) -> Iterator[None]:
    """Within the block CUDA multiplies fp32 numbers as they are, or rounded to 10 bits (TF32).

    Rounded is several times as fast, and by far exact enough beside 16-bit arithmetic. Without
    this, torch rounds in convolutions only, also where fp32 was asked for.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def cpu_has_bf16() -> bool:
    """Say whether this processor has AMX or AVX512-bf16, as far as this torch can tell."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
