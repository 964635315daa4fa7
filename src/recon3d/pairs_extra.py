"""The second step of `auto`: which pairs to compare besides, once the first are predicted."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from recon3d.pairs import connected_components

WEAK_SHARE = 0.5
"""A view is weak if its pairs together have less than this share of the median view's strength."""

Pair = tuple[int, int]


def extra_pairs(
    n_views: int,
    pairs: Sequence[Pair],
    strength: Float[np.ndarray, " pair"],
    similarity: Float[np.ndarray, "view view"] | None,
    budget: int,
) -> list[Pair]:
    """Return untried pairs (i, j), i < j, that would hold the graph better, most urgent first.

    First the groups that no good pair joins are joined; then every bridge (a pair whose loss would
    cut the graph, such as that of a leaf view) gets a second pair across its cut, weakest bridge
    first; then weak views (`WEAK_SHARE`) get further pairs. Among possible pairs the one that
    looks most alike is taken. A graph without weak places gets none, whatever the budget.

    Args:
        n_views: number of views.
        pairs: what was predicted, in any order; none of them is returned.
        strength: how good each prediction is, finite; 0 (or less) where it is of no use.
        similarity: how alike two views look; None prefers photos taken one after the other.
        budget: the most pairs to return.

    Raises:
        ValueError: when a pair names a view that is not there, or shapes do not fit.
    """
    if len(pairs) != len(strength) or not np.isfinite(strength).all():
        raise ValueError(f"{len(pairs)} pairs with {len(strength)} strengths, or not finite")
    connected_components(n_views, pairs)  # checks the indices
    alike = _alike(n_views, similarity)
    good: dict[Pair, float] = {}
    for (i, j), value in zip(pairs, strength, strict=True):
        alike[i, j] = alike[j, i] = -np.inf
        if value > 0 and i != j:
            key = (min(i, j), max(i, j))
            good[key] = max(float(value), good.get(key, 0.0))
    typical = float(np.median(list(good.values()))) if good else 1.0
    added: list[Pair] = []
    for step in (_joining, _across_bridges, _for_weak_views):
        for i, j in step(n_views, good, alike, typical):
            if len(added) == budget:
                return added
            added.append((min(i, j), max(i, j)))
            alike[i, j] = alike[j, i] = -np.inf
        # Not predicted yet, so the weakest of all: a joining pair is a bridge and gets a second.
        good |= {pair: good.get(pair, 0.0) for pair in added}
    return added


def _alike(
    n_views: int, similarity: Float[np.ndarray, "view view"] | None
) -> Float[np.ndarray, "{n_views} {n_views}"]:
    if similarity is None:
        position = np.arange(n_views, dtype=np.float64)
        alike = -np.abs(position[:, None] - position)
    elif similarity.shape == (n_views, n_views):
        alike = similarity.astype(np.float64)
    else:
        raise ValueError(f"a similarity of shape {similarity.shape} for {n_views} views")
    np.fill_diagonal(alike, -np.inf)
    return alike


def _joining(
    n_views: int, good: dict[Pair, float], alike: np.ndarray, typical: float
) -> Iterator[Pair]:
    """Yield the most similar pairs that join all groups to one (Kruskal's spanning tree)."""
    group = np.empty(n_views, dtype=np.int64)
    groups = connected_components(n_views, good)
    for number, members in enumerate(groups):
        group[members] = number
    left = len(groups) - 1
    if left == 0:
        return
    rows, columns = np.nonzero(np.triu(group[:, None] != group) & (alike > -np.inf))
    for k in np.argsort(-alike[rows, columns], kind="stable"):
        i, j = int(rows[k]), int(columns[k])
        if group[i] != group[j]:
            group[group == group[j]] = group[i]
            yield i, j
            left -= 1
        if left == 0:
            return


def _across_bridges(
    n_views: int, good: dict[Pair, float], alike: np.ndarray, typical: float
) -> Iterator[Pair]:
    """Yield one more pair across the cut of every bridge, weakest bridge first."""
    new: list[Pair] = []
    group = np.empty(n_views, dtype=np.int64)
    for number, members in enumerate(connected_components(n_views, good)):
        group[members] = number
    for bridge, side in sorted(bridges(n_views, good), key=lambda item: (good[item[0]], item)):
        inside = np.zeros(n_views, dtype=bool)
        inside[side] = True
        if any(inside[i] != inside[j] for i, j in new):
            continue  # an earlier new pair crosses this cut as well
        outside = np.flatnonzero((group == group[bridge[0]]) & ~inside)
        block = alike[side][:, outside]
        row, column = np.unravel_index(int(block.argmax()), block.shape)
        if block[row, column] > -np.inf:
            new.append((int(side[row]), int(outside[column])))
            yield new[-1]


def _for_weak_views(
    n_views: int, good: dict[Pair, float], alike: np.ndarray, typical: float
) -> Iterator[Pair]:
    """Yield pairs for the view with the least support, until none is weak.

    A new pair counts as a typical one.
    """
    support = np.zeros(n_views)
    for (i, j), value in good.items():
        support[[i, j]] += value if value > 0 else typical
    enough = WEAK_SHARE * float(np.median(support))
    while True:
        view = int(support.argmin())
        if support[view] >= enough:
            return
        other = int(alike[view].argmax())
        if alike[view, other] == -np.inf:
            support[view] = np.inf  # compared with every other already
            continue
        yield view, other
        support[[view, other]] += typical


def bridges(n_views: int, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, list[int]]]:
    """Yield every bridge (i, j), i < j, with the views on its smaller side; each pair comes once.

    Source: Tarjan, "A note on finding the bridges of a graph" (1974): a tree edge of a depth-first
    walk is a bridge if nothing below it leads back above it.
    """
    neighbours: list[list[int]] = [[] for _ in range(n_views)]
    for i, j in pairs:
        neighbours[i].append(j)
        neighbours[j].append(i)
    entered = [-1] * n_views
    order: list[int] = []  # views as they are entered: those below a view follow it
    for root in range(n_views):
        if entered[root] >= 0:
            continue
        first = len(order)
        lowest: dict[int, int] = {}
        parent = {root: -1}
        found: list[tuple[int, int]] = []  # (view below the bridge, end of what is below it)
        stack = [(root, iter(neighbours[root]))]
        entered[root] = lowest[root] = len(order)
        order.append(root)
        while stack:
            view, rest = stack[-1]
            for other in rest:
                if entered[other] < 0:
                    parent[other] = view
                    entered[other] = lowest[other] = len(order)
                    order.append(other)
                    stack.append((other, iter(neighbours[other])))
                    break
                if other != parent[view]:
                    lowest[view] = min(lowest[view], entered[other])
            else:
                stack.pop()
                above = parent[view]
                if above >= 0:
                    lowest[above] = min(lowest[above], lowest[view])
                    if lowest[view] > entered[above]:
                        found.append((view, len(order)))
        for view, end in found:
            below = order[entered[view] : end]
            rest_of_group = order[first : entered[view]] + order[end:]
            smaller = below if len(below) <= len(rest_of_group) else rest_of_group
            yield (min(view, parent[view]), max(view, parent[view])), sorted(smaller)
