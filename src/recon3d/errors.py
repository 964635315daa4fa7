"""User faults, one class per exit code; raised in the library, printed once by the command line."""

from typing import Any


class ReconError(Exception):
    """A fault the user can mend: the text says what is wrong, the value, and what to do."""

    exit_code = 1


class UsageError(ReconError):
    """An option, an argument or an output path that cannot be used as given."""

    exit_code = 2


class DivergedError(UsageError, FloatingPointError):
    """A training whose gradients or weights are no longer finite."""

    def __init__(self, what: str) -> None:
        """Say what is not finite, and what to do."""
        super().__init__(f"the training diverged: {what}. Lower --learning-rate.")


class InputError(ReconError):
    """No usable input: fewer than two photographs, or none that can be read."""

    exit_code = 3


class ReconstructionError(ReconError):
    """The photographs could be read but not reconstructed."""

    exit_code = 4


class DisconnectedError(ReconstructionError):
    """No chain of confident pairs joins the photographs.

    `edges` is what is known of the pairs (`types.EdgeVerdict`).
    """

    edges: tuple[Any, ...] = ()


class ResourceError(ReconError):
    """Memory, disk space or write permission is missing."""

    exit_code = 6


class MemoryShortageError(ResourceError):
    """A step of the work does not fit into memory, even in its smallest pieces."""


class WeightsError(ReconError):
    """Weights are missing, damaged or of an unknown layout."""

    exit_code = 7


EXIT_PARTIAL = 5
"""Exit code of a run that finished but left some photographs or scenes out."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C."""
EXIT_TERMINATED = 143
"""Exit code after SIGTERM, as shells and containers know it."""
