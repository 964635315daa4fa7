"""Output files appear whole or not at all: written beside, flushed to the disk, renamed."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from recon3d.errors import ReconError, ResourceError, UsageError

_UNUSABLE = (errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BufferedIOBase]:
    """Open a temporary file that takes the place of `path` when the block ends without a fault.

    Until then, and for ever if the block raises or the process is killed, what was at `path`
    stays as it was. A symbolic link keeps pointing at its file.

    Raises:
        UsageError: no such folder, a path that cannot be; names `path`.
        ResourceError: no space, no permission; names `path`.
    """
    temporary: Path | None = None
    try:
        target = path.resolve()
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
        temporary.unlink(missing_ok=True)  # left behind by a killed process with this id
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def try_folder(folder: Path) -> None:
    """Raise OSError where no file can be made in a folder that is there.

    An attempt also sees read-only disks and quotas, which permission bits do not show.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def not_writable(path: Path, error: OSError) -> ReconError:
    """Return the fault that says why `path` cannot be written.

    It is a UsageError where nothing can ever be written, as in a folder that is missing, else a
    ResourceError.
    """
    reason = error.strerror or type(error).__name__
    # some file systems say that nothing is there where nothing may be written
    if error.errno in _UNUSABLE or (error.errno == errno.ENOENT and not path.parent.is_dir()):
        return UsageError(
            f"{path} cannot be written: {reason}. Choose another path, in a folder that exists."
        )
    return ResourceError(
        f"{path} cannot be written: {reason}. Free some space or choose a folder you may write to."
    )
