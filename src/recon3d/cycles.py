"""Which relative rotations contradict the cycles they are part of."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.sparse.linalg import spsolve

CYCLE_LIMIT_RAD = math.radians(20.0)
"""Around a triangle the three rotations must cancel to within this angle."""
LEAST_SHARE = 0.05
"""A pair is confirmed if this share of its triangles (by weight) agrees. Among 30 % nonsense half
the triangles of a correct pair do, 0.7 squared; of nonsense 0.2 %, the share of random rotations
below 20 degrees."""

_MAX_WEDGES = 500_000  # looked at together: bounds the memory, about 200 bytes each
_ROUNDS = 5
_SOURCES = 256  # rows of hop counts at a time

Edges = Int[np.ndarray, "edge 2"]
Rotations = Float[np.ndarray, "edge 3 3"]


def cycle_outliers(
    n_views: int,
    edges: Edges,
    rotation_j2i: Rotations,
    weight: Float[np.ndarray, " edge"],
    *,
    limit_rad: float = CYCLE_LIMIT_RAD,
) -> Bool[np.ndarray, " edge"]:
    """Return which edges contradict the others; those that no cycle can test are kept.

    First the triangles vote: an edge is confirmed if enough of them close. Then the rotations of
    the views that confirmed edges join are averaged, and every edge within such a group must fit
    them: to within `limit_rad`, times the square root of half the number of confirmed steps
    between its ends, because errors add up along the way. So a ring without triangles loses
    nothing, and neither does the one edge that closes a long chain with some drift.

    Time grows with the number of triangles, so linearly with the edges where degrees are bounded.

    Args:
        n_views: number of views.
        edges: (i, j) each; pairs may occur more than once, in either order.
        rotation_j2i: of each edge.
        weight: trust in each edge, not negative.
        limit_rad: largest angle that is left over around a triangle of correct edges.

    Raises:
        ValueError: when shapes, indices or weights are not as above.

    Source: Zach et al., "Disambiguating visual relations using loop constraints" (CVPR 2010), for
    the test; Martinec and Pajdla (CVPR 2007), for the linear averaging.
    """
    _check(n_views, edges, rotation_j2i, weight)
    outlier = np.zeros(len(edges), dtype=bool)
    if len(edges) < 3:
        return outlier
    ends, rotation = _towards_lower(n_views, edges, rotation_j2i.astype(np.float64))
    trust = weight.astype(np.float64)
    confirmed = _confirmed(n_views, ends, rotation, trust, limit_rad) & (trust > 0)
    if not confirmed.any():
        return outlier
    group = _groups(n_views, ends[confirmed])
    inside = group[ends[:, 0]] == group[ends[:, 1]]
    world2cam = _average(group, ends[confirmed], rotation[confirmed], trust[confirmed], limit_rad)
    suspect = np.flatnonzero(inside)
    angle = _angle(_left_over(world2cam, ends[suspect], rotation[suspect]))
    suspect, angle = suspect[angle > limit_rad], angle[angle > limit_rad]
    steps = _steps_between(n_views, ends[confirmed], ends[suspect])
    # At least two: the way round a triangle. A confirmed edge is judged as if it were none.
    outlier[suspect] = angle > limit_rad * np.sqrt(np.maximum(steps, 2) / 2)
    return outlier


def confirmed_edges(
    n_views: int,
    edges: Edges,
    rotation_j2i: Rotations,
    weight: Float[np.ndarray, " edge"],
    *,
    limit_rad: float = CYCLE_LIMIT_RAD,
) -> Bool[np.ndarray, " edge"]:
    """Return which edges are part of enough triangles that close; arguments as above."""
    _check(n_views, edges, rotation_j2i, weight)
    ends, rotation = _towards_lower(n_views, edges, rotation_j2i.astype(np.float64))
    trust = weight.astype(np.float64)
    return _confirmed(n_views, ends, rotation, trust, limit_rad) & (trust > 0)


def _check(n_views: int, edges: Edges, rotation_j2i: Rotations, weight: np.ndarray) -> None:
    n_edges = len(edges)
    if rotation_j2i.shape != (n_edges, 3, 3) or weight.shape != (n_edges,):
        raise ValueError(f"{n_edges} edges, {len(rotation_j2i)} rotations, {len(weight)} weights")
    if n_edges and (
        edges.min() < 0 or edges.max() >= n_views or (edges[:, 0] == edges[:, 1]).any()
    ):
        raise ValueError(f"an edge that joins no two of {n_views} views")
    if not (np.isfinite(rotation_j2i).all() and np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("rotations must be finite, weights finite and not negative")


def _towards_lower(n_views: int, edges: Edges, rotation_j2i: Rotations) -> tuple[Edges, Rotations]:
    """Return the edges as (low, high) with rotations high2low.

    Low is the end with the lower degree: then no view is the low end of many edges, and few
    wedges have to be looked at (Chiba and Nishizeki 1985).
    """
    degree = np.bincount(edges.ravel(), minlength=n_views)
    place = np.empty(n_views, dtype=np.int64)
    place[np.lexsort((np.arange(n_views), degree))] = np.arange(n_views)
    turned = place[edges[:, 0]] > place[edges[:, 1]]
    ends = np.where(turned[:, None], edges[:, ::-1], edges).astype(np.int64)
    rotation = np.where(turned[:, None, None], rotation_j2i.swapaxes(1, 2), rotation_j2i)
    return ends, rotation


def _confirmed(
    n_views: int, ends: Edges, rotation: Rotations, trust: np.ndarray, limit_rad: float
) -> Bool[np.ndarray, " edge"]:
    """Return the edges of which enough triangles close, each counted by its weaker other edge."""
    n_edges = len(ends)
    closing, total = np.zeros(n_edges), np.zeros(n_edges)
    for triangle in _triangles(n_views, ends):
        low_middle, low_high, middle_high = (rotation[edge] for edge in triangle)
        around = low_middle @ middle_high @ low_high.swapaxes(1, 2)
        closes = _angle(around) <= limit_rad
        for k, edge in enumerate(triangle):
            others = np.minimum(trust[triangle[k - 1]], trust[triangle[k - 2]])
            total += np.bincount(edge, others, minlength=n_edges)
            closing += np.bincount(edge, others * closes, minlength=n_edges)
    result: Bool[np.ndarray, " edge"] = (closing > 0) & (closing >= LEAST_SHARE * total)
    return result


def _triangles(n_views: int, ends: Edges) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield blocks of triangles as edges (low, middle), (low, high), (middle, high)."""
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    low, high = ends[order].T
    # the ends are ordered by degree, so a wedge closes by an edge in one of two directions
    key = low * n_views + high
    stop = np.searchsorted(low, low, side="right")
    n_wedges = stop - np.arange(len(order)) - 1  # with the later edges of the same low end
    blocks = np.searchsorted(
        np.cumsum(n_wedges), np.arange(_MAX_WEDGES, n_wedges.sum() + _MAX_WEDGES, _MAX_WEDGES)
    )
    start = 0
    for end in blocks:
        rows = np.arange(start, min(int(end) + 1, len(order)))
        start = int(end) + 1
        first = np.repeat(rows, n_wedges[rows])
        second = first + 1 + _counting(n_wedges[rows])
        for one, other in ((first, second), (second, first)):
            wanted = high[one] * n_views + high[other]
            left = np.searchsorted(key, wanted, side="left")
            n_found = np.searchsorted(key, wanted, side="right") - left
            third = np.repeat(left, n_found) + _counting(n_found)
            if len(third):
                yield (
                    order[np.repeat(one, n_found)],
                    order[np.repeat(other, n_found)],
                    order[third],
                )


def _counting(lengths: np.ndarray) -> np.ndarray:
    """Return 0, 1, ... lengths[0]-1, 0, 1, ... lengths[1]-1, ..."""
    before = np.cumsum(lengths) - lengths
    result: np.ndarray = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
    return result


def _groups(n_views: int, ends: Edges) -> Int[np.ndarray, " view"]:
    graph = coo_matrix((np.ones(len(ends)), ends.T), shape=(n_views, n_views))
    group: Int[np.ndarray, " view"] = connected_components(graph, directed=False)[1]
    return group


def _average(
    group: np.ndarray, ends: Edges, rotation: Rotations, trust: np.ndarray, limit_rad: float
) -> Float[np.ndarray, "view 3 3"]:
    """Return world2cam rotations that fit the edges, robustly; one view of each group is fixed.

    Linear least squares over all 3x3 matrices at once, then the nearest rotations; edges that do
    not fit lose their weight (Geman-McClure).
    """
    n_views, n_edges = len(group), len(ends)
    fixed = np.unique(group, return_index=True)[1]
    start = np.tile(np.eye(3), (n_views, 1, 1))
    trust = trust / trust.max()
    weight = trust
    block = 3 * ends[:, :, None] + np.arange(3)  # edge, end, row
    low_rows = np.broadcast_to(block[:, 0, :, None], (n_edges, 3, 3)).ravel()
    high_rows = np.broadcast_to(block[:, 1, None, :], (n_edges, 3, 3)).ravel()
    world2cam = start
    for _ in range(_ROUNDS):
        # sum over edges of weight |X_low - R X_high|^2, and strongly |X_fixed - identity|^2
        total = np.bincount(ends.ravel(), np.repeat(weight, 2), minlength=n_views) + 1e-9
        anchor = np.zeros(n_views)
        anchor[fixed] = 1.0 + total[fixed]
        off = (-weight[:, None, None] * rotation).ravel()
        every = np.arange(3 * n_views)
        matrix = csr_matrix(
            (
                np.concatenate((np.repeat(total + anchor, 3), off, off)),
                (
                    np.concatenate((every, low_rows, high_rows)),
                    np.concatenate((every, high_rows, low_rows)),
                ),
            ),
            shape=(3 * n_views, 3 * n_views),
        )
        right = (anchor[:, None, None] * start).reshape(-1, 3)
        world2cam = _nearest_rotation(spsolve(matrix.tocsc(), right).reshape(-1, 3, 3))
        angle = _angle(_left_over(world2cam, ends, rotation))
        weight = trust / (1 + (angle / limit_rad) ** 2) ** 2
    return world2cam


def _left_over(world2cam: np.ndarray, ends: Edges, rotation: Rotations) -> Rotations:
    result: Rotations = world2cam[ends[:, 0]].swapaxes(1, 2) @ rotation @ world2cam[ends[:, 1]]
    return result


def _nearest_rotation(matrix: Float[np.ndarray, "view 3 3"]) -> Float[np.ndarray, "view 3 3"]:
    u, _, vt = np.linalg.svd(matrix)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    result: Float[np.ndarray, "view 3 3"] = u @ vt
    return result


def _angle(rotation: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, " n"]:
    """Return rotation angles in radians, 0 to pi."""
    cosine = (np.trace(rotation, axis1=1, axis2=2) - 1) / 2
    result: Float[np.ndarray, " n"] = np.arccos(np.clip(cosine, -1, 1))
    return result


def _steps_between(
    n_views: int, confirmed: Int[np.ndarray, "confirmed 2"], ends: Edges
) -> Float[np.ndarray, " edge"]:
    """Return the least number of confirmed edges from one end of each edge to the other."""
    graph = coo_matrix((np.ones(len(confirmed)), confirmed.T), shape=(n_views, n_views)).tocsr()
    steps = np.empty(len(ends))
    sources, row = np.unique(ends[:, 0], return_inverse=True)
    for start in range(0, len(sources), _SOURCES):
        some = sources[start : start + _SOURCES]
        hops = dijkstra(graph, directed=False, unweighted=True, indices=some)
        mine = (row >= start) & (row < start + len(some))
        steps[mine] = hops[row[mine] - start, ends[mine, 1]]
    return steps
