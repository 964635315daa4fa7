"""Tracks: joined by hand, triangulated from exact rays."""

import math

import pytest
import torch
from torch import Tensor

from recon3d.matches import Matches
from recon3d.tracks import (
    Tracks,
    build_tracks,
    ray_angle,
    select_observations,
    select_tracks,
    triangulate,
    well_joined,
)


def matches(i: int, j: int, rows: list[tuple[float, float, float]]) -> Matches:
    """Each row is (x in i, x in j, confidence); y is 0."""
    x_i, x_j, confidence = torch.tensor(rows).reshape(-1, 3).T
    zero = torch.zeros_like(x_i)
    return Matches(
        i=i,
        j=j,
        pixels_i=torch.stack((x_i, zero), dim=-1),
        pixels_j=torch.stack((x_j, zero), dim=-1),
        confidence=confidence,
    )


def members(tracks: Tracks) -> set[frozenset[tuple[int, float]]]:
    groups = [set() for _ in range(tracks.n_tracks)]
    for track, view, x in zip(
        tracks.track.tolist(), tracks.view.tolist(), tracks.pixels[:, 0].tolist(), strict=True
    ):
        groups[track].add((view, x))
    assert sum(len(group) for group in groups) == len(tracks.track)
    return {frozenset(group) for group in groups}


def test_matches_that_share_a_pixel_are_one_track() -> None:
    tracks = build_tracks(
        [
            matches(0, 1, [(1.5, 2.5, 1.0), (7.5, 8.5, 1.0)]),
            matches(1, 2, [(2.5, 3.5, 1.0)]),
            matches(3, 2, [(4.5, 3.5, 1.0)]),
            matches(2, 0, [(3.5, 1.5, 1.0)]),  # closes the loop
        ]
    )
    assert members(tracks) == {
        frozenset({(0, 1.5), (1, 2.5), (2, 3.5), (3, 4.5)}),
        frozenset({(0, 7.5), (1, 8.5)}),
    }
    assert tracks.track.tolist() == sorted(tracks.track.tolist())


def shared(*pairs: tuple[int, int, int]) -> Tracks:
    """Return tracks of two views each, as many of each pair as the third number says."""
    found, x = [], 0
    for i, j, n in pairs:
        found.append(matches(i, j, [(x + k + 0.5, x + k + 0.5, 1.0) for k in range(n)]))
        x += n
    return build_tracks(found)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (((0, 1, 10), (1, 2, 10), (0, 2, 10)), (True, True, True, False)),
        # the last hangs on the first, whatever they share
        (((0, 1, 10), (1, 2, 10), (0, 2, 10), (0, 3, 40)), (True, True, True, False)),
        (((0, 1, 10), (1, 2, 10), (0, 2, 10), (0, 3, 40), (1, 3, 4)), (True, True, True, False)),
        (((0, 1, 10), (1, 2, 10), (0, 2, 10), (0, 3, 40), (1, 3, 5)), (True, True, True, True)),
        # two alone, and a chain of which nothing is better joined than the rest
        (((0, 1, 10),), (True, True, False, False)),
        (((0, 1, 10), (1, 2, 10)), (True, True, True, False)),
    ],
)
def test_views_that_hang_on_one_other(
    pairs: tuple[tuple[int, int, int], ...], expected: tuple[bool, ...]
) -> None:
    assert tuple(well_joined(shared(*pairs), 4).tolist()) == expected


def test_a_long_track_joins_all_its_views() -> None:
    rows = [(k + 0.5, k + 0.5, 1.0) for k in range(5)]
    chain = build_tracks([matches(0, 1, rows), matches(1, 2, rows), matches(2, 3, rows)])
    assert well_joined(chain, 4).all()
    assert not well_joined(build_tracks([]), 4).any()


@pytest.mark.parametrize(("confidence", "kept"), [(0.5, 3.5), (2.0, 9.5)])
def test_a_track_has_one_pixel_per_view(confidence: float, kept: float) -> None:
    """Two pixels of view 2 claim the same track: the more confident match wins."""
    chain = [
        matches(0, 1, [(1.5, 2.5, 3.0)]),
        matches(1, 2, [(2.5, 3.5, 1.0)]),
        matches(0, 2, [(1.5, 9.5, confidence)]),
    ]
    assert members(build_tracks(chain)) == {frozenset({(0, 1.5), (1, 2.5), (2, kept)})}
    assert members(build_tracks(chain[::-1])) == members(build_tracks(chain))


def test_no_matches_no_tracks() -> None:
    for nothing in ([], [matches(0, 1, [])]):
        tracks = build_tracks(nothing)
        assert tracks.n_tracks == 0
        assert tracks.pixels.shape == (0, 2)


def test_selection_numbers_anew() -> None:
    tracks = build_tracks(
        [matches(0, 1, [(1, 2, 1.0), (3, 4, 1.0), (5, 6, 1.0)]), matches(1, 2, [(4, 7, 1.0)])]
    )
    assert tracks.n_tracks == 3
    without_view_1 = select_observations(tracks, tracks.view != 1)
    assert members(without_view_1) == {frozenset({(0, 3), (2, 7)})}
    assert without_view_1.track.tolist() == [0, 0]
    long = torch.bincount(tracks.track) == 3
    assert members(select_tracks(tracks, ~long)) == {
        frozenset({(0, 1), (1, 2)}),
        frozenset({(0, 5), (1, 6)}),
    }
    assert select_tracks(tracks, torch.zeros(3, dtype=torch.bool)).n_tracks == 0


def rays(points: Tensor, n_views: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (origin, direction, track): every point seen from random places around it."""
    track = torch.arange(len(points)).repeat_interleave(n_views)
    origin = 3 * torch.randn(len(track), 3).double()
    return origin, torch.nn.functional.normalize(points[track] - origin, dim=-1), track


@pytest.mark.parametrize("n_views", [2, 5])
def test_exact_rays_meet_in_their_points(n_views: int) -> None:
    points = torch.randn(50, 3).double()
    found = triangulate(*rays(points, n_views), 50)
    assert float((found - points).norm(dim=-1).max()) < 1e-5


def test_angles_count_not_distances() -> None:
    """A camera ten times nearer, with the same error in angle, says ten times more."""
    points = torch.randn(200, 3).double()
    origin, _, track = rays(points, 2)
    away = torch.nn.functional.normalize(origin - points[track], dim=-1)
    origin = points[track] + away * torch.tensor([1.0, 10.0]).repeat(200)[:, None]
    noise = 2e-3 * torch.randn(400, 3).double()
    direction = torch.nn.functional.normalize(noise - away, dim=-1)

    def cost(at: Tensor) -> float:
        towards = torch.nn.functional.normalize(at[track] - origin, dim=-1)
        return float(torch.linalg.cross(towards, direction).square().sum())

    found = triangulate(origin, direction, track, 200)
    plain = torch.stack(
        [_least_squares(origin[track == n], direction[track == n]) for n in range(200)]
    )
    assert cost(found) < 0.5 * cost(plain)


def test_one_wrong_ray_of_several_counts_little() -> None:
    points = torch.randn(30, 3).double()
    origin, direction, track = rays(points, 6)
    spoilt = direction.clone()
    spoilt[::6] = torch.nn.functional.normalize(
        direction[::6] + 0.3 * torch.randn(30, 3).double(), dim=-1
    )
    off = (triangulate(origin, spoilt, track, 30) - points).norm(dim=-1)
    plain = torch.stack([_least_squares(origin[track == n], spoilt[track == n]) for n in range(30)])
    assert float(off.median()) < 0.25 * float((plain - points).norm(dim=-1).median())


def _least_squares(origin: Tensor, direction: Tensor) -> Tensor:
    across = torch.eye(3).double() - direction[:, :, None] * direction[:, None, :]
    return torch.linalg.solve(across.sum(0), (across @ origin[..., None]).sum(0))[:, 0]


def test_parallel_rays_give_something_finite() -> None:
    origin = torch.tensor([[0.0, 0, 0], [1, 0, 0]]).double()
    ahead = torch.tensor([[0.0, 0, 1], [0, 0, 1]]).double()
    track = torch.zeros(2, dtype=torch.int64)
    assert triangulate(origin, ahead, track, 1).isfinite().all()
    assert triangulate(origin[:0], ahead[:0], track[:0], 0).shape == (0, 3)


def test_angle_between_two_rays() -> None:
    points = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]]).double()
    origin = torch.tensor([[1.0, 0, 1], [0, 1, 1], [-1, 0, 1], [1, 0, 1]]).double()
    found = ray_angle(points, origin, torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(found, torch.tensor([math.pi / 2, math.pi / 2]).double())
