"""What pairs say by themselves: samples, canonical views, similarities, focals, the tree."""

import dataclasses

import pytest
import torch

from exact_scene import blank_view, exact_scene
from recon3d.align_init import (
    Pair,
    combine_orders,
    largest_group,
    measure_edges,
    similarity_scale,
    spanning_tree,
)
from recon3d.align_samples import (
    Canonical,
    Samples,
    canonical_views,
    choose_focals,
    pixel_weight,
    resect,
    sample_pixels,
    take_samples,
    weighted_median,
    weiszfeld_focal,
)
from recon3d.config import AlignConfig
from recon3d.geometry import pixel_grid, rotation_angle, similarity, so3_exp, transform_points

CONFIG = AlignConfig()


def measured(n_views: int = 3, **spoil: float) -> tuple:
    truth = exact_scene(n_views)
    raw = take_samples(truth.predictions(**spoil), truth.views, CONFIG)
    canonical, samples = canonical_views(raw, truth.views, CONFIG)
    return truth, raw, canonical, samples


def pair(a: int, b: int, shift: float = 0.0, **changes: float) -> Pair:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3] = shift
    fields = {"residual": 0.05, "confidence": 5.0, "rotation_gap_deg": 1.0, "scale_gap": 1.0}
    return Pair(a=a, b=b, unit_b2unit_a=matrix, **(fields | changes))


def test_weighted_median_matches_a_loop():
    values, weights = torch.randn(7, 21), torch.rand(7, 21)
    for row, weight, found in zip(values, weights, weighted_median(values, weights), strict=True):
        for candidate in row.sort().values:
            if weight[row <= candidate].sum() >= weight.sum() / 2:
                assert found == candidate
                break


def test_weighted_median_ignores_weight_zero():
    values = torch.tensor([1.0, 2.0, 3.0, 100.0, 200.0])
    assert weighted_median(values, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])) == 2


def test_pixel_weight_by_hand():
    points = torch.tensor([[0.0, 0, 1], [0, 0, 1], [torch.nan, 0, 1], [0, 0, 1], [0, torch.inf, 1]])
    confidence = torch.tensor([1.0, torch.e, 5.0, torch.nan, 5.0])
    torch.testing.assert_close(
        pixel_weight(points, confidence), torch.tensor([0.001, 1.001, 0, 0, 0])
    )


@pytest.mark.parametrize(("height", "width"), [(48, 64), (224, 16), (8, 400)])
def test_samples_cover_the_image_evenly(height: int, width: int):
    index = sample_pixels(height, width, 512, seed=1)
    assert torch.equal(index, sample_pixels(height, width, 512, seed=1))
    assert not torch.equal(index, sample_pixels(height, width, 512, seed=2))
    assert len(index) == 512
    assert 0 <= int(index.min()) <= int(index.max()) < height * width
    quarter = (index // width * 2 // height) * 2 + index % width * 2 // width
    assert torch.bincount(quarter, minlength=4).sub(128).abs().max() <= 8


def test_samples_are_what_the_predictions_hold():
    truth = exact_scene(2)
    prediction = truth.predictions()[0]
    samples = take_samples([prediction], truth.views, CONFIG)
    height, width = truth.views[prediction.j].image.shape[-2:]
    row, column = (
        (samples.pixel[prediction.j] + torch.tensor([width, height]) / 2 - 0.5).long().unbind(-1)
    )[::-1]
    expected = prediction.pointmap_j_in_i[row, column].double()
    torch.testing.assert_close(samples.seen[0], expected)
    log_mean = prediction.confidence_j.double().log().mean()
    assert float(samples.confidence[0].log()) == pytest.approx(float(log_mean), rel=1e-5)


def test_a_subset_keeps_the_pixels_of_all_views():
    _, raw, _, _ = measured(3)
    kept = raw.where(raw.i == 1)
    assert isinstance(kept, Samples)
    assert kept.i.tolist() == [1, 1]
    assert torch.equal(kept.seen, raw.seen[raw.i == 1])
    assert torch.equal(kept.pixel, raw.pixel)


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
    canonical, _ = canonical_views(
        take_samples(predictions, truth.views, CONFIG), truth.views, CONFIG
    )
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
    assert sorted((p.a, p.b) for p in pairs) == [(0, 1), (0, 2), (1, 2)]
    for each in pairs:
        assert each.rotation_gap_deg < 1e-3
        assert each.scale_gap == pytest.approx(1, abs=1e-5)
        assert each.is_good(CONFIG)


def test_the_disagreement_of_the_orders_is_seen():
    _, _, canonical, samples = measured(2)
    edges = measure_edges(samples, canonical)
    turn = similarity(
        torch.tensor(1.5), so3_exp(torch.tensor([0.0, 0.5, 0.0])), torch.zeros(3)
    ).double()
    spoilt = edges.unit_j2unit_i.clone()
    spoilt[0] = spoilt[0] @ turn
    (found,) = combine_orders(samples, dataclasses.replace(edges, unit_j2unit_i=spoilt))
    assert found.rotation_gap_deg == pytest.approx(28.648, abs=1e-2)
    assert found.scale_gap == pytest.approx(1.5, abs=1e-4)
    (single,) = combine_orders(
        samples.where(samples.i == 0),
        dataclasses.replace(
            edges,
            unit_j2unit_i=edges.unit_j2unit_i[samples.i == 0],
            residual=edges.residual[samples.i == 0],
        ),
    )
    assert (single.a, single.b, single.rotation_gap_deg, single.scale_gap) == (0, 1, 0, 1)


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
    assert pair(0, 1, **changes).is_good(CONFIG) is good
    assert (pair(0, 1, **changes).score < pair(0, 1).score) is not good


def test_of_equal_groups_the_better_scored_one_is_kept():
    weak, strong = pair(0, 1, residual=0.3), pair(2, 3)
    assert largest_group(5, [weak, strong]) == [2, 3]
    assert largest_group(5, [weak, strong, pair(1, 4)]) == [0, 1, 4]
    assert len(largest_group(3, [])) == 1


def test_the_tree_takes_the_strong_pairs_and_starts_at_the_hub():
    weak = pair(0, 3, shift=100.0, residual=0.3)
    pairs = [pair(0, 1, shift=1.0), pair(2, 1, shift=2.0), pair(1, 3, shift=4.0), weak]
    root, unit2world = spanning_tree(5, [0, 1, 2, 3], pairs)
    assert root == 1
    assert unit2world[:, 0, 3].tolist() == [-1.0, 0.0, -2.0, 4.0, 0.0]


def rays(focal: float, height: int = 48, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    pixel = (pixel_grid(height, width).double() - torch.tensor([width / 2, height / 2])).flatten(
        0, 1
    )
    depth = 1 + torch.rand(len(pixel), 1).double()
    return torch.cat((pixel / focal, torch.ones_like(depth)), -1) * depth, pixel


def test_weiszfeld_is_exact_and_shrugs_off_outliers():
    points, pixel = rays(57.0)
    points[::10, :2] *= 3
    found = weiszfeld_focal(
        points[None], pixel[None], torch.ones(1, len(pixel)).double(), torch.tensor([64.0]).double()
    )
    assert float(found) == pytest.approx(57.0, rel=1e-3)


@pytest.mark.parametrize(("focal", "expected"), [(5.0, 22.4), (1000.0, 256.0)])
def test_absurd_focals_are_clipped(focal: float, expected: float):
    points, pixel = rays(focal)
    found = weiszfeld_focal(
        points[None], pixel[None], torch.ones(1, len(pixel)).double(), torch.tensor([64.0]).double()
    )
    assert float(found) == pytest.approx(expected)


def test_points_of_nothing_give_a_finite_focal():
    zero = torch.zeros(1, 9, 3).double()
    found = weiszfeld_focal(zero, zero[..., :2], zero[..., 0], torch.tensor([64.0]).double())
    assert bool(found.isfinite().all())


def test_a_stretched_photo_has_two_focals():
    points, pixel = rays(60.0)
    view = dataclasses.replace(
        blank_view("a", (48, 64)), photo2view=torch.diag(torch.tensor([0.5, 0.25, 1.0]))
    )
    focal, source = choose_focals(
        points[None],
        torch.ones(1, len(pixel)).double(),
        pixel[None],
        [view],
        AlignConfig(focal_px=100.0),
    )
    assert focal.tolist() == [[50.0, 25.0]]
    assert source == ["given"]


def test_resection_of_an_unknown_camera():
    points, pixel = rays(70.0)
    elsewhere = similarity(
        torch.tensor(1.0), so3_exp(torch.tensor([0.3, -0.5, 0.1])), torch.tensor([1.0, 0.2, -0.5])
    ).double()
    seen = transform_points(elsewhere, points)
    seen[::7] += 1.0
    weight = torch.ones(len(pixel)).double()
    weight[-5:] = 0
    seen[-5:] = 0
    found = resect(seen, pixel, weight, 32.0, 192.0)
    good = torch.ones(len(pixel), dtype=torch.bool)
    good[::7] = good[-5:] = False
    assert float((found - points)[good].norm(dim=-1).max()) < 0.01
    exact = resect(seen, pixel, weight, 70.0, 70.0)
    assert float((exact - points)[good].norm(dim=-1).max()) < 1e-6


def test_a_view_seen_only_from_others_is_resected():
    truth = exact_scene(2)
    (only,) = [p for p in truth.predictions() if p.i == 0]
    raw = take_samples([only], truth.views, CONFIG)
    canonical, _ = canonical_views(raw, truth.views, CONFIG)
    assert isinstance(canonical, Canonical)
    assert bool((canonical.weight[1] > 0).all())
    projected = truth.focal[1] * canonical.points[1, :, :2] / canonical.points[1, :, 2:]
    assert float((projected - raw.pixel[1]).norm(dim=-1).median()) < 0.1
