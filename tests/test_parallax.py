"""Parallax: photos turned or zoomed on the spot show none, photos from different places do."""

from dataclasses import replace
from functools import cache
from itertools import combinations

import pytest
import torch
from torch import Tensor

from exact_scene import cast, exact_scene, pattern
from recon3d.config import RefineConfig
from recon3d.features import find_features, match_photos, view_rgb
from recon3d.geometry import invert_rigid, project, so3_exp, transform_points
from recon3d.matches import Matches
from recon3d.parallax import show_parallax
from recon3d.types import View


@cache
def photos() -> list[View]:
    """Photos of a room: from three places, then turned twice and zoomed at the first of them."""
    scene = exact_scene(60, shapes=((192, 256),))
    which = torch.tensor([0, 2, 4, 0, 0, 0])
    cam2world, focal = scene.cam2world[which], scene.focal[:1].repeat(6)
    turns = torch.tensor([[0.0, 12.0, 0.0], [5.0, -9.0, 3.0], [0.0, 0.0, 0.0]]).deg2rad()
    cam2world[3:, :3, :3] = cam2world[3:, :3, :3] @ so3_exp(turns.double())
    focal[5] *= 1.5
    scene = replace(scene, views=scene.views[:6], cam2world=cam2world, focal=focal)
    scene = replace(scene, depth=tuple(cast(scene, n) for n in range(6)))
    found = []
    for n, view in enumerate(scene.views):
        points = transform_points(cam2world[n], scene.pointmap(n).reshape(-1, 3))
        grey = torch.from_numpy(pattern(points)).view(192, 256, 3).permute(2, 0, 1)
        found.append(replace(view, image=grey / 127.5 - 1))
    return found


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        pytest.param((0, 1, 2), True, id="moved"),
        pytest.param((0, 3, 4), False, id="turned"),
        pytest.param((0, 5), False, id="zoomed"),
        pytest.param((0, 3, 4, 5), False, id="turned and zoomed"),
        pytest.param((0, 1, 3), True, id="moved and turned"),
    ],
)
def test_photos_of_a_room(which: tuple[int, ...], expected: bool) -> None:
    views, config = [photos()[n] for n in which], RefineConfig()
    features = {n: find_features(view, view_rgb, config) for n, view in enumerate(views)}
    pairs = list(combinations(range(len(views)), 2))
    found = match_photos(pairs, views, features, config)
    assert len(found) == len(pairs)
    size = torch.tensor([[256.0, 192.0]]).double().expand(len(views), 2)
    assert show_parallax(found, size / 2, 1 / size[:, :1].expand(-1, 2)) is expected


MIDDLE = torch.tensor([[320.0, 240.0]] * 2).double()
EDGES = torch.full((2, 2), 1 / 640).double()


def matches_of_points(
    points: Tensor, cam2world: Tensor, focal_px: float, centre: Tensor = MIDDLE[0], ratio: float = 1
) -> list[Matches]:
    """Return what two cameras with views of 640 x 480 pixels see of points, to a quarter pixel."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.diag(torch.tensor([focal_px, ratio * focal_px, 1.0]))
    matrix[:2, 2] = centre
    pixels = torch.stack(
        [project(transform_points(invert_rigid(one), points), matrix) for one in cam2world]
    )
    inside = ((pixels > 0) & (pixels < torch.tensor([640.0, 480.0]))).all(-1).all(0)
    i, j = (pixels + 0.25 * torch.randn(pixels.shape, generator=generator))[:, inside]
    return [Matches(i=0, j=1, pixels_i=i, pixels_j=j, confidence=torch.ones(len(i)))]


@pytest.mark.parametrize("focal_px", [450.0, 640.0, 1000.0])
@pytest.mark.parametrize(
    ("step", "turn_deg", "relief", "expected"),
    [
        pytest.param((1.5, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0, True, id="along a flat front"),
        pytest.param((1.5, 0.0, 0.0), (0.0, -20.0, 0.0), 0.0, True, id="around a flat front"),
        pytest.param((0.4, 0.0, 0.0), (0.0, 4.0, 0.0), 2.0, True, id="a step in a room"),
        pytest.param((0.0, 0.0, 0.0), (0.0, 9.0, 4.0), 0.0, False, id="turned at a flat front"),
        pytest.param((0.0, 0.0, 0.0), (0.0, 9.0, 4.0), 2.0, False, id="turned in a room"),
    ],
)
def test_a_flat_front_is_no_rotation(
    step: tuple[float, ...], turn_deg: tuple[float, ...], relief: float, expected: bool,
    focal_px: float,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3000, 3, generator=generator) * torch.tensor([9.0, 6.0, 2 * relief])
    points += torch.tensor([-4.5, -3.0, 5.0 - relief])
    cam2world = torch.eye(4).repeat(2, 1, 1)
    cam2world[1, :3, :3] = so3_exp(torch.tensor(turn_deg).deg2rad())
    cam2world[1, :3, 3] = torch.tensor(step)
    assert show_parallax(matches_of_points(points, cam2world, focal_px), MIDDLE, EDGES) is expected


@pytest.mark.parametrize(
    ("centre", "ratio"), [((420.0, 200.0), 1.0), ((320.0, 240.0), 1.3), ((200.0, 300.0), 0.8)]
)
@pytest.mark.parametrize("step", [0.0, 1.5])
def test_what_is_known_of_lenses_counts(
    centre: tuple[float, float], ratio: float, step: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3000, 3, generator=generator) * torch.tensor([9.0, 6.0, 4.0])
    points += torch.tensor([-4.5, -3.0, 3.0])
    cam2world = torch.eye(4).repeat(2, 1, 1)
    cam2world[1, :3, :3] = so3_exp(torch.tensor([0.1, 0.2, 0.05]))
    cam2world[1, 0, 3] = step
    found = matches_of_points(points, cam2world, 560.0, torch.tensor(centre), ratio)
    known = torch.tensor([centre] * 2).double()
    edges = EDGES * torch.tensor([1.0, 1 / ratio])
    assert show_parallax(found, known, edges) is (step > 0)
    if step == 0:
        assert show_parallax(found, MIDDLE, EDGES) is True  # so it matters


def test_too_few_matches_tell_nothing() -> None:
    points = torch.rand(19, 3) * 0.1 + torch.tensor([0.0, 0.0, 4.0])
    few = matches_of_points(points, torch.eye(4).repeat(2, 1, 1), 640.0)
    assert show_parallax(few, MIDDLE, EDGES) is None
