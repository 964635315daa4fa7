"""Tracks: all pixels, one per view at most, that show one point; and where that point lies.

Source: Hartley and Sturm, CVIU 1997 (triangulation); Moulon and Monasse, CVMP 2012 (tracks by
union-find).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from recon3d.matches import Matches

_ROUNDS = 5
"""Solutions of the triangulation, each with the weights of the one before."""
_MIN_SHARED = 12  # tracks between two views that hold one against the other
_MIN_SECOND = 5  # the same of a view and the second best of its partners


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tracks:
    """Observations, sorted by track; tracks are numbered from 0 and have two or more each.

    Pixels are those of `View.image`.
    """

    track: Int64[Tensor, " observation"]
    view: Int64[Tensor, " observation"]
    pixels: Float64[Tensor, "observation 2"]
    n_tracks: int


def build_tracks(matches: Sequence[Matches]) -> Tracks:
    """Join matches that share a pixel, the most confident first.

    A match that would give a track a second pixel in one of its views is not used.
    """
    joined = _joined(matches)
    rows = [(n, *pixel) for n, members in enumerate(joined) for pixel in sorted(members)]
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return Tracks(
        track=table[:, 0].long(),
        view=table[:, 1].long(),
        pixels=table[:, 2:].contiguous(),
        n_tracks=len(joined),
    )


def select_observations(tracks: Tracks, keep: Bool[Tensor, " observation"]) -> Tracks:
    """Return those observations of the tracks that still have two or more, numbered anew."""
    keep = keep & (count_by_track(tracks, keep) >= 2)[tracks.track]
    kept, track = tracks.track[keep].unique(return_inverse=True)
    return Tracks(
        track=track, view=tracks.view[keep], pixels=tracks.pixels[keep], n_tracks=len(kept)
    )


def count_by_track(tracks: Tracks, of: Bool[Tensor, " observation"]) -> Int64[Tensor, " track"]:
    """Return how many of those observations each track has."""
    return torch.bincount(tracks.track[of], minlength=tracks.n_tracks)


def views_seeing(tracks: Tracks, n_views: int) -> Bool[Tensor, " view"]:
    """Return which of the views see any track."""
    seeing = torch.zeros(n_views, dtype=torch.bool)
    seeing[tracks.view] = True
    return seeing


def select_tracks(tracks: Tracks, keep: Bool[Tensor, " track"]) -> Tracks:
    """Return those tracks, numbered anew."""
    return select_observations(tracks, keep[tracks.track])


def longest_tracks(tracks: Tracks, most: int) -> Tracks:
    """Return at most that many tracks, the longest."""
    length = torch.bincount(tracks.track, minlength=tracks.n_tracks)
    first = length.argsort(descending=True, stable=True)[:most]
    keep = torch.zeros(tracks.n_tracks, dtype=torch.bool)
    keep[first] = True
    return select_tracks(tracks, keep)


def largest_group(tracks: Tracks, n_views: int) -> Tracks:
    """Return the tracks among the largest group of views that enough tracks join."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shared = _shared(tracks, n_views)
    strong = (shared.data >= _MIN_SHARED) & (shared.row != shared.col)
    links = coo_array((shared.data[strong], (shared.row[strong], shared.col[strong])), shared.shape)
    label = torch.from_numpy(connected_components(links, directed=False)[1]).long()
    size = torch.bincount(label)
    held = (label == size.argmax()) & (size.max() > 1)
    return select_observations(tracks, held[tracks.view])


def well_joined(tracks: Tracks, n_views: int) -> Bool[Tensor, " view"]:
    """Return which views share enough tracks with two others; all with any where most do not.

    What is shared with one other view alone does not tell how far away the camera is from it.
    """
    seeing = views_seeing(tracks, n_views)
    shared = _shared(tracks, n_views)
    linked = (shared.data >= _MIN_SECOND) & (shared.row != shared.col)
    n_partners = torch.bincount(torch.from_numpy(shared.row[linked]).long(), minlength=n_views)
    joined = n_partners >= 2
    return joined if 2 * int(joined.sum()) > int(seeing.sum()) else seeing


def _shared(tracks: Tracks, n_views: int) -> Any:
    """Return how many tracks each two views share, a sparse matrix."""
    from scipy.sparse import coo_array

    place = (tracks.view.numpy(), tracks.track.numpy())
    seen = coo_array((torch.ones(len(tracks.view)).numpy(), place), (n_views, tracks.n_tracks))
    return (seen.tocsr() @ seen.tocsr().T).tocoo()


def triangulate(
    origin: Float64[Tensor, "observation 3"],
    direction: Float64[Tensor, "observation 3"],
    track: Int64[Tensor, " observation"],
    n_tracks: int,
) -> Float64[Tensor, "track 3"]:
    """Return the points with the least angles to their rays; one wrong ray of several counts less.

    Args:
        origin: of the rays, in the world.
        direction: of the rays, of length 1.
        track: which track each ray belongs to.
        n_tracks: tracks without two rays that meet get a point without meaning, but finite.
    """
    across = torch.eye(3, dtype=torch.float64) - direction[:, :, None] * direction[:, None, :]
    middle = _sum(origin, track, n_tracks) / _sum(torch.ones_like(origin), track, n_tracks)
    weight = torch.ones(len(track), dtype=torch.float64)
    points = middle
    for _ in range(_ROUNDS):
        normal = _sum(weight[:, None, None] * across, track, n_tracks)
        ridge = 1e-9 * normal.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(1e-30)
        normal = normal + ridge[:, None, None] * torch.eye(3, dtype=torch.float64)
        offset = (origin - middle[track])[..., None]
        pull = _sum(weight[:, None] * (across @ offset)[..., 0], track, n_tracks)
        points = middle + torch.linalg.solve(normal, pull[..., None])[..., 0]
        towards = points[track] - origin
        distance = towards.norm(dim=-1).clamp_min(1e-12)
        angle = (across @ towards[..., None])[..., 0].norm(dim=-1) / distance
        spread = (_sum(angle, track, n_tracks) / _sum(angle > -1, track, n_tracks))[track]
        # 1 / distance^2 turns distances into angles; the rest is Cauchy's weight
        weight = 1 / (distance.square() * (1 + (angle / spread.clamp_min(1e-4)).square()))
    return points


def ray_angle(
    points: Float64[Tensor, "track 3"],
    origin: Float64[Tensor, "observation 3"],
    track: Int64[Tensor, " observation"],
) -> Float64[Tensor, " track"]:
    """Return the angle in radians that the cameras of each track subtend at its point.

    Exact for two cameras: twice the largest angle to the mean direction.
    """
    towards = torch.nn.functional.normalize(points[track] - origin, dim=-1)
    mean = torch.nn.functional.normalize(_sum(towards, track, len(points)), dim=-1)[track]
    sine = torch.linalg.cross(towards, mean).norm(dim=-1)
    angle = torch.atan2(sine, (towards * mean).sum(-1))
    largest = torch.zeros(len(points), dtype=torch.float64)
    return 2 * largest.scatter_reduce_(0, track, angle, "amax")


def _joined(matches: Sequence[Matches]) -> list[dict[tuple[int, float, float], None]]:
    """Return the pixels (view, x, y) of each track; union-find that keeps views apart."""
    edges = []
    for one in matches:
        for pixel_i, pixel_j, confidence in zip(
            one.pixels_i.tolist(), one.pixels_j.tolist(), one.confidence.tolist(), strict=True
        ):
            edges.append((-confidence, (one.i, *pixel_i), (one.j, *pixel_j)))
    edges.sort()
    members: dict[tuple[int, float, float], dict[tuple[int, float, float], None]] = {}
    for _, first, second in edges:
        a = members.setdefault(first, {first: None})
        b = members.setdefault(second, {second: None})
        if a is b or {pixel[0] for pixel in a} & {pixel[0] for pixel in b}:
            continue
        a, b = (a, b) if len(a) >= len(b) else (b, a)
        a.update(b)
        for pixel in b:
            members[pixel] = a
    tracks = {id(group): group for group in members.values() if len(group) > 1}
    return list(tracks.values())


def _sum(
    values: Float[Tensor, "observation *axes"] | Bool[Tensor, " observation"],
    track: Int64[Tensor, " observation"],
    n_tracks: int,
) -> Float64[Tensor, "track *axes"]:
    """Return the sum over the observations of each track."""
    total = torch.zeros(n_tracks, *values.shape[1:], dtype=torch.float64)
    return total.index_add_(0, track, values.double())
