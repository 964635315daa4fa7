"""The pair graph: which photographs the network compares, by position in natural order."""

import re
from collections.abc import Iterable
from pathlib import Path

from recon3d.errors import UsageError

LEGAL_STRATEGIES = (
    "auto, complete, window:K, logwin:K (both also with -noncyclic), oneref:I, file:PATH"
)
AUTO_COMPLETE_VIEWS = 12
"""`auto` compares everything up to this many photos: 66 pairs."""
AUTO_LOGWIN = 4
"""Above that, `auto` compares neighbours at distance 1, 2, 4 and 8: four pairs a photo."""
_MAX_FILE_BYTES = 64 * 1024 * 1024


def pair_graph(strategy: str, n_views: int) -> list[tuple[int, int]]:
    """Return unordered pairs (i, j), i < j, sorted, without duplicates.

    `complete` is every pair; `window:K` each photo with the next K; `logwin:K` with those at
    distances 1, 2, 4, ... 2^(K-1); both wrap around the end unless `-noncyclic` follows.
    `oneref:I` is photo I (from 0) with every other; `file:PATH` is a text file with two indices
    a line, `#` starting a comment. `auto` is `complete` up to 12 photos and `logwin:4` above,
    which is connected because it holds the ring of neighbours.

    Raises:
        UsageError: when the strategy is unknown, or names photos that are not there.
        ValueError: when there are fewer than two views.
    """
    if n_views < 2:
        raise ValueError(f"a pair graph needs at least 2 views, not {n_views}")
    if strategy == "auto":
        strategy = "complete" if n_views <= AUTO_COMPLETE_VIEWS else f"logwin:{AUTO_LOGWIN}"
    if strategy == "complete":
        return [(i, j) for i in range(n_views) for j in range(i + 1, n_views)]
    if strategy.startswith("file:"):
        return _tidy(_read_pairs(Path(strategy.removeprefix("file:")), n_views))
    match = re.fullmatch(r"(window|logwin):([0-9]{1,9})(-noncyclic)?", strategy)
    if match is not None and int(match[2]) >= 1:
        # Further steps repeat: distances are below n, and 2^k modulo n has at most n values.
        steps = range(min(int(match[2]), n_views))
        distances = [k + 1 if match[1] == "window" else 2**k for k in steps]
        return _tidy(_at_distances(distances, n_views, cyclic=match[3] is None))
    match = re.fullmatch(r"oneref:([0-9]{1,9})", strategy)
    if match is not None:
        reference = int(match[1])
        if reference >= n_views:
            raise UsageError(
                f"--pairs {strategy}: there is no photo {reference}."
                f" The {n_views} photos count from 0 to {n_views - 1}."
            )
        return _tidy((reference, other) for other in range(n_views))
    raise UsageError(f"--pairs {strategy} is not a pair strategy. Use one of {LEGAL_STRATEGIES}.")


def connected_components(n_views: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of views that pairs join, largest first, members sorted.

    Groups of equal size are ordered by their first member; a view without pairs is a group.

    Raises:
        ValueError: when a pair names a view that does not exist.
    """
    neighbours: list[list[int]] = [[] for _ in range(n_views)]
    for i, j in pairs:
        if not (0 <= i < n_views and 0 <= j < n_views):
            raise ValueError(f"pair ({i}, {j}) of {n_views} views")
        neighbours[i].append(j)
        neighbours[j].append(i)
    seen: set[int] = set()
    groups: list[list[int]] = []
    for first in range(n_views):
        if first in seen:
            continue
        seen.add(first)
        group = [first]
        for view in group:  # grows while it is walked
            fresh = set(neighbours[view]) - seen
            seen |= fresh
            group.extend(fresh)
        groups.append(sorted(group))
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def _at_distances(distances: list[int], n_views: int, *, cyclic: bool) -> Iterable[tuple[int, int]]:
    for distance in distances:
        for i in range(n_views):
            if cyclic:
                yield i, (i + distance) % n_views
            elif i + distance < n_views:
                yield i, i + distance


def _tidy(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted({(min(i, j), max(i, j)) for i, j in pairs if i != j})


def _read_pairs(path: Path, n_views: int) -> Iterable[tuple[int, int]]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path} is too long for a list of pairs. Give two indices a line.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}). Give a text file of pairs."
        ) from error
    except ValueError as error:  # not text, or a zero byte in the path
        raise UsageError(f"{path} is not a text file. Give two indices a line.") from error
    pairs: list[tuple[int, int]] = []
    for number, line in enumerate(lines, start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = re.fullmatch(r"([0-9]{1,9})(?:\s+|\s*,\s*)([0-9]{1,9})", content)
        i, j = (int(match[1]), int(match[2])) if match is not None else (0, 0)
        if i == j or max(i, j) >= n_views:
            raise UsageError(
                f"{path} line {number}: {content[:40]!r} is not a pair of two different photos."
                f" Give two indices from 0 to {n_views - 1}."
            )
        pairs.append((i, j))
    if not pairs:
        raise UsageError(f"{path} holds no pairs. Give two indices a line.")
    return pairs
