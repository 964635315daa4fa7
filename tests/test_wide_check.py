"""Wide pairs against the triangles they are part of."""

import math
from itertools import combinations

import numpy as np
import torch

from exact_scene import ExactScene, exact_scene
from recon3d.geometry import compose, invert_rigid, project, rotation_angle, transform_points
from recon3d.matches import Matches
from recon3d.types import Scene, Verdict
from recon3d.wide_check import without_contradicted


def pair(truth: ExactScene, i: int, j: int, seen_as: int | None = None) -> Matches:
    """Return exact matches of views i and j, or such that j is seen from another view's place."""
    place = truth.cam2world[j if seen_as is None else seen_as]
    height, width = truth.views[i].image.shape[1:]
    generator = torch.Generator().manual_seed(10 * i + j)
    row = torch.randint(height, (300,), generator=generator)
    column = torch.randint(width, (300,), generator=generator)
    points = transform_points(truth.cam2world[i], truth.pointmap(i)[row, column])
    pixels_j = project(transform_points(invert_rigid(place), points), truth.intrinsics(j))
    return Matches(
        i=i,
        j=j,
        pixels_i=torch.stack((column, row), -1) + 0.5,
        pixels_j=pixels_j.float(),
        confidence=torch.ones(300),
    )


def scene(truth: ExactScene) -> Scene:
    n_views = len(truth.views)
    verdict = Verdict(
        residual=math.nan, edges=0, rotation_uncertainty_deg=math.nan, focal_source="given"
    )
    empty = tuple(torch.zeros(view.image.shape[1:]) for view in truth.views)
    return Scene(
        views=truth.views,
        cam2world=torch.eye(4).repeat(n_views, 1, 1),
        intrinsics=torch.stack([truth.intrinsics(n).float() for n in range(n_views)]),
        depth=empty,
        confidence=empty,
        verdicts=(verdict,) * n_views,
    )


def kept(truth: ExactScene, wide: list[Matches], plain: list[Matches]) -> list[tuple[int, int]]:
    return [(one.i, one.j) for one in without_contradicted(wide, plain, scene(truth))]


def test_pairs_that_close_triangles_stay_and_those_that_contradict_go() -> None:
    truth = exact_scene(4)
    pairs = list(combinations(range(4), 2))
    turns = [compose(invert_rigid(truth.cam2world[i]), truth.cam2world[j]) for i, j in pairs]
    angle_deg = [float(torch.rad2deg(rotation_angle(turn[:3, :3]))) for turn in turns]
    far = pairs[int(np.argmax(angle_deg))]
    other = next(n for n in range(4) if n not in far)
    wrong = pair(truth, *far, seen_as=other)
    mistake = compose(invert_rigid(truth.cam2world[other]), truth.cam2world[far[1]])
    assert float(torch.rad2deg(rotation_angle(mistake[:3, :3]))) > 25  # beyond the limit
    plain = [pair(truth, *one) for one in pairs if one != far]
    assert kept(truth, [pair(truth, *far)], plain) == [far]
    assert kept(truth, [wrong], plain) == []
    # in no triangle there is nothing to hold it against
    assert kept(truth, [wrong], []) == [far]


def test_matches_that_tell_no_rotation_are_not_used() -> None:
    truth = exact_scene(4)
    one = pair(truth, 0, 1)
    point = Matches(
        i=0,
        j=1,
        pixels_i=one.pixels_i[:1].repeat(9, 1),
        pixels_j=one.pixels_j[:1].repeat(9, 1),
        confidence=torch.ones(9),
    )
    assert kept(truth, [point], []) == []
