"""What training asks for, against slow twins in numpy that share no code with it."""

import numpy as np
import pytest
import torch

from recon3d import losses
from recon3d.batches import Batch, Source, matches_of, ordered_pairs, pair_targets
from recon3d.config import ModelConfig
from recon3d.lattice import Lattice
from recon3d.model import TwoViewModel
from recon3d.train import loss_of
from recon3d.train_config import TrainConfig

PATCH, STRIDE = 16, 4


def batch_of(height: int, width: int) -> Batch:
    config = TrainConfig(
        n_procedural_textures=4,
        compile=False,
        smooth_edges=False,
        scenes_per_step=5,
        views_per_scene=3,
    )
    return Source(config, torch.device("cpu"), seed=4).batch(height, width, 0.6)


def point_of(depth: np.ndarray, matrix: np.ndarray, row: int, column: int) -> np.ndarray:
    """Return the point that a pixel's centre shows, in its camera."""
    pixel = np.array([column + 0.5, row + 0.5, 1.0])
    return np.linalg.solve(matrix, pixel) * depth[row, column]


def arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return depth, cam2world and intrinsics of all views, in double precision."""
    return (
        batch.depth.flatten(0, 1).double().numpy(),
        batch.cam2world.flatten(0, 1).double().numpy(),
        batch.intrinsics.flatten(0, 1).double().numpy(),
    )


@pytest.mark.parametrize(("height", "width"), [(48, 80), (80, 48), (64, 64)])
def test_targets_and_matches_are_those_of_reprojection(height: int, width: int) -> None:
    batch = batch_of(height, width)
    i, j = ordered_pairs(batch)
    assert [(int(a), int(b)) for a, b in zip(i, j, strict=True)] == [
        (s * 3 + a, s * 3 + b) for s in range(5) for a in range(3) for b in range(3) if a != b
    ]
    target = pair_targets(batch, i, j)
    i_over_j, j_over_i = matches_of(batch, i, j, PATCH)
    depth, cam2world, matrix = arrays(batch)
    columns = width // PATCH
    seen, unsure = 0, 0
    for pair in range(0, len(i), 5):
        one, two = int(i[pair]), int(j[pair])
        expected = np.zeros(i_over_j.shape[1:])
        for row in range(STRIDE // 2, height, STRIDE):
            for column in range(STRIDE // 2, width, STRIDE):
                assert bool(target.valid_i[pair, row, column]) == (depth[one, row, column] > 0)
                if depth[one, row, column] == 0:
                    continue
                here = point_of(depth[one], matrix[one], row, column)
                np.testing.assert_allclose(target.points_i[pair, row, column], here, rtol=1e-4)
                world = cam2world[one] @ np.append(here, 1.0)
                there = (np.linalg.inv(cam2world[two]) @ world)[:3]
                np.testing.assert_allclose(
                    target.points_i_in_j[pair, row, column], there, rtol=1e-3, atol=1e-3
                )
                if there[2] <= 1e-3:
                    continue
                x, y = (matrix[two] @ there)[:2] / there[2]
                if not (0 <= x < width and 0 <= y < height):
                    continue
                known = depth[two, int(y), int(x)]
                if known > 0 and abs(there[2] - known) < 0.03 * there[2]:
                    expected[
                        row // PATCH * columns + column // PATCH,
                        int(y) // PATCH * columns + int(x) // PATCH,
                    ] += 1
        found = i_over_j[pair].numpy()
        seen += expected.sum()
        unsure += abs(found - expected).sum()  # pixels that rounding puts to either side
        back = j_over_i[list(zip(i.tolist(), j.tolist(), strict=True)).index((two, one))]
        np.testing.assert_array_equal(back.numpy(), found)
    assert seen > 100
    assert unsure <= 0.01 * seen


def test_targets_of_a_lattice_are_those_of_its_pixels() -> None:
    batch, lattice = batch_of(48, 64), Lattice(2, 1, 0)
    i, j = ordered_pairs(batch)
    every, some = pair_targets(batch, i, j), pair_targets(batch, i, j, lattice)
    for name in ("points_i", "points_j", "points_i_in_j", "valid_i", "valid_j"):
        expected = getattr(every, name)[:, lattice.rows, lattice.columns]
        torch.testing.assert_close(getattr(some, name), expected)


def test_the_lattices_of_a_step_come_to_every_pixel() -> None:
    batch = batch_of(48, 64)
    sizes = {"enc_dim": 32, "enc_depth": 1, "enc_heads": 2, "dec_depth": 2, "dec_heads": 2}
    model = TwoViewModel(ModelConfig(dec_dim=32, **sizes))

    def parts_of(step: int, seed: int) -> dict[str, torch.Tensor]:
        config = TrainConfig(pixel_step=step, attention_layers=(0,))
        chances = torch.Generator().manual_seed(seed)
        return loss_of(model, batch, config, torch.float32, chances)[1]

    every = parts_of(1, 0)
    found = [parts_of(4, seed) for seed in range(48)]
    kinds = {round(float(parts["error_i"]), 7) for parts in found}
    assert len(kinds) >= 12  # of 16 lattices
    for name in ("error_i", "error_j"):
        mean = torch.stack([parts[name] for parts in found]).mean()
        torch.testing.assert_close(mean, every[name], rtol=0.02, atol=0)
    for name in ("attention", "matching", "seen"):
        torch.testing.assert_close(found[0][name], every[name])


def test_sky_does_not_count() -> None:
    batch = batch_of(48, 64)
    i, j = ordered_pairs(batch)
    target = pair_targets(batch, i, j)
    sky_i, sky_j = ~target.valid_i, ~target.valid_j
    assert bool(sky_i.any())
    predicted = [torch.randn_like(target.points_i).requires_grad_() for _ in range(2)]
    confidence = [1 + torch.rand(sky_i.shape) for _ in range(2)]
    confidence = [c.requires_grad_() for c in confidence]

    def loss(shift: float) -> torch.Tensor:
        moved = [
            p + shift * sky[..., None] for p, sky in zip(predicted, (sky_i, sky_j), strict=True)
        ]
        return losses.regression_loss(
            (moved[0], moved[1]),
            (confidence[0], confidence[1]),
            (target.points_i, target.points_j),
            (target.valid_i, target.valid_j),
            0.2,
        )[0]

    assert float(loss(0.0).detach()) == float(loss(5.0).detach())
    loss(0.0).backward()
    for tensor, sky in zip((*predicted, *confidence), (sky_i, sky_j) * 2, strict=True):
        assert tensor.grad is not None
        assert float(tensor.grad[sky].abs().sum()) == 0
        assert float(tensor.grad[~sky].abs().sum()) > 0


def test_loss_is_that_of_the_paper() -> None:
    """DUSt3R, eqs. 2 to 4, pixel by pixel: one scale for both views of a pair."""
    rng = np.random.default_rng(0)
    n, height, width, alpha = 3, 4, 5, 0.3
    said, true = (
        rng.normal(size=(2, n, height, width, 3)),
        rng.normal(size=(2, n, height, width, 3)),
    )
    confidence = 1 + rng.exponential(size=(2, n, height, width))
    valid = rng.random((2, n, height, width)) > 0.4
    total, errors = 0.0, [[], []]
    for view in range(2):
        terms = []
        for pair in range(n):
            scale = [
                np.mean([np.linalg.norm(x[v, pair][valid[v, pair]], axis=-1).sum() for v in (0, 1)])
                * 2
                / valid[:, pair].sum()
                for x in (said, true)
            ]
            for pixel in zip(*np.nonzero(valid[view, pair]), strict=True):
                at = (view, pair, *pixel)
                error = np.linalg.norm(said[at] / scale[0] - true[at] / scale[1])
                errors[view].append(error)
                terms.append(confidence[at] * error - alpha * np.log(confidence[at]))
        total += np.mean(terms)
    (said_t, true_t), (sure_t, valid_t) = (
        [tuple(torch.from_numpy(a)) for a in pair] for pair in ((said, true), (confidence, valid))
    )
    loss, error_i, error_j = losses.regression_loss(said_t, sure_t, true_t, valid_t, alpha)
    assert float(loss) == pytest.approx(total)
    assert float(error_i) == pytest.approx(np.mean(errors[0]))
    assert float(error_j) == pytest.approx(np.mean(errors[1]))
