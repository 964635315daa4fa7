"""The start of the joint solve: errors along a tree spread over all pairs."""

import math

import torch

from exact_scene import exact_scene
from recon3d.align_focal import lenses
from recon3d.align_init import canonical_views, measure_edges
from recon3d.align_refine import averaged, judge, refine
from recon3d.align_samples import take_samples
from recon3d.align_solve import Anchors
from recon3d.config import AlignConfig
from recon3d.geometry import compose, rotation_angle, similarity, so3_exp

CONFIG = AlignConfig()
N_VIEWS = 10


def torn_ring(noise: float) -> tuple:
    """Return a ring of pairs with neighbours, and a start whose turn adds up along the way."""
    truth = exact_scene(N_VIEWS, shapes=((48, 64),))
    pairs = [(n, (n + k) % N_VIEWS) for n in range(N_VIEWS) for k in (1, 2)]
    raw, _ = take_samples(truth.predictions(pairs, noise=noise), truth.views, CONFIG)
    known = lenses(truth.views, CONFIG)
    canonical, samples = canonical_views(raw, known)
    edges = measure_edges(samples, canonical)
    median = torch.stack([depth.median() for depth in truth.depth])
    exact = similarity(median, truth.cam2world[:, :3, :3], truth.cam2world[:, :3, 3])
    start = exact.clone()
    for n in range(1, N_VIEWS):
        step = compose(torch.linalg.inv(exact[n - 1]), exact[n])
        drift = so3_exp(torch.tensor([0.0, math.radians(12.0), 0.0]).double())
        step[:3, :3] = drift @ step[:3, :3]
        start[n] = compose(start[n - 1], step)
    no = torch.zeros(N_VIEWS, dtype=torch.bool)
    locked = no.clone()
    locked[0] = True
    anchors = Anchors(locked=locked, fixed=no, prior=no, cam2world=start)
    return samples, canonical, edges, known, anchors, start, exact


def largest_turn(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest error of a view's rotation from the first, in degrees."""
    turns = [m[:, :3, :3] / m[:, :3, :1].norm(dim=1, keepdim=True) for m in (found, exact)]
    relative = [turn[0].mT @ turn for turn in turns]
    return math.degrees(float(rotation_angle(relative[0].mT @ relative[1]).max()))


def test_averaging_all_pairs_closes_a_ring_that_drifted_apart():
    samples, canonical, edges, _, anchors, start, exact = torn_ring(0.0)
    assert largest_turn(start, exact) > 100
    weight = samples.seen_weight
    found = averaged(samples, canonical.points, weight, start, edges, anchors)
    assert largest_turn(found, exact) < 0.1
    assert torch.equal(found[0], start[0])


def test_the_solve_does_not_depend_on_how_far_the_tree_drifted():
    samples, canonical, edges, known, anchors, start, exact = torn_ring(0.02)
    solutions = [
        refine(samples, canonical, begin, edges, anchors, known, CONFIG) for begin in (start, exact)
    ]
    assert all(largest_turn(each.unit2world, exact) < 1 for each in solutions)
    assert largest_turn(solutions[0].unit2world, solutions[1].unit2world) < 1e-2
    # what the solve says of its own edges is what it says of any
    residual, inliers = judge(samples, canonical, solutions[1])
    torch.testing.assert_close(residual, solutions[1].seen_residual, atol=1e-4, rtol=0)
    assert torch.equal(inliers, solutions[1].inliers)
