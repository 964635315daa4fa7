"""Which pixels of two views show the same point: reciprocal nearest neighbours.

Two pixels match if each is the other's nearest: as 3D points in one frame (pointmaps), or as
unit vectors with the largest dot product (descriptors). Source: Wang et al., DUSt3R (CVPR 2024),
section 3.3; Leroy et al., MASt3R (ECCV 2024), section 3.3.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon3d.config import MatchConfig
from recon3d.types import PairPrediction

_ROUNDS = 10
"""How often a seed may step to its neighbour's neighbour before it is given up."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matches:
    """Matched pixels of the views i and j, row by row.

    Pixels are those of `View.image`, (x, y), centre of the top-left pixel at (0.5, 0.5), and no
    pixel occurs twice in a view. Confidence is the geometric mean of the two pixels' confidence,
    in the network's unit.
    """

    i: int
    j: int
    pixels_i: Float[Tensor, "match 2"]
    pixels_j: Float[Tensor, "match 2"]
    confidence: Float[Tensor, " match"]


def reciprocal_matches(
    a: Float[Tensor, "n_a axis"],
    b: Float[Tensor, "n_b axis"],
    *,
    measure: Literal["distance", "dot"],
    seeds: Int[Tensor, " seed"] | None = None,
    max_bytes: int = 64_000_000,
) -> tuple[Int[Tensor, " match"], Int[Tensor, " match"]]:
    """Return (index into a, index into b) of all vectors that are each other's nearest.

    Every match returned is exactly reciprocal in the full sets. Without `seeds` all of them are
    returned. With seeds, indices into `a`, the search starts there and steps to the nearest
    neighbour's nearest neighbour until it returns to where it was, at most ten times: the cost is
    that of the seeds alone, and some matches are not found.

    Args:
        a: finite vectors.
        b: finite vectors.
        measure: "distance" for the least Euclidean distance (few axes: a k-d tree on the CPU),
            "dot" for the largest dot product (many axes: products on the tensors' device).
        seeds: where to start, or None.
        max_bytes: bounds the block of products that is held at a time.

    Source: MASt3R, section 3.3 (fast reciprocal matching).
    """
    start = torch.arange(len(a), device=a.device) if seeds is None else seeds.unique()
    if not len(a) or not len(b) or not len(start):
        nothing = start.new_empty(0)
        return nothing, nothing.clone()
    search: Callable[[Tensor], Callable[[Tensor], Tensor]]
    search = _Tree if measure == "distance" else partial(_Products, max_bytes=max_bytes)
    nearest_in_a, nearest_in_b = search(a), search(b)
    found_a, found_b = [], []
    for _ in range(1 if seeds is None else _ROUNDS):
        there = nearest_in_b(a[start])
        back = nearest_in_a(b[there])
        met = back == start
        found_a.append(start[met])
        found_b.append(there[met])
        start = back[~met].unique()
        if not len(start):
            break
    index_a, first = _first_of_each(torch.cat(found_a))
    return index_a, torch.cat(found_b)[first]


def matches_of_prediction(prediction: PairPrediction, config: MatchConfig) -> Matches:
    """Return the matches of one ordered pair: of its descriptors where it has them, else of points.

    Points are compared in camera i; a match whose two points lie further apart than
    `config.max_distance` times their distance from camera i is dropped, and so is every pixel
    whose confidence is below `config.min_confidence`. At most `config.max_matches` are returned,
    the most confident ones.
    """
    points = [
        prediction.pointmap_i_in_i.reshape(-1, 3).float(),
        prediction.pointmap_j_in_i.reshape(-1, 3).float(),
    ]
    confidence = [
        prediction.confidence_i.flatten().float(),
        prediction.confidence_j.flatten().float(),
    ]
    usable = [
        torch.isfinite(p).all(-1) & (c >= config.min_confidence)
        for p, c in zip(points, confidence, strict=True)
    ]
    height, width = prediction.confidence_i.shape
    on_grid = _grid(height, width, config.stride, usable[0])
    described = prediction.descriptors_i is not None and prediction.descriptors_j is not None
    if described:
        vectors = [_flat(prediction.descriptors_i), _flat(prediction.descriptors_j)]
        if prediction.descriptor_confidence_i is not None:
            confidence[0] = prediction.descriptor_confidence_i.flatten().float()
        if prediction.descriptor_confidence_j is not None:
            confidence[1] = prediction.descriptor_confidence_j.flatten().float()
        usable = [u & torch.isfinite(v).all(-1) for u, v in zip(usable, vectors, strict=True)]
        on_grid = on_grid & usable[0]
    else:
        vectors = points
    kept = [mask.nonzero().flatten() for mask in usable]
    rank = usable[0].cumsum(0) - 1
    found = reciprocal_matches(
        vectors[0][kept[0]],
        vectors[1][kept[1]],
        measure="dot" if described else "distance",
        seeds=None if config.stride == 1 else rank[on_grid],
        max_bytes=config.max_bytes,
    )
    index = [k[f] for k, f in zip(kept, found, strict=True)]
    trust = (confidence[0][index[0]] * confidence[1][index[1]]).sqrt()
    if not described:
        apart = (points[0][index[0]] - points[1][index[1]]).norm(dim=-1)
        near = apart <= config.max_distance * points[0][index[0]].norm(dim=-1)
        index, trust = [k[near] for k in index], trust[near]
    best = trust.argsort(descending=True, stable=True)[: config.max_matches].sort().values
    width_j = prediction.confidence_j.shape[1]
    return Matches(
        i=prediction.i,
        j=prediction.j,
        pixels_i=_centres(index[0][best], width),
        pixels_j=_centres(index[1][best], width_j),
        confidence=trust[best],
    )


def collect_matches(
    predictions: Iterable[PairPrediction],
    found: list[Matches],
    config: MatchConfig,
    masks: Sequence[Bool[Tensor, "_ _"] | None] = (),
) -> Iterator[PairPrediction]:
    """Pass the predictions on, one at a time, and append the matches of each to `found`.

    `masks` are the pixels of each view that may match, None for all; empty for all of all views.
    """
    for prediction in predictions:
        visible = prediction
        if masks:
            visible = replace(
                prediction,
                confidence_i=_hidden(prediction.confidence_i, masks[prediction.i]),
                confidence_j=_hidden(prediction.confidence_j, masks[prediction.j]),
            )
        matches = matches_of_prediction(visible, config)
        on_cpu = {name: getattr(matches, name).cpu() for name in ("pixels_i", "pixels_j")}
        found.append(replace(matches, confidence=matches.confidence.cpu(), **on_cpu))
        yield prediction


def _hidden(
    confidence: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"] | None
) -> Float[Tensor, "height width"]:
    """Return the confidence, none where the mask hides the pixels."""
    if mask is None:
        return confidence
    return confidence.masked_fill(~mask.to(confidence.device), -torch.inf)


def merge_orders(matches: Iterable[Matches]) -> list[Matches]:
    """Return one `Matches` per unordered pair, i < j, ordered by (i, j).

    Where two matches claim one pixel, only the more confident stays.
    """
    groups: dict[tuple[int, int], list[Matches]] = {}
    for one in matches:
        forward = one if one.i < one.j else _swapped(one)
        groups.setdefault((forward.i, forward.j), []).append(forward)
    return [
        without_repeats(
            Matches(
                i=i,
                j=j,
                pixels_i=torch.cat([one.pixels_i for one in group]),
                pixels_j=torch.cat([one.pixels_j for one in group]),
                confidence=torch.cat([one.confidence for one in group]),
            )
        )
        for (i, j), group in sorted(groups.items())
    ]


def without_repeats(one: Matches) -> Matches:
    """Return the matches in their order; of those that claim one pixel only the most confident."""
    order = one.confidence.argsort(descending=True, stable=True)
    single = _is_first(one.pixels_i[order]) & _is_first(one.pixels_j[order])
    return select(one, order[single].sort().values)


def select(one: Matches, rows: Int[Tensor, " chosen"] | Bool[Tensor, " match"]) -> Matches:
    """Return the matches of those rows, by their indices or by a mask."""
    return replace(
        one,
        pixels_i=one.pixels_i[rows],
        pixels_j=one.pixels_j[rows],
        confidence=one.confidence[rows],
    )


def renumber(matches: Iterable[Matches], new_index: Mapping[int, int]) -> list[Matches]:
    """Return the matches between views that `new_index` knows, with their new indices, i < j."""
    renamed = [
        replace(one, i=new_index[one.i], j=new_index[one.j])
        for one in matches
        if one.i in new_index and one.j in new_index
    ]
    return [one if one.i < one.j else _swapped(one) for one in renamed]


class _Tree:
    """Nearest neighbours in space by a k-d tree."""

    def __init__(self, points: Float[Tensor, "point axis"]) -> None:
        from scipy.spatial import KDTree

        self.tree = KDTree(points.double().numpy(force=True))

    def __call__(self, query: Float[Tensor, "query axis"]) -> Int[Tensor, " query"]:
        nearest = self.tree.query(query.double().numpy(force=True))[1]
        return torch.from_numpy(np.asarray(nearest, dtype=np.int64)).to(query.device)


class _Products:
    """The largest dot product, block by block; no block of products exceeds `max_bytes`."""

    def __init__(self, among: Float[Tensor, "vector axis"], max_bytes: int) -> None:
        self.among = among.float()
        self.n_columns = min(len(among), 8192)
        self.n_rows = max(1, max_bytes // (4 * self.n_columns))

    def __call__(self, query: Float[Tensor, "query axis"]) -> Int[Tensor, " query"]:
        nearest = []
        for some in query.float().split(self.n_rows):
            best = some.new_full((len(some),), -torch.inf)
            index = torch.zeros(len(some), dtype=torch.int64, device=some.device)
            for start in range(0, len(self.among), self.n_columns):
                block = self.among[start : start + self.n_columns]
                largest, place = (some @ block.T).max(dim=1)
                better = largest > best
                best = torch.where(better, largest, best)
                index = torch.where(better, start + place, index)
            nearest.append(index)
        return torch.cat(nearest)


def _flat(descriptors: Float[Tensor, "height width axis"] | None) -> Float[Tensor, "pixel axis"]:
    if descriptors is None:
        raise ValueError("a pair with descriptors of one view only")
    return descriptors.flatten(0, 1).float()


def _grid(
    height: int, width: int, stride: int, usable: Bool[Tensor, " pixel"]
) -> Bool[Tensor, " pixel"]:
    """Return the usable pixels on a grid of that stride, its first pixel half a stride inside."""
    mask = torch.zeros(height, width, dtype=torch.bool, device=usable.device)
    mask[stride // 2 :: stride, stride // 2 :: stride] = True
    return mask.flatten() & usable


def _centres(index: Int[Tensor, " pixel"], width: int) -> Float[Tensor, "pixel 2"]:
    return torch.stack((index % width, index // width), dim=-1).float() + 0.5


def _swapped(one: Matches) -> Matches:
    return Matches(
        i=one.j, j=one.i, pixels_i=one.pixels_j, pixels_j=one.pixels_i, confidence=one.confidence
    )


def _first_of_each(
    values: Int[Tensor, " value"],
) -> tuple[Int[Tensor, " unique"], Int[Tensor, " unique"]]:
    """Return the sorted distinct values and where each occurs first."""
    unique, first = np.unique(values.numpy(force=True), return_index=True)
    return torch.from_numpy(unique).to(values.device), torch.from_numpy(first).to(values.device)


def _is_first(pixels: Float[Tensor, "pixel 2"]) -> Bool[Tensor, " pixel"]:
    """Return which rows do not occur before."""
    _, first = np.unique(pixels.numpy(force=True), axis=0, return_index=True)
    mask = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    mask[torch.from_numpy(first).to(pixels.device)] = True
    return mask
