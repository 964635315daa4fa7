"""What pairs say by themselves: canonical views, similarities, groups, the spanning tree."""

import dataclasses

import pytest
import torch

from exact_scene import exact_scene
from recon3d.align_focal import lenses
from recon3d.align_init import (
    Canonical,
    Pairs,
    canonical_views,
    combine_orders,
    groups,
    measure_edges,
    similarity_scale,
    spanning_tree,
)
from recon3d.align_samples import take_samples, weighted_median
from recon3d.config import AlignConfig
from recon3d.geometry import rotation_angle, similarity, so3_exp

CONFIG = AlignConfig()


def measured(n_views: int = 3, **spoil: float) -> tuple:
    truth = exact_scene(n_views)
    raw, _ = take_samples(truth.predictions(**spoil), truth.views, CONFIG)
    canonical, samples = canonical_views(raw, lenses(truth.views, CONFIG))
    return truth, raw, canonical, samples


def pair(a: int, b: int, shift: float = 0.0, **changes: float) -> Pairs:
    matrix = torch.eye(4, dtype=torch.float64)[None]
    matrix[0, 0, 3] = shift
    fields = {"residual": 0.05, "confidence": 5.0, "rotation_gap_deg": 1.0, "scale_gap": 1.0}
    numbers = {k: torch.tensor([v]).double() for k, v in (fields | changes).items()}
    one = torch.tensor([a]), torch.tensor([b]), torch.tensor([0]), torch.tensor([-1])
    return Pairs(a=one[0], b=one[1], edge=one[2], back=one[3], unit_b2unit_a=matrix, **numbers)


def together(*pairs: Pairs) -> Pairs:
    return Pairs(
        **{
            name: torch.cat([getattr(one, name) for one in pairs])
            for name in Pairs.__dataclass_fields__
        }
    )


@pytest.mark.parametrize(("noise", "outliers", "tolerance"), [(0.0, 0.0, 1e-6), (0.02, 0.1, 0.02)])
def test_canonical_views_undo_the_scale_of_each_pair(
    noise: float, outliers: float, tolerance: float
):
    truth, raw, canonical, samples = measured(4, noise=noise, outliers=outliers)
    depth = canonical.points[..., 2]
    torch.testing.assert_close(
        weighted_median(depth, canonical.weight), torch.ones(4).double(), rtol=1e-9, atol=0
    )
    for n, view in enumerate(truth.views):
        height, width = view.image.shape[-2:]
        column, row = (raw.pixel[n] + torch.tensor([width, height]) / 2 - 0.5).long().unbind(-1)
        exact = truth.pointmap(n)[row, column]
        ratio = depth[n] / exact[:, 2]
        assert float((ratio / ratio.median() - 1).abs().median()) < tolerance
    rescaled = raw.own / samples.edge_scale[:, None, None]
    torch.testing.assert_close(rescaled, samples.own)


def test_one_map_of_noise_among_good_ones_is_outvoted():
    truth = exact_scene(5)
    predictions = truth.predictions()
    k = next(k for k, p in enumerate(predictions) if p.i == 0)
    cloud = torch.randn_like(predictions[k].pointmap_i_in_i) + torch.tensor([0.0, 0.0, 3.0])
    predictions[k] = dataclasses.replace(predictions[k], pointmap_i_in_i=cloud)
    raw, _ = take_samples(predictions, truth.views, CONFIG)
    canonical, _ = canonical_views(raw, lenses(truth.views, CONFIG))
    clean = measured(5)[2]
    gap = (canonical.points[0] - clean.points[0]).norm(dim=-1)
    assert float(gap.median()) < 1e-3


def test_edges_measure_the_relative_camera():
    truth, _, canonical, samples = measured(3)
    edges = measure_edges(samples, canonical)
    assert float(edges.residual.max()) < 1e-5
    scale = similarity_scale(edges.unit_j2unit_i)
    expected = torch.linalg.inv(truth.cam2world[samples.i]) @ truth.cam2world[samples.j]
    rotation = edges.unit_j2unit_i[:, :3, :3] / scale[:, None, None]
    assert float(rotation_angle(rotation.mT @ expected[:, :3, :3]).max()) < 1e-5
    centre = torch.nn.functional.normalize(edges.unit_j2unit_i[:, :3, 3], dim=-1)
    wanted = torch.nn.functional.normalize(expected[:, :3, 3], dim=-1)
    torch.testing.assert_close(centre, wanted, rtol=0, atol=1e-5)


def test_both_orders_of_a_pair_agree_on_exact_data():
    _, _, canonical, samples = measured(3)
    pairs = combine_orders(samples, measure_edges(samples, canonical))
    assert sorted(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert float(pairs.rotation_gap_deg.max()) < 1e-3
    torch.testing.assert_close(pairs.scale_gap, torch.ones(3).double(), atol=1e-5, rtol=0)
    assert bool(pairs.is_good(CONFIG).all())
    rows, owner = pairs.rows()
    assert rows.tolist() == list(range(6))
    assert torch.equal(pairs.a[owner].minimum(pairs.b[owner]), samples.i.minimum(samples.j))


def test_the_disagreement_of_the_orders_is_seen():
    _, _, canonical, samples = measured(2)
    edges = measure_edges(samples, canonical)
    turn = similarity(
        torch.tensor(1.5), so3_exp(torch.tensor([0.0, 0.5, 0.0])), torch.zeros(3)
    ).double()
    spoilt = edges.unit_j2unit_i.clone()
    spoilt[0] = spoilt[0] @ turn
    found = combine_orders(samples, dataclasses.replace(edges, unit_j2unit_i=spoilt))
    assert found.rotation_gap_deg.tolist() == pytest.approx([28.648], abs=1e-2)
    assert found.scale_gap.tolist() == pytest.approx([1.5], abs=1e-4)
    row = (samples.i == 0).nonzero().flatten()
    single = combine_orders(
        samples.take(row),
        dataclasses.replace(
            edges, unit_j2unit_i=edges.unit_j2unit_i[row], residual=edges.residual[row]
        ),
    )
    assert (single.a.tolist(), single.b.tolist(), single.back.tolist()) == ([0], [1], [-1])
    assert (float(single.rotation_gap_deg), float(single.scale_gap)) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"residual": 0.36}, False),
        ({"rotation_gap_deg": 41.0}, False),
        ({"scale_gap": 2.1}, False),
        ({"confidence": 1.05}, False),
    ],
)
def test_what_makes_a_pair_good(changes: dict[str, float], good: bool):
    assert bool(pair(0, 1, **changes).is_good(CONFIG)) is good
    assert bool(pair(0, 1, **changes).score < pair(0, 1).score) is not good


def test_of_equal_groups_the_better_scored_one_is_kept():
    weak, strong = pair(0, 1, residual=0.3), pair(2, 3)
    assert groups(5, together(weak, strong))[:2] == [[2, 3], [0, 1]]
    assert groups(5, together(weak, strong, pair(1, 4)))[0] == [0, 1, 4]
    assert groups(3, weak.take(torch.zeros(0).long())) == [[0], [1], [2]]


def test_the_tree_takes_the_strong_pairs_and_starts_at_the_hub():
    weak = pair(0, 3, shift=100.0, residual=0.3)
    pairs = together(pair(0, 1, shift=1.0), pair(2, 1, shift=2.0), pair(1, 3, shift=4.0), weak)
    root, unit2world = spanning_tree(5, [0, 1, 2, 3], pairs)
    assert root == 1
    assert unit2world[:, 0, 3].tolist() == [-1.0, 0.0, -2.0, 4.0, 0.0]


def test_a_view_seen_only_from_others_is_resected():
    truth = exact_scene(2)
    (only,) = [p for p in truth.predictions() if p.i == 0]
    raw, _ = take_samples([only], truth.views, CONFIG)
    canonical, _ = canonical_views(raw, lenses(truth.views, CONFIG))
    assert isinstance(canonical, Canonical)
    assert bool((canonical.weight[1] > 0).all())
    projected = truth.focal[1] * canonical.points[1, :, :2] / canonical.points[1, :, 2:]
    assert float((projected - raw.pixel[1]).norm(dim=-1).median()) < 0.1
