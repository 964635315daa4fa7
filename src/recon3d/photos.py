"""From files to photos and views: find, read, decode.

Decoded photos are large, so each lives only inside its worker thread; what is kept is its
`View`. A photo that cannot be used is left out with its reason, and the others go on.
"""

import glob
import hashlib
import logging
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from recon3d.config import PhotoConfig
from recon3d.decode import decode, view_size
from recon3d.errors import InputError, MemoryShortageError, UsageError
from recon3d.progress import Track, silent
from recon3d.repeats import find_repeats
from recon3d.threads import n_processors
from recon3d.types import LeftOut, Photo, View
from recon3d.views import make_view

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif")
"""What counts as a photograph in a folder or behind a pattern, in any case of letters."""

_UNREADABLE = (  # pictures all the same, so that passing over them is worth a word
    *(".gif", ".avif", ".jxl", ".jp2"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
)
_N_NAMED = 5  # names that one line of warning holds
_MOST_THREADS = 4


def find_photos(inputs: Sequence[str]) -> list[tuple[Path, str]]:
    """Return the files behind the inputs with their names, in natural order of their paths.

    A folder gives the photographs directly in it (by extension, without hidden files); a file
    gives itself; text that names neither and holds `*`, `?` or `[` is expanded as a pattern.
    A name is the path relative to the input folder, else the file name; equal names get their
    folder in front. A path given twice counts once. Files are not opened.

    Raises:
        UsageError: when an input is empty text.
        InputError: when an input does not exist or holds no photographs.
    """
    paths = {path.absolute() for text in inputs for path in _expand(text)}
    ordered = sorted(paths, key=lambda path: [_natural_key(part) for part in path.parts])
    names = [path.name for path in ordered]
    for n_parts in (2, 0):  # the folder in front; where that is not enough, the whole path
        shared = Counter(names)
        names = [
            Path(*path.parts[-n_parts:]).as_posix() if shared[name] > 1 else name
            for path, name in zip(ordered, names, strict=True)
        ]
    return list(zip(ordered, names, strict=True))


def read_photo(path: Path, name: str, config: PhotoConfig, *, reduce: bool = False) -> Photo:
    """Return the decoded photo, upright, 8-bit RGB (grey repeated), and where it is opaque.

    Args:
        path: a regular file; its content, not its extension, tells the format.
        name: the name the photo keeps.
        config: limits, and the size of the view.
        reduce: let JPEGs decode at 1/2, 1/4 or 1/8 where a view of `config.size` loses nothing.

    Raises:
        InputError: when the file cannot be read or decoded, or is over a limit; the text is
            the reason alone, without the name.
        MemoryShortageError: when it needs more memory than is free; the text alike.
    """
    data = _read_bytes(path, config.max_bytes)
    found = decode(data, config, reduce=reduce)
    return Photo(
        path=path,
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        rgb=found.rgb,
        width=found.header.width,
        height=found.header.height,
        focal_px=found.header.focal_px,
        opaque=found.opaque,
    )


def photo_reader(
    inputs: Sequence[str], config: PhotoConfig
) -> Callable[[View], UInt8[np.ndarray, "height width 3"]]:
    """Return a function that reads the photo behind a view of `load_views` again, at full size.

    It raises InputError where the photo is no longer what it was, naming it, and
    MemoryShortageError where memory does not suffice.
    """
    paths = {name: path for path, name in find_photos(inputs)}

    def rgb_of(view: View) -> UInt8[np.ndarray, "height width 3"]:
        try:
            if view.name not in paths:
                raise InputError("it is gone")
            photo = read_photo(paths[view.name], view.name, config)
            if photo.sha256 != view.sha256:
                raise InputError("it has other content")
        except InputError as error:
            raise InputError(
                f"{view.name} was changed while it was worked on: {error}."
                " Leave the photos as they are during a run."
            ) from error
        return photo.rgb

    return rgb_of


def load_views(
    inputs: Sequence[str], config: PhotoConfig, *, track: Track = silent
) -> tuple[tuple[View, ...], tuple[LeftOut, ...]]:
    """Return the views of all usable photos in natural order, and those left out with reasons.

    Of files with the same content only the first is used, of those that show the same picture the
    largest. `config.size` None is the size of the embedded weights.

    Raises:
        UsageError: when `config.size` is out of range.
        InputError: when fewer than two different photos are usable.
    """
    size = view_size(config)
    start_s = time.perf_counter()
    found = find_photos(inputs)
    where = inputs[0] if len(inputs) == 1 else f"the {len(inputs)} inputs together"

    def view_of(item: tuple[Path, str]) -> View | LeftOut:
        try:
            photo = read_photo(*item, config, reduce=True)
        except (InputError, MemoryShortageError) as error:
            return LeftOut(name=item[1], reason=str(error))
        return make_view(photo, size, config.patch_size)

    views: dict[str, View] = {}
    left_out: list[LeftOut] = []
    n_threads = config.threads or min(_MOST_THREADS, 2 * n_processors())
    with _quiet_opencv(), ThreadPoolExecutor(n_threads) as pool:
        for done, result in enumerate(pool.map(view_of, found), start=1):
            if isinstance(result, View) and result.sha256 in views:
                twin = views[result.sha256].name
                result = LeftOut(name=result.name, reason=f"same content as {twin}")
            if isinstance(result, View):
                views[result.sha256] = result
            else:
                left_out.append(result)
            track("photos", done, len(found))
    read = list(views.values())
    repeats = find_repeats(read)
    left_out += [
        LeftOut(name=read[n].name, reason=f"same picture as {read[other].name}")
        for n, other in sorted(repeats.items())
    ]
    used = tuple(view for n, view in enumerate(read) if n not in repeats)
    if len(used) < 2 and not left_out:
        names = ", ".join(view.name for view in used) or "none"
        raise InputError(f"{where}: one photograph is not enough ({names}). Give at least 2.")
    if len(used) < 2:
        usable, plural = "only one" if used else "none", "s" if len(found) > 1 else ""
        reasons = "; ".join(f"{out.name}: {out.reason}" for out in left_out[:3])
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        raise InputError(
            f"{where}: of {len(found)} file{plural} {usable} is a usable photograph"
            f" ({reasons}{more}). Give at least 2."
        )
    _mention_unreadable(inputs)
    for entry in left_out:
        logger.warning("left out %s: %s", entry.name, entry.reason)
    logger.info("read %d photos in %.2f s", len(used), time.perf_counter() - start_s)
    return used, tuple(left_out)


def _expand(text: str) -> list[Path]:
    if not text:  # as a path it would mean the current folder
        raise UsageError("an input is empty. Give a folder, files or a pattern of photographs.")
    path = Path(text)
    legal = " ".join(extension.removeprefix(".") for extension in EXTENSIONS)
    try:
        if path.is_dir():
            found = [entry for entry in path.iterdir() if _looks_like_photo(entry)]
            if not found:
                raise InputError(
                    f"{text} holds no photographs ({legal})."
                    " Give a folder that holds at least 2; folders inside it are not searched."
                )
            return found
        if path.exists() or path.is_symlink():
            return [path]
        if glob.has_magic(text):
            found = [Path(match) for match in glob.glob(text, recursive=True)]  # noqa: PTH207
            found = [match for match in found if _looks_like_photo(match)]
            if not found:
                raise InputError(f"{text} matches no photographs ({legal}). Check the pattern.")
            return found
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise InputError(f"{text!r} cannot be read ({error}). Check the path.") from error
    raise InputError(f"{text} does not exist. Give a folder, files or a pattern of photographs.")


def _mention_unreadable(inputs: Sequence[str]) -> None:
    """Warn of pictures in the folders that no photo stands for (raw files often have one)."""
    folders = [Path(text) for text in inputs if Path(text).is_dir()]
    entries = [entry for folder in folders for entry in sorted(folder.iterdir())]
    photos = {entry.with_suffix("") for entry in entries if _looks_like_photo(entry)}
    names = [
        entry.name
        for entry in entries
        if entry.suffix.lower() in _UNREADABLE
        and not entry.name.startswith(".")
        and entry.with_suffix("") not in photos
    ]
    if names:
        shown = ", ".join(repr(name[:80]) for name in names[:_N_NAMED])
        more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
        logger.warning(
            "passed over %d pictures of kinds that cannot be read (%s%s). Convert them to JPEG.",
            len(names),
            shown,
            more,
        )


def _looks_like_photo(path: Path) -> bool:
    # Dot files are not photographs: macOS leaves "._IMG_1.jpg" beside every copied IMG_1.jpg.
    visible = not path.name.startswith(".") and not path.is_dir()
    return visible and path.suffix.lower() in EXTENSIONS


def _natural_key(text: str) -> tuple[list[str | int], str]:
    pieces = re.split(r"([0-9]+)", text.casefold())
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], text


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise InputError("not a regular file")
        if status.st_size > max_bytes:
            raise InputError(f"{status.st_size} bytes, over the limit of {max_bytes}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    if not data:
        raise InputError("empty file")
    return data


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's decoder messages off stderr: the reasons for leaving out say it once."""
    log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved these two functions
    level = log.getLogLevel()
    log.setLogLevel(0)
    try:
        yield
    finally:
        log.setLogLevel(level)
