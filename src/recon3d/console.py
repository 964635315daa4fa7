"""What a command writes to stderr: log lines and, on a terminal, one progress bar per stage."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from recon3d.streams import tell

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

logger = logging.getLogger("recon3d")


class Console:
    """A `Track` that draws bars on a terminal and keeps the seconds and counts of each stage.

    Inside its `with` block the package's log goes to stderr: INFO and above by default, WARNING
    and above if `quiet`, everything if `verbose`. Elsewhere than on a terminal no bars are drawn:
    there the log holds one line per stage.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
        self._bars_wanted = not quiet
        self._handler = _StderrHandler(verbose=verbose)
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._before: tuple[int, bool] = (logging.NOTSET, True)
        self._last_s = time.perf_counter()

    def __enter__(self) -> "Console":
        """Attach the log to stderr."""
        self._before = (logger.level, logger.propagate)
        logger.addHandler(self._handler)
        logger.setLevel(self._level)
        if self._bars_wanted and sys.stderr.isatty():
            self._progress = _bars()
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bars and detach the log."""
        if self._progress is not None:
            self._progress.stop()
        logger.removeHandler(self._handler)
        logger.setLevel(self._before[0])

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Book the time since the last report on `stage` and move its bar."""
        now_s = time.perf_counter()
        before = self._done.get(stage, 0)
        begins_again = done < before
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._last_s
        new = done if begins_again else done - before
        self.counts[stage] = self.counts.get(stage, 0) + new
        self._done[stage] = done
        self._last_s = now_s
        if self._progress is None:
            return
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=total)
        elif begins_again:  # a bar that was full would not count the time any more
            self._progress.reset(self._bars[stage])
        self._progress.update(self._bars[stage], completed=done, total=total)

    @property
    def total_s(self) -> float:
        """Seconds since the command began, up to the last report."""
        return sum(self.seconds.values())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a step that reports nothing itself."""
        yield
        self(name, 1, 1)


class _StderrHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is now, so that bars and tests may redirect it."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__()
        self._verbose = verbose

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tell(self.format(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: the bare text, or with level and module if verbose."""
        text = record.getMessage()
        if self._verbose:
            return f"{record.levelname.lower():7} {record.name}: {text}"
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


def _bars() -> "Progress":
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns: tuple[Any, ...] = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        Elapsed(),
    )
    return Progress(*columns, console=RichConsole(stderr=True), transient=True)
