"""Gauss-Newton on similarities: derivatives, solvers, anchors, uncertainty."""

import dataclasses
import math

import pytest
import torch

from recon3d import align_solve
from recon3d.align_solve import (
    KERNEL,
    Anchors,
    Problem,
    normal_equations,
    pose_uncertainty,
    solve_similarities,
)
from recon3d.geometry import rotation_angle, similarity, so3_exp, transform_points


def problem(n_views: int, seed: int) -> tuple[Problem, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    edges = [(i, j) for i in range(n_views) for j in range(n_views) if i != j]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    unit2world = similarity(
        (0.2 * random(n_views)).exp(), so3_exp(0.3 * random(n_views, 3)), random(n_views, 3)
    )
    parts = Problem(
        i=torch.tensor([i for i, _ in edges]),
        j=torch.tensor([j for _, j in edges]),
        seen=random(len(edges), 20, 3),
        own=random(n_views, 20, 3),
        weight=random(len(edges), 20).abs(),
        noise=1 + random(len(edges), 20).abs(),
    )
    return parts, unit2world


def anchors(n_views: int, *locked: int, **held: object) -> Anchors:
    no = torch.zeros(n_views, dtype=torch.bool)
    lock = no.clone()
    lock[list(locked)] = True
    fields = {"fixed": no, "prior": no, "cam2world": torch.eye(4).double().repeat(n_views, 1, 1)}
    return Anchors(locked=lock, **(fields | held))


def moved(unit2world: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    step = step.view(-1, 7)
    return similarity(step[:, 6].exp(), so3_exp(step[:, :3]), step[:, 3:6]) @ unit2world


def dense(parts: Problem, blocks: align_solve.Blocks) -> torch.Tensor:
    n_views = len(blocks.diagonal)
    whole = torch.zeros(7 * n_views, 7 * n_views, dtype=torch.float64)
    for n in range(n_views):
        whole[7 * n : 7 * n + 7, 7 * n : 7 * n + 7] += blocks.diagonal[n]
    for i, j, block in zip(parts.i.tolist(), parts.j.tolist(), blocks.across, strict=True):
        whole[7 * i : 7 * i + 7, 7 * j : 7 * j + 7] += block
        whole[7 * j : 7 * j + 7, 7 * i : 7 * i + 7] += block.mT
    return whole


def test_normal_equations_match_automatic_differentiation():
    parts, unit2world = problem(3, 0)

    def gaps(step: torch.Tensor) -> torch.Tensor:
        now = moved(unit2world, step)
        scale = torch.linalg.det(now[:, :3, :3]) ** (1 / 3)
        a = transform_points(now[parts.i], parts.seen)
        b = transform_points(now[parts.j], parts.own[parts.j])
        return (a - b) / (scale[parts.i, None] * parts.noise)[..., None]

    with torch.no_grad():
        square = gaps(torch.zeros(21).double()).square().sum(-1)
        weight = (parts.weight / (1 + square / KERNEL**2)).sqrt()

    def weighted(step: torch.Tensor) -> torch.Tensor:
        return (gaps(step) * weight[..., None]).flatten()

    zero = torch.zeros(21, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(weighted, zero)
    blocks = normal_equations(parts, unit2world, anchors(3))
    torch.testing.assert_close(dense(parts, blocks), jacobian.mT @ jacobian)
    torch.testing.assert_close(blocks.gradient.flatten(), jacobian.mT @ weighted(zero))


def test_the_pull_of_a_prior_matches_automatic_differentiation():
    unit2world = problem(2, 3)[1][:1]
    held = anchors(
        1,
        prior=torch.tensor([True]),
        cam2world=moved(unit2world, torch.tensor([0, 0, 0, 0.1, 0.2, -0.3, 0]).double()),
        rotation_sigma_rad=0.1,
        centre_sigma=0.2,
        strength=4.0,
    )
    scale = torch.linalg.det(unit2world[:, :3, :3]) ** (1 / 3)
    held.cam2world[:, :3, :3] /= scale[:, None, None]  # turned alike: the axis is linear there
    nothing = Problem(
        i=torch.zeros(0).long(), j=torch.zeros(0).long(), seen=torch.zeros(0, 1, 3).double(),
        own=torch.zeros(1, 1, 3).double(), weight=torch.zeros(0, 1).double(),
        noise=torch.ones(0, 1).double(),
    )  # fmt: skip

    def pull(step: torch.Tensor) -> torch.Tensor:
        return align_solve._pull(moved(unit2world, step), held)[0].flatten()

    zero = torch.zeros(7, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(pull, zero)
    residual, derivative = align_solve._pull(unit2world, held)
    torch.testing.assert_close(derivative[0], jacobian)
    assert float(residual.norm()) == pytest.approx((0.01 + 0.04 + 0.09) ** 0.5 / 0.2)
    blocks = normal_equations(nothing, unit2world, held)
    weight = 4.0 / (1 + (0.01 + 0.04 + 0.09) / 0.2**2 / align_solve._PRIOR_KERNEL**2)
    torch.testing.assert_close(blocks.diagonal[0], weight * jacobian.mT @ jacobian)
    torch.testing.assert_close(blocks.gradient[0], weight * jacobian.mT @ residual[0])
    solved = solve_similarities(nothing, unit2world, held, 20)
    torch.testing.assert_close(solved[:, :3, 3], held.cam2world[:, :3, 3])


@pytest.mark.parametrize("angle_deg", [1, 60, 120, 170])
def test_a_prior_feels_more_the_more_it_is_turned(angle_deg: float):
    turned = so3_exp(torch.tensor([[0, math.radians(angle_deg), 0]]).double())
    held = anchors(1, prior=torch.tensor([True]), cam2world=torch.eye(4).double()[None])
    pose = similarity(torch.ones(1).double(), turned, torch.zeros(1, 3).double())
    residual, _ = align_solve._pull(pose, held)
    assert float(residual.norm()) == pytest.approx(2 * math.sin(math.radians(angle_deg) / 2))


def test_both_linear_solvers_take_the_same_step(monkeypatch: pytest.MonkeyPatch):
    parts, unit2world = problem(5, 1)
    direct = solve_similarities(parts, unit2world, anchors(5, 2), 3)
    monkeypatch.setattr(align_solve, "_BANDED_VIEWS", -1)
    iterative = solve_similarities(parts, unit2world, anchors(5, 2), 3)
    torch.testing.assert_close(iterative, direct)
    assert float((direct - unit2world)[[0, 1, 3, 4]].abs().amin(0).max()) > 1e-3
    assert torch.equal(direct[2], unit2world[2])


def test_a_damped_step_solves_the_dense_system():
    parts, unit2world = problem(4, 5)
    basis = align_solve._basis(unit2world, anchors(4, 0))
    blocks = align_solve._narrow(normal_equations(parts, unit2world, anchors(4, 0)), basis, parts)
    step = align_solve._Solver(parts.i, parts.j, 4).step(blocks, 1e-3)
    whole = dense(parts, blocks)
    ridge = torch.diag(whole.diagonal() * 1e-3)
    torch.testing.assert_close(
        step.flatten(), -torch.linalg.solve(whole + ridge, blocks.gradient.flatten())
    )


def test_the_solver_never_makes_it_worse_and_keeps_a_loose_view():
    parts, unit2world = problem(3, 2)
    extended = torch.cat((unit2world, torch.eye(4, dtype=torch.float64)[None]))
    held = anchors(4, 0)
    solved = solve_similarities(parts, extended, held, 20)
    assert align_solve.robust_cost(parts, solved, held) < align_solve.robust_cost(
        parts, extended, held
    )
    assert torch.equal(solved[3], extended[3])
    rotation = solved[:, :3, :3] / solved[:, :3, 0].norm(dim=-1)[:, None, None]
    assert float(rotation_angle(rotation.mT @ rotation).max()) < 1e-9


def test_a_fixed_pose_changes_only_its_scale():
    parts, unit2world = problem(4, 4)
    fixed = torch.tensor([True, False, True, False])
    solved = solve_similarities(parts, unit2world, anchors(4, fixed=fixed), 10)
    assert torch.equal(solved[fixed, :3, 3], unit2world[fixed, :3, 3])
    ratio = solved[fixed, :3, :3] / unit2world[fixed, :3, :3]
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    assert float((ratio[:, 0, 0] - 1).abs().min()) > 1e-4


def exact_problem(noise: float, seed: int, n_views: int = 4) -> tuple[Problem, torch.Tensor]:
    """Return world points seen with independent noise, at the true similarities."""
    generator = torch.Generator().manual_seed(seed)
    parts, unit2world = problem(n_views, 9)
    world = torch.randn(n_views, 400, 3, generator=generator).double()
    inverse = torch.linalg.inv(unit2world)
    own = transform_points(inverse, world)
    seen = transform_points(inverse[parts.i], world[parts.j])
    spoilt = seen + noise * torch.randn(seen.shape, generator=generator).double()
    weight = torch.ones(seen.shape[:2]).double()
    return (
        dataclasses.replace(
            parts, own=own, seen=spoilt, weight=weight, noise=torch.full_like(weight, noise)
        ),
        unit2world,
    )


def test_the_uncertainty_is_the_spread_of_the_solutions():
    turns, moves = [], []
    for seed in range(24):
        parts, truth = exact_problem(0.02, seed)
        solved = solve_similarities(parts, truth, anchors(4, 0), 10)
        scale = torch.linalg.det(solved[:, :3, :3]) ** (1 / 3)
        rotation = solved[:, :3, :3] / scale[:, None, None]
        true_scale = torch.linalg.det(truth[:, :3, :3]) ** (1 / 3)
        turns.append(rotation_angle((truth[:, :3, :3] / true_scale[:, None, None]).mT @ rotation))
        moves.append((solved - truth)[:, :3, 3].norm(dim=-1))
    parts, truth = exact_problem(0.02, 0)
    fixed = torch.tensor([True, False, False, False])
    one = anchors(4, fixed=fixed)
    turn, move = pose_uncertainty(parts, truth, one, 1.0)
    assert turn[0] == 0
    assert move[0] < 1e-9
    spread = (
        torch.stack(turns).square().mean(0).sqrt()[1:],
        torch.stack(moves).square().mean(0)[1:].sqrt(),
    )
    # the one locked view of the solves also fixes the scale, which `fixed` leaves to it
    torch.testing.assert_close(turn[1:], spread[0], rtol=0.35, atol=0)
    assert bool((move[1:] > 0.6 * spread[1]).all())


def test_more_noise_means_more_uncertainty_and_large_scenes_have_a_figure(
    monkeypatch: pytest.MonkeyPatch,
):
    calm, truth = exact_problem(0.01, 0)
    loud, _ = exact_problem(0.04, 0)
    free = anchors(4, 0)
    turn, move = pose_uncertainty(calm, truth, free, 1.0)
    louder_turn, louder_move = pose_uncertainty(loud, truth, free, 1.0)
    torch.testing.assert_close(louder_turn / turn, torch.full_like(turn, 4.0), rtol=0.2, atol=0)
    torch.testing.assert_close(louder_move / move, torch.full_like(turn, 4.0), rtol=0.2, atol=0)
    monkeypatch.setattr(align_solve, "_DENSE_VIEWS", 1)
    against_partners, _ = pose_uncertainty(calm, truth, free, 1.0)
    assert bool(((against_partners > 0) & (against_partners < turn * 1.5)).all())
