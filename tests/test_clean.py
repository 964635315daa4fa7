"""Free-space conflicts: by hand, against the published program's numbers and a plain loop."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_scene import ExactScene, exact_scene
from recon3d.clean import conflicts, lower_conflicts
from recon3d.types import EdgeVerdict, Scene, Verdict

FIXTURES = Path(
    os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures")
)


def everyone(n_views: int) -> list[list[int]]:
    return [[j for j in range(n_views) if j != i] for i in range(n_views)]


def spoilt(truth: ExactScene, seed: int = 0) -> tuple[list, list]:
    """Return noisy depths, some far too near, some unknown, and random confidences."""
    generator = torch.Generator().manual_seed(seed)
    depth, confidence = [], []
    for exact in truth.depth:
        noise = 0.02 * torch.randn(exact.shape, generator=generator)
        kind = torch.rand(exact.shape, generator=generator)
        values = exact * torch.where(kind < 0.1, 0.5, 1 + noise)
        depth.append(torch.where(kind > 0.95, 0.0, values).float())
        confidence.append(1 + 5 * torch.rand(exact.shape, generator=generator))
    return depth, confidence


def lenses(truth: ExactScene) -> torch.Tensor:
    return torch.stack([truth.intrinsics(n) for n in range(len(truth.views))])


def scene_of(truth: ExactScene, depth: list, confidence: list, edges: tuple = ()) -> Scene:
    verdict = Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="given")
    return Scene(
        views=truth.views,
        cam2world=truth.cam2world,
        intrinsics=lenses(truth),
        depth=tuple(depth),
        confidence=tuple(confidence),
        verdicts=(verdict,) * len(truth.views),
        edges=edges,
    )


def test_by_hand():
    """Two equal cameras one unit apart along x look at a wall at depth 10, 4 x 6 pixels each.

    The first has a spot at depth 5, which the second sees 2 pixels (10 px / 5) further left. A
    second spot, at depth 9.8, is within the tolerance of 5 %.
    """
    lens = torch.tensor([[10.0, 0, 3], [0, 10, 2], [0, 0, 1]]).repeat(2, 1, 1)
    cam2world = torch.eye(4).repeat(2, 1, 1)
    cam2world[1, 0, 3] = 1.0
    depth = [torch.full((4, 6), 10.0), torch.full((4, 6), 10.0)]
    depth[0][1, 4], depth[0][3, 4] = 5.0, 9.8
    confidence = [torch.full((4, 6), 2.0), torch.full((4, 6), 3.0)]
    lost = conflicts(depth, confidence, lens, cam2world, [[1], [0]], 0.05)
    assert lost[0].nonzero().tolist() == [[1, 4]]
    assert not lost[1].any()
    for change in (
        {"confidence": [confidence[1], confidence[0]]},  # the spot is the more confident
        {"neighbours": [[], []]},
        {"tolerance": 0.6},
    ):
        given = {"confidence": confidence, "neighbours": [[1], [0]], "tolerance": 0.05} | change
        lost = conflicts(depth, intrinsics=lens, cam2world=cam2world, **given)
        assert not lost[0].any()
    # where the second sees it, or knows nothing
    for value in (5.0, 0.0, math.nan):
        other = depth[1].clone()
        other[1, 2] = value
        lost = conflicts([depth[0], other], confidence, lens, cam2world, [[1], [0]], 0.05)
        assert not lost[0].any()


@pytest.mark.parametrize(("tolerance", "name"), [(0.001, "out_tol_0p001"), (0.02, "out_tol_0p02")])
def test_equal_to_the_published_program(tolerance, name):
    path = FIXTURES / "clean_pointcloud.npz"
    if not path.is_file():
        pytest.skip("no folder of fixtures")
    with np.load(path) as file:
        given = {key: torch.from_numpy(file[key]) for key in file}
    intrinsics = given["intrinsics"].clone()
    intrinsics[:, :2, 2] += 0.5  # there, the centre of the top-left pixel is (0, 0)
    cam2world = torch.linalg.inv(given["world2cam"].double())
    depth, confidence = list(given["depth"]), list(given["im_conf"])
    lost = conflicts(depth, confidence, intrinsics, cam2world, everyone(4), tolerance, in_turn=True)
    cleaned = torch.where(torch.stack(lost), 0.0, given["im_conf"])
    torch.testing.assert_close(cleaned, given[name], rtol=0, atol=0)
    # without turns a few more are lost: those that only a lost point contradicts
    at_once = torch.stack(
        conflicts(depth, confidence, intrinsics, cam2world, everyone(4), tolerance)
    )
    assert (at_once | ~torch.stack(lost)).all()
    assert (at_once != torch.stack(lost)).float().mean() < 0.01


@pytest.mark.parametrize("in_turn", [False, True])
def test_equals_a_plain_loop(in_turn):
    truth = exact_scene(4, shapes=((12, 16), (16, 12), (12, 12)))
    depth, confidence = spoilt(truth)
    neighbours = [[1, 2], [0, 3], [3], [1]]
    lens = lenses(truth)
    found = conflicts(depth, confidence, lens, truth.cam2world, neighbours, 0.05, in_turn=in_turn)
    trust = [values.clone() for values in confidence]
    n_lost = 0
    for i, others in enumerate(neighbours):
        expected = torch.zeros_like(depth[i], dtype=torch.bool)
        for row, column in (depth[i] > 0).nonzero().tolist():
            ray = torch.linalg.inv(lens[i]) @ torch.tensor([column + 0.5, row + 0.5, 1.0]).double()
            point = torch.cat((ray * depth[i][row, column], torch.ones(1)))
            for j in others:
                x, y, z = (torch.linalg.inv(truth.cam2world[j]) @ truth.cam2world[i] @ point)[:3]
                u = math.floor(lens[j][0, 0] * x / z + lens[j][0, 2])
                v = math.floor(lens[j][1, 1] * y / z + lens[j][1, 2])
                height, width = depth[j].shape
                if z > 0 and 0 <= u < width and 0 <= v < height:
                    through = z < 0.95 * depth[j][v, u]
                    weaker = confidence[i][row, column] < trust[j][v, u]
                    expected[row, column] |= bool(through and weaker)
        if in_turn:
            trust[i][expected] = 0.0
        assert torch.equal(found[i], expected)
        n_lost += int(expected.sum())
    assert n_lost > 20


def test_an_exact_scene_loses_next_to_nothing():
    """Only pixels whose point falls beside the edge of something nearer can be wrong."""
    truth = exact_scene(5)
    _, confidence = spoilt(truth)
    lost = conflicts(truth.depth, confidence, lenses(truth), truth.cam2world, everyone(5), 0.05)
    share = sum(int(mask.sum()) for mask in lost) / sum(mask.numel() for mask in lost)
    assert share < 0.06


def test_finds_what_stands_in_free_space():
    truth = exact_scene(5)
    depth, confidence = spoilt(truth)
    # points at half their depth, less confident than all others
    wrong = [(d > 0) & (d < 0.7 * exact) for d, exact in zip(depth, truth.depth, strict=True)]
    confidence = [torch.where(bad, 1.5, 2 + c) for bad, c in zip(wrong, confidence, strict=True)]
    lost = conflicts(depth, confidence, lenses(truth), truth.cam2world, everyone(5), 0.1)
    found = torch.cat([mask[bad] for mask, bad in zip(lost, wrong, strict=True)])
    rest = torch.cat([mask[~bad] for mask, bad in zip(lost, wrong, strict=True)])
    # the others fall outside of all other images
    assert found.float().mean() > 0.5
    assert rest.float().mean() < 0.1


def test_the_order_of_views_does_not_matter():
    truth = exact_scene(4)
    depth, confidence = spoilt(truth)
    found = conflicts(depth, confidence, lenses(truth), truth.cam2world, everyone(4), 0.05)
    order = [2, 0, 3, 1]
    again = conflicts(
        [depth[n] for n in order],
        [confidence[n] for n in order],
        lenses(truth)[order],
        truth.cam2world[order],
        everyone(4),
        0.05,
    )
    assert all(torch.equal(mask, found[n]) for mask, n in zip(again, order, strict=True))


def test_only_the_confidence_of_what_is_lost_changes():
    truth = exact_scene(3)
    depth, confidence = spoilt(truth)
    before = scene_of(truth, depth, confidence)
    after = lower_conflicts(before, 0.05)
    lost = conflicts(depth, confidence, lenses(truth), truth.cam2world, everyone(3), 0.05)
    assert after.depth is before.depth
    for n in range(3):
        assert torch.equal(after.confidence[n] == 0, lost[n])
        assert torch.equal(after.confidence[n][~lost[n]], confidence[n][~lost[n]])


def test_only_views_of_a_used_pair_are_compared():
    truth = exact_scene(4)
    depth, confidence = spoilt(truth)

    def edge(i: int, j: int, used: bool = True) -> EdgeVerdict:
        names = [view.name for view in truth.views] + ["left_out.jpg"]
        return EdgeVerdict(first=names[i], second=names[j], used=used, reason="", confidence=2.0)

    edges = (edge(0, 1), edge(1, 0), edge(3, 1), edge(2, 3, used=False), edge(0, 4))
    after = lower_conflicts(scene_of(truth, depth, confidence, edges), 0.05)
    neighbours = [[1, 2], [0, 2, 3], [0, 1, 3], [1, 2]]  # 2, which no pair joins, with all
    lost = conflicts(depth, confidence, lenses(truth), truth.cam2world, neighbours, 0.05)
    assert all(torch.equal(c == 0, mask) for c, mask in zip(after.confidence, lost, strict=True))
    assert after.confidence[0].eq(0).any()
    assert after.confidence[2].eq(0).any()


def test_unknown_values_neither_lose_nor_contradict():
    truth = exact_scene(2)
    depth, confidence = spoilt(truth)
    confidence[0][:20], confidence[1][10:30] = math.nan, math.inf
    depth[1][30:40] = math.nan
    lost = conflicts(depth, confidence, lenses(truth), truth.cam2world, everyone(2), 0.05)
    assert not lost[0][:20].any()
    assert not lost[1][10:40].any()
    scene = lower_conflicts(scene_of(truth, depth, confidence), 0.05)
    assert scene.confidence[0][:20].isnan().all()


def test_cameras_far_from_the_origin_of_the_world():
    truth = exact_scene(3)
    depth, confidence = spoilt(truth)
    found = conflicts(depth, confidence, lenses(truth), truth.cam2world, everyone(3), 0.05)
    moved = truth.cam2world.clone()
    moved[:, :3, 3] += 1e6
    again = conflicts(depth, confidence, lenses(truth), moved, everyone(3), 0.05)
    different = sum(int((a != b).sum()) for a, b in zip(found, again, strict=True))
    assert different <= 2  # pixels hit at their very rim


def test_a_view_behind_sees_nothing():
    truth = replace(exact_scene(2), cam2world=torch.eye(4).double().repeat(2, 1, 1))
    turned = truth.cam2world.clone()
    turned[1, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]).double())
    depth, confidence = spoilt(truth)
    lost = conflicts(depth, confidence, lenses(truth), turned, everyone(2), 0.05)
    assert not any(mask.any() for mask in lost)
