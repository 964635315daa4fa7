"""Pairs added where the graph is weak: by hand, and against a plain search for bridges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon3d.pairs import connected_components
from recon3d.pairs_extra import bridges, extra_pairs

COMPLETE5 = [(i, j) for i in range(5) for j in range(i + 1, 5)]


def ones(pairs: list) -> np.ndarray:
    return np.ones(len(pairs))


def similarity_of(n_views: int, best: dict) -> np.ndarray:
    similarity = np.zeros((n_views, n_views))
    for (i, j), value in best.items():
        similarity[i, j] = similarity[j, i] = value
    return similarity


def test_a_strong_graph_gets_nothing():
    assert extra_pairs(5, COMPLETE5, ones(COMPLETE5), None, 10) == []
    ring = [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)]
    assert extra_pairs(5, ring, ones(ring), None, 10) == []


def test_groups_are_joined_by_the_pairs_that_look_most_alike_and_then_held_twice():
    triangles = [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)]
    similarity = similarity_of(6, {(0, 4): 0.9, (2, 5): 0.8, (1, 3): 0.7})
    assert extra_pairs(6, triangles, ones(triangles), similarity, 1) == [(0, 4)]
    assert extra_pairs(6, triangles, ones(triangles), similarity, 10) == [(0, 4), (2, 5)]


def test_failed_pairs_do_not_join_and_are_not_tried_again():
    pairs = [(0, 1), (1, 2), (0, 2), (2, 3)]
    strength = np.array([1.0, 1.0, 1.0, 0.0])
    similarity = similarity_of(4, {(2, 3): 0.9, (1, 3): 0.8, (0, 3): 0.7})
    assert extra_pairs(4, pairs, strength, similarity, 10) == [(1, 3), (0, 3)]


def test_a_bridge_gets_a_second_pair_across_its_cut():
    pairs = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (4, 5), (3, 5)]
    similarity = similarity_of(6, {(1, 4): 0.9, (0, 5): 0.8})
    assert extra_pairs(6, pairs, ones(pairs), similarity, 10) == [(1, 4)]


def test_the_weakest_bridge_comes_first():
    pairs = [(0, 1), (1, 2), (0, 2), (0, 3), (1, 4)]
    strength = np.array([1.0, 1.0, 1.0, 0.9, 0.2])
    similarity = similarity_of(5, {(2, 4): 0.9, (2, 3): 0.8, (3, 4): 0.5})
    assert extra_pairs(5, pairs, strength, similarity, 1) == [(2, 4)]
    assert extra_pairs(5, pairs, strength, similarity, 2) == [(2, 4), (2, 3)]


def test_one_new_pair_may_mend_severalbridges():
    chain = [(0, 1), (1, 2), (2, 3), (3, 4)]
    similarity = similarity_of(5, {(0, 4): 0.9})
    assert extra_pairs(5, chain, ones(chain), similarity, 10) == [(0, 4)]


def test_weak_views_get_pairs_until_they_have_their_share():
    # 4 has one hundredth of what the others have, in two pairs, so no bridge
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (0, 4), (1, 4)]
    strength = np.array([1.0] * 6 + [0.01, 0.01])
    similarity = similarity_of(5, {(3, 4): 0.2, (2, 4): 0.1})
    # the median support is 3: half of it needs two pairs
    assert extra_pairs(5, pairs, strength, similarity, 10) == [(3, 4), (2, 4)]


def test_without_similarity_neighbours_in_time_are_preferred():
    pairs = [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)]
    assert extra_pairs(6, pairs, ones(pairs), None, 1) == [(2, 3)]


def test_nothing_predicted_yet_gives_a_ring():
    pairs = extra_pairs(6, [], np.zeros(0), None, 100)
    assert connected_components(6, pairs) == [list(range(6))]
    assert list(bridges(6, dict.fromkeys(pairs, 1.0))) == []


@pytest.mark.parametrize(
    ("pairs", "strength"),
    [([(0, 1)], [1.0, 2.0]), ([(0, 1)], [np.nan]), ([(0, 5)], [1.0])],
)
def test_bad_arguments(pairs, strength):
    with pytest.raises(ValueError, match=r"strengths|views"):
        extra_pairs(3, pairs, np.array(strength), None, 1)


def test_a_similarity_of_another_number_of_views():
    with pytest.raises(ValueError, match=r"\(2, 2\) for 3 views"):
        extra_pairs(3, [(0, 1)], np.ones(1), np.zeros((2, 2)), 1)


@st.composite
def graphs(draw):
    n_views = draw(st.integers(2, 12))
    view = st.integers(0, n_views - 1)
    drawn = draw(st.lists(st.tuples(view, view), max_size=25))
    pairs = sorted({(min(pair), max(pair)) for pair in drawn if pair[0] != pair[1]})
    values = st.sampled_from([0.0, 0.3, 1.0, 2.0])
    return n_views, pairs, np.array([draw(values) for _ in pairs])


@settings(deadline=None)
@given(graphs())
def test_bridges_equal_a_plain_search(graph):
    n_views, pairs, _ = graph
    plain = {}
    before = connected_components(n_views, pairs)
    for pair in pairs:
        after = connected_components(n_views, [other for other in pairs if other != pair])
        if len(after) > len(before):
            plain[pair] = [group for group in after if group not in before]
    found = dict(bridges(n_views, dict.fromkeys(pairs, 1.0)))
    assert found.keys() == plain.keys()
    for pair, side in found.items():
        assert side in plain[pair]
        assert len(side) == min(map(len, plain[pair]))


@settings(deadline=None)
@given(graphs(), st.integers(0, 60))
def test_what_is_added_is_new_within_budget_and_mends_the_graph(graph, budget):
    n_views, pairs, strength = graph
    added = extra_pairs(n_views, pairs, strength, None, budget)
    assert len(added) <= budget
    assert len(set(added)) == len(added)
    assert not set(added) & set(pairs)
    assert all(0 <= i < j < n_views for i, j in added)
    # a smaller budget only cuts the list: the most urgent come first
    assert extra_pairs(n_views, pairs, strength, None, budget // 2) == added[: budget // 2]
    good = [pair for pair, value in zip(pairs, strength, strict=True) if value > 0]
    useless = set(pairs) - set(good)
    if budget == 60 and not useless:
        assert len(connected_components(n_views, good + added)) == 1
        complete = n_views * (n_views - 1) // 2
        left = list(bridges(n_views, dict.fromkeys(good + added, 1.0)))
        assert not left or len(good) + len(added) == complete
