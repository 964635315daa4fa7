"""Scene and point cloud -> files; the ending of the output decides the format."""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from recon3d.cameras import write_cameras
from recon3d.errors import UsageError
from recon3d.files import atomic_write, not_writable, try_folder
from recon3d.glb import write_glb
from recon3d.ply import write_ply
from recon3d.scene_file import load_scene, save_scene, write_scene
from recon3d.types import PointCloud, Scene

__all__ = ["FOLDER_FILES", "WRITERS", "check_outputs", "export", "load_scene", "save_scene"]

FOLDER_FILES = ("scene.ply", "scene.glb", "scene.npz", "cameras.json")
"""What an output that is a folder (`out/`) receives."""


_OF_CLOUDS = (".ply", ".glb")
WRITERS: dict[str, Callable[[Scene, Any, BufferedIOBase], object]] = {
    ".ply": lambda scene, cloud, file: write_ply(
        cloud, file, in_first_camera=scene.in_first_camera, units=scene.units
    ),
    ".glb": lambda scene, cloud, file: write_glb(
        cloud, file, in_first_camera=scene.in_first_camera, units=scene.units
    ),
    ".npz": lambda scene, _, file: write_scene(scene, file),
    ".json": lambda scene, _, file: write_cameras(scene, file),
}


def export(
    scene: Scene, cloud: PointCloud | None, output: str, *, overwrite: bool = False
) -> tuple[Path, ...]:
    """Write `output`: a .ply, .glb, .npz or .json (cameras) file, or a folder with all of them.

    Nothing appears, and nothing old is touched, unless every file could be written whole. Without a
    cloud there is no .ply and no .glb.

    Returns:
        The files that were written.

    Raises:
        UsageError: as `check_outputs`.
        ResourceError: no space or no permission; names the path.
    """
    check_outputs([output], overwrite=overwrite)
    targets = [
        target
        for target in _targets(output)
        if cloud is not None or target.suffix.lower() not in _OF_CLOUDS
    ]
    try:
        if _is_folder(output):
            Path(output).mkdir(exist_ok=True)
    except OSError as error:
        raise not_writable(Path(output), error) from error
    with contextlib.ExitStack() as stack:  # all written, then all renamed
        for target in targets:
            file = stack.enter_context(atomic_write(target))
            WRITERS[target.suffix.lower()](scene, cloud, file)
    return tuple(targets)


def wants_clouds(outputs: Sequence[str]) -> bool:
    """Say whether any of the outputs holds a point cloud."""
    return any(file.suffix.lower() in _OF_CLOUDS for one in outputs for file in _targets(one))


def numbered(output: str, number: int) -> str:
    """Return the output of group `number`: scene.ply, scene-2.ply, ...; out/, out-2/, ..."""
    if number == 1:
        return output
    if _is_folder(output):
        folder = Path(output)
        return f"{folder.with_name(f'{folder.name}-{number}')}{os.sep}"
    path = Path(output)
    return str(path.with_name(f"{path.stem}-{number}{path.suffix}"))


def check_groups(outputs: Sequence[str], *, overwrite: bool, matches: Sequence[str] = ()) -> None:
    """Check as `check_outputs` that no group's output is there already or written twice."""
    files = [target for output in outputs for target in _targets(output)]
    files += [Path(file) for file in matches]
    for output in outputs:
        if Path(output).name in ("", ".."):
            raise UsageError(
                f"the output {output!r} has no name that other groups could be numbered by. Give"
                " the folder by its name."
            )
        for file in files:
            if _is_of_a_group(file, output):
                raise UsageError(
                    f"{file} would be written twice, once for a group of {output}."
                    " Choose another name."
                )
        here = Path(output)
        pattern = f"{here.name}-*" if _is_folder(output) else f"{here.stem}-*{here.suffix}"
        for old in sorted(here.parent.glob(pattern)) if here.parent.is_dir() else []:
            number = old.name.removesuffix(here.suffix).rpartition("-")[2]
            if number.isdecimal() and not overwrite:
                raise UsageError(f"{old} exists; add --overwrite or choose another name.")


def check_outputs(outputs: Sequence[str], *, overwrite: bool, matches: Sequence[str] = ()) -> None:
    """Check, before any work, that every output can be written, beside the files of `matches`.

    Raises:
        UsageError: an unknown ending, an existing file without `overwrite`, two equal outputs, a
            folder that is missing.
        ResourceError: the folder is not writable.
    """
    seen: set[Path] = set()
    for output in outputs:
        try:
            for target in _targets(output):
                _check_target(target, overwrite=overwrite)
                _check_once(target, seen)
            _check_folder(Path(output) if _is_folder(output) else Path(output).parent, output)
        except OSError as error:
            raise not_writable(Path(output), error) from error
    for file in matches:
        _check_once(Path(file), seen)


def _is_folder(output: str) -> bool:
    if output.endswith(tuple(filter(None, (os.sep, os.altsep)))):
        return True
    return bool(output) and Path(output).suffix.lower() not in WRITERS and Path(output).is_dir()


def _targets(output: str) -> list[Path]:
    """Return the files that `output` stands for; raises UsageError on an unknown ending."""
    path = Path(output)
    if _is_folder(output):
        return [path / name for name in FOLDER_FILES]
    if path.suffix.lower() not in WRITERS:
        raise UsageError(
            f"the output {output!r} has no known ending. End it with {', '.join(WRITERS)} "
            "(cameras), or with / for a folder that receives all of them."
        )
    return [path]


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.is_dir():
        raise UsageError(f"{target} is a folder. Choose another name or end it with /.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; add --overwrite or choose another name.")


def _check_once(file: Path, seen: set[Path]) -> None:
    place = file.resolve()
    if place in seen:
        raise UsageError(f"{file} would be written twice. Give each output a name of its own.")
    seen.add(place)


def _is_of_a_group(file: Path, output: str) -> bool:
    """Say whether `file` is what a group beyond the first writes for `output`."""
    here, there = Path(output), file
    if _is_folder(output):
        if file.name not in FOLDER_FILES:
            return False
        there = file.parent
    pattern = f"{re.escape(here.stem)}-[0-9]+{re.escape(here.suffix)}"
    same_folder = here.parent.resolve() == there.parent.resolve()
    return same_folder and re.fullmatch(pattern, there.name) is not None


def _check_folder(folder: Path, output: str) -> None:
    """Check that a file can be made in `folder`, or `folder` itself where `output` names it."""
    if _is_folder(output) and not folder.exists():
        folder = folder.parent
    if not folder.exists():
        raise UsageError(
            f"{output} cannot be written: the folder {folder} does not exist. Create it first."
        )
    if not folder.is_dir():
        raise UsageError(f"{output} cannot be written: {folder} is a file, not a folder.")
    try_folder(folder)
