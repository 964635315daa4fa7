"""Pair strategies against the reference lists, plain loops and by hand; connected groups."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon3d.errors import UsageError
from recon3d.pairs import (
    AUTO_RETRIEVAL,
    LEGAL_STRATEGIES,
    MAX_KEYS,
    connected_components,
    is_video,
    needs_similarity,
    pair_graph,
    pair_outline,
    retrieval_pairs,
)
from recon3d.two_step import EXTRA_SHARE

FIXTURES = Path(
    os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures")
)
PAIR_LISTS = FIXTURES / "make_pairs.json"


def our_name(reference: str) -> str:
    """Return our name of a reference strategy; theirs leave out a default of 3 or 0."""
    kind, *rest = reference.split("-")
    if kind == "complete":
        return kind
    noncyclic = "-noncyclic" if rest[-1:] == ["noncyclic"] else ""
    number = rest[0] if rest and rest[0].isdigit() else {"oneref": "0"}.get(kind, "3")
    return f"{ {'swin': 'window'}.get(kind, kind) }:{number}{noncyclic}"


@pytest.mark.parametrize(
    "case",
    json.loads(PAIR_LISTS.read_text()) if PAIR_LISTS.is_file() else [],
    ids=lambda c: f"{c['scene_graph']}, symmetrize {c['symmetrize']}, prefilter {c['prefilter']}",
)
def test_equal_to_the_reference(case):
    strategy, prefilter = our_name(case["scene_graph"]), case["prefilter"]
    if prefilter is not None:
        if strategy != "complete":
            pytest.skip("not followed: the filters seq and cyc of graphs that are not complete")
        # of all pairs they leave those that a window has
        noncyclic = "-noncyclic" if prefilter.startswith("seq") else ""
        strategy = f"window:{prefilter[3:]}{noncyclic}"
    # The reference also pairs an image with itself when the window is too long.
    expected = {frozenset(pair) for pair in case["pairs"] if pair[0] != pair[1]}
    pairs = pair_graph(strategy, case["n"])
    assert {frozenset(pair) for pair in pairs} == expected


@pytest.mark.parametrize(
    ("strategy", "n_views", "expected"),
    [
        ("complete", 3, [(0, 1), (0, 2), (1, 2)]),
        ("auto", 3, [(0, 1), (0, 2), (1, 2)]),
        ("window:1", 4, [(0, 1), (0, 3), (1, 2), (2, 3)]),
        ("window:1-noncyclic", 4, [(0, 1), (1, 2), (2, 3)]),
        ("window:1", 2, [(0, 1)]),
        ("logwin:2-noncyclic", 5, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)]),
        ("oneref:2", 4, [(0, 2), (1, 2), (2, 3)]),
    ],
)
def test_by_hand(strategy, n_views, expected):
    assert pair_graph(strategy, n_views) == expected


def strategies() -> st.SearchStrategy[str]:
    counted = st.builds(
        "{}:{}{}".format,
        st.sampled_from(["window", "logwin"]),
        st.integers(1, 10**9 - 1) | st.integers(1, 9),
        st.sampled_from(["", "-noncyclic"]),
    )
    return st.sampled_from(["auto", "complete", "oneref:0", "oneref:1"]) | counted


@given(strategies(), st.integers(2, 60))
def test_every_strategy_gives_a_tidy_connected_graph(strategy, n_views):
    pairs = pair_graph(strategy, n_views)
    assert pairs == sorted(set(pairs))
    assert all(0 <= i < j < n_views for i, j in pairs)
    assert connected_components(n_views, pairs) == [list(range(n_views))]


@given(st.sampled_from(["window", "logwin"]), st.integers(1, 9), st.integers(2, 40))
def test_windows_equal_a_plain_loop(kind, length, n_views):
    distances = [k + 1 if kind == "window" else 2**k for k in range(length)]
    cyclic, plain = set(), set()
    for i in range(n_views):
        for distance in distances:
            j = (i + distance) % n_views
            if i != j:
                cyclic.add((min(i, j), max(i, j)))
            if i + distance < n_views:
                plain.add((i, i + distance))
    assert pair_graph(f"{kind}:{length}", n_views) == sorted(cyclic)
    assert pair_graph(f"{kind}:{length}-noncyclic", n_views) == sorted(plain)


def test_auto_grows_linearly_after_twelve():
    assert len(pair_graph("auto", 12)) == 66
    assert pair_graph("auto", 13) == pair_graph("logwin:4", 13)
    assert len(pair_graph("auto", 200)) == 4 * 200


def random_similarity(n_views: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(-1, 1, (n_views, n_views))
    return (values + values.T) / 2


def test_auto_uses_the_similarity_of_many_photos():
    similarity = random_similarity(30, 0)
    assert pair_graph("auto", 30, similarity) == pair_graph(
        f"retrieval:{AUTO_RETRIEVAL}", 30, similarity
    )
    assert pair_graph("auto", 12, similarity[:12, :12]) == pair_graph("complete", 12)
    assert pair_graph("window:2", 30, similarity) == pair_graph("window:2", 30)


def similarity_along(position: np.ndarray) -> np.ndarray:
    """Return how alike views are that lie on a closed path of length 1, with some noise."""
    apart = np.abs(position[:, None] - position)
    noise = random_similarity(len(position), 1)
    return np.exp(-20 * np.minimum(apart, 1 - apart)) + 0.005 * noise


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_auto_looks_further_than_the_next_frames_of_a_video(share: float):
    frames = similarity_along(share * np.arange(40) / 40)  # a whole loop, and half of one
    assert is_video(frames)
    assert pair_graph("auto", 40, frames) == pair_graph("logwin:4", 40)
    assert pair_graph("auto", 12, frames[:12, :12]) == pair_graph("complete", 12)
    shuffled = np.random.default_rng(0).permutation(40)
    photos = frames[shuffled][:, shuffled]
    assert not is_video(photos)
    assert pair_graph("auto", 40, photos) == pair_graph(f"retrieval:{AUTO_RETRIEVAL}", 40, photos)


@pytest.mark.parametrize(
    ("strategy", "n_views", "expected"),
    [
        ("auto", 12, False),
        ("auto", 13, True),
        ("retrieval:3", 2, True),
        ("retrieval:0", 20, False),
        ("complete", 20, False),
        ("logwin:4", 20, False),
    ],
)
def test_when_a_similarity_is_needed(strategy, n_views, expected):
    assert needs_similarity(strategy, n_views) is expected


@pytest.mark.parametrize("n_views", [2, 5, 13, 30, 60, 450])
@pytest.mark.parametrize("strategy", ["auto", "retrieval:1", "retrieval:9", "logwin:3", "complete"])
def test_there_are_never_more_pairs_than_foreseen(strategy: str, n_views: int):
    similarity = random_similarity(n_views, 0)
    found = len(pair_graph(strategy, n_views, similarity))
    second = math.ceil(EXTRA_SHARE * n_views) if strategy == "auto" and n_views > 12 else 0
    foreseen = pair_outline(strategy, n_views)
    assert min(found + second, n_views * (n_views - 1) // 2) <= len(foreseen)
    assert len(foreseen) <= 3 * found
    assert foreseen == pair_graph(strategy, n_views, similarity) or needs_similarity(
        strategy, n_views
    )


def test_retrieval_without_similarity_is_a_mistake_of_the_caller():
    for similarity in (None, random_similarity(4, 0)):
        with pytest.raises(ValueError, match=r"retrieval:2 of 5 views needs their similarity"):
            pair_graph("retrieval:2", 5, similarity)


def test_retrieval_by_hand():
    # Two streets, {0, 1, 2} and {3, 4}; 1 is most like all others, 4 is least like 1.
    similarity = np.array(
        [
            [9.0, 0.8, 0.6, 0.1, 0.0],
            [0.8, 9.0, 0.7, 0.2, 0.1],
            [0.6, 0.7, 9.0, 0.1, 0.0],
            [0.1, 0.2, 0.1, 9.0, 0.9],
            [0.0, 0.1, 0.0, 0.9, 9.0],
        ]
    )
    by_keys = [(0, 1), (1, 2), (1, 4), (3, 4)]
    assert retrieval_pairs(similarity, n_keys=2, n_neighbours=0) == by_keys
    # the best neighbours are 1, 0, 1, 4, 3, and 2 is the second best of 0 and 1
    assert retrieval_pairs(similarity, n_keys=2, n_neighbours=1) == by_keys
    assert retrieval_pairs(similarity, 2, 2) == [(0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (3, 4)]


def plain_retrieval(similarity: np.ndarray, n_keys: int, n_neighbours: int) -> set:
    """Return the same pairs by loops over single views."""
    views = range(len(similarity))

    def best(view: int, others: list[int]) -> int:
        return max(others, key=lambda other: (similarity[view, other], -other))

    def total(view: int) -> float:
        return sum(similarity[view, other] for other in views if other != view)

    keys = [max(views, key=lambda view: (total(view), -view))]
    while len(keys) < min(n_keys, len(views)):
        rest = [view for view in views if view not in keys]
        keys.append(min(rest, key=lambda view: max(similarity[view, key] for key in keys)))
    pairs = {frozenset((a, b)) for a in keys for b in keys if a != b}
    for view in views:
        if view not in keys:
            pairs.add(frozenset((view, best(view, keys))))
        rest = [other for other in views if other != view]
        for _ in range(min(n_neighbours, len(rest))):
            rest.remove(other := best(view, rest))
            pairs.add(frozenset((view, other)))
    return pairs


@settings(deadline=None)
@given(st.integers(1, 18), st.integers(1, 6), st.integers(0, 5), st.integers(0, 10**6))
def test_retrieval_equals_plain_loops(n_views, n_keys, n_neighbours, seed):
    similarity = random_similarity(n_views, seed)
    pairs = retrieval_pairs(similarity, n_keys, n_neighbours)
    assert pairs == sorted(set(pairs))
    assert {frozenset(pair) for pair in pairs} == plain_retrieval(similarity, n_keys, n_neighbours)
    assert len(connected_components(n_views, pairs)) == 1


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6))
def test_retrieval_does_not_depend_on_the_order_of_views(n_views, seed):
    similarity = random_similarity(n_views, seed)
    order = np.random.default_rng(seed + 1).permutation(n_views)
    pairs = pair_graph("retrieval:3", n_views, similarity)
    shuffled = pair_graph("retrieval:3", n_views, similarity[np.ix_(order, order)])
    renamed = sorted(tuple(sorted((int(order[i]), int(order[j])))) for i, j in shuffled)
    assert renamed == pairs


def test_retrieval_grows_linearly():
    n_views = 400
    n_keys = min(MAX_KEYS, math.isqrt(n_views))
    pairs = pair_graph("retrieval:6", n_views, random_similarity(n_views, 3))
    assert len(pairs) <= 7 * n_views + n_keys * (n_keys - 1) // 2


@pytest.mark.parametrize(
    ("similarity", "n_keys", "n_neighbours"),
    [
        (np.zeros((3, 4)), 1, 1),
        (np.full((3, 3), np.nan), 1, 1),
        (np.zeros((3, 3)), 0, 1),
        (np.zeros((3, 3)), 1, -1),
    ],
)
def test_bad_similarities(similarity, n_keys, n_neighbours):
    # the annotations refuse a matrix that is not square before the function does
    with pytest.raises(Exception, match=r"similarity|keys"):
        retrieval_pairs(similarity, n_keys, n_neighbours)


@pytest.mark.parametrize(
    "strategy",
    [
        "",
        "all",
        "window",
        "window:",
        "window:0",
        "window:-1",
        "window:3-cyclic",
        "window:\uff13",
        "logwin:1_0",
        "logwin:99999999999999",
        "oneref:-1",
        "retrieval",
        "retrieval:0",
        "retrieval:5-noncyclic",
        "Complete",
        "complete\n",
    ],
)
def test_unknown_strategies_name_the_legal_ones(strategy):
    with pytest.raises(UsageError) as caught:
        pair_graph(strategy, 5)
    assert LEGAL_STRATEGIES in str(caught.value)


def test_reference_photo_that_is_not_there():
    with pytest.raises(UsageError, match=r"no photo 5\. The 5 photos count from 0 to 4"):
        pair_graph("oneref:5", 5)


def test_one_view_has_no_graph():
    with pytest.raises(ValueError, match="at least 2 views"):
        pair_graph("auto", 1)


def test_file_of_pairs(tmp_path):
    path = tmp_path / "my pairs.txt"
    path.write_text("\ufeff# a comment\n0 3\n\n2,1  # out of order\n3\t0\n 1 , 2 \n4 0\r\n")
    assert pair_graph(f"file:{path}", 5) == [(0, 3), (0, 4), (1, 2)]


PHOTOS = {"0.jpg": None, "a.jpg": 0, "sub/my b.jpg": 1, "c.jpg": 2, "a copy.jpg": None}
"""As given, with the indices of the views; two are left out."""
TWINS = {"p/x.jpg": None, "q/x.jpg": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 3\n2 3\n", [(0, 2), (1, 2)]),
        ("a.jpg c.jpg\nsub/my b.jpg, c.jpg\n", [(0, 2), (1, 2)]),
        ("my b.jpg\tc.jpg\na.jpg 3\n", [(0, 2), (1, 2)]),
        ("0 1\n0.jpg c.jpg\na copy.jpg, 2\n1 3\n", [(0, 2)]),
    ],
)
def test_pairs_of_photos_by_name_or_by_number_among_all(tmp_path, text, expected):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    assert pair_graph(f"file:{path}", 3, photos=PHOTOS) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 7\n", "line 1: '1 7' is not a pair .* from 0 to 6"),
        ("a.jpg none.jpg\n", "line 1: 'a.jpg none.jpg' is not a pair"),
        ("x.jpg none.jpg\n", "line 1: 'x.jpg none.jpg' is not a pair"),
        ("1 a.jpg\n", "line 1: '1 a.jpg' is not a pair of two different photos"),
        ("0 1\n", "holds no pairs of photos that can be used"),
    ],
)
def test_pairs_of_photos_that_are_not_there(tmp_path, text, words):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        pair_graph(f"file:{path}", 3, photos=PHOTOS | TWINS)


@pytest.mark.parametrize("reference", ["3", "c.jpg"])
def test_the_reference_counts_among_all_photos(reference):
    assert pair_graph(f"oneref:{reference}", 3, photos=PHOTOS) == [(0, 2), (1, 2)]
    with pytest.raises(UsageError, match=r"no photo 5\. The 5 photos count from 0 to 4"):
        pair_graph("oneref:5", 3, photos=PHOTOS)
    with pytest.raises(UsageError, match=r"'0.jpg' was left out. Choose another"):
        pair_graph("oneref:0", 3, photos=PHOTOS)


def test_no_file_of_pairs():
    with pytest.raises(UsageError, match=r"--pairs file: names no file\. Give two photos a line"):
        pair_graph("file:", 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 1\n0 5\n", r"line 2: '0 5' .* from 0 to 4"),
        ("0 0\n", r"line 1: '0 0' is not a pair of two different photos"),
        ("0\n", "line 1"),
        ("0 1 2\n", "line 1"),
        ("0 -1\n", "line 1"),
        ("a.jpg b.jpg\n", "line 1"),
        ("0 99999999999999999999\n", "line 1"),
        ("# nothing\n", "holds no pairs"),
        ("", "holds no pairs"),
        (b"\xff\xfe\x00binary", "not a text file"),
    ],
)
def test_bad_files_of_pairs(tmp_path, text, words):
    path = tmp_path / "pairs.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=words) as caught:
        pair_graph(f"file:{path}", 5)
    assert "pairs.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_of_pairs(tmp_path):
    for place in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            pair_graph(f"file:{place}", 5)


def test_components_largest_first():
    pairs = [(5, 4), (1, 0), (6, 5), (4, 6), (2, 7)]
    assert connected_components(8, pairs) == [[4, 5, 6], [0, 1], [2, 7], [3]]
    assert connected_components(3, []) == [[0], [1], [2]]
    assert connected_components(0, []) == []


def test_components_refuse_views_that_are_not_there():
    with pytest.raises(ValueError, match=r"\(0, 3\) of 3 views"):
        connected_components(3, [(0, 3)])


@given(
    st.integers(1, 25).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40),
        )
    )
)
def test_components_equal_a_plain_closure(case):
    n_views, pairs = case
    group = list(range(n_views))
    for _ in range(n_views):
        for i, j in pairs:
            group[i] = group[j] = min(group[i], group[j])
    expected = [[v for v in range(n_views) if group[v] == g] for g in sorted(set(group))]
    expected.sort(key=lambda members: (-len(members), members[0]))
    assert connected_components(n_views, pairs) == expected
