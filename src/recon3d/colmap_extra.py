"""pycolmap, which comes with an extra: found or missed with the line that installs it."""

from types import ModuleType

from recon3d.errors import UsageError
from recon3d.interrupt import signals_held


def require_pycolmap(wanted: str = "--refine") -> ModuleType:
    """Return pycolmap, quiet; `wanted` is what needs it.

    Raises:
        UsageError: it is missing; says how to install it.
    """
    try:
        with signals_held():  # glog inside of it takes SIGTERM and dumps its stack
            import pycolmap
    except ImportError as error:
        raise UsageError(
            f"{wanted} needs pycolmap: pip install 'pycolmap>=4.0', or leave it out."
        ) from error
    # its log goes to stderr, past every handler
    pycolmap.logging.minloglevel = int(pycolmap.logging.Level.FATAL)
    return pycolmap
