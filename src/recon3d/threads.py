"""How many threads pay: the processors this process may use, and the share of their time it has.

The libraries look at the former alone. In a container that may use 2 of 64 processors' time they
start 64 threads, which wait for one another most of that time. Nor do they know of other programs:
GNU's OpenMP waits busily for milliseconds, in which a thread that another program keeps from
running gets nowhere.
"""

import math
import os

from recon3d.control_groups import HERE, Mounted, processors_granted

_SPINS = "3000"
"""Some ten microseconds, a hundredth of the default: as fast on an idle machine, and more than
twice as fast beside another program that uses all processors."""


def n_processors(mounted: Mounted = HERE) -> int:
    """Return how many processors work for this process at a time, at least 1."""
    allowed, granted = _allowed(), processors_granted(mounted)
    return allowed if granted is None else max(1, min(allowed, math.ceil(granted)))


def limit_threads(mounted: Mounted = HERE) -> None:
    """Have torch, and what else uses OpenMP, start no more threads than the quota is good for.

    And have these not wait busily for long. To be called before those libraries are loaded. Changes
    nothing where the user said how many (OMP_NUM_THREADS) or how to wait (OMP_WAIT_POLICY,
    GOMP_SPINCOUNT); nor the number without a quota: the libraries look at the affinity themselves.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    n_threads = n_processors(mounted)
    if n_threads < _allowed():
        os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))


def _allowed() -> int:
    """Return how many processors this process may use; what torch starts with is no more."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # on macOS and Windows
