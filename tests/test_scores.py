"""Figures of exact scenes, and of scenes that are wrong in a known way."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_scene import ExactScene, blank_view, exact_scene
from recon3d.config import FuseConfig
from recon3d.geometry import so3_exp
from recon3d.ground_truth import TrueScene
from recon3d.metrics import PoseErrors
from recon3d.scores import (
    camera_figures,
    depth_in_view,
    pair_figures,
    pose_figures,
    surface_figures,
)
from recon3d.types import Scene, Verdict
from true_scene import write_truth

N_VIEWS = 4
SCALE = 0.2


@pytest.fixture(scope="module")
def truth() -> ExactScene:
    return exact_scene(N_VIEWS)


@pytest.fixture(scope="module")
def true_scene(truth: ExactScene, tmp_path_factory: pytest.TempPathFactory) -> TrueScene:
    return write_truth(truth, tmp_path_factory.mktemp("truth") / "scene")


def as_found(truth: ExactScene) -> Scene:
    """Return the truth as a reconstruction: in the world of view 0, at another scale."""
    cam2world = torch.linalg.inv(truth.cam2world[0]) @ truth.cam2world
    cam2world[:, :3, 3] *= SCALE
    verdict = Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="estimated")
    generator = torch.Generator().manual_seed(1)
    return Scene(
        views=truth.views,
        cam2world=cam2world.float(),
        intrinsics=torch.stack([truth.intrinsics(n) for n in range(N_VIEWS)]).float(),
        depth=tuple((SCALE * depth).float() for depth in truth.depth),
        confidence=tuple(1 + torch.rand(d.shape, generator=generator) for d in truth.depth),
        verdicts=(verdict,) * N_VIEWS,
    )


def test_pose_figures_by_hand() -> None:
    errors = PoseErrors(np.array([1.0, 3.0, 20.0, np.inf]), np.array([2.0, 16.0, 4.0, np.inf]))
    figures = pose_figures(errors)
    assert figures["pairs"] == 4
    assert figures["failed"] == 1
    assert figures["rotation_deg"] == 11.5
    assert figures["direction_deg"] == 10.0
    assert figures["rra_15"] == figures["rta_15"] == 0.5
    # the worse of both: 2, 16, 20, infinite
    assert figures["auc_5"] == pytest.approx((1 - 2 / 5) / 4)
    assert figures["auc_30"] == pytest.approx((3 - (2 + 16 + 20) / 30) / 4)
    assert figures["maa_30"] == pytest.approx((28 + 14 + 10) / 30 / 4)


def test_a_median_among_failures_is_infinite() -> None:
    figures = pose_figures(PoseErrors(np.array([1.0, np.inf]), np.array([1.0, np.inf])))
    assert math.isinf(figures["rotation_deg"])
    assert figures["auc_5"] == 0.4


def test_true_cameras_have_no_error(truth: ExactScene, true_scene: TrueScene) -> None:
    figures = camera_figures(as_found(truth).cam2world.double().numpy(), true_scene.photos)
    assert figures["pairs"] == 6
    assert figures["rotation_deg"] < 1e-3
    assert figures["direction_deg"] < 1e-3
    assert figures["maa_30"] == 1.0
    assert figures["ate_pct"] < 1e-3


def test_a_camera_that_was_not_placed_counts_in_all_but_ate(
    truth: ExactScene, true_scene: TrueScene
) -> None:
    cam2world = as_found(truth).cam2world.double().numpy()
    cam2world[2] = np.nan
    figures = camera_figures(cam2world, true_scene.photos)
    assert figures["failed"] == 3
    assert figures["rra_15"] == figures["rta_15"] == figures["maa_30"] == 0.5
    assert figures["ate_pct"] < 1e-3


def test_pairs_have_worlds_of_their_own(truth: ExactScene, true_scene: TrueScene) -> None:
    true = truth.cam2world.numpy()
    pairs = [(0, 1), (3, 2)]
    cam2world = np.stack(
        [np.stack([np.eye(4), np.linalg.inv(true[i]) @ true[j]]) for i, j in pairs]
    )
    assert pair_figures(cam2world, true_scene.photos, pairs)["maa_30"] == 1.0
    assert pair_figures(cam2world, true_scene.photos, [(0, 1), (2, 3)])["maa_30"] == 0.5


def test_true_surfaces_have_no_error(truth: ExactScene, true_scene: TrueScene) -> None:
    surface = surface_figures(
        as_found(truth), range(N_VIEWS), true_scene.photos, truth.views, FuseConfig()
    )
    assert surface is not None
    assert surface.depth["abs_rel"] < 1e-5
    assert surface.depth["delta_125"] == surface.depth["coverage"] == 1.0
    assert surface.cloud["accuracy_pct"] < 0.01
    # a quarter of the pixels, the least confident, is not in the cloud
    assert 0.01 < surface.cloud["completeness_pct"] < 1.0
    assert surface.cloud["completeness_median_pct"] < 0.01
    assert max(surface.error_by_decile) < 1e-5


def test_half_a_depth_map_covers_half(truth: ExactScene, true_scene: TrueScene) -> None:
    scene = as_found(truth)
    halves = [depth.clone() for depth in scene.depth]
    for depth in halves:
        depth[:, : depth.shape[1] // 2] = 0
    surface = surface_figures(
        replace(scene, depth=tuple(halves)),
        range(N_VIEWS),
        true_scene.photos,
        truth.views,
        FuseConfig(),
    )
    assert surface is not None
    assert surface.depth["coverage"] == 0.5
    assert surface.depth["abs_rel"] < 1e-5


def test_confidence_that_knows_the_error_falls(truth: ExactScene, true_scene: TrueScene) -> None:
    scene = as_found(truth)
    factor = [1 + 0.3 * torch.rand(depth.shape) for depth in scene.depth]
    depth = tuple(f * d for f, d in zip(factor, scene.depth, strict=True))
    knowing = tuple(1 + 1 / (0.01 + (f - f.median()).abs()) for f in factor)
    for confidence, honest in ((knowing, True), (tuple(2 / c + 1 for c in knowing), False)):
        surface = surface_figures(
            replace(scene, depth=depth, confidence=confidence),
            range(N_VIEWS),
            true_scene.photos,
            truth.views,
            FuseConfig(),
        )
        assert surface is not None
        assert len(surface.error_by_decile) == 10
        first, last = surface.error_by_decile[0], surface.error_by_decile[-1]
        assert (first > 5 * last) == honest
        assert surface.depth["abs_rel"] == pytest.approx(0.3 / 4 / 1.15, rel=0.05)
        by_ratio = torch.cat([(f / f.median() - 1).abs().flatten() for f in factor]).mean()
        assert surface.depth["abs_rel_by_ratio"] == pytest.approx(float(by_ratio), rel=0.01)


def test_what_was_not_placed_is_missing_from_the_cloud(
    truth: ExactScene, true_scene: TrueScene
) -> None:
    scene = as_found(truth)
    one = replace(
        scene,
        views=scene.views[3:],
        cam2world=scene.cam2world[3:],
        intrinsics=scene.intrinsics[3:],
        depth=scene.depth[3:],
        confidence=scene.confidence[3:],
        verdicts=scene.verdicts[3:],
    )
    surface = surface_figures(one, [3], true_scene.photos, truth.views, FuseConfig())
    assert surface is not None
    assert surface.cloud["accuracy_pct"] < 0.01
    assert surface.cloud["completeness_pct"] > 1.0
    assert surface.depth["coverage"] == 1.0  # of the views placed


def test_a_camera_that_looks_elsewhere_spoils_the_cloud(
    truth: ExactScene, true_scene: TrueScene
) -> None:
    scene = as_found(truth)
    cam2world = scene.cam2world.clone()
    cam2world[1, :3, :3] = so3_exp(torch.tensor([0.0, 0.5, 0.0])) @ cam2world[1, :3, :3]
    surface = surface_figures(
        replace(scene, cam2world=cam2world),
        range(N_VIEWS),
        true_scene.photos,
        truth.views,
        FuseConfig(),
    )
    assert surface is not None
    assert surface.depth["abs_rel"] < 1e-5
    assert surface.cloud["accuracy_pct"] > 0.5
    assert surface.cloud["accuracy_median_pct"] < 0.3  # the others hold their place


def test_true_depth_of_one_pixel_makes_no_cloud(truth: ExactScene, tmp_path: Path) -> None:
    scene = write_truth(truth, tmp_path / "scene")
    for photo in scene.photos:
        assert photo.depth_path is not None
        depth = np.load(photo.depth_path)
        kept = np.zeros_like(depth)
        if photo is scene.photos[0]:
            kept[20:22, 20:22] = depth[20:22, 20:22]  # photos are twice as large as their views
        depth = kept
        np.save(photo.depth_path, depth)
    surface = surface_figures(
        as_found(truth), range(N_VIEWS), scene.photos, truth.views, FuseConfig()
    )
    assert surface is not None
    assert surface.cloud == {}


def test_without_true_depth_there_are_no_figures(truth: ExactScene, tmp_path: Path) -> None:
    scene = write_truth(truth, tmp_path / "scene", with_depth=False)
    found = as_found(truth)
    args = (range(N_VIEWS), scene.photos, truth.views, FuseConfig())
    assert surface_figures(found, *args) is None


def test_depth_in_view_takes_the_pixel_under_each_centre() -> None:
    depth = np.arange(24, dtype=np.float32).reshape(4, 6)
    view = blank_view("a", (2, 2))
    # half the size, cropped by half a view pixel on the left: centres at photo x = 2, 4; y = 1, 3
    cropped = replace(view, photo2view=torch.tensor([[0.5, 0, -0.5], [0, 0.5, 0], [0, 0, 1]]))
    assert depth_in_view(depth, cropped).tolist() == [[8.0, 10.0], [20.0, 22.0]]
