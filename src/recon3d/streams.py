"""Lines to stdout and stderr, whatever became of these: closed, full, or without a reader."""

import contextlib
import os
import sys
from typing import Any

from recon3d.errors import ResourceError


def open_closed_streams() -> None:
    """Let what was closed before the start (`>&-`) lead nowhere.

    Otherwise the next file that is opened would get its number, and with it all that libraries in
    C write to stderr.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def emit(text: str) -> None:
    """Write a line to stdout; a reader that has gone away is no fault.

    Raises:
        ResourceError: it cannot be written, as on a full disk.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _lead_nowhere(sys.stdout)
    except OSError as error:
        _lead_nowhere(sys.stdout)
        raise ResourceError(
            f"standard output cannot be written: {error.strerror}."
            " Free some space or send it elsewhere."
        ) from error


def tell(text: str) -> None:
    """Write a line to stderr; no work is lost where nobody can hear it."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        _lead_nowhere(sys.stderr)


def settle(stream: Any) -> bool:
    """Drop what a text stream could not take, and say whether there was such.

    The interpreter would try once more at its end.
    """
    try:
        stream.flush()
    except OSError:
        _lead_nowhere(stream)
        return True
    return False


def _lead_nowhere(stream: Any) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):  # a stream that a program made up has no number
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
