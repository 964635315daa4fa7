"""Compiled blocks of the network, where they pay after their own cost: a timed trial decides.

torch.compile joins the many small operations of a block (turning queries, norms, sums) into few. It
takes tens of seconds once, for all blocks of one kind and one shape of batch, so short runs are
better off without.
"""

import logging
import time
from collections.abc import Callable
from subprocess import SubprocessError
from typing import Any, TypeVar

import torch

from recon3d.config import Compile
from recon3d.device import is_out_of_memory, synchronize

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_COST_S = {"cuda": 20.0, "cpu": 40.0}
"""What compiling takes, roughly: 37 s on one processor core, 13 s on the 16 beside an H200."""
_GAIN = {"cuda": 0.2, "cpu": 0.1}
"""The largest share of the time that it may save; what it does save is measured."""
_LEAST_BATCHES = 32
"""Below that nothing pays, and the clock is not looked at: the device would have to be idle."""
_WORTH = 0.97
"""A compiled batch must take less than this share of the time of a plain one to be kept."""


def compiled_if_possible(function: Callable[..., Result]) -> Callable[..., Result]:
    """Return the function compiled, anew for every shape that it is given.

    Where that fails it runs as it is, and a warning says so once.

    Once it was compiled, a failure is not for good: while another thread compiles something, torch
    (2.11 at least) refuses to run what is compiled. What is wrong with the function or its
    arguments, and not with compiling, is raised.
    """
    fused = torch.compile(function, dynamic=False)
    works: bool | None = None

    def call(*given: Any) -> Result:
        nonlocal works
        if works is False:
            return function(*given)
        try:
            result = fused(*given)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            result = function(*given)  # raises what is not the compiler's fault
            reason = _first_line(error)
            if works is None:
                works = False
                logger.warning(
                    "%s cannot be compiled (%s) and is slow therefore", function.__name__, reason
                )
            else:
                logger.debug("%s runs uncompiled for once: %s", function.__name__, reason)
            return result
        works = True
        return result

    return call


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


class Trial:
    """Runs the batches of one shape with plain or compiled blocks, whichever takes less in all.

    The first batch warms up and the second is timed. If those to come would take so long that the
    most compiling could save is worth its cost, the next batch compiles and the one after it is
    timed; the faster way does the rest. Whatever a batch is used for, its result counts.
    """

    def __init__(
        self, mode: Compile, device: torch.device, n_batches: int, batch_size: int
    ) -> None:
        """Decide from the mode and the device whether there is anything to try.

        Where every run must give the same bytes nothing is tried, because a clock decides.
        """
        long = n_batches >= _LEAST_BATCHES and device.type in _GAIN
        wanted = mode is Compile.YES or (mode is Compile.AUTO and long)
        exact = torch.are_deterministic_algorithms_enabled()
        self._steps = ["warm up", "time plain"] if wanted and not exact else []
        self._mode, self._device, self._size = mode, device, batch_size
        self._left = n_batches
        self._plain_s = 0.0
        self.compiled = False
        """Whether batches of the full size now run with compiled blocks."""

    def run(self, n_items: int, compute: Callable[[bool], Result]) -> Result:
        """Return `compute(compiled)` for a batch of so many items.

        A batch of another size would be compiled anew: it runs plain, and takes no part.
        """
        self._left -= 1
        if n_items != self._size:
            return compute(False)
        step = self._steps.pop(0) if self._steps else ""
        if not step.startswith(("time", "compile")):
            return compute(self.compiled)
        began = self._now()
        try:
            result = compute(self.compiled or step == "compile")
        except (RuntimeError, ImportError, OSError, SubprocessError) as error:
            if step != "compile" or is_out_of_memory(error):
                raise
            logger.warning(
                "blocks cannot be compiled (%s); they run as they are", _first_line(error)
            )
            return compute(False)
        self._judge(step, self._now() - began)
        return result

    def _judge(self, step: str, took_s: float) -> None:
        """Take note of how long a batch took, and choose the next step."""
        if step == "time plain":
            self._plain_s = took_s
            kind = self._device.type
            pays = kind in _GAIN and self._left * took_s * _GAIN[kind] > _COST_S[kind]
            if self._left >= 2 and (pays or self._mode is Compile.YES):
                self._steps = ["compile"]
        elif step == "compile":
            logger.debug("compiling the blocks and running a batch took %.1f s", took_s)
            self.compiled = True
            self._steps = ["time compiled"]
        else:
            self.compiled = took_s < _WORTH * self._plain_s
            logger.info(
                "compiled blocks take %.2f of the time of plain ones: %s",
                took_s / self._plain_s,
                "used" if self.compiled else "not used",
            )

    def _now(self) -> float:
        """Return the time when all that was asked of the device is done."""
        synchronize(self._device)
        return time.perf_counter()
