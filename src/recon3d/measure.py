"""What a piece of work costs: seconds, and the most memory that was in use at any moment."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(kw_only=True, slots=True)
class Cost:
    """Filled in when the block of `measured` ends.

    `peak_memory_mb` (10^6 bytes) is that of the whole process, with all it had loaded before; on
    systems other than Linux it is the peak since the process began, nan where unknown.
    `peak_gpu_mb` is what torch had in use on the GPU, nan without one.
    """

    seconds: float = math.nan
    peak_memory_mb: float = math.nan
    peak_gpu_mb: float = math.nan


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Measure the block; the cost is there after it, also when it ended in a fault."""
    cost = Cost()
    has_gpu = torch.cuda.is_available()
    with contextlib.suppress(OSError):
        _RESET.write_text("5")  # the peak starts again from what is in use now: proc(5)
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    began_s = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began_s
        cost.peak_memory_mb = _peak_bytes() / 1e6
        if has_gpu:
            cost.peak_gpu_mb = torch.cuda.max_memory_allocated() / 1e6


def _peak_bytes() -> float:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
