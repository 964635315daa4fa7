"""The published objective, minimised: against a slow twin, at the truth, and what must not move."""

import dataclasses

import pytest
import torch

import recon3d.align
from exact_scene import ExactScene, exact_scene
from published_objective import scene_objective
from recon3d.align import align
from recon3d.align_focal import Focals, lenses
from recon3d.align_init import canonical_views
from recon3d.align_polish import Freedom, polish
from recon3d.align_samples import Samples, denser_samples, take_samples
from recon3d.config import AlignConfig

CONFIG = AlignConfig()


def may(*views: bool) -> torch.Tensor:
    return torch.tensor(views)


def at_the_truth(truth: ExactScene, **spoil: float) -> tuple[Samples, torch.Tensor, Focals]:
    """Return samples, the true similarities of their unit frames, and the true focal lengths."""
    raw, _ = take_samples(truth.predictions(**spoil), truth.views, CONFIG)
    _, samples = canonical_views(raw, lenses(truth.views, CONFIG))
    unit2world = truth.cam2world.double().clone()
    for n, depth in enumerate(truth.depth):
        row = samples.i.tolist().index(n)
        true = depth.reshape(-1)[places(truth, n)].double()
        unit2world[n, :3, :3] *= float((true / samples.own[row, :, 2]).median())
    focal = truth.focal.double()[:, None].expand(-1, 2)
    source = ("estimated",) * len(truth.views)
    return samples, unit2world, Focals(focal=focal, centre=torch.zeros_like(focal), source=source)


def places(truth: ExactScene, n: int) -> torch.Tensor:
    """Return the sample pixels of a view, read back from where they say they are."""
    raw, _ = take_samples(truth.predictions(), truth.views, CONFIG)
    height, width = truth.views[n].image.shape[1:]
    column, row = (raw.pixel[n] + torch.tensor([width / 2, height / 2])).long().unbind(-1)
    return row * width + column


def test_exact_pointmaps_leave_true_cameras_where_they_are():
    truth = exact_scene(4)
    samples, unit2world, lens = at_the_truth(truth)
    free = Freedom(pose=may(*[True] * 4), focal=may(*[True] * 4))
    result = polish(samples, unit2world, lens, free)
    torch.testing.assert_close(result.unit2world, unit2world, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.lens.focal, lens.focal, rtol=1e-5, atol=0)


def test_only_what_is_free_moves():
    truth = exact_scene(3)
    samples, unit2world, lens = at_the_truth(truth, noise=0.05, outliers=0.1)
    free = Freedom(pose=may(False, True, False), focal=may(False, False, True))
    result = polish(samples, unit2world, lens, free)
    moved = (result.unit2world - unit2world).abs().amax((1, 2))
    zoomed = (result.lens.focal - lens.focal).abs().amax(1)
    assert (moved > 1e-6).tolist() == free.pose.tolist()
    assert (zoomed > 1e-6).tolist() == free.focal.tolist()
    still = polish(
        samples, unit2world, lens, Freedom(pose=may(*[False] * 3), focal=may(*[False] * 3))
    )
    assert torch.equal(still.unit2world, unit2world)
    assert torch.equal(still.lens.focal, lens.focal)


@pytest.mark.parametrize("n_views", [2, 4])
def test_free_cameras_lower_the_published_objective(
    n_views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = exact_scene(n_views)
    predictions = truth.predictions(noise=0.05, outliers=0.1)
    free = scene_objective(align(predictions, truth.views, CONFIG), predictions)
    held = Freedom(pose=may(*[False] * n_views), focal=may(*[False] * n_views))
    monkeypatch.setattr(recon3d.align, "_freedom", lambda placed, config: held)
    assert free < scene_objective(align(predictions, truth.views, CONFIG), predictions)


def test_a_shared_focal_length_stays_shared():
    truth = exact_scene(4, shapes=[(48, 64)])
    config = AlignConfig(shared_focal=True)
    scene = align(truth.predictions(noise=0.05), truth.views, config)
    assert len(set(scene.intrinsics[:, 0, 0].tolist())) == 1


def test_denser_samples_are_the_same_edges_at_more_pixels():
    truth = exact_scene(3)
    masks = [None, torch.rand(truth.views[1].image.shape[1:]) < 0.5, None]
    predictions = truth.predictions(noise=0.05)
    raw, maps = take_samples(predictions, truth.views, CONFIG, masks=masks)
    samples = dataclasses.replace(raw, edge_scale=torch.arange(1.0, 7.0).double())
    dense = denser_samples(samples, maps, truth.views, (), masks, CONFIG)
    count = dense.pixel.shape[1]
    assert count > 4 * samples.pixel.shape[1] - 1
    wanted, _ = take_samples(
        predictions, truth.views, AlignConfig(samples_per_edge=count), masks=masks
    )
    for name in ("own", "seen"):
        divided = getattr(wanted, name) / samples.edge_scale[:, None, None]
        assert torch.equal(getattr(dense, name), divided)
        assert torch.equal(getattr(dense, f"{name}_weight"), getattr(wanted, f"{name}_weight"))
    assert torch.equal(dense.pixel, wanted.pixel)


def test_samples_stay_as_they_are_where_a_map_was_not_kept():
    truth = exact_scene(6)
    config = AlignConfig(max_map_bytes=1)
    samples, maps = take_samples(truth.predictions(), truth.views, config)
    assert denser_samples(samples, maps, truth.views, (), (), config) is samples
