"""Ctrl-C and SIGTERM: both end the program in order, or are a wish to end soon."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
def sigterm_kept() -> Iterator[None]:
    """Undo what the block does to SIGTERM behind Python's back, as a library in C may."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if _may_handle() and before is not None:
        signal.signal(signal.SIGTERM, before)


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
