"""The pair graph: which photographs the network compares, by position in natural order."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from recon3d.errors import UsageError
from recon3d.photo_names import name_lookup

LEGAL_STRATEGIES = (
    "auto, complete, window:K, logwin:K (both also with -noncyclic), oneref:I, retrieval:K,"
    " file:PATH"
)
AUTO_COMPLETE_VIEWS = 12
"""`auto` compares everything up to this many photos: 66 pairs."""
AUTO_RETRIEVAL = 6
"""Above that, `auto` compares every photo with the 6 that look most like it."""
AUTO_LOGWIN = 4
"""In a video, `auto` compares neighbours at distance 1, 2, 4 and 8: four pairs a photo."""
_VIDEO_SHARE, _VIDEO_STEPS = 0.9, 4
"""In a video, this share of the frames that look most like one is at most so many frames away."""
MAX_KEYS = 20
"""Most key views of a retrieval graph; all their pairs are compared: 190."""
_MAX_FILE_BYTES = 64 * 1024 * 1024

Similarity = Float[np.ndarray, "view view"]


def pair_graph(
    strategy: str,
    n_views: int,
    similarity: Similarity | None = None,
    *,
    photos: Mapping[str, int | None] | None = None,
) -> list[tuple[int, int]]:
    """Return unordered pairs (i, j), i < j, sorted, without duplicates.

    `complete` is every pair; `window:K` each photo with the next K; `logwin:K` with those at
    distances 1, 2, 4, ... 2^(K-1); both wrap around the end unless `-noncyclic` follows.
    `oneref:I` is photo I with every other; `retrieval:K` is `retrieval_pairs` with K neighbours and
    about the square root of all views as keys; `file:PATH` is a text file with two photos a line,
    parted by blanks, a tab or a comma, `#` starting a comment. Photos are called by name or by
    number (from 0) in `photos`; pairs in the file with one that is left out are passed over. `auto`
    is `complete` up to 12 photos; above, `logwin:4` for the frames of a video (`is_video`, or no
    similarity is given), else `retrieval:6`.

    Args:
        strategy: as above.
        n_views: at least 2.
        similarity: how alike two views look, larger is more; `needs_similarity` says when.
        photos: every photo that was given, in natural order, with the index of its view, None where
            it was left out; without, photos are called by the indices of their views.

    Raises:
        UsageError: when the strategy is unknown, or names photos that are not there.
        ValueError: when there are fewer than two views, or a needed similarity is missing.
    """
    if n_views < 2:
        raise ValueError(f"a pair graph needs at least 2 views, not {n_views}")
    if strategy == "auto" and n_views <= AUTO_COMPLETE_VIEWS:
        strategy = "complete"
    elif strategy == "auto":
        in_time = similarity is None or is_video(similarity)
        strategy = f"logwin:{AUTO_LOGWIN}" if in_time else f"retrieval:{AUTO_RETRIEVAL}"
    if strategy == "complete":
        return [(i, j) for i in range(n_views) for j in range(i + 1, n_views)]
    photos = {str(n): n for n in range(n_views)} if photos is None else photos
    if strategy.startswith("file:"):
        return _tidy(_read_pairs(strategy.removeprefix("file:"), photos))
    match = re.fullmatch(r"(window|logwin):([0-9]{1,9})(-noncyclic)?", strategy)
    if match is not None and int(match[2]) >= 1:
        # Further steps repeat: distances are below n, and 2^k modulo n has at most n values.
        steps = range(min(int(match[2]), n_views))
        distances = [k + 1 if match[1] == "window" else 2**k for k in steps]
        return _tidy(_at_distances(distances, n_views, cyclic=match[3] is None))
    match = _RETRIEVAL.fullmatch(strategy)
    if match is not None:
        if similarity is None or len(similarity) != n_views:
            raise ValueError(f"{strategy} of {n_views} views needs their similarity")
        return retrieval_pairs(similarity, _n_keys(n_views), int(match[1]))
    if strategy.startswith("oneref:"):
        reference = _reference(strategy, photos)
        return _tidy((reference, other) for other in range(n_views))
    raise UsageError(f"--pairs {strategy} is not a pair strategy. Use one of {LEGAL_STRATEGIES}.")


def needs_similarity(strategy: str, n_views: int) -> bool:
    """Return whether `pair_graph` takes account of a similarity."""
    by_auto = strategy == "auto" and n_views > AUTO_COMPLETE_VIEWS
    return by_auto or _RETRIEVAL.fullmatch(strategy) is not None


def pair_outline(
    strategy: str, n_views: int, *, photos: Mapping[str, int | None] | None = None
) -> list[tuple[int, int]]:
    """Return a graph of at least as many pairs as the strategy gives, without a similarity.

    With K neighbours each, and the second step of `auto`, those are at most (K + 2) n: K n to the
    neighbours, n to the keys, n / 2 among the keys, and n / 2 of the second step.

    Raises:
        UsageError: as `pair_graph`.
    """
    if not needs_similarity(strategy, n_views):
        return pair_graph(strategy, n_views, photos=photos)
    match = _RETRIEVAL.fullmatch(strategy)
    n_neighbours = AUTO_RETRIEVAL if match is None else int(match[1])
    return pair_graph(f"window:{n_neighbours + 2}", n_views)


def is_video(similarity: Similarity) -> bool:
    """Return whether the views that look most alike are those taken just before and after.

    Their cameras have then hardly moved, and pairs further apart in time are needed.
    """
    n_views = len(similarity)
    nearest = _most_alike(similarity.astype(np.float64), AUTO_RETRIEVAL)
    steps = np.abs(nearest - np.arange(n_views)[:, None])
    steps = np.minimum(steps, n_views - steps)  # the end of a loop is near its beginning
    return bool((steps <= _VIDEO_STEPS).mean() >= _VIDEO_SHARE)


def retrieval_pairs(
    similarity: Similarity, n_keys: int, n_neighbours: int
) -> list[tuple[int, int]]:
    """Return the pairs of views that look alike, joined through a few different-looking keys.

    Keys are chosen by farthest-point sampling, the first being the view most like all others, so
    that the pairs do not depend on the order of the views (but for equal similarities, where the
    earlier view wins). All keys are paired with one another, every view with its most similar key
    and with its `n_neighbours` most similar views. The result is connected.

    Args:
        similarity: square, symmetric, finite; its diagonal is ignored.
        n_keys: at least 1.
        n_neighbours: at least 0.

    Raises:
        ValueError: when an argument is not as above.

    Source: Duisterhof et al., MASt3R-SfM (3DV 2025), section 3.2.
    """
    n_views = len(similarity)
    if similarity.shape[1] != n_views or not np.isfinite(similarity).all():
        raise ValueError(f"a similarity of shape {similarity.shape} must be square and finite")
    if n_keys < 1 or n_neighbours < 0:
        raise ValueError(f"{n_keys} keys and {n_neighbours} neighbours")
    alike = similarity.astype(np.float64)
    np.fill_diagonal(alike, -np.inf)
    keys = _farthest_points(alike, min(n_keys, n_views))
    pairs = [(a, b) for a in keys for b in keys]
    nearest_key = np.array(keys)[alike[:, keys].argmax(axis=1)]
    pairs += [(view, int(key)) for view, key in enumerate(nearest_key) if view not in keys]
    nearest = _most_alike(alike, n_neighbours)
    pairs += [(view, int(other)) for view, row in enumerate(nearest) for other in row]
    return _tidy(pairs)


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


_RETRIEVAL = re.compile(r"retrieval:([1-9][0-9]{0,8})")


def _n_keys(n_views: int) -> int:
    return min(MAX_KEYS, math.isqrt(n_views))


def _most_alike(alike: Similarity, count: int) -> Int[np.ndarray, "view _"]:
    """Return the views most like each, at most all others; of equal ones the earlier first."""
    others = np.where(np.eye(len(alike), dtype=bool), -np.inf, alike)
    return np.argsort(-others, axis=1, kind="stable")[:, : min(count, len(alike) - 1)]


def _farthest_points(alike: Similarity, n_keys: int) -> list[int]:
    """Return views each of which is least like the most similar of those before it."""
    n_views = len(alike)
    off_diagonal = np.where(np.eye(n_views, dtype=bool), 0.0, alike)
    keys = [int(off_diagonal.sum(axis=1).argmax())]
    closest = alike[keys[0]].copy()
    while len(keys) < n_keys:
        closest[keys] = np.inf
        keys.append(int(closest.argmin()))
        closest = np.maximum(closest, alike[keys[-1]])
    return keys


def _at_distances(distances: list[int], n_views: int, *, cyclic: bool) -> Iterable[tuple[int, int]]:
    for distance in distances:
        for i in range(n_views):
            if cyclic:
                yield i, (i + distance) % n_views
            elif i + distance < n_views:
                yield i, i + distance


def _tidy(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted({(min(i, j), max(i, j)) for i, j in pairs if i != j})


def _reference(strategy: str, photos: Mapping[str, int | None]) -> int:
    """Return the index of the view that `oneref:` names."""
    text = strategy.removeprefix("oneref:")
    found = name_lookup(list(photos))(text)
    if len(found) != 1:
        problem = f"{len(found)} photos are called" if found else "there is no photo"
        raise UsageError(
            f"--pairs {strategy}: {problem} {text[:80]}. The {len(photos)} photos count from 0 to"
            f" {len(photos) - 1}. Use one of {LEGAL_STRATEGIES}."
        )
    view = photos[found[0]]
    if view is None:
        raise UsageError(f"--pairs {strategy}: {found[0]!r} was left out. Choose another photo.")
    return view


def _read_pairs(place: str, photos: Mapping[str, int | None]) -> Iterable[tuple[int, int]]:
    how = "Give two photos a line, by name or by number"
    if not place:
        raise UsageError(f"--pairs file: names no file. {how}, in a text file.")
    path = Path(place)
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path} is too long for a list of pairs. {how}.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}). Give a text file of pairs."
        ) from error
    except ValueError as error:  # not text, or a zero byte in the path
        raise UsageError(f"{path} is not a text file. {how}.") from error
    lookup = name_lookup(list(photos))
    pairs: list[tuple[int, int]] = []
    n_read = 0
    for number, line in enumerate(lines, start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        # names may hold blanks where something else parts them
        words = (
            re.split(r"\s*[,\t]\s*", content) if re.search(r"[,\t]", content) else content.split()
        )
        meant = [lookup(word) for word in words]
        if [len(names) for names in meant] != [1, 1] or meant[0] == meant[1]:
            raise UsageError(
                f"{path} line {number}: {content[:80]!r} is not a pair of two different photos."
                f" {how} from 0 to {len(photos) - 1}."
            )
        n_read += 1
        i, j = (photos[name] for (name,) in meant)
        if i is not None and j is not None:
            pairs.append((i, j))
    if not pairs:
        among = " of photos that can be used" if n_read else ""
        raise UsageError(f"{path} holds no pairs{among}. {how}.")
    return pairs
