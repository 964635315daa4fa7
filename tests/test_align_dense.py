"""Depth of every pixel: by hand, against a slow twin of the published objective."""

import torch

from exact_scene import ExactScene, exact_scene
from recon3d.align import align
from recon3d.align_dense import fuse_depth
from recon3d.config import AlignConfig
from recon3d.geometry import pixel_grid, transform_points
from recon3d.types import PairPrediction, Scene


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


def published_objective(scene: Scene, predictions: list[PairPrediction]) -> float:
    """Return the objective of DUSt3R, section 3.4, as slowly and plainly as it is written.

    Mean over ordered pairs and their two maps of the mean weighted distance; the similarity of each
    pair is the best one for this scene, by many rounds of reweighting, no clever bookkeeping.
    """
    world = [
        transform_points(
            cam2world.double(),
            torch.cat(
                (
                    (pixel_grid(*depth.shape).double() - k.double()[:2, 2]) / k.double()[0, 0],
                    torch.ones(*depth.shape, 1).double(),
                ),
                dim=-1,
            )
            .mul(depth.double()[..., None])
            .reshape(-1, 3),
        )
        for depth, k, cam2world in zip(scene.depth, scene.intrinsics, scene.cam2world, strict=True)
    ]
    total = 0.0
    for p in predictions:
        source = torch.cat((p.pointmap_i_in_i.reshape(-1, 3), p.pointmap_j_in_i.reshape(-1, 3)))
        target = torch.cat((world[p.i], world[p.j]))
        n_i, n_j = len(world[p.i]), len(world[p.j])
        weight = torch.cat(
            (p.confidence_i.flatten().log() / n_i, p.confidence_j.flatten().log() / n_j)
        ).double()
        gap = torch.ones(n_i + n_j).double()
        source = source.double()
        for _ in range(60):
            robust = weight / gap.clamp_min(1e-9)
            share = (robust / robust.sum())[:, None]
            a, b = source - (share * source).sum(0), target - (share * target).sum(0)
            u, s, vt = torch.linalg.svd((share * b).mT @ a)
            sign = torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt))]).double()
            rotation = u @ torch.diag(sign) @ vt
            scale = (s * sign).sum() / (share * a.square()).sum()
            moved = scale * a @ rotation.mT + (share * target).sum(0)
            gap = (moved - target).norm(dim=-1)
        total += float((weight * gap).sum())
    return total / len(predictions)


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
    ours = published_objective(scene, predictions)
    assert ours < published_objective(true_scene(scene, truth), predictions)
    assert ours < published_objective(spoilt(scene, 0.01), predictions)


def test_the_twin_is_zero_at_the_truth_of_exact_pointmaps():
    truth = exact_scene(3)
    predictions = truth.predictions()
    scene = align(predictions, truth.views, AlignConfig())
    assert published_objective(scene, predictions) < 1e-4
    assert published_objective(spoilt(scene, 0.01), predictions) > 1e-3
