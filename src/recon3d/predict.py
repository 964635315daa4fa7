"""Network x pairs -> PairPrediction: every view encoded once, pairs batched, results streamed."""

import contextlib
import functools
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.compiled import Trial
from recon3d.config import PredictConfig
from recon3d.device import (
    fp32_products,
    resolve_device,
    resolve_precision,
    unless_out_of_memory,
)
from recon3d.errors import MemoryShortageError, ResourceError, UsageError
from recon3d.heads import DptHead, Grid, Skips
from recon3d.memory import SKIPS_PER_PAIR, choose_batch_size, free_device_bytes
from recon3d.model import TwoViewModel
from recon3d.progress import Track, silent
from recon3d.skips import KeptSkips
from recon3d.types import PairPrediction, View

__all__ = (
    "EncodedViews",
    "encode_views",
    "predict_encoded",
    "predict_pairs",
    "resolve_device",
    "resolve_precision",
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# where PairPrediction names a map of the network differently
_FIELDS = {"pointmap_i": "pointmap_i_in_i", "pointmap_j": "pointmap_j_in_i"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedViews:
    """Views as the encoder sees them.

    `tokens` holds those of the encoded views under their indices, in ascending order, in the type
    of computation, on the device or the host. `grids` are rows and columns of patches of all views.
    """

    tokens: Mapping[int, Float[Tensor, "_ channel"]]
    grids: tuple[Grid, ...]


def predict_pairs(
    model: TwoViewModel,
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    config: PredictConfig,
    *,
    track: Track = silent,
) -> Iterator[PairPrediction]:
    """Encode the views that have a pair, then predict: `encode_views` and `predict_encoded`.

    Args:
        model: moved to the chosen device and set to evaluation.
        views: images whose sides are multiples of the patch size.
        pairs: unordered, each once, indices into `views`.
        config: device, precision and batch size.
        track: told the stages "encode" (views) and "pairs" (ordered pairs).

    Returns:
        As `predict_encoded`. Nothing is computed before the first is asked for.

    Raises:
        As the two.
    """
    _check_pairs(pairs, range(len(views)))
    grids = _grids(model, views)
    runner = _Runner(model, grids, config)
    used = sorted({index for pair in pairs for index in pair})

    def stream() -> Iterator[PairPrediction]:
        yield from runner.predict(runner.encode(views, used, track), pairs, track)

    return stream()


def encode_views(
    model: TwoViewModel, views: Sequence[View], config: PredictConfig, *, track: Track = silent
) -> EncodedViews:
    """Run the encoder once on every view, those of equal shape together.

    Args:
        model: moved to the chosen device and set to evaluation.
        views: images whose sides are multiples of the patch size.
        config: device, precision, batch size and where the tokens are kept.
        track: told the stage "encode" (views).

    Raises:
        UsageError: a device, precision or batch size that cannot be used.
        MemoryShortageError: a single view does not fit into memory.
    """
    return _Runner(model, _grids(model, views), config).encode(views, range(len(views)), track)


def predict_encoded(
    model: TwoViewModel,
    encoded: EncodedViews,
    pairs: Sequence[tuple[int, int]],
    config: PredictConfig,
    *,
    track: Track = silent,
) -> Iterator[PairPrediction]:
    """Predict both orders of every unordered pair, one PairPrediction at a time.

    Pairs of equal shapes are run together. Results come by shape bucket, in the order in which
    the buckets first occur; within a bucket in the order of `pairs`, (i, j) before (j, i).
    Between two results only one batch is held, in half precision; on CUDA two, because the second
    is computed while the first is copied and used.

    Args:
        model: moved to the chosen device and set to evaluation.
        encoded: at least the views that have a pair.
        pairs: unordered, each once, indices of the views.
        config: device, precision and batch size.
        track: told the stage "pairs" (ordered pairs).

    Returns:
        Predictions as fp16 tensors on the CPU, finite values cut off at the range of fp16.
        Non-finite values are kept for the aligner to mask, and warned of once.

    Raises:
        ValueError: a pair that is no pair of two encoded views, or given twice.
        UsageError: a device, precision or batch size that cannot be used.
        MemoryShortageError: a single pair does not fit into memory.
    """
    _check_pairs(pairs, encoded.tokens)
    return _Runner(model, encoded.grids, config).predict(encoded, pairs, track)


def _check_pairs(pairs: Sequence[tuple[int, int]], views: Iterable[int]) -> None:
    known = frozenset(views)
    seen = set()
    for i, j in pairs:
        if i == j or i not in known or j not in known:
            raise ValueError(f"({i}, {j}) is no pair of the {len(known)} views")
        if frozenset((i, j)) in seen:
            raise ValueError(f"the pair ({i}, {j}) is given twice")
        seen.add(frozenset((i, j)))


def _grids(model: TwoViewModel, views: Sequence[View]) -> tuple[Grid, ...]:
    patch = model.config.patch_size
    for view in views:
        height, width = view.image.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"{height}x{width} is no multiple of the patch {patch}")
    return tuple((v.image.shape[-2] // patch, v.image.shape[-1] // patch) for v in views)


class _Runner:
    """One model on one device with a batch size that shrinks when memory runs out."""

    def __init__(self, model: TwoViewModel, grids: Sequence[Grid], config: PredictConfig) -> None:
        if config.batch_size is not None and config.batch_size < 1:
            raise UsageError(f"the batch size {config.batch_size} must be at least 1.")
        device = resolve_device(config.device)
        self.device, self.dtype = device, resolve_precision(config.precision, device)
        # elsewhere copies are not asynchronous, or there is nothing to copy
        self.overlaps = device.type == "cuda"
        self.home = torch.device("cpu") if config.tokens_on_host else device
        self.compile = config.compile
        moved = unless_out_of_memory(lambda: model.to(device).eval())
        if moved is None:
            raise ResourceError(f"the network does not fit into the memory of {device}. {_ADVICE}")
        self.model = moved
        self.batch_size = config.batch_size or self._choose_batch_size(grids)
        logger.debug("predicting on %s in %s, batch %d", device, self.dtype, self.batch_size)

    def _choose_batch_size(self, grids: Sequence[Grid]) -> int:
        patch = self.model.config.patch_size
        rows, columns = max(grids, key=lambda grid: grid[0] * grid[1], default=(1, 1))
        free = free_device_bytes(self.device)
        half = self.dtype != torch.float32
        shape = (rows * patch, columns * patch)
        return choose_batch_size(self.model.config, shape, free, self.device.type, half=half)

    def encode(self, views: Sequence[View], indices: Sequence[int], track: Track) -> EncodedViews:
        """Encode the views of these indices."""
        grids = _grids(self.model, views)
        buckets: dict[Grid, list[int]] = defaultdict(list)
        for index in indices:
            buckets[grids[index]].append(index)
        tokens: dict[int, Tensor] = {}
        encode = functools.partial(self._encode, views=views)
        for bucket in buckets.values():
            for chunk, tokens_BND in self._batches(bucket, encode):
                tokens.update(zip(chunk, tokens_BND, strict=True))
                track("encode", len(tokens), len(indices))
        return EncodedViews(tokens={index: tokens[index] for index in indices}, grids=grids)

    def predict(
        self, encoded: EncodedViews, pairs: Sequence[tuple[int, int]], track: Track
    ) -> Iterator[PairPrediction]:
        """Predict both orders of every pair."""
        started = time.perf_counter()
        buckets: dict[tuple[Grid, Grid], list[tuple[int, int]]] = defaultdict(list)
        for i, j in pairs:
            for first, second in ((i, j), (j, i)):
                buckets[encoded.grids[first], encoded.grids[second]].append((first, second))
        done, warned = 0, False
        for batch in self._ahead(self._decoded(encoded, buckets)):
            batch.wait()
            if not warned and not bool(batch.finite):
                logger.warning("the network gave values that are not finite; they are ignored")
                warned = True
            for k, (i, j) in enumerate(batch.pairs):
                yield PairPrediction(i=i, j=j, **{name: batch.maps[name][k] for name in batch.maps})
            done += len(batch.pairs)
            track("pairs", done, 2 * len(pairs))
        logger.info(
            "predicted %d pairs of %d views in both orders on %s (%s) in %.1f s",
            len(pairs),
            len({index for pair in pairs for index in pair}),
            self.device,
            str(self.dtype).removeprefix("torch."),
            time.perf_counter() - started,
        )

    def _decoded(
        self,
        encoded: EncodedViews,
        buckets: Mapping[tuple[Grid, Grid], Sequence[tuple[int, int]]],
    ) -> Iterator["_Batch"]:
        skips = KeptSkips([pair for bucket in buckets.values() for pair in bucket])
        for (grid_i, grid_j), bucket in buckets.items():
            n_batches = -(-len(bucket) // self.batch_size)
            decode = functools.partial(
                self._decode,
                tokens=encoded.tokens,
                grid_i=grid_i,
                grid_j=grid_j,
                skips=skips,
                trial=Trial(self.compile, self.device, n_batches, self.batch_size),
            )
            for _, batch in self._batches(bucket, decode):
                yield batch

    def _ahead(self, batches: Iterator["_Batch"]) -> Iterator["_Batch"]:
        """Yield each batch after the next one is under way, where the device works by itself."""
        under_way: deque[_Batch] = deque()
        for batch in batches:
            under_way.append(batch)
            if len(under_way) > self.overlaps:
                yield under_way.popleft()
        while under_way:
            yield under_way.popleft()

    def _encode(
        self, chunk: Sequence[int], *, views: Sequence[View]
    ) -> Float[Tensor, "batch token channel"]:
        images = torch.stack([views[index].image for index in chunk])
        with torch.inference_mode(), self._autocast():
            images = self._sent(images, torch.float32)
            return self.model.encode(images).to(self.home, self.dtype)

    def _decode(
        self,
        chunk: Sequence[tuple[int, int]],
        *,
        tokens: Mapping[int, Tensor],
        grid_i: Grid,
        grid_j: Grid,
        skips: KeptSkips,
        trial: Trial,
    ) -> "_Batch":
        def together(views: Sequence[int]) -> Float[Tensor, "view token channel"]:
            return self._sent(torch.stack([tokens[view] for view in views]), self.dtype)

        def skip(side: int, views: Sequence[int]) -> Tensor:
            return self.model.skip(side, together(views), grid_j if side else grid_i)

        with torch.inference_mode(), self._autocast():
            known: Skips | None = None
            if isinstance(self.model.downstream_head1, DptHead):
                known = skips.of(chunk, SKIPS_PER_PAIR * self.batch_size, skip)
            tokens_i, tokens_j = (together(views) for views in zip(*chunk, strict=True))
            decode = functools.partial(
                self.model.decode, tokens_i, tokens_j, grid_i, grid_j, skips=known
            )
            output = trial.run(len(chunk), lambda compiled: decode(compiled=compiled))
        # outside of inference mode, or the aligner could not differentiate with these tensors
        maps = {
            _FIELDS.get(name, name): values
            for name, values in output._asdict().items()
            if values is not None
        }
        finite = torch.stack([values.isfinite().all() for values in maps.values()]).all()
        # from a CUDA device, such a copy goes into pinned memory while the device works on
        copied = {
            name: _to_half(values).to("cpu", non_blocking=self.overlaps)
            for name, values in maps.items()
        }
        return _Batch(
            pairs=chunk,
            maps=copied,
            finite=finite.to("cpu", non_blocking=self.overlaps),
            wait=_end_of_queue(self.device) if self.overlaps else _at_once,
        )

    def _sent(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the values on the device; a GPU does not have to be idle for that."""
        if self.overlaps and values.device.type != self.device.type:
            values = values.pin_memory()
        return values.to(self.device, dtype, non_blocking=self.overlaps)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        exact = self.dtype == torch.float32
        with contextlib.ExitStack() as stack:
            stack.enter_context(fp32_products(exact=exact))
            if not exact:
                # every weight is used once: keeping its 16-bit copy would only take memory
                stack.enter_context(
                    torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)
                )
            yield

    def _batches(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Yield (items, result) batch by batch; halve the batch whenever memory runs out."""
        start = 0
        while start < len(items):
            chunk = items[start : start + self.batch_size]
            result = unless_out_of_memory(functools.partial(compute, chunk))
            if result is None:
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if len(chunk) == 1:
                    raise MemoryShortageError(
                        f"one pair of views does not fit into the memory of {self.device}. "
                        + _ADVICE
                    )
                self.batch_size = len(chunk) // 2
                logger.warning("out of memory on %s: batch %d", self.device, self.batch_size)
                continue
            start += len(chunk)
            yield chunk, result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Batch:
    """Predictions of ordered pairs on their way to the host, under their names in PairPrediction.

    `wait` returns when they have arrived; before that, nothing but `pairs` may be read.
    """

    pairs: Sequence[tuple[int, int]]
    maps: Mapping[str, Tensor]
    finite: Tensor
    wait: Callable[[], None]


def _end_of_queue(device: torch.device) -> Callable[[], None]:
    """Return what waits until all that was asked of the CUDA device so far is done."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _at_once() -> None:
    """Wait for nothing."""


_ADVICE = "Use a smaller --size, smaller weights or another --device."


def _to_half(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    limit = torch.finfo(torch.float16).max
    clamped = torch.where(values.isfinite(), values.clamp(-limit, limit), values)
    return clamped.to(torch.float16)
