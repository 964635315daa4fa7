"""Ctrl-C and SIGTERM: both end the program in order, or are a wish to end soon."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HAS_MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows


@contextlib.contextmanager
def sigterm_exits(code: int) -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit(code), so that half-written files are removed.

    Where it is ignored or heard by others already, and in other threads than the main one, nothing
    changes.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(code)

    if not _may_handle() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the block ends, and then act as ever.

    A library in C that is imported within may take them for itself, or for a fault of its own.
    Where they are not Python's to handle, and in other threads than the main one, nothing changes.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if not _may_handle() or None in before.values():
        yield
        return
    heard: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: heard.append(number))
    # the kernel then keeps them, whoever handles them by now
    old = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if _HAS_MASKS else None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if old is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
        if heard:  # another thread was given it
            signal.raise_signal(heard[0])


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


class Interrupt:
    """Within its block the first Ctrl-C or SIGTERM only sets `asked`; a second acts as ever."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        """Listen; in other threads than the main one, which hear no signals, do nothing."""
        if _may_handle():
            self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Handle signals as before."""
        self._restore()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
