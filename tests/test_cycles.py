"""Pairs that contradict their cycles: nonsense among clean ones, and nothing where none is."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from recon3d.cycles import _average, _confirmed, _groups, _towards_lower, _triangles, cycle_outliers


def world2cam(n_views: int, seed: int) -> np.ndarray:
    return Rotation.random(n_views, rng=np.random.default_rng(seed)).as_matrix()


def relative(rotations: np.ndarray, edges: np.ndarray, noise_deg: float, seed: int) -> np.ndarray:
    """Return rotation_j2i of the edges, each turned about a random axis."""
    generator = np.random.default_rng(seed)
    axis = generator.normal(size=(len(edges), 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = np.radians(noise_deg) * generator.normal(size=(len(edges), 1))
    exact = rotations[edges[:, 0]] @ rotations[edges[:, 1]].swapaxes(1, 2)
    return Rotation.from_rotvec(axis * angle).as_matrix() @ exact


def complete(n_views: int) -> np.ndarray:
    return np.array(list(combinations(range(n_views), 2)))


def neighbours(n_views: int, length: int) -> np.ndarray:
    """Return each view with the next `length`, around the end."""
    return np.array([(i, (i + k) % n_views) for i in range(n_views) for k in range(1, length + 1)])


def spoil(rotation: np.ndarray, which: np.ndarray, seed: int) -> None:
    rotation[which] = Rotation.random(len(which), rng=np.random.default_rng(seed + 77)).as_matrix()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("edges", "n_views", "share"),
    [(complete(12), 12, 0.3), (neighbours(60, 5), 60, 0.1), (complete(40), 40, 0.3)],
    ids=["complete12", "window60", "complete40"],
)
def test_finds_nonsense_and_only_nonsense(edges, n_views, share, seed):
    rotation = relative(world2cam(n_views, seed), edges, 2.0, seed)
    chosen = np.random.default_rng(seed).choice(len(edges), int(share * len(edges)), replace=False)
    clean = rotation.copy()
    spoil(rotation, chosen, seed)
    # a random rotation may by chance be near the right one
    off = (rotation @ clean.swapaxes(1, 2)).trace(axis1=1, axis2=2)
    nonsense = np.arccos(np.clip((off - 1) / 2, -1, 1)) > math.radians(40)
    found = cycle_outliers(n_views, edges, rotation, np.ones(len(edges)))
    assert not found[off > 2.9].any()  # within 18 degrees of the truth
    assert found[nonsense].all()


@pytest.mark.parametrize("n_views", [3, 4, 5, 8])
def test_a_lone_cycle_tells_that_something_is_wrong_but_not_what(n_views):
    """Without an agreeing triangle nobody knows which pair is to blame: all stay."""
    edges = neighbours(n_views, 1)
    rotation = relative(world2cam(n_views, 1), edges, 0.0, 1)
    spoil(rotation, np.array([1]), 1)
    assert not cycle_outliers(n_views, edges, rotation, np.ones(len(edges))).any()


@pytest.mark.parametrize("noise_deg", [0.0, 5.0])
def test_a_ring_without_triangles_loses_nothing(noise_deg):
    edges = neighbours(30, 1)
    rotation = relative(world2cam(30, 2), edges, noise_deg, 2)
    assert not cycle_outliers(30, edges, rotation, np.ones(30)).any()


def test_a_pair_that_closes_a_drifting_chain_stays():
    """Each step is wrong by 2 degrees the same way, so the loop closes with a jump of 80."""
    n_views = 40
    edges = np.concatenate([neighbours(n_views, 2)[: 2 * (n_views - 2)], [[n_views - 1, 0]]])
    drift = Rotation.from_rotvec([0, math.radians(2), 0]).as_matrix()
    turned = np.stack([np.linalg.matrix_power(drift, k) for k in range(n_views)])
    rotation = relative(turned, edges, 0.0, 0)
    rotation[-1] = np.eye(3)
    assert not cycle_outliers(n_views, edges, rotation, np.ones(len(edges))).any()


def test_weightless_pairs_have_no_say():
    """Six views agree, and as many pairs that nobody trusts agree on something else."""
    edges = np.concatenate([complete(6), complete(6)])
    rotation = np.concatenate(
        [relative(world2cam(6, 1), complete(6), 0, 1), relative(world2cam(6, 9), complete(6), 0, 1)]
    )
    weight = np.repeat([1.0, 0.0], 15)
    found = cycle_outliers(6, edges, rotation, weight)
    np.testing.assert_array_equal(found, np.repeat([False, True], 15))


def test_the_heavier_of_two_opinions_wins():
    edges = np.concatenate([complete(6), complete(6)])
    rotation = np.concatenate(
        [relative(world2cam(6, 1), complete(6), 0, 1), relative(world2cam(6, 9), complete(6), 0, 1)]
    )
    found = cycle_outliers(6, edges, rotation, np.repeat([1.0, 5.0], 15))
    np.testing.assert_array_equal(found, np.repeat([True, False], 15))


def test_neither_the_order_of_edges_nor_their_direction_matters():
    edges = neighbours(20, 4)
    rotation = relative(world2cam(20, 5), edges, 1.0, 5)
    spoil(rotation, np.arange(0, 80, 11), 5)
    weight = np.random.default_rng(5).uniform(1, 5, 80)
    found = cycle_outliers(20, edges, rotation, weight)
    assert found.any()
    order = np.random.default_rng(6).permutation(80)
    flipped = np.random.default_rng(7).random(80) < 0.5
    edges = np.where(flipped[:, None], edges[:, ::-1], edges)[order]
    rotation = np.where(flipped[:, None, None], rotation.swapaxes(1, 2), rotation)[order]
    rename = np.random.default_rng(8).permutation(20)
    again = cycle_outliers(20, rename[edges], rotation, weight[order])
    np.testing.assert_array_equal(again, found[order])


def test_groups_that_no_pair_joins_are_judged_apart():
    edges = np.concatenate([complete(6), complete(6) + 6])
    rotation = relative(world2cam(12, 3), edges, 0.5, 3)
    spoil(rotation, np.array([4, 20]), 3)
    found = cycle_outliers(12, edges, rotation, np.ones(30))
    assert np.flatnonzero(found).tolist() == [4, 20]


@st.composite
def edge_lists(draw):
    n_views = draw(st.integers(2, 9))
    view = st.integers(0, n_views - 1)
    edge = st.tuples(view, view).filter(lambda ends: ends[0] != ends[1])
    edges = draw(st.lists(edge, min_size=1, max_size=24))
    return n_views, np.array(edges)


@settings(deadline=None)
@given(edge_lists(), st.integers(1, 20))
def test_triangles_equal_a_plain_search(case, block):
    n_views, edges = case
    ends, _ = _towards_lower(n_views, edges, np.tile(np.eye(3), (len(edges), 1, 1)))
    plain = []
    for three in combinations(range(len(edges)), 3):
        views = [set(edges[k].tolist()) for k in three]
        if len(set.union(*views)) == 3 and len({frozenset(view) for view in views}) == 3:
            plain.append(three)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recon3d.cycles._MAX_WEDGES", block)
        found = [np.stack(triangle, axis=1) for triangle in _triangles(n_views, ends)]
    rows = np.concatenate([*found, np.empty((0, 3), dtype=np.int64)]).tolist()
    assert sorted(tuple(sorted(row)) for row in rows) == plain
    for low_middle, low_high, middle_high in rows:
        assert ends[low_middle, 0] == ends[low_high, 0]
        assert ends[low_middle, 1] == ends[middle_high, 0]
        assert ends[low_high, 1] == ends[middle_high, 1]


def test_confirmed_equals_a_plain_loop():
    n_views, edges = 9, complete(9)
    rotation = relative(world2cam(n_views, 4), edges, 4.0, 4)
    spoil(rotation, np.arange(0, 36, 2), 4)
    weight = np.random.default_rng(4).uniform(0.1, 3, 36)
    limit = math.radians(12)
    of = {}
    for k, (i, j) in enumerate(edges.tolist()):
        of[i, j], of[j, i] = rotation[k], rotation[k].T
    trust = {frozenset(edge): weight[k] for k, edge in enumerate(edges.tolist())}
    plain = []
    for i, j in edges.tolist():
        votes, closing = 0.0, 0.0
        for k in set(range(n_views)) - {i, j}:
            vote = min(trust[frozenset((i, k))], trust[frozenset((k, j))])
            around = Rotation.from_matrix(of[i, j] @ of[j, k] @ of[k, i]).magnitude()
            votes += vote
            closing += vote * (around <= limit)
        plain.append(closing > 0 and closing >= 0.05 * votes)
    ends, turned = _towards_lower(n_views, edges, rotation)
    found = _confirmed(n_views, ends, turned, weight, limit)
    np.testing.assert_array_equal(found, plain)
    assert 0 < found.sum() < 36


def test_averaging_recovers_exact_rotations_among_some_nonsense():
    n_views, edges = 25, neighbours(25, 4)
    true = world2cam(n_views, 6)
    rotation = relative(true, edges, 0.0, 6)
    spoil(rotation, np.arange(0, 100, 13), 6)
    fitted = _average(_groups(n_views, edges), edges, rotation, np.ones(100), math.radians(20))
    apart = Rotation.from_matrix(fitted.swapaxes(1, 2) @ true)
    left = (apart * apart[0].inv()).magnitude()
    assert np.degrees(left).max() < 0.5
    np.testing.assert_allclose(np.linalg.det(fitted), 1.0)


def test_a_thousand_views_take_memory_and_time_that_grow_with_the_edges():
    edges = neighbours(1000, 5)
    rotation = relative(world2cam(1000, 7), edges, 2.0, 7)
    chosen = np.arange(0, 5000, 10)
    spoil(rotation, chosen, 7)
    found = cycle_outliers(1000, edges, rotation, np.ones(5000))
    wrong = np.zeros(5000, dtype=bool)
    wrong[chosen] = True
    assert (found & ~wrong).sum() == 0
    assert (found & wrong).sum() >= 0.97 * len(chosen)


@pytest.mark.parametrize(
    ("n_views", "edges", "rotation", "weight"),
    [
        (3, [[0, 3]], [np.eye(3)], [1.0]),
        (3, [[1, 1]], [np.eye(3)], [1.0]),
        (3, [[0, 1]], [np.full((3, 3), np.nan)], [1.0]),
        (3, [[0, 1]], [np.eye(3)], [-1.0]),
        (3, [[0, 1]], [np.eye(3)], [np.inf]),
    ],
)
def test_bad_arguments(n_views, edges, rotation, weight):
    with pytest.raises(ValueError, match=r"edge|finite"):
        cycle_outliers(n_views, np.array(edges), np.array(rotation), np.array(weight))
