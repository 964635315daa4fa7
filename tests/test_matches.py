"""Matches: the fast search against a slow one, exact pointmaps against true reprojections."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from exact_scene import exact_scene
from recon3d.config import MatchConfig
from recon3d.geometry import compose, invert_rigid, project, transform_points
from recon3d.matches import (
    Matches,
    collect_matches,
    matches_of_prediction,
    merge_orders,
    reciprocal_matches,
    renumber,
)
from recon3d.types import PairPrediction


def slow_matches(a: Tensor, b: Tensor, measure: str) -> set[tuple[int, int]]:
    """Compare every vector with every other, one at a time."""

    def closeness(p: Tensor, q: Tensor) -> float:
        return float(p @ q) if measure == "dot" else -float((p - q).norm())

    found = set()
    for m in range(len(a)):
        n = max(range(len(b)), key=lambda n: closeness(a[m], b[n]))
        if max(range(len(a)), key=lambda k: closeness(a[k], b[n])) == m:
            found.add((m, n))
    return found


def as_set(pairs: tuple[Tensor, Tensor]) -> set[tuple[int, int]]:
    assert len(pairs[0]) == len(set(pairs[0].tolist())) == len(set(pairs[1].tolist()))
    return set(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))


def vectors(n: int, measure: str) -> Tensor:
    values = torch.randn(n, 16 if measure == "dot" else 3).double()
    return torch.nn.functional.normalize(values, dim=-1) if measure == "dot" else values


def matches(i: int, j: int, rows: list[tuple[float, ...]]) -> Matches:
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Matches(
        i=i, j=j, pixels_i=values[:, :2], pixels_j=values[:, 2:4], confidence=values[:, 4]
    )


def rows_of(one: Matches) -> list[list[float]]:
    return torch.cat((one.pixels_i, one.pixels_j, one.confidence[:, None]), dim=1).tolist()


@pytest.mark.parametrize("measure", ["distance", "dot"])
def test_every_reciprocal_match_is_found(measure: str) -> None:
    for n_a, n_b in ((40, 60), (60, 40), (1, 5), (5, 1)):
        a, b = vectors(n_a, measure), vectors(n_b, measure)
        found = as_set(reciprocal_matches(a, b, measure=measure, max_bytes=1000))
        assert found == slow_matches(a, b, measure)
        assert found


@pytest.mark.parametrize("measure", ["distance", "dot"])
def test_matches_from_seeds_are_some_of_all(measure: str) -> None:
    a, b = vectors(80, measure), vectors(80, measure)
    exact = slow_matches(a, b, measure)
    seeds = torch.arange(0, 80, 5)
    found = as_set(reciprocal_matches(a, b, measure=measure, seeds=seeds))
    assert found <= exact
    # a seed that is itself matched is found at once
    assert found >= {(m, n) for m, n in exact if m % 5 == 0}
    # and others that the steps lead to
    assert any(m % 5 for m, _ in found)
    every = torch.arange(80).repeat(2)
    assert as_set(reciprocal_matches(a, b, measure=measure, seeds=every)) == exact


@pytest.mark.parametrize("measure", ["distance", "dot"])
def test_nothing_matches_nothing(measure: str) -> None:
    some, none = vectors(3, measure), vectors(3, measure)[:0]
    no_seed = torch.zeros(0, dtype=torch.int64)
    for a, b, seeds in ((some, none, None), (none, some, None), (some, some, no_seed)):
        found = reciprocal_matches(a, b, measure=measure, seeds=seeds)
        assert [len(index) for index in found] == [0, 0]


def test_products_do_not_depend_on_the_block() -> None:
    a, b = vectors(50, "dot"), vectors(9000, "dot")  # more columns than one block has
    one = reciprocal_matches(a, b, measure="dot")
    many = reciprocal_matches(a, b, measure="dot", max_bytes=1)
    assert as_set(one) == as_set(many)


@pytest.mark.parametrize("stride", [1, 3])
def test_exact_pointmaps_match_the_true_pixels(stride: int) -> None:
    scene = exact_scene(2)
    for prediction in scene.predictions():
        i, j = prediction.i, prediction.j
        found = matches_of_prediction(prediction, MatchConfig(stride=stride, max_distance=0.01))
        assert (found.i, found.j) == (i, j)
        assert len(found.confidence) > 60
        column, row = (found.pixels_i - 0.5).long().T
        cam_i2cam_j = compose(invert_rigid(scene.cam2world[j]), scene.cam2world[i])
        there = transform_points(cam_i2cam_j, scene.pointmap(i)[row, column])
        off = (project(there, scene.intrinsics(j)) - found.pixels_j).norm(dim=-1)
        # the nearest pixel centre is half a diagonal away, a little more on slanted walls
        assert float(off.quantile(0.9)) < 0.6
        assert float(off.max()) < 1


def test_confidence_and_limits() -> None:
    prediction = exact_scene(2).predictions()[0]
    config = MatchConfig(stride=1, min_confidence=6.0)
    found = matches_of_prediction(prediction, config)
    confidence = []
    for pixels, values in (
        (found.pixels_i, prediction.confidence_i),
        (found.pixels_j, prediction.confidence_j),
    ):
        column, row = (pixels - 0.5).long().T
        confidence.append(values[row, column])
        assert float(values[row, column].min()) >= 6.0
    assert torch.allclose(found.confidence, (confidence[0] * confidence[1]).sqrt())
    few = matches_of_prediction(prediction, replace(config, max_matches=10))
    best = found.confidence.sort(descending=True).values[:10]
    assert torch.equal(few.confidence.sort(descending=True).values, best)
    none = matches_of_prediction(prediction, replace(config, min_confidence=1e3))
    assert none.pixels_i.shape == none.pixels_j.shape == (0, 2)


def test_points_far_apart_do_not_match() -> None:
    prediction = exact_scene(2).predictions()[0]
    moved = replace(prediction, pointmap_j_in_i=prediction.pointmap_j_in_i + 100)
    found = matches_of_prediction(moved, MatchConfig(stride=1))
    assert len(found.confidence) == 0


def test_points_that_are_not_finite_do_not_match() -> None:
    prediction = exact_scene(2).predictions()[0]
    points = prediction.pointmap_i_in_i.clone()
    points[:, : points.shape[1] // 2] = torch.nan
    found = matches_of_prediction(replace(prediction, pointmap_i_in_i=points), MatchConfig())
    assert len(found.confidence) > 10
    assert float(found.pixels_i[:, 0].min()) > points.shape[1] // 2


def described(shift: int) -> PairPrediction:
    """Return a pair whose view j shows view i, `shift` pixels to the left, by descriptors only."""
    height, width = 6, 12
    i = torch.nn.functional.normalize(torch.randn(height, width, 24), dim=-1)
    flat = torch.ones(height, width)
    return PairPrediction(
        i=0,
        j=1,
        pointmap_i_in_i=torch.rand(height, width, 3),
        pointmap_j_in_i=torch.rand(height, width, 3),
        confidence_i=2 * flat,
        confidence_j=2 * flat,
        descriptors_i=i.half(),
        descriptors_j=i.roll(-shift, dims=1).half(),
        descriptor_confidence_i=3 * flat,
        descriptor_confidence_j=12 * flat,
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_descriptors_go_before_points(stride: int) -> None:
    found = matches_of_prediction(described(4), MatchConfig(stride=stride))
    assert len(found.confidence) == 6 * 12 // stride**2
    moved = (found.pixels_j - found.pixels_i) % torch.tensor([12.0, 6.0])
    assert torch.equal(moved, torch.tensor([8.0, 0.0]).expand_as(moved))
    assert torch.allclose(found.confidence, torch.tensor(6.0))


def test_predictions_pass_through_the_collection() -> None:
    predictions = exact_scene(3).predictions()
    found: list[Matches] = []
    passed = list(collect_matches(iter(predictions), found, MatchConfig()))
    assert [id(p) for p in passed] == [id(p) for p in predictions]
    assert [(one.i, one.j) for one in found] == [(p.i, p.j) for p in predictions]


@pytest.mark.parametrize("with_descriptors", [False, True])
def test_masked_pixels_do_not_match(with_descriptors: bool) -> None:
    one = described(3) if with_descriptors else exact_scene(2).predictions()[0]
    masks = [torch.ones_like(one.confidence_i, dtype=torch.bool), None]
    masks[0][:, : masks[0].shape[1] // 2] = False
    everywhere: list[Matches] = []
    visible: list[Matches] = []
    one = replace(one, i=0, j=1)
    list(collect_matches([one], everywhere, MatchConfig(stride=1, max_matches=9999)))
    (passed,) = collect_matches([one], visible, MatchConfig(stride=1, max_matches=9999), masks)
    assert passed is one
    limit = masks[0].shape[1] // 2
    assert bool((everywhere[0].pixels_i[:, 0] < limit).any())
    assert len(visible[0].pixels_i) > 20
    assert bool((visible[0].pixels_i[:, 0] > limit).all())
    swapped: list[Matches] = []
    list(collect_matches([replace(one, i=1, j=0)], swapped, MatchConfig(stride=1), [None, None]))
    assert bool((swapped[0].pixels_i[:, 0] < limit).any())


def test_orders_are_merged_by_confidence() -> None:
    merged = merge_orders(
        [
            matches(2, 1, [(0.5, 0.5, 9.5, 9.5, 1.0)]),
            matches(0, 1, [(1.5, 1.5, 2.5, 2.5, 2.0), (3.5, 1.5, 4.5, 2.5, 5.0)]),
            matches(1, 0, [(2.5, 2.5, 1.5, 1.5, 3.0), (4.5, 2.5, 7.5, 1.5, 4.0)]),
            matches(1, 0, [(8.5, 8.5, 6.5, 6.5, 1.5)]),
            matches(0, 3, []),
        ]
    )
    assert [(one.i, one.j) for one in merged] == [(0, 1), (0, 3), (1, 2)]
    assert sorted(rows_of(merged[0])) == [
        [1.5, 1.5, 2.5, 2.5, 3.0],  # twice the same: the more confident
        [3.5, 1.5, 4.5, 2.5, 5.0],  # not (7.5, 1.5), which claims the same pixel of view 1
        [6.5, 6.5, 8.5, 8.5, 1.5],
    ]
    assert rows_of(merged[1]) == []
    assert rows_of(merged[2]) == [[9.5, 9.5, 0.5, 0.5, 1.0]]
    assert [rows_of(one) for one in merge_orders(merged)] == [rows_of(one) for one in merged]
    assert merge_orders([]) == []


def test_renumbering_drops_what_has_no_number() -> None:
    found = [matches(0, 1, []), matches(1, 3, [(1, 2, 3, 4, 5)]), matches(0, 3, [])]
    kept = renumber(found, {1: 0, 3: 1})
    assert [(one.i, one.j) for one in kept] == [(0, 1)]
    assert rows_of(kept[0]) == [[1, 2, 3, 4, 5]]
    (turned,) = renumber(found, {1: 5, 3: 2})  # the lower number stays first
    assert (turned.i, turned.j) == (2, 5)
    assert rows_of(turned) == [[3, 4, 1, 2, 5]]
