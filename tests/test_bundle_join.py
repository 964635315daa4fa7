"""Views that share pixels with single placed views alone stand where their directions cross."""

from functools import cache

import pytest
import torch
from torch import Tensor

from exact_scene import ExactScene, exact_scene
from recon3d.bundle_join import join_views
from recon3d.bundle_solve import UNIT, Problem, Rig
from recon3d.config import RefineConfig
from recon3d.geometry import invert_rigid, project, rotation_angle, transform_points
from recon3d.matches import Matches
from recon3d.tracks import Tracks, build_tracks

N_VIEWS = 6


@cache
def truth() -> ExactScene:
    scene = exact_scene(10, shapes=((96, 128),))
    return ExactScene(
        views=scene.views[:N_VIEWS],
        cam2world=scene.cam2world[:N_VIEWS],
        focal=torch.full((N_VIEWS,), 110.0).double(),
        depth=scene.depth[:N_VIEWS],
    )


def matches_of(i: int, j: int, *, wrong: bool = False) -> Matches:
    """Return pixels of 60 points before both cameras that no other pair has seen."""
    generator = torch.Generator().manual_seed(10 * i + j)
    scene = truth()
    own = torch.rand(60, 3, generator=generator).double()
    own = torch.cat(((own[:, :2] - 0.5) * own[:, 2:] * 3, 1 + 3 * own[:, 2:]), dim=1)
    points = transform_points(scene.cam2world[i], own)
    pixels = [
        project(transform_points(invert_rigid(scene.cam2world[n]), points), scene.intrinsics(n))
        for n in (i, j)
    ]
    if wrong:
        pixels[1] = pixels[1][torch.randperm(60, generator=generator)]
    first, second = (one.float() for one in pixels)
    return Matches(i=i, j=j, pixels_i=first, pixels_j=second, confidence=torch.ones(60))


def problem(shared: bool) -> Problem:
    scene = truth()
    unit = torch.full((N_VIEWS, 2), UNIT / 128).double()
    return Problem(
        unit=unit,
        centre=torch.stack([scene.intrinsics(n)[:2, 2] for n in range(N_VIEWS)]).double(),
        likely_focal=scene.focal * unit[:, 0],
        focal_spread=torch.ones(N_VIEWS).double(),
        centre_spread=torch.zeros(N_VIEWS).double(),
        lens=torch.zeros(N_VIEWS).long() if shared else torch.arange(N_VIEWS),
        constant_focal=torch.zeros(N_VIEWS, dtype=torch.bool),
        constant_pose=torch.zeros(N_VIEWS, dtype=torch.bool),
        config=RefineConfig(),
    )


def joined(
    matches: list[Matches], placed: list[int], *, shared: bool = True, fixed: int | None = None
) -> tuple[Rig, Tensor]:
    """Return what becomes of the scene whose other cameras are all at the origin."""
    tracks: Tracks = build_tracks(matches)
    known = torch.zeros(N_VIEWS, dtype=torch.bool)
    known[placed] = True
    nowhere = torch.eye(4).double().expand(N_VIEWS, 4, 4)
    focal = truth().focal * UNIT / 128
    rig = Rig(
        cam2world=torch.where(known[:, None, None], truth().cam2world.double(), nowhere),
        focal=torch.where(known, focal, 3 * focal if shared else focal),
    )
    given = problem(shared)
    if fixed is not None:
        given.constant_pose[fixed] = True
    return join_views(given, rig, known, tracks, {(one.i, one.j) for one in matches})


@pytest.mark.parametrize("shared", [True, False])
def test_views_are_placed_one_after_the_other(shared: bool) -> None:
    # 4 is tied to placed views, 5 to one placed view and to 4
    ties = [(0, 4), (1, 4), (2, 4), (2, 5), (4, 5)]
    rig, placed = joined([matches_of(i, j) for i, j in ties], [0, 1, 2, 3], shared=shared)
    assert placed.all()
    true = truth().cam2world.double()
    turn = rotation_angle(rig.cam2world[:, :3, :3].mT @ true[:, :3, :3])
    assert float(torch.rad2deg(turn).max()) < 0.05
    size = float((true[:, :3, 3] - true[0, :3, 3]).norm(dim=-1).max())
    assert float((rig.cam2world[:, :3, 3] - true[:, :3, 3]).norm(dim=-1).max()) < 2e-3 * size
    torch.testing.assert_close(rig.focal, truth().focal * UNIT / 128)


def test_one_direction_alone_places_nothing() -> None:
    rig, placed = joined([matches_of(1, 5)], [0, 1, 2, 3])
    assert placed.tolist() == [True] * 4 + [False] * 2
    torch.testing.assert_close(rig.cam2world[5], torch.eye(4).double())


def test_a_place_that_is_fixed_stays() -> None:
    rig, placed = joined([matches_of(n, 5) for n in (0, 1, 2)], [0, 1, 2, 3], fixed=5)
    assert not placed[5]
    torch.testing.assert_close(rig.cam2world[5], torch.eye(4).double())


def test_a_partner_that_contradicts_the_others_is_not_heard() -> None:
    ties = [matches_of(0, 5), matches_of(1, 5), matches_of(2, 5, wrong=True)]
    rig, placed = joined(ties, [0, 1, 2, 3])
    assert bool(placed[5])
    turn = rotation_angle(rig.cam2world[5, :3, :3].mT @ truth().cam2world[5, :3, :3].double())
    assert float(torch.rad2deg(turn)) < 0.05


def test_partners_that_all_contradict_each_other_place_nothing() -> None:
    ties = [matches_of(n, 5, wrong=True) for n in (0, 1, 2)]
    assert not joined(ties, [0, 1, 2, 3])[1][5]
