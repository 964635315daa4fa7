"""Depth of every pixel: by hand, against a slow twin of the published objective."""

import torch

from exact_scene import ExactScene, exact_scene
from published_objective import scene_objective as value
from recon3d.align import align
from recon3d.align_dense import fuse_depth
from recon3d.config import AlignConfig
from recon3d.types import Scene


def test_fused_depth_by_hand():
    offset = torch.tensor([[2.0, 1.0, 0.0], [2.02, 1.0, 0.0], [9.0, 1.0, 0.0]])
    across = torch.zeros(3, 3)
    weight = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    confidence = torch.tensor([[4.0, 5.0, 1.0], [4.0, 5.0, 1.0], [4.0, 5.0, 1.0]])
    fused, trust = fuse_depth(offset, across, weight, confidence, typical=0.0)
    # the tolerance is 1e-4: only the median itself agrees in column 0
    torch.testing.assert_close(fused, torch.tensor([2.02, 1.0, 0.0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(trust, torch.tensor([1 + 3 / 3, 5.0, 0.0]))


def test_a_map_far_from_the_ray_counts_less():
    """Along the ray the two maps contradict; the one that is far off the ray pulls less."""
    offset = torch.tensor([[1.0], [1.2]])
    across = torch.tensor([[0.0], [1.0]])
    fused, _ = fuse_depth(offset, across, torch.ones(2, 1), torch.full((2, 1), 3.0), 0.1)
    assert float(fused) < 1.01


def test_fused_depth_minimises_the_sum_of_distances():
    generator = torch.Generator().manual_seed(0)
    offset = 1 + 0.3 * torch.rand(5, 40, generator=generator)
    across = 0.01 * torch.rand(5, 40, generator=generator)
    weight = torch.rand(5, 40, generator=generator) + 0.1

    def cost(depth: torch.Tensor) -> torch.Tensor:
        return (weight * ((offset - depth).square() + across).sqrt()).sum(0)

    fused, _ = fuse_depth(offset, across, weight, torch.full((5, 40), 2.0), 0.1)
    grid = torch.stack([cost(torch.full((40,), d)) for d in torch.linspace(0.9, 1.4, 501).tolist()])
    assert bool((cost(fused) <= grid.amin(0) * 1.001).all())


def spoilt(scene: Scene, factor: float) -> Scene:
    generator = torch.Generator().manual_seed(1)
    depth = tuple(d * (1 + factor * torch.randn(d.shape, generator=generator)) for d in scene.depth)
    fields = {name: getattr(scene, name) for name in scene.__dataclass_fields__}
    return Scene(**(fields | {"depth": depth}))


def true_scene(scene: Scene, truth: ExactScene) -> Scene:
    """Return the ground truth at the scale and in the world of the scene."""
    unit = float(truth.depth[0].median())
    world = torch.linalg.inv(truth.cam2world[0]) @ truth.cam2world
    world[:, :3, 3] /= unit
    fields = {name: getattr(scene, name) for name in scene.__dataclass_fields__}
    return Scene(
        **(
            fields
            | {
                "depth": tuple((d / unit).float() for d in truth.depth),
                "cam2world": world.float(),
                "intrinsics": torch.stack(
                    [truth.intrinsics(n) for n in range(len(truth.views))]
                ).float(),
            }
        )
    )


def test_the_published_objective_is_lower_than_at_the_truth_and_around():
    truth = exact_scene(4)
    predictions = truth.predictions(noise=0.05, outliers=0.05)
    scene = align(predictions, truth.views, AlignConfig())
    ours = value(scene, predictions)
    assert ours < value(true_scene(scene, truth), predictions)
    assert ours < value(spoilt(scene, 0.01), predictions)


def test_the_twin_is_zero_at_the_truth_of_exact_pointmaps():
    truth = exact_scene(3)
    predictions = truth.predictions()
    scene = align(predictions, truth.views, AlignConfig())
    assert value(scene, predictions) < 1e-4
    assert value(spoilt(scene, 0.01), predictions) > 1e-3
