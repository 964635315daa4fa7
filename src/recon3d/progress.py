"""The one hook through which long loops report how far they are."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Track(Protocol):
    """Called by a loop after each step: `track("pairs", 3, 20)` means 3 of 20 pairs are done."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps of `stage` are finished."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing: the default of every loop."""
