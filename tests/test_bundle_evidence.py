"""Which pairs of photos are compared as seen from aside."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from exact_scene import blank_view
from recon3d import bundle_evidence
from recon3d.bundle_evidence import Evidence
from recon3d.config import RefineConfig
from recon3d.matches import Matches
from recon3d.progress import silent
from recon3d.types import Scene, Verdict

N_VIEWS = 5
PAIRS = list(combinations(range(N_VIEWS), 2))


def matches(i: int, j: int, n: int) -> Matches:
    pixels = torch.arange(2 * n).reshape(n, 2).float()
    return Matches(i=i, j=j, pixels_i=pixels, pixels_j=pixels, confidence=torch.ones(n))


def scene() -> Scene:
    verdict = Verdict(
        residual=math.nan, edges=0, rotation_uncertainty_deg=math.nan, focal_source="given"
    )
    empty = (torch.zeros(16, 16),) * N_VIEWS
    return Scene(
        views=tuple(blank_view(f"{n}.png", (16, 16)) for n in range(N_VIEWS)),
        cam2world=torch.eye(4).repeat(N_VIEWS, 1, 1),
        intrinsics=torch.eye(3).repeat(N_VIEWS, 1, 1),
        depth=empty,
        confidence=empty,
        verdicts=(verdict,) * N_VIEWS,
    )


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """Features match well in (0, 1) and badly in (0, 2); keep what is compared beyond that."""
    asked: list[list[tuple[int, int]]] = []
    monkeypatch.setattr(
        bundle_evidence, "match_photos", lambda *_, **__: [matches(0, 1, 150), matches(0, 2, 30)]
    )
    monkeypatch.setattr(
        bundle_evidence, "match_far_apart", lambda pairs, *_, **__: asked.append(pairs) or []
    )
    return asked


def evidence(config: RefineConfig) -> Evidence:
    """Return evidence in which the network joins the later pairs better."""
    own = [matches(i, j, 10 * (n + 1)) for n, (i, j) in enumerate(PAIRS)]
    grey = np.full((16, 16, 3), 90, np.uint8)
    return Evidence(scene(), own, config, lambda _: grey, silent)


def test_all_pairs_with_few_matches_where_nothing_is_sure(
    compared: list[list[tuple[int, int]]],
) -> None:
    one = evidence(RefineConfig())
    assert one.wide(None) == one.wide(None) == []
    assert compared == [PAIRS[1:]]  # once


def test_the_best_of_the_network_first_within_the_limits(
    compared: list[list[tuple[int, int]]],
) -> None:
    evidence(RefineConfig(max_wide_pairs=3)).wide(None)
    evidence(RefineConfig(max_wide_views=3)).wide(None)
    evidence(RefineConfig(max_wide_pairs=0)).wide(None)
    assert compared == [[(2, 3), (2, 4), (3, 4)], [(2, 3), (2, 4), (3, 4)]]


def test_only_photos_without_a_place_and_with_those_that_have_one(
    compared: list[list[tuple[int, int]]],
) -> None:
    placed = torch.tensor([True, True, True, True, False])
    one = evidence(RefineConfig())
    one.wide(placed)
    one.wide(torch.tensor([True, True, False, True, False]))
    assert compared == [
        [(1, 4), (2, 4), (3, 4)],
        [(0, 2), (0, 4), (1, 2), (1, 4), (2, 3), (3, 4)],
    ]
    one.wide(torch.ones(N_VIEWS, dtype=torch.bool))  # all have one, by few tracks
    assert compared[2] == PAIRS[1:]


def test_without_photos_nothing_is_seen_from_aside(
    compared: list[list[tuple[int, int]]],
) -> None:
    assert Evidence(scene(), [], RefineConfig(), None, silent).wide(None) == []
    assert compared == []


def test_many_photos_that_all_have_a_place_need_no_more(
    compared: list[list[tuple[int, int]]],
) -> None:
    config = RefineConfig(max_wide_views=N_VIEWS - 1)
    assert evidence(config).wide(torch.ones(N_VIEWS, dtype=torch.bool)) == []
    assert compared == []


def test_an_ignored_view_is_in_no_matches_and_nothing_new_is_compared(
    compared: list[list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_evidence, "match_far_apart", lambda *_, **__: [matches(1, 3, 40)])
    monkeypatch.setattr(bundle_evidence, "without_contradicted", lambda found, *_: found)
    one = evidence(RefineConfig())
    assert [(m.i, m.j) for m in one.wide(None)] == [(1, 3)]
    one.ignored.add(2)
    assert [(m.i, m.j) for m in one.anywhere] == [(0, 1)]
    assert all(2 not in (m.i, m.j) for m in one.coarse)
    assert [(m.i, m.j) for m in one.wide(None)] == [(1, 3)]
    one.ignored.add(3)
    assert one.wide(None) == []
