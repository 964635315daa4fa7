"""Which features of two photos from very different places show the same point.

Most pairs of similar features are wrong at such baselines. Three things tell the right ones: the
best partner is better than any elsewhere in the photo; neighbours move as the shapes of the two
patches say; and more of them lie on common epipolar lines than chance would put there.

Source: Morel and Yu, SIAM J. Imaging Sciences 2009 (repeats of one feature); Cavalli et al.,
AdaLAM, ECCV 2020 (neighbours bear each other out); Moisan and Stival, IJCV 2004 (how many epipolar
inliers chance gives).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from recon3d.config import RefineConfig
from recon3d.essential import FEWEST_MATCHES, essential_pose, line_distance
from recon3d.features import Features, RgbOf
from recon3d.matches import Matches, select, without_repeats
from recon3d.overlays import overlay_matches
from recon3d.partners import best_partners
from recon3d.progress import Track, silent
from recon3d.types import Scene, View
from recon3d.wide_check import UNIT, in_thousandths
from recon3d.wide_features import WideFeatures, find_wide_features

logger = logging.getLogger(__name__)

_RATIO = 0.9  # of the best distance to the best elsewhere: weaker than Lowe's, as more follows
_SAME_POINT = 0.75e-3  # of the long edge: features that are one observation
_SAME_PLACE = 1 / 128  # of the long edge: features closer than this are of one point
_N_BEST = 6  # most similar features among which one elsewhere is looked for
_NEIGHBOURS = 0.1  # of the long edge: how far neighbours reach
_BENDS = 0.3  # of the move between neighbours: how far it may be from what a patch says
_LEAST_ALIKE = 1.0  # Frobenius norm of the difference between the affine maps of two neighbours
_MOST = 3000  # matches of a pair that are compared with each other
_BEARING = (1, 2, 3, 5)  # neighbours that bear a match out; the more, the fewer wrong, or right
_FOCALS = (1.0, 0.8, 1.25)  # factors that are tried on an estimated focal length
_BAND = 2.0  # thousandths of the long edge: how far from its line a match may lie
_CELL = 1 / 32  # of the long edge: matches within a cell are no independent witnesses
_CHANCE = -12.0
"""Logarithm (10) of the number of times chance would give as much; 0 is Moisan and Stival's.

Matches in neighbouring cells bear each other out already, so they are not as independent as the
formula has it.
"""
_ROWS = 128  # features compared at a time: few enough for the cache
_SAMPLE, _SOLUTIONS = 5, 10  # of the essential matrix


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Side:
    """One view of a pair: its matched pixels in thousandths of the long edge, and its lens.

    `pixels` count from the principal point, `focal` is in thousandths, `band` the largest share of
    the view that lies within `_BAND` of a line.
    """

    pixels: Float64[np.ndarray, "match 2"]
    focal: float
    sure: bool
    band: float

    def lens(self, factor: float) -> Float64[np.ndarray, "3 3"]:
        """Return the intrinsics with the focal length, where it is a guess, times a factor."""
        focal = self.focal if self.sure else self.focal * factor
        return np.diag((focal, focal, 1.0))


def wide_matches(
    one: tuple[int, WideFeatures],
    other: tuple[int, WideFeatures],
    views: Sequence[View],
    intrinsics: Float[Tensor, "view 3 3"],
    sure: Bool[Tensor, " view"],
) -> Matches | None:
    """Return the matches of two views that one epipolar geometry explains beyond chance, or None.

    Args:
        one: first view i and its features.
        other: second view j and its features.
        views: what i and j index.
        intrinsics: of all views, in pixels of `View.image`.
        sure: whose focal length is known; that of others is a guess.
    """
    (i, first), (j, second) = one, other
    edge_i, edge_j = (max(views[n].image.shape[-2:]) for n in (i, j))
    row_i, row_j, cosine = alike(first, second, _SAME_PLACE * edge_i, _SAME_PLACE * edge_j)
    found = Matches(
        i=i,
        j=j,
        pixels_i=first.pixels[row_i],
        pixels_j=second.pixels[row_j],
        confidence=cosine,
    )
    # photos from a tripod share enough features to be matched as they are
    world = ~overlay_matches(found, views)
    found, row_i, row_j = select(found, world), row_i[world], row_j[world]
    maps = second.frames[row_j] @ torch.linalg.inv(first.frames[row_i])
    bearing = support(found, maps, _NEIGHBOURS * edge_i, _SAME_PLACE * edge_i)
    borne = bearing >= _BEARING[0]
    found = select(found, borne)
    near = _best_geometry(
        _side(views[i], found.pixels_i, intrinsics[i], sure=bool(sure[i])),
        _side(views[j], found.pixels_j, intrinsics[j], sure=bool(sure[j])),
        bearing[borne].numpy(),
    )
    return None if near is None else without_repeats(select(found, torch.from_numpy(near)))


def match_far_apart(
    pairs: Sequence[tuple[int, int]],
    scene: Scene,
    rgb_of: RgbOf,
    config: RefineConfig,
    *,
    plain: Mapping[int, Features] = MappingProxyType({}),
    track: Track = silent,
) -> list[Matches]:
    """Return the matches of those pairs of a scene's views that have any.

    Features are found in the views that the pairs need. Those of one point count as one, so that
    tracks join pairs; where there is a `plain` feature of a view, that one. `track` is told the
    stages "features" and "matching".
    """
    features: dict[int, WideFeatures] = {}
    wanted = sorted({n for pair in pairs for n in pair})
    logger.info(
        "comparing features seen from aside in %d more pairs of %d photos", len(pairs), len(wanted)
    )
    for done, n in enumerate(wanted, start=1):
        found_n = find_wide_features(scene.views[n], rgb_of, config)
        anchors = plain[n].pixels if n in plain else torch.zeros(0, 2)
        radius = _SAME_POINT * max(scene.views[n].image.shape[-2:])
        pixels = gathered(torch.cat((anchors, found_n.pixels)), radius, len(anchors))
        features[n] = replace(found_n, pixels=pixels[len(anchors) :])
        track("features", done, len(wanted))
    sure = torch.tensor([one.focal_is_known for one in scene.verdicts])
    found = []
    for done, (i, j) in enumerate(pairs, start=1):
        one = wide_matches((i, features[i]), (j, features[j]), scene.views, scene.intrinsics, sure)
        if one is not None:
            found.append(one)
        track("matching", done, len(pairs))
    logger.info("features seen from aside match in %d of %d more pairs", len(found), len(pairs))
    return found


def _best_geometry(
    first: _Side, second: _Side, bearing: Int64[np.ndarray, " match"]
) -> Bool[np.ndarray, " match"] | None:
    """Return the matches on the lines of the geometry that chance explains least, or None."""
    best, least = None, _CHANCE
    n_cells = _n_cells(first.pixels, second.pixels)
    for factor in (1.0,) if first.sure and second.sure else _FOCALS:
        lenses = first.lens(factor), second.lens(factor)
        for enough in _BEARING:
            some = bearing >= enough
            if int(some.sum()) < FEWEST_MATCHES:
                break
            cam_j2cam_i = essential_pose(first.pixels[some], second.pixels[some], *lenses)
            if cam_j2cam_i is None:
                continue
            off = line_distance(first.pixels, second.pixels, *lenses, cam_j2cam_i)
            near = off < _BAND
            n_near = _n_cells(first.pixels[near], second.pixels[near])
            chance = log_chance(n_near, n_cells, max(first.band, second.band))
            if chance < least:
                best, least = near, chance
    return best


def alike(
    first: WideFeatures, second: WideFeatures, near_i: float, near_j: float
) -> tuple[Int64[Tensor, " match"], Int64[Tensor, " match"], Float[Tensor, " match"]]:
    """Return (row of first, row of second, cosine) of features that choose each other's place.

    A point has many features, one in each compression; two that are `near` count as one.
    """
    all_i, all_j = first.descriptors, second.descriptors
    n_i, n_j = len(all_i), len(all_j)
    n_best = min(_N_BEST, n_j)
    if not n_i or n_best < 2:
        nothing = torch.zeros(0, dtype=torch.int64)
        return nothing, nothing.clone(), torch.zeros(0)
    row_j, best_i = best_partners(all_i, all_j)
    mutual = (first.pixels[best_i[row_j]] - first.pixels).norm(dim=-1) < near_i
    row_i = mutual.nonzero().flatten()
    good, cosine = [], []
    for rows in row_i.split(_ROWS):
        top = (all_i[rows] @ all_j.T).topk(n_best, dim=1)
        place = second.pixels[top.indices]
        elsewhere = (place - place[:, :1]).norm(dim=-1) > near_j
        rival = torch.where(elsewhere, top.values, top.values[:, -1:]).max(dim=1).values
        distance = [(2 - 2 * value).clamp_min(0).sqrt() for value in (top.values[:, 0], rival)]
        good.append(distance[0] < _RATIO * distance[1])
        cosine.append(top.values[:, 0])
    kept = torch.cat(good) if good else torch.zeros(0, dtype=torch.bool)
    row_i, row_j = row_i[kept], row_j[row_i[kept]]
    closeness = torch.cat(cosine)[kept] if cosine else torch.zeros(0)
    order = closeness.argsort(descending=True, stable=True)
    place = torch.cat((first.pixels[row_i] / near_i, second.pixels[row_j] / near_j), dim=1)
    _, single = np.unique((2 * place[order]).floor().numpy(), axis=0, return_index=True)
    order = order[torch.from_numpy(np.sort(single))][:_MOST]
    return row_i[order], row_j[order], closeness[order]


def gathered(
    pixels: Float[Tensor, "pixel 2"], radius: float, n_anchors: int = 0
) -> Float[Tensor, "pixel 2"]:
    """Return for each pixel the mean of its group: those within the radius, and theirs in turn.

    The first `n_anchors` pixels stay, and the group of one is where it is.
    """
    from scipy.spatial import KDTree

    first = torch.arange(len(pixels))
    if len(pixels):
        close = KDTree(pixels.numpy()).query_pairs(radius, output_type="ndarray")
        lower, upper = torch.from_numpy(close).T
        first = first.scatter_reduce(0, upper, lower, "amin")
    while not torch.equal(first, first[first]):
        first = first[first]
    total = torch.zeros_like(pixels).index_add_(0, first, pixels)
    mean = total / torch.bincount(first, minlength=len(pixels))[:, None].clamp_min(1)
    mean[:n_anchors] = pixels[:n_anchors]
    return mean[first]


def support(
    found: Matches, maps: Float[Tensor, "match 2 2"], radius: float, near: float
) -> Int64[Tensor, " match"]:
    """Return how many neighbours of each match move as its patch says, and are shaped alike.

    Args:
        found: the matches.
        maps: of each, from the patch in view i to that in view j.
        radius: in view i, within which matches are neighbours.
        near: within which they are the same point, and no witnesses.
    """
    counts = []
    inverse = torch.linalg.inv(maps)
    for rows in torch.arange(len(maps)).split(512):
        move_i = found.pixels_i - found.pixels_i[rows, None]
        move_j = found.pixels_j - found.pixels_j[rows, None]
        said = torch.einsum("rab,rnb->rna", maps[rows], move_i)
        length_i, length_j = move_i.norm(dim=-1), move_j.norm(dim=-1)
        good = (length_i < radius) & (length_i > near) & (length_j > near)
        good &= (said - move_j).norm(dim=-1) < _BENDS * (said.norm(dim=-1) + length_j) / 2
        apart = torch.einsum("rab,nbc->rnac", inverse[rows], maps) - torch.eye(2)
        good &= apart.flatten(2).norm(dim=-1) < _LEAST_ALIKE
        counts.append(good.sum(dim=1))
    return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.int64)


def log_chance(n_near: int, n: int, band: float) -> float:
    """Return log10 of how many geometries through 5 of n random matches have that many near.

    Args:
        n_near: matches near their epipolar lines.
        n: all matches.
        band: share of a picture that counts as near a line.

    Source: Moisan and Stival 2004, eq. 9, for five points and ten solutions each.
    """
    if n_near <= _SAMPLE:
        return math.inf
    choices = math.comb(n, n_near) * math.comb(n_near, _SAMPLE) * _SOLUTIONS * (n - _SAMPLE)
    return math.log10(choices) + (n_near - _SAMPLE) * math.log10(band)


def _side(
    view: View, pixels: Float[Tensor, "match 2"], matrix: Float[Tensor, "3 3"], *, sure: bool
) -> _Side:
    height, width = view.image.shape[-2:]
    from_centre, focal = in_thousandths(view, pixels, matrix)
    unit = UNIT / max(height, width)
    longest = math.hypot(height, width) * unit
    return _Side(
        pixels=from_centre,
        focal=focal,
        sure=sure,
        band=2 * _BAND * longest / (height * width * unit**2),
    )


def _n_cells(*sides: Float64[np.ndarray, "match 2"]) -> int:
    """Return how many cells of the views the matches are in, the fewer of the two."""
    return min(len(np.unique(pixels // (_CELL * UNIT), axis=0)) for pixels in sides)
