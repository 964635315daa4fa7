"""What the heads make of one view alone, their skips: kept for the pairs to come."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import Tensor

from recon3d.heads import Skips

Pair = tuple[int, int]
Key = tuple[int, int]
"""Side of a pair, 0 or 1, and view."""


class KeptSkips:
    """Skips of views by the head that made them; where not all fit, the one needed last goes.

    That is the fewest to make again, as the order of the pairs is known (Belady 1966).
    """

    def __init__(self, order: Sequence[Pair]) -> None:
        """Prepare for these ordered pairs, which will be asked for in this order."""
        self._place = {pair: place for place, pair in enumerate(order)}
        self._uses: dict[Key, list[int]] = defaultdict(list)
        for place, pair in enumerate(order):
            for key in enumerate(pair):
                self._uses[key].append(place)
        self._kept: dict[Key, Tensor] = {}

    def of(
        self, pairs: Sequence[Pair], most: int, make: Callable[[int, list[int]], Tensor]
    ) -> Skips:
        """Return the skips of both views of each pair.

        Args:
            pairs: some in a row; they may be asked for again, as after running out of memory.
            most: kept at any time, unless these pairs need more.
            make: returns the skips of several views of a side as a batch.
        """
        wanted = dict.fromkeys(key for pair in pairs for key in enumerate(pair))
        place = self._place[pairs[-1]]
        others = sorted(
            (key for key in self._kept if key not in wanted),
            key=lambda key: self._next_use(key, place),
        )
        for key in others[max(0, most - len(wanted)) :]:
            del self._kept[key]
        for side in (0, 1):
            missing = [view for s, view in wanted if s == side and (side, view) not in self._kept]
            if missing:
                for view, skip in zip(missing, make(side, missing).split(1), strict=True):
                    # a copy, or one that stays would hold the memory of all
                    self._kept[side, view] = skip.clone()
        i, j = ([self._kept[side, pair[side]] for pair in pairs] for side in (0, 1))
        return i, j

    def _next_use(self, key: Key, place: int) -> int:
        uses = self._uses[key]
        later = bisect_right(uses, place)
        return uses[later] if later < len(uses) else len(self._place)
