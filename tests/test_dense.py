"""Dense stereo of a whole scene: larger views, true depth, calibrated confidence, or nothing."""

from dataclasses import replace

import numpy as np
import torch

from plane_world import shot
from recon3d.config import GUESS, DenseConfig
from recon3d.dense import _confidence, dense_scene
from recon3d.geometry import transform_points, unproject
from recon3d.metrics import error_by_confidence, falls_monotonically
from recon3d.sweep import Shot
from recon3d.types import Scene, Verdict, View

CONFIG = DenseConfig(size=96)
PLACES = (-0.5, 0.0, 0.5, 0.9)


def rough_scene(shots: list[Shot], *, blank: bool = False) -> tuple[Scene, dict[str, np.ndarray]]:
    """Return a scene at half the size of its photos, its depth flat, and the photos."""
    photos = {}
    views, intrinsics = [], []
    for n, one in enumerate(shots):
        grey = torch.full_like(one.grey, 0.5) if blank else one.grey
        photos[f"{n}.png"] = (grey * 255).round().byte()[..., None].expand(-1, -1, 3).numpy()
        height, width = one.grey.shape
        views.append(
            View(
                name=f"{n}.png", sha256=str(n), image=torch.zeros(3, height // 2, width // 2),
                photo2view=torch.diag(torch.tensor([0.5, 0.5, 1.0])),
                photo_width=width, photo_height=height, focal_px=None,
            )
        )  # fmt: skip
        intrinsics.append(torch.diag(torch.tensor([0.5, 0.5, 1.0])) @ one.intrinsics)
    depth = tuple(torch.full((36, 48), 4.4) for _ in shots)
    generator = torch.Generator().manual_seed(0)
    return Scene(
        views=tuple(views),
        cam2world=torch.stack([one.cam2world for one in shots]),
        intrinsics=torch.stack(intrinsics),
        depth=depth,
        confidence=tuple(1 + torch.rand(d.shape, generator=generator) for d in depth),
        verdicts=tuple(
            Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="estimated")
            for _ in shots
        ),
    ), photos


def blank_beyond(one: Shot, x: float) -> Shot:
    """Return the shot without texture on the wall right of x in the world."""
    points = transform_points(one.cam2world, unproject(one.depth, one.intrinsics).reshape(-1, 3))
    blank = (points[:, 0].view(one.depth.shape) > x) & (one.depth > 4)
    return replace(one, grey=torch.where(blank, 0.5, one.grey))


def test_depth_comes_from_the_photos_and_confidence_ranks_its_error():
    shots = [shot(x) for x in PLACES]
    scene, photos = rough_scene(shots)
    names = {view.name for view in scene.views}
    found, report = dense_scene(scene, names, CONFIG, rgb_of=lambda view: photos[view.name])
    assert report.used
    assert report.views == 4
    assert report.share > 0.5
    error, confidence = [], []
    for n, one in enumerate(shots):
        assert found.depth[n].shape == one.depth.shape == found.views[n].image.shape[1:]
        torch.testing.assert_close(found.intrinsics[n], one.intrinsics)
        torch.testing.assert_close((found.views[n].image[0] + 1) / 2, one.grey, rtol=0, atol=0.004)
        error.append((found.depth[n] / one.depth - 1).abs().flatten())
        confidence.append(found.confidence[n].flatten())
        assert float(found.confidence[n].min()) >= 1
    wrong, trust = torch.cat(error), torch.cat(confidence)
    assert float(wrong.mean()) < 0.03
    least, *_, most = wrong[trust.argsort()].chunk(5)
    assert float(least.mean()) > 4 * float(most.mean())


def test_a_camera_that_is_not_exact_takes_no_part():
    shots = [shot(x) for x in PLACES]
    scene, photos = rough_scene(shots)
    names = {"0.png", "1.png", "2.png"}
    found, report = dense_scene(scene, names, CONFIG, rgb_of=lambda view: photos[view.name])
    assert report.views == 3
    torch.testing.assert_close(found.depth[3], torch.full_like(shots[3].depth, 4.4))
    assert float(found.confidence[3].max()) <= GUESS < float(found.confidence[0].median())
    assert float((found.depth[0] / shots[0].depth - 1).abs().median()) < 0.01


def test_what_was_unknown_or_masked_stays_unknown():
    scene, photos = rough_scene([shot(x) for x in PLACES])
    depth, confidence = scene.depth[0].clone(), scene.confidence[0].clone()
    depth[:10], confidence[:10] = 0, 0
    scene = replace(
        scene, depth=(depth, *scene.depth[1:]), confidence=(confidence, *scene.confidence[1:])
    )
    names = {view.name for view in scene.views}
    found, _ = dense_scene(scene, names, CONFIG, rgb_of=lambda view: photos[view.name])
    assert not bool(found.depth[0][:20].any())
    assert not bool(found.confidence[0][:20].any())
    assert bool((found.depth[0][20:] > 0).all())


def test_photos_without_texture_leave_the_scene_as_it_is():
    scene, photos = rough_scene([shot(x) for x in PLACES], blank=True)
    names = {view.name for view in scene.views}
    found, report = dense_scene(scene, names, CONFIG, rgb_of=lambda view: photos[view.name])
    assert not report.used
    assert found is scene


def test_wrong_cameras_leave_the_scene_as_it_is():
    scene, photos = rough_scene([shot(x) for x in PLACES])
    moved = scene.cam2world.clone()
    moved[:, 1, 3] += torch.tensor([0.0, 0.6, -0.5, 0.3])
    scene = replace(scene, cam2world=moved)
    names = {view.name for view in scene.views}
    _, report = dense_scene(scene, names, CONFIG, rgb_of=lambda view: photos[view.name])
    assert not report.used


def test_two_parallel_photos_with_lenses_off_centre():
    """The second principal point is taken 2 pixels off; the expected depth is right up to noise."""
    shots = [shot(x) for x in (0.0, 0.4)]
    true = [one.depth for one in shots]
    scene, photos = rough_scene(shots)
    lens = scene.intrinsics.clone()
    lens[1, 0, 2] += 1.0
    rough = tuple(
        torch.nn.functional.interpolate(d[None, None], (36, 48), mode="area")[0, 0] for d in true
    )
    scene = replace(scene, intrinsics=lens, depth=rough)
    names = {view.name for view in scene.views}

    def error(calibrated: bool) -> float:
        found, _ = dense_scene(
            scene, names, replace(CONFIG, min_share=0.0),
            rgb_of=lambda view: photos[view.name], calibrated=calibrated,
        )  # fmt: skip
        ratio = found.depth[0] / true[0]
        return float((ratio / ratio.median() - 1).abs().mean())

    assert error(calibrated=False) < 0.5 * error(calibrated=True)


def test_confidence_falls_as_doubt_rises_and_what_is_worthless_is_a_guess():
    doubt = torch.tensor([[1e-6, 0.01, 0.1, 0.1499, 0.15, 0.5, 100.0]])
    confidence = _confidence(doubt, 5.0)
    assert bool((confidence.diff(dim=1) < 0).all())
    assert bool((confidence[:, :4] > GUESS).all())
    assert bool((confidence[:, 4:] <= GUESS + 1e-6).all())
    assert 1 < float(confidence.min()) < float(confidence.max()) < 5


def test_the_error_of_depth_falls_over_the_tenths_of_its_confidence():
    """A board before a wall that is blank from x = 1.2 on; the network sees neither."""
    shots = [blank_beyond(shot(x), 1.2) for x in PLACES]
    scene, photos = rough_scene(shots)
    names = {view.name for view in scene.views}
    found, report = dense_scene(scene, names, CONFIG, rgb_of=lambda view: photos[view.name])
    assert 0.4 < report.share < 0.6
    error = [(f / one.depth - 1).abs().flatten() for f, one in zip(found.depth, shots, strict=True)]
    confidence = torch.cat([c.flatten() for c in found.confidence])
    tenths = error_by_confidence(confidence.numpy(), torch.cat(error).numpy())
    assert falls_monotonically(tenths), tenths
