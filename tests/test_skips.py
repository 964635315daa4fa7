"""What depends on one view alone is made once, as far as it may be kept."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recon3d.skips import KeptSkips

Pair = tuple[int, int]
BOTH_ORDERS = [
    order for pair in itertools.combinations(range(8), 2) for order in (pair, pair[::-1])
]


def recorder(made: list[tuple[int, int]]) -> Callable[[int, list[int]], Tensor]:
    """Return what makes skips that say of which side and view they are."""

    def make(side: int, views: list[int]) -> Tensor:
        made.extend((side, view) for view in views)
        return torch.tensor([[side, view] for view in views])

    return make


def run(order: list[Pair], most: int, batch: int = 2) -> list[tuple[int, int]]:
    """Ask for all pairs in turn, check the answers, and return what was made for them."""
    made: list[tuple[int, int]] = []
    skips = KeptSkips(order)
    for start in range(0, len(order), batch):
        pairs = order[start : start + batch]
        found = skips.of(pairs, most, recorder(made))
        for side in (0, 1):
            expected = [[[side, pair[side]]] for pair in pairs]
            assert [skip.tolist() for skip in found[side]] == expected
        assert len(skips._kept) <= most
    return made


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_each_view_is_made_once_for_each_side_where_all_fit(batch: int) -> None:
    made = run(BOTH_ORDERS, 16, batch)
    assert sorted(made) == [(side, view) for side in (0, 1) for view in range(8)]


def fewest(order: list[Pair], most: int) -> int:
    """Return how often something must be made for pairs one by one, by trying all that is kept."""
    states = {frozenset(): 0}  # what is kept, and how much was made so far
    for pair in order:
        wanted = frozenset(enumerate(pair))
        after: dict[frozenset[Pair], int] = {}
        for kept, n_made in states.items():
            n_after = n_made + len(wanted - kept)
            n_others = min(most - len(wanted), len(kept - wanted))
            for others in itertools.combinations(kept - wanted, n_others):
                state = wanted.union(others)
                after[state] = min(n_after, after.get(state, n_after))
        states = after
    return min(states.values())


@pytest.mark.parametrize("most", [2, 3, 4, 5, 6])
def test_no_choice_of_what_is_kept_would_make_fewer(most: int) -> None:
    generator = torch.Generator().manual_seed(most)
    drawn = torch.randperm(len(BOTH_ORDERS), generator=generator)[:18].tolist()
    for order in ([BOTH_ORDERS[n] for n in drawn], BOTH_ORDERS[:20]):
        assert len(run(order, most, batch=1)) == fewest(order, most)


def test_a_batch_that_failed_is_asked_for_again_in_parts() -> None:
    made: list[tuple[int, int]] = []
    skips = KeptSkips(BOTH_ORDERS)
    skips.of(BOTH_ORDERS[:4], 8, recorder(made))
    assert sorted(made) == [(side, view) for side in (0, 1) for view in (0, 1, 2)]
    for pairs in (BOTH_ORDERS[:2], BOTH_ORDERS[2:4]):
        skips.of(pairs, 8, recorder(made))
    assert len(made) == 6


def test_one_that_is_kept_does_not_hold_the_memory_of_those_made_with_it() -> None:
    skips = KeptSkips([(0, 1), (2, 3)])
    (first, _), _ = skips.of([(0, 1), (2, 3)], 4, lambda side, views: torch.zeros(2, 3, 4, 5))
    assert first.untyped_storage().nbytes() == first.nbytes
