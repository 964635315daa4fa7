"""What there is to refine by: matches of the network and of image features, found when needed."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import combinations

import torch
from jaxtyping import Bool
from torch import Tensor

from recon3d.config import RefineConfig
from recon3d.features import (
    Features,
    RgbOf,
    gather_features,
    match_photos,
    on_epipolar_lines,
    promising_pairs,
)
from recon3d.matches import Matches, select
from recon3d.progress import Track
from recon3d.sharpen import sharpen_matches
from recon3d.types import Scene
from recon3d.wide_check import without_contradicted
from recon3d.wide_matches import match_far_apart

_MANY_MATCHES = 100  # of a pair: no need to look for more
_PARTNERS_OF_STRAY = 3  # photos that one without a place is compared with as seen from aside


class Evidence:
    """Matches of all kinds, each found when it is first asked for.

    Arguments as for `bundle.refine_scene`; `from_features` says whether there are photos. Matches
    of the views in `ignored` are left out.
    """

    def __init__(
        self,
        scene: Scene,
        matches: Sequence[Matches],
        config: RefineConfig,
        rgb_of: RgbOf | None,
        track: Track,
    ) -> None:
        self._scene, self._matches, self._config = scene, matches, config
        self._rgb_of, self._track = rgb_of, track
        self._known: dict[int, Features] = {}
        self._wide: dict[frozenset[tuple[int, int]], list[Matches]] = {}
        self.from_features = rgb_of is not None
        self.ignored: set[int] = set()

    @property
    def coarse(self) -> list[Matches]:
        """The network's, some of each pair."""
        return self._heeded(self._coarse)

    @property
    def near(self) -> list[Matches]:
        """Of features near the network's matches."""
        return self.coarse if self._rgb_of is None else self._heeded(self._near)

    @property
    def anywhere(self) -> list[Matches]:
        """Matches that owe nothing to the scene's cameras."""
        return self._heeded(self._anywhere)

    def _heeded(self, matches: Iterable[Matches]) -> list[Matches]:
        return [one for one in matches if not self.ignored & {one.i, one.j}]

    @cached_property
    def _coarse(self) -> list[Matches]:
        return [_thinned(one, self._config) for one in self._matches]

    @cached_property
    def _near(self) -> list[Matches]:
        assert self._rgb_of is not None
        return sharpen_matches(
            self._matches,
            self._scene.views,
            self._rgb_of,
            self._config,
            known=self._known,
            track=self._track,
        )

    @cached_property
    def _anywhere(self) -> list[Matches]:
        return _matches_anywhere(
            self._scene, self._matches, self._config, self._rgb_of, self._known, self._track
        )

    def wide(self, placed: Bool[Tensor, " view"] | None) -> list[Matches]:
        """Of features as seen from aside, in pairs of which `anywhere` has few matches or none.

        All of them, as far as the limits allow; or, where some views are `placed` beyond doubt and
        others are not, or views are many, each of the latter with some of the former. First come
        those that the network joins best. Where views are ignored, those found before.
        """
        if self._rgb_of is None:
            return []
        if self.ignored:
            before = {(one.i, one.j): one for found in self._wide.values() for one in found}
            return self._heeded(before.values())
        done = {(one.i, one.j) for one in self.anywhere if len(one.confidence) >= _MANY_MATCHES}
        strength = {(one.i, one.j): float(one.confidence.sum()) for one in self._matches}
        pairs = [
            pair for pair in combinations(range(len(self._scene.views)), 2) if pair not in done
        ]
        pairs.sort(key=lambda pair: -strength.get(pair, 0.0))
        many = len(self._scene.views) > self._config.max_wide_views
        if placed is not None and (many or not bool(placed.all())):
            pairs = [
                pair
                for n in (~placed).nonzero().flatten().tolist()
                for pair in _with_placed(n, placed, pairs)[:_PARTNERS_OF_STRAY]
            ]
        chosen: set[tuple[int, int]] = set()
        for pair in pairs:
            more = chosen | {pair}
            n_views = len({n for one in more for n in one})
            if len(more) <= self._config.max_wide_pairs and n_views <= self._config.max_wide_views:
                chosen = more
        if not chosen:
            return []
        key = frozenset(chosen)
        if key not in self._wide:
            found = match_far_apart(
                sorted(chosen),
                self._scene,
                self._rgb_of,
                self._config,
                plain=self._known,
                track=self._track,
            )
            self._wide[key] = without_contradicted(found, self.anywhere, self._scene)
        return self._wide[key]


def _matches_anywhere(
    scene: Scene,
    matches: Sequence[Matches],
    config: RefineConfig,
    rgb_of: RgbOf | None,
    known: dict[int, Features],
    track: Track,
) -> list[Matches]:
    """Return matches that owe nothing to the scene's cameras."""
    if rgb_of is None:
        thinned = (_thinned(one, config) for one in matches)
        return [one for rough in thinned if (one := on_epipolar_lines(rough, scene.views))]
    n_views = len(scene.views)
    gather_features(range(n_views), scene.views, rgb_of, config, known, track=track)
    pairs = list(combinations(range(n_views), 2))
    if n_views > config.max_all_pairs:
        pairs = sorted((one.i, one.j) for one in matches)
    pairs = promising_pairs(pairs, known, config)
    return match_photos(pairs, scene.views, known, config, track=track)


def _with_placed(
    view: int, placed: Bool[Tensor, " view"], pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return the pairs of a view with placed ones."""
    return [(i, j) for i, j in pairs if view in (i, j) and placed[i] != placed[j]]


def _thinned(one: Matches, config: RefineConfig) -> Matches:
    """Return at most `max_coarse` matches, drawn evenly."""
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randperm(len(one.confidence), generator=generator)[: config.max_coarse]
    return select(one, drawn.sort().values)
