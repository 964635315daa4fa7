"""What is said of every pair: of those that hold photos, those refused, and those elsewhere."""

import dataclasses
import math

import pytest
import torch

from exact_scene import ExactScene, exact_scene
from recon3d.align import align, align_groups
from recon3d.align_verdicts import ELSEWHERE, NOTHING_FINITE
from recon3d.config import AlignConfig
from recon3d.geometry import so3_exp
from recon3d.types import EdgeVerdict, PairPrediction, Scene

CONFIG = AlignConfig()


def by_ends(scene: Scene) -> dict[frozenset[str], EdgeVerdict]:
    found = {frozenset((edge.first, edge.second)): edge for edge in scene.edges}
    assert len(found) == len(scene.edges)
    return found


def with_wrong_camera(truth: ExactScene, pair: tuple[int, int], angle_deg: float) -> list:
    """Return all predictions, both orders of one pair agreeing that a camera is turned."""
    moved = dataclasses.replace(truth, cam2world=truth.cam2world.clone())
    turn = so3_exp(torch.tensor([0.0, math.radians(angle_deg), 0.0])).double()
    moved.cam2world[pair[0], :3, :3] = moved.cam2world[pair[0], :3, :3] @ turn
    return [p for p in truth.predictions() if {p.i, p.j} != set(pair)] + moved.predictions([pair])


@pytest.mark.parametrize("angle_deg", [60.0, -90.0])
def test_a_pair_that_contradicts_is_listed_with_how_far_off_it_is(angle_deg: float):
    truth = exact_scene(5)
    scene = align(with_wrong_camera(truth, (1, 3), angle_deg), truth.views, CONFIG)
    found = by_ends(scene)
    assert len(found) == 10
    wrong = found.pop(frozenset(("1.jpg", "3.jpg")))
    assert not wrong.used
    assert "contradicts" in wrong.reason
    assert wrong.rotation_error_deg == pytest.approx(abs(angle_deg), abs=0.1)
    assert wrong.residual > 0.1
    assert wrong.inliers < 0.1
    for edge in found.values():
        assert edge.used
        assert edge.reason == ""
        assert edge.rotation_error_deg < 0.1
        assert edge.residual < 1e-4
        assert edge.inliers > 0.9


def test_pairs_of_photos_outside_the_scene_are_listed_too():
    truth = exact_scene(7)
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4), (5, 6)]
    predictions = truth.predictions(pairs)
    dim = [dim_pair(p) for p in truth.predictions([(5, 6), (2, 3)])]
    predictions = [p for p in predictions if {p.i, p.j} != {5, 6}] + dim
    scene = align(predictions, truth.views, CONFIG)
    found = by_ends(scene)
    assert len(scene.views) == 3
    assert len(found) == 6
    assert found[frozenset(("3.jpg", "4.jpg"))].reason == ELSEWHERE
    assert found[frozenset(("5.jpg", "6.jpg"))].reason == "low confidence"
    assert found[frozenset(("2.jpg", "3.jpg"))].reason == "low confidence"
    assert not found[frozenset(("3.jpg", "4.jpg"))].used

    first, second = align_groups(predictions, truth.views, CONFIG)
    assert frozenset(("3.jpg", "4.jpg")) not in by_ends(first)
    assert frozenset(("5.jpg", "6.jpg")) in by_ends(first)
    assert by_ends(second)[frozenset(("3.jpg", "4.jpg"))].used
    assert len(by_ends(second)) == 2


def test_a_pair_of_which_nothing_is_finite_is_listed():
    truth = exact_scene(3)
    predictions = truth.predictions()
    for p in predictions:
        if {p.i, p.j} == {0, 2}:
            p.pointmap_j_in_i[:] = torch.nan
    found = by_ends(align(predictions, truth.views, CONFIG))
    assert len(found) == 3
    dead = found[frozenset(("0.jpg", "2.jpg"))]
    assert (dead.used, dead.reason) == (False, NOTHING_FINITE)
    assert math.isnan(dead.confidence)


def dim_pair(p: PairPrediction) -> PairPrediction:
    return dataclasses.replace(
        p,
        confidence_i=torch.full_like(p.confidence_i, 1.05),
        confidence_j=torch.full_like(p.confidence_j, 1.05),
    )
