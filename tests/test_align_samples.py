"""What alignment keeps of the predictions: samples, weights, maps."""

import dataclasses

import pytest
import torch

from exact_scene import blank_view, exact_scene
from recon3d.align_samples import (
    KeptMaps,
    alone,
    base_point,
    mean_log_confidence,
    pixel_weight,
    sample_pixels,
    take_samples,
    weighted_median,
)
from recon3d.config import AlignConfig
from recon3d.errors import DisconnectedError
from recon3d.types import KnownCamera

CONFIG = AlignConfig()


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
    samples, _ = take_samples([prediction], truth.views, CONFIG)
    height, width = truth.views[prediction.j].image.shape[-2:]
    row, column = (
        (samples.pixel[prediction.j] + torch.tensor([width, height]) / 2 - 0.5).long().unbind(-1)
    )[::-1]
    expected = prediction.pointmap_j_in_i[row, column].double()
    torch.testing.assert_close(samples.seen[0], expected)
    log_mean = prediction.confidence_j.double().log().mean()
    assert float(samples.confidence[0].log()) == pytest.approx(float(log_mean), rel=1e-5)


def test_a_subset_keeps_the_pixels_of_all_views():
    truth = exact_scene(3)
    raw, _ = take_samples(truth.predictions(), truth.views, CONFIG)
    rows = (raw.i == 1).nonzero().flatten()
    kept = raw.take(rows)
    assert kept.i.tolist() == [1, 1]
    assert torch.equal(kept.seen, raw.seen[rows])
    assert torch.equal(kept.pixel, raw.pixel)


def test_masked_pixels_have_no_weight():
    truth = exact_scene(2)
    height, width = truth.views[0].image.shape[-2:]
    left = torch.zeros(height, width, dtype=torch.bool)
    left[:, : width // 2] = True
    raw, _ = take_samples(truth.predictions(), truth.views, CONFIG, masks=[left, None])
    inside = raw.pixel[0, :, 0] < 0  # relative to the centre
    for k in range(2):
        mine = raw.own_weight[k] if raw.i[k] == 0 else raw.seen_weight[k]
        other = raw.seen_weight[k] if raw.i[k] == 0 else raw.own_weight[k]
        assert torch.equal(mine > 0, inside)
        assert bool((other > 0).all())


def test_pixels_count_from_the_centre_of_the_photo_or_the_given_principal_point():
    view = dataclasses.replace(
        blank_view("a", (48, 64)), photo2view=torch.tensor([[0.5, 0, -3], [0, 0.5, 1], [0, 0, 1.0]])
    )
    assert base_point(view, None).tolist() == [32 - 3, 24 + 1]
    camera = KnownCamera(
        intrinsics=torch.tensor([[50.0, 0, 30], [0, 50, 20], [0, 0, 1]]), cam2world=None
    )
    assert base_point(view, camera).tolist() == [30, 20]
    assert base_point(view, KnownCamera(intrinsics=None, cam2world=torch.eye(4))).tolist() == [
        29,
        25,
    ]


def test_each_view_keeps_its_most_confident_maps_within_the_limit():
    truth = exact_scene(8, shapes=((16, 16),))
    predictions = truth.predictions()
    n_bytes = 16 * 16 * 16
    kept = KeptMaps([None] * 8, 6 * 8 * n_bytes)
    for number, p in enumerate(predictions):
        kept.add(number, p)
    for n in range(8):
        maps = kept.of(n)
        assert len(maps) == 6
        assert [m.prediction for m in maps] == sorted(m.prediction for m in maps)
        every = sorted(
            mean_log_confidence(p.confidence_i if p.i == n else p.confidence_j)
            for p in predictions
            if n in (p.i, p.j)
        )
        assert sorted(m.score for m in maps) == every[-6:]
    tiny = KeptMaps([None] * 8, 1)
    for number, p in enumerate(predictions):
        tiny.add(number, p)
    assert [len(tiny.of(n)) for n in range(8)] == [4] * 8


@pytest.mark.parametrize("side", [4, 12, 29])
def test_samples_are_taken_where_a_small_mask_lets_them(side: int):
    """All pixels of the mask, or as many as elsewhere."""
    truth = exact_scene(2, shapes=((120, 160), (32, 48)))
    masks = []
    for view in truth.views:
        height, width = view.image.shape[1:]
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[3 : 3 + side, 7 : 7 + side] = True
        masks.append(mask)
    raw, _ = take_samples(truth.predictions(), truth.views, CONFIG, masks=masks)
    for n, mask in enumerate(masks):
        known = (raw.own_weight[raw.i == n] > 0).sum()
        assert int(known) >= min(CONFIG.samples_per_edge, int(mask.sum()))
    assert len(raw.i) == 2


def test_masks_without_a_pixel_are_said_to_be_too_small():
    truth = exact_scene(2)
    masks = [torch.zeros(view.image.shape[1:], dtype=torch.bool) for view in truth.views]
    with pytest.raises(DisconnectedError, match=r"within the masks\. Give larger masks"):
        take_samples(truth.predictions(), truth.views, CONFIG, masks=masks)


def test_what_is_masked_does_not_choose_the_maps_that_are_kept():
    truth = exact_scene(8, shapes=((16, 16),))
    mask = torch.arange(16) < 8
    kept = KeptMaps([mask.expand(16, 16), *[None] * 7], 1)
    predictions = [p for p in truth.predictions() if p.i == 0]
    for number, p in enumerate(predictions):
        confidence = torch.where(mask, 2.0 + number, 50.0 - number).expand(16, 16)
        kept.add(number, dataclasses.replace(p, confidence_i=confidence))
    assert [m.prediction for m in kept.of(0)] == [3, 4, 5, 6]


def test_a_kept_map_does_not_hold_the_whole_batch():
    batch = torch.zeros(32, 16, 16, 3)
    pair = torch.zeros(2, 16, 16, 3)
    assert alone(pair[0]).untyped_storage().nbytes() == 16 * 16 * 3 * 4
    assert alone(batch[3]).untyped_storage().nbytes() == 16 * 16 * 3 * 4
    assert alone(batch).data_ptr() == batch.data_ptr()
