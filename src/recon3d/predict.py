"""Network x pairs -> PairPrediction: every view encoded once, pairs batched, results streamed."""

import contextlib
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.config import HeadType, ModelConfig, Precision, PredictConfig
from recon3d.errors import ResourceError, UsageError
from recon3d.model import TwoViewModel
from recon3d.progress import Track, silent
from recon3d.types import PairPrediction, View

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_CPU_BATCH = 4
_MAX_BATCH = 32
# rough upper bounds of the working memory of one pair, in bytes per pixel of a view
_BYTES_PER_PIXEL = {HeadType.LINEAR: 1024, HeadType.DPT: 4096, HeadType.CATMLP_DPT: 4608}
# where PairPrediction names a map of the network differently
_FIELDS = {"pointmap_i": "pointmap_i_in_i", "pointmap_j": "pointmap_j_in_i"}


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: "auto" (best at hand), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        UsageError: an unknown name, or a device that this machine or this torch cannot use.
    """
    if name == "auto":
        best = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else best
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"the device {name!r} is unknown. Use auto, cpu, cuda, cuda:1 or mps.")
    try:
        # an attempt also sees missing drivers, wrong indices and GPUs this torch has no code for
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise UsageError(
            f"the device {name!r} cannot be used: {reason}. Use --device auto or cpu."
        ) from error
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type the network computes in on `device`.

    AUTO is bf16 on CUDA devices and processors with bf16 arithmetic, fp16 on mps, else fp32.

    Raises:
        UsageError: fp16 on the CPU, which has no fast fp16 arithmetic.
    """
    if precision is Precision.FP16 and device.type == "cpu":
        raise UsageError("--precision fp16 does not work on the CPU. Use auto, bf16 or fp32.")
    named = {
        Precision.FP32: torch.float32,
        Precision.BF16: torch.bfloat16,
        Precision.FP16: torch.float16,
    }
    if precision is not Precision.AUTO:
        return named[precision]
    if device.type == "mps":
        return torch.float16
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = _cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


def predict_pairs(
    model: TwoViewModel,
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    config: PredictConfig,
    *,
    track: Track = silent,
) -> Iterator[PairPrediction]:
    """Predict both orders of every unordered pair, one PairPrediction at a time.

    Pairs of equal shapes are run together. Results come by shape bucket, in the order in which
    the buckets first occur; within a bucket in the order of `pairs`, (i, j) before (j, i).
    Between two results only one batch is held, in half precision.

    Args:
        model: moved to the chosen device and set to evaluation.
        views: images whose sides are multiples of the patch size.
        pairs: unordered, each once, indices into `views`.
        config: device, precision and batch size.
        track: told the stages "encode" (views) and "pairs" (ordered pairs).

    Returns:
        Predictions as fp16 tensors on the CPU, finite values cut off at the range of fp16.
        Non-finite values are kept for the aligner to mask, and warned of once.

    Raises:
        ValueError: a pair that is no pair of two views, or given twice.
        UsageError: a device, precision or batch size that cannot be used.
        ResourceError: a single pair does not fit into memory.
    """
    seen = set()
    for i, j in pairs:
        if i == j or not (0 <= i < len(views) and 0 <= j < len(views)):
            raise ValueError(f"({i}, {j}) is no pair of {len(views)} views")
        if frozenset((i, j)) in seen:
            raise ValueError(f"the pair ({i}, {j}) is given twice")
        seen.add(frozenset((i, j)))
    if config.batch_size is not None and config.batch_size < 1:
        raise UsageError(f"the batch size {config.batch_size} must be at least 1.")
    device = resolve_device(config.device)
    dtype = resolve_precision(config.precision, device)
    return _Predictor(model, views, device, dtype, config.batch_size).predict(pairs, track)


class _Predictor:
    """One model on one device with a batch size that shrinks when memory runs out."""

    def __init__(
        self,
        model: TwoViewModel,
        views: Sequence[View],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int | None,
    ) -> None:
        self.views, self.device, self.dtype = views, device, dtype
        self.patch_size = model.config.patch_size
        moved = _unless_out_of_memory(lambda: model.to(device).eval())
        if moved is None:
            raise ResourceError(f"the network does not fit into the memory of {device}. {_ADVICE}")
        self.model = moved
        pixels = max((view.image.shape[-2] * view.image.shape[-1] for view in views), default=1)
        self.batch_size = batch_size or _choose_batch_size(device, model.config, pixels)

    def predict(self, pairs: Sequence[tuple[int, int]], track: Track) -> Iterator[PairPrediction]:
        started = time.perf_counter()
        logger.debug("predicting on %s in %s, batch %d", self.device, self.dtype, self.batch_size)
        tokens = self._encode_all(sorted({index for pair in pairs for index in pair}), track)
        buckets: dict[tuple[tuple[int, int], tuple[int, int]], list[tuple[int, int]]]
        buckets = defaultdict(list)
        for i, j in pairs:
            for first, second in ((i, j), (j, i)):
                buckets[self._grid(first), self._grid(second)].append((first, second))
        done, warned = 0, False
        for (grid_i, grid_j), bucket in buckets.items():
            decode = functools.partial(self._decode, tokens=tokens, grid_i=grid_i, grid_j=grid_j)
            for chunk, maps in self._batches(bucket, decode):
                if not warned and not all(bool(v.isfinite().all()) for v in maps.values()):
                    logger.warning("the network gave values that are not finite; they are ignored")
                    warned = True
                for k, (i, j) in enumerate(chunk):
                    yield PairPrediction(i=i, j=j, **{name: maps[name][k] for name in maps})
                done += len(chunk)
                track("pairs", done, 2 * len(pairs))
        logger.info(
            "predicted %d pairs of %d views in both orders on %s (%s) in %.1f s",
            len(pairs),
            len(tokens),
            self.device,
            str(self.dtype).removeprefix("torch."),
            time.perf_counter() - started,
        )

    def _grid(self, index: int) -> tuple[int, int]:
        height, width = self.views[index].image.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"{height}x{width} is no multiple of the patch {self.patch_size}")
        return height // self.patch_size, width // self.patch_size

    def _encode_all(self, indices: Sequence[int], track: Track) -> dict[int, Tensor]:
        """Return the tokens of every view, on the device, in the type of computation."""
        buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in indices:
            buckets[self._grid(index)].append(index)
        tokens: dict[int, Tensor] = {}
        for bucket in buckets.values():
            for chunk, tokens_BND in self._batches(bucket, self._encode):
                tokens.update(zip(chunk, tokens_BND, strict=True))
                track("encode", len(tokens), len(indices))
        return tokens

    def _encode(self, chunk: Sequence[int]) -> Float[Tensor, "batch token channel"]:
        images = torch.stack([self.views[index].image for index in chunk])
        with torch.inference_mode(), self._autocast():
            tokens_BND = self.model.encode(images.to(self.device, torch.float32))
            return tokens_BND.to(self.dtype)

    def _decode(
        self,
        chunk: Sequence[tuple[int, int]],
        *,
        tokens: dict[int, Tensor],
        grid_i: tuple[int, int],
        grid_j: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Return the maps of a batch under their names in PairPrediction, fp16 on the CPU."""
        with torch.inference_mode(), self._autocast():
            tokens_i = torch.stack([tokens[i] for i, _ in chunk])
            tokens_j = torch.stack([tokens[j] for _, j in chunk])
            output = self.model.decode(tokens_i, tokens_j, grid_i, grid_j)
        # outside of inference mode, or the aligner could not differentiate with these tensors
        return {
            _FIELDS.get(name, name): _to_half(values)
            for name, values in output._asdict().items()
            if values is not None
        }

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _batches(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Yield (items, result) batch by batch; halve the batch whenever memory runs out."""
        start = 0
        while start < len(items):
            chunk = items[start : start + self.batch_size]
            result = _unless_out_of_memory(functools.partial(compute, chunk))
            if result is None:
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if len(chunk) == 1:
                    raise ResourceError(
                        f"one pair of views does not fit into the memory of {self.device}. "
                        + _ADVICE
                    )
                self.batch_size = len(chunk) // 2
                logger.warning("out of memory on %s: batch %d", self.device, self.batch_size)
                continue
            start += len(chunk)
            yield chunk, result


_ADVICE = "Use a smaller --size, smaller weights or another --device."


def _unless_out_of_memory(compute: Callable[[], Result]) -> Result | None:
    """Return what `compute` returns, or None when memory ran out.

    The error, and with it the frames that hold the memory, is gone when this returns.
    """
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return None
        # the CPU and mps allocators raise a bare RuntimeError
        text = str(error).lower()
        if "out of memory" in text or "can't allocate memory" in text or "not enough mem" in text:
            return None
        raise


def _to_half(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    limit = torch.finfo(torch.float16).max
    clamped = torch.where(values.isfinite(), values.clamp(-limit, limit), values)
    return clamped.to(torch.float16).cpu()


def _cpu_has_bf16() -> bool:
    """Say whether this processor has AMX or AVX512-bf16, as far as this torch can tell."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def _choose_batch_size(device: torch.device, config: ModelConfig, pixels: int) -> int:
    """Return a small batch, or on CUDA one that takes at most half of the free memory."""
    if device.type != "cuda":
        return _CPU_BATCH
    free_bytes, _ = torch.cuda.mem_get_info(device)
    fitting = free_bytes // 2 // (_BYTES_PER_PIXEL[config.head] * pixels)
    return max(1, min(_MAX_BATCH, int(fitting)))
