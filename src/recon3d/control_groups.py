"""What Linux lets this process have: memory and processor time of its control groups.

Containers, batch systems and systemd bound their processes so. A bound holds for all groups below
it, so that the tightest one on the way from the group of the process to the root counts. What
cannot be read bounds nothing.

Source: Linux kernel documentation, "Control Group v2" and "cgroup-v1: Memory Resource Controller".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Mounted:
    """Where the groups of this process are listed, and where their files are."""

    groups: Path = Path("/proc/self/cgroup")
    root: Path = Path("/sys/fs/cgroup")


HERE = Mounted()
"""Where a system has them."""


def memory_left_bytes(mounted: Mounted = HERE) -> int | None:
    """Return the memory that this process may still take; None where nothing bounds it."""
    left = [
        _memory_left(folder, names)
        for folder in _folders(mounted, "memory")
        for names in (
            ("memory.max", "memory.current", ""),  # version 2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        )
    ]
    return min((value for value in left if value is not None), default=None)


def processors_granted(mounted: Mounted = HERE) -> float | None:
    """Return how many processors' time this process may take; None where nothing bounds it."""
    granted = [
        _processors(words)
        for folder in _folders(mounted, "cpu")
        for words in (
            _text(folder / "cpu.max").split(),  # version 2
            [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")],
        )
    ]
    return min((value for value in granted if value is not None), default=None)


def _folders(mounted: Mounted, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups of both versions, and of all groups above.

    In a container the list may name groups that lie outside of what it sees; its own is the root.
    """
    seen = {mounted.root: "/", mounted.root / controller: "/"}
    for line in _text(mounted.groups).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            seen[mounted.root] = path
        elif controller in controllers.split(","):
            seen[mounted.root / controller] = path
    for root, path in seen.items():
        folder = root / path.strip("/")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(root))


def _memory_left(folder: Path, names: tuple[str, str, str]) -> int | None:
    limit, used = (_text(folder / name).strip() for name in names[:2])
    if not (limit.isdecimal() and used.isdecimal()):  # "max": no limit
        return None
    parts = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
    # files that were read count as used, but give way to programs
    cached = sum(int(parts.get(f"{names[2]}{name}_file", 0)) for name in ("active", "inactive"))
    return max(0, int(limit) - int(used) + cached)


def _processors(words: list[str]) -> float | None:
    """Return a quota over its period, both in microseconds; "max" or -1 is no quota."""
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
