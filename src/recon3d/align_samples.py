"""What alignment keeps of the predictions as they stream by.

Poses, scales and focals need no more than a fixed sample of pixels per view, in float64. Depth
needs whole maps, of which each view keeps the most confident ones.
"""

import heapq
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from recon3d.config import AlignConfig
from recon3d.errors import DisconnectedError
from recon3d.memory import most_maps
from recon3d.types import KnownCamera, PairPrediction, View

logger = logging.getLogger(__name__)

TINY = 1e-12
EXACT = 1e-6
"""Relative distance below which float32 input cannot tell one point from another."""
Cameras = Sequence[KnownCamera | None]
"""What is known of each view's camera; empty where nothing is known of any."""
Masks = Sequence[Bool[Tensor, "_ _"] | None]
"""The pixels of each view that may be used; None is all; empty where no view has a mask."""
_MIN_SAMPLES = 16
_CHUNK_POINTS = 32_768
_MOST_SAMPLES, _POINTS = 2048, 400_000
"""Most pixels of a view, and of all maps together, that the published objective is taken over."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """All usable ordered pairs at the sample pixels of their views.

    `own` is pointmap_i_in_i at the pixels of view i, `seen` pointmap_j_in_i at those of view j,
    both over `edge_scale`, each with its weights (0 = masked). `confidence` is the geometric mean
    over all usable pixels of view j. `prediction` counts the predictions in the order they came;
    `pixel` is relative to the `base_point` of the view.
    """

    i: Int64[Tensor, " edge"]
    j: Int64[Tensor, " edge"]
    prediction: Int64[Tensor, " edge"]
    own: Float64[Tensor, "edge sample 3"]
    own_weight: Float64[Tensor, "edge sample"]
    seen: Float64[Tensor, "edge sample 3"]
    seen_weight: Float64[Tensor, "edge sample"]
    confidence: Float64[Tensor, " edge"]
    edge_scale: Float64[Tensor, " edge"]
    pixel: Float64[Tensor, "view sample 2"]

    def take(self, rows: Int64[Tensor, " row"]) -> "Samples":
        """Return only these edges."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Samples(**{k: v if k == "pixel" else v[rows] for k, v in fields.items()})

    def on(self, device: torch.device) -> "Samples":
        """Return all of it on the device."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Samples(**{name: values.to(device) for name, values in fields.items()})


class Map(NamedTuple):
    """One map of a view; the pointmap and its confidence are in the precision they came in."""

    score: float  # mean log-confidence over the usable pixels
    prediction: int
    is_own: bool
    points: Tensor
    confidence: Tensor


class KeptMaps:
    """The most confident maps of each view: `limit_bytes` in all, but a few of each in any case."""

    def __init__(self, masks: Masks, limit_bytes: int) -> None:
        """Start without maps of the views whose masks these are."""
        self._masks = masks
        self._of_view: list[list[Map]] = [[] for _ in masks]
        self._limit_bytes = limit_bytes

    def add(self, number: int, prediction: PairPrediction) -> tuple[float, float]:
        """Take both maps of prediction `number`, or let go of less confident ones.

        Returns:
            The scores of its map of view i, and of view j.
        """
        p = prediction
        scores = []
        for view, is_own, points, confidence in (
            (p.i, True, p.pointmap_i_in_i, p.confidence_i),
            (p.j, False, p.pointmap_j_in_i, p.confidence_j),
        ):
            kept = self._of_view[view]
            n_bytes = points.numel() * points.element_size() * 4 // 3
            most = most_maps(n_bytes, len(self._of_view), self._limit_bytes)
            score = mean_log_confidence(confidence, self._masks[view])
            scores.append(score)
            if len(kept) < most:
                heapq.heappush(kept, Map(score, number, is_own, alone(points), alone(confidence)))
            elif score > kept[0].score:
                heapq.heapreplace(
                    kept, Map(score, number, is_own, alone(points), alone(confidence))
                )

        return scores[0], scores[1]

    def of(self, view: int) -> list[Map]:
        """Return the maps of a view in the order of their predictions."""
        return sorted(self._of_view[view], key=lambda entry: (entry.prediction, not entry.is_own))


def edge_chunks(per_edge: Float[Tensor, "edge sample *_"], vectors: int = 1) -> Iterator[slice]:
    """Yield slices of edges few enough that what is made of them stays in the cache, on a CPU.

    `vectors` is how many of three numbers are made of one sample.
    """
    points = _CHUNK_POINTS if per_edge.device.type == "cpu" else 64 * _CHUNK_POINTS
    step = max(1, points // (vectors * per_edge.shape[1]))
    for start in range(0, len(per_edge), step):
        yield slice(start, start + step)


def alone(values: Tensor) -> Tensor:
    """Return values that do not keep the rest of a batch in memory."""
    shared = values.untyped_storage().nbytes() > values.numel() * values.element_size()
    return values.clone() if shared else values


def mean_log_confidence(
    confidence: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"] | None = None
) -> float:
    """Return the mean log-confidence of a map; values that are not finite count as none."""
    logs = confidence.to(torch.float32, copy=True)
    logs.clamp_min_(1).log_().nan_to_num_(0, 0, 0)  # in place: a quarter of the time
    if mask is None:
        return float(logs.mean())
    return float((logs * mask.to(logs.device)).sum() / mask.sum().clamp_min(1))


def weighted_median(
    values: Float[Tensor, "*batch sample"], weights: Float[Tensor, "*batch sample"]
) -> Float[Tensor, "*batch"]:
    """Return the value at which half of the weight lies below."""
    ordered, index = values.sort(dim=-1)
    cumulative = weights.gather(-1, index).cumsum(-1)
    half = (cumulative < cumulative[..., -1:] / 2).sum(-1, keepdim=True)
    return ordered.gather(-1, half.clamp_max(values.shape[-1] - 1)).squeeze(-1)


def pixel_weight(
    points: Float[Tensor, "*pixel 3"], confidence: Float[Tensor, "*pixel"]
) -> Float[Tensor, "*pixel"]:
    """Return log-confidence as a weight, 0 where the point or its confidence is not finite."""
    valid = points.isfinite().all(-1) & confidence.isfinite()
    return torch.where(valid, confidence.clamp_min(1).log() + 1e-3, 0.0)


def sample_pixels(height: int, width: int, count: int, seed: int) -> Int64[Tensor, " sample"]:
    """Return `count` flat pixel indices spread evenly over the image; the seed shifts them all.

    They follow the additive sequence of the plastic number, which fills a rectangle of any shape
    without gaps or clusters. Source: Roberts, "The unreasonable effectiveness of quasirandom
    sequences", 2018.
    """
    shift = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    place = (shift + step * torch.arange(count, dtype=torch.float64)[:, None]) % 1.0
    x, y = (place[:, 0] * width).long(), (place[:, 1] * height).long()
    return y.clamp_max(height - 1) * width + x.clamp_max(width - 1)


def take_samples(
    predictions: Iterable[PairPrediction],
    views: Sequence[View],
    config: AlignConfig,
    *,
    cameras: Cameras = (),
    masks: Masks = (),
) -> tuple[Samples, KeptMaps]:
    """Return the predictions at the sample pixels, and the maps to fuse depth from.

    A prediction without enough finite points, or with the same one everywhere, is dropped.

    Raises:
        DisconnectedError: when nothing is left.
    """
    mask_of = masks or [None] * len(views)
    places = _places(views, mask_of, config.samples_per_edge, config.seed)
    maps = KeptMaps(mask_of, config.max_map_bytes)
    rows: dict[str, list[Tensor]] = {}
    for number, p in enumerate(predictions):
        (own, own_weight), (seen, seen_weight) = (
            _sampled(points, confidence, places[n], mask_of[n], is_own)
            for n, points, confidence, is_own in (
                (p.i, p.pointmap_i_in_i, p.confidence_i, True),
                (p.j, p.pointmap_j_in_i, p.confidence_j, False),
            )
        )
        if min(_count(own, own_weight), _count(seen, seen_weight)) < _MIN_SAMPLES:
            logger.warning(
                "pair %s, %s: too few different points, dropped", views[p.i].name, views[p.j].name
            )
            continue
        _, score_j = maps.add(number, p)
        values = {
            "i": torch.tensor(p.i), "j": torch.tensor(p.j), "prediction": torch.tensor(number),
            "own": own, "own_weight": own_weight, "seen": seen, "seen_weight": seen_weight,
            "confidence": torch.tensor(score_j).double(),
            "edge_scale": torch.ones(()).double(),
        }  # fmt: skip
        for name, value in values.items():
            rows.setdefault(name, []).append(value.to(own.device))
    if not rows:
        raise DisconnectedError(
            f"no pair of the {len(views)} photos has a finite pointmap of different points"
            + (
                " within the masks. Give larger masks, or leave --masks out."
                if any(mask is not None for mask in mask_of)
                else ". Try other photos or other weights."
            )
        )
    rows["confidence"] = [value.exp() for value in rows["confidence"]]
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    pixel = _centred(places, views, cameras).to(stacked["own"].device)
    return Samples(pixel=pixel, **stacked), maps


def denser_samples(
    samples: Samples,
    maps: KeptMaps,
    views: Sequence[View],
    cameras: Cameras,
    masks: Masks,
    config: AlignConfig,
) -> Samples:
    """Return the same edges at more pixels, as many as few edges can afford.

    `samples` themselves where there are many edges, or where some map was not kept.
    """
    count = min(_MOST_SAMPLES, _POINTS // (2 * len(samples.i)))
    row_of = {number: row for row, number in enumerate(samples.prediction.tolist())}
    kept = [
        (n, one)
        for n in sorted(set(samples.i.tolist()) | set(samples.j.tolist()))
        for one in maps.of(n)
        if one.prediction in row_of
    ]
    if count <= samples.pixel.shape[1] or len(kept) < 2 * len(row_of):
        return samples
    mask_of = masks or [None] * len(views)
    places = _places(views, mask_of, count, config.seed)
    points = samples.own.new_zeros(2, len(samples.i), count, 3)
    weight = samples.own.new_zeros(2, len(samples.i), count)
    for n, one in kept:
        side, row = 0 if one.is_own else 1, row_of[one.prediction]
        found, trust = _sampled(one.points, one.confidence, places[n], mask_of[n], one.is_own)
        points[side, row] = found.to(points) / samples.edge_scale[row]
        weight[side, row] = trust.to(weight)
    return replace(
        samples, own=points[0], own_weight=weight[0], seen=points[1], seen_weight=weight[1],
        pixel=_centred(places, views, cameras).to(samples.pixel),
    )  # fmt: skip


def _places(
    views: Sequence[View], masks: Masks, count: int, seed: int
) -> list[Int64[Tensor, " sample"]]:
    """Return the sample pixels of each view; views of one size without masks share theirs."""
    sizes = [(view.image.shape[1], view.image.shape[2]) for view in views]
    of_size = {(h, w): sample_pixels(h, w, count, seed) for h, w in set(sizes)}
    return [
        of_size[size] if mask is None else _within(mask.cpu(), of_size[size], seed)
        for size, mask in zip(sizes, masks, strict=True)
    ]


def _within(
    mask: Bool[Tensor, "height width"], others: Int64[Tensor, " sample"], seed: int
) -> Int64[Tensor, " sample"]:
    """Return as many pixels of the mask, spread evenly; if it has fewer, all, and then others."""
    (height, width), count = mask.shape, len(others)
    usable = mask.flatten()
    inside = usable.nonzero()[:, 0]
    if len(inside) > count:
        more = sample_pixels(height, width, 2 * count * len(usable) // len(inside), seed)
        inside = more[usable[more]][:count]
    return torch.cat((inside, others[: count - len(inside)]))


def _sampled(
    points: Float[Tensor, "height width 3"],
    confidence: Float[Tensor, "height width"],
    place: Int64[Tensor, " sample"],
    mask: Bool[Tensor, "height width"] | None,
    is_own: bool,
) -> tuple[Float64[Tensor, "sample 3"], Float64[Tensor, " sample"]]:
    """Return a map and its weight at some pixels, both 0 where it says nothing."""
    place = place.to(points.device)
    found = points.reshape(-1, 3)[place].double()
    weight = pixel_weight(found, confidence.reshape(-1)[place].double())
    if mask is not None:
        weight = weight * mask.to(weight.device).reshape(-1)[place]
    if is_own:
        weight = torch.where(found[:, 2] > 0, weight, 0.0)
    return torch.where(weight[:, None] > 0, found, 0.0), weight


def _count(points: Float64[Tensor, "sample 3"], weight: Float64[Tensor, " sample"]) -> int:
    """Return how many points are known; none where all are the same, which have no size."""
    known = points[weight > 0]
    return len(known) if bool((known[1:] != known[:-1]).any()) else 0


def _centred(
    places: Sequence[Int64[Tensor, " sample"]], views: Sequence[View], cameras: Cameras
) -> Float64[Tensor, "view sample 2"]:
    """Return the centres of pixels relative to the `base_point` of their views."""
    pixels = []
    for n, view in enumerate(views):
        place, width = places[n], view.image.shape[2]
        pixel = torch.stack((place % width + 0.5, place // width + 0.5), dim=-1).double()
        pixels.append(pixel - base_point(view, cameras[n] if cameras else None))
    return torch.stack(pixels)


def base_point(view: View, camera: KnownCamera | None) -> Float64[Tensor, "2"]:
    """Return the principal point in pixels of the view: as given, else the photo's centre."""
    if camera is not None and camera.intrinsics is not None:
        return camera.intrinsics[:2, 2].double().cpu()
    centre = torch.tensor([view.photo_width / 2, view.photo_height / 2, 1]).double()
    return (view.photo2view.double().cpu() @ centre)[:2]
