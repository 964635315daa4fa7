"""How much memory a run will take, and what to give up when there is less.

The figures are upper estimates from the sizes of the network and of the views, known before
anything is computed. Bytes throughout; views are (height, width).
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from recon3d.config import AlignConfig, HeadType, ModelConfig
from recon3d.control_groups import memory_left_bytes
from recon3d.errors import ResourceError

logger = logging.getLogger(__name__)

Pair = tuple[int, int]
Shape = tuple[int, int]

MAX_BATCH = 256
CPU_BATCH = 4
"""On a processor larger batches gain nothing."""
TOKENS_PER_BATCH = 49152
"""Enough of them to fill a large GPU; more only take memory."""
SKIPS_PER_PAIR = 4
"""Of what a head with DPT makes of one view alone, kept at most for each pair of a batch."""
LEAST_LONG_EDGE_PX = 128
_USABLE_SHARE = 0.9  # of what is free: allocators waste some
_SMALLER = 0.75
_SPARSER = 0.5
_MAPS_VALUES = 4  # x, y, z and confidence of a pixel
_FIXED_BYTES = 128_000_000  # copies of weights and buffers of the libraries; measured, ViT-L
_HALF_BYTES = 2  # of a value on its way out, and of a token in 16-bit arithmetic
_FLOAT_BYTES = 4
_DOUBLE_BYTES = 8
_COPIES = 8  # of the sampled points, moved and compared
_LEAST_MAPS = 4  # of a view, to fuse depth from
_SCENE_VALUES = 3  # depth, that depth in the unit of the scene, and confidence of a pixel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run may use, and the memory that it takes at most, in bytes.

    `share` is the factor on the long edge of the views, 1.0 where they stay as they are. `steps`
    says in words what was given up, in order. The parts are `weights`, `tokens`, `maps` (whole
    predictions, kept to fuse depth from), `working` (one batch) and `alignment` (solving for the
    cameras, and the depth maps that come of it). The last batch is gone when the alignment begins,
    so that the larger of the two counts. `device_bytes` and `host_bytes` are what the parts come to
    in the two places. On a processor everything is in `host_bytes`; with a GPU the alignment is
    counted for the host, because it goes to the GPU only if that has room to spare.
    """

    batch_size: int
    tokens_on_host: bool
    pairs: tuple[Pair, ...]
    share: float
    weights: int
    tokens: int
    working: int
    maps: int
    alignment: int
    device_bytes: int
    host_bytes: int
    steps: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Device and host together."""
        return self.device_bytes + self.host_bytes


def n_parameters(config: ModelConfig) -> int:
    """Return the number of parameters without most biases: up to 2 % too few."""
    e, d, patch = config.enc_dim, config.dec_dim, config.patch_size
    encoder = 3 * patch**2 * e + config.enc_depth * (4 + 2 * config.mlp_ratio) * e**2
    decoders = e * d + 2 * config.dec_depth * (8 + 2 * config.mlp_ratio) * d**2
    if config.head is HeadType.LINEAR:
        return encoder + decoders + 2 * 4 * patch**2 * d
    a, b, c, f = config.dpt_layer_dims
    dim, last = config.dpt_feature_dim, config.dpt_last_dim
    head = e * a + 16 * a**2 + d * b + 4 * b**2 + d * c + d * f + 9 * f**2
    head += 9 * dim * (a + b + c + f) + 4 * 37 * dim**2
    head += 9 * dim // 2 * (dim + last) + 4 * last
    if config.head is HeadType.CATMLP_DPT:
        head += (e + d) * 4 * (e + d) + 4 * (e + d) * (config.descriptor_dim + 1) * patch**2
    return encoder + decoders + 2 * head


def working_bytes(
    config: ModelConfig, shape: Shape, batch_size: int, *, half: bool, device: str = "cuda"
) -> int:
    """Return the memory of one batch of pairs of views of this shape, decoded.

    Encoding takes less. `half` is 16-bit arithmetic, whose copies of the weights live one at a
    time. On a processor the finest level of a head does one image at a time.
    """
    pixels = shape[0] * shape[1]
    size = _HALF_BYTES if half else _FLOAT_BYTES
    n_tokens = pixels // config.patch_size**2
    # what the heads read, and what the next layer does: the decoders sum up in fp32 in any case
    n_read = 1 if config.head is HeadType.LINEAR else 3
    features = config.enc_dim * size + (n_read + 1) * config.dec_dim * _FLOAT_BYTES
    kept = 2 * features * n_tokens
    block = (4 + 2 * config.mlp_ratio) * max(config.enc_dim, config.dec_dim) * n_tokens * size
    # raw values, directions, distances, points and their halves, of both heads
    output = 40 * _FLOAT_BYTES * pixels
    n_finest = 1 if device == "cpu" else batch_size
    if config.head is HeadType.LINEAR:
        head = batch_size * 2 * 4 * pixels * _FLOAT_BYTES
    else:
        dim, last = config.dpt_feature_dim, config.dpt_last_dim
        # what goes into and comes out of the last large convolution: in 16 bits with the latter in
        # fp32 as well, in fp32 with both in the library's own layout as well; and the pyramid,
        # which has a quarter of the pixels and whose levels are partly in both types
        copies = _FLOAT_BYTES * last if half else size * (dim // 2 + last)
        head = n_finest * pixels * (size * (dim // 2 + last) + copies)
        head += batch_size * pixels // 4 * dim * (_FLOAT_BYTES + _HALF_BYTES)
        # patches of which each has 4 x 4 values a channel
        kept += SKIPS_PER_PAIR * 16 * n_tokens * dim * _FLOAT_BYTES
    if config.has_descriptors:
        output += 4 * (config.descriptor_dim + 1) * pixels * _FLOAT_BYTES
    return _FIXED_BYTES + batch_size * (kept + output) + max(batch_size * block, head)


def sample_bytes(n_predictions: int, n_samples: int) -> int:
    """Return the memory of what the alignment takes from so many ordered pairs as they come."""
    return n_predictions * n_samples * 2 * _MAPS_VALUES * _DOUBLE_BYTES


def alignment_bytes(n_predictions: int, n_samples: int) -> int:
    """Return the memory in which the alignment solves for the cameras of so many ordered pairs."""
    return _COPIES * sample_bytes(n_predictions, n_samples)


def most_maps(map_bytes: int, n_views: int, limit_bytes: int) -> int:
    """Return how many maps of a view are kept at most: its share of the limit, but a few always."""
    return max(limit_bytes // (map_bytes * n_views), _LEAST_MAPS)


def choose_batch_size(
    config: ModelConfig, shape: Shape, free: int | None, device: str, *, half: bool
) -> int:
    """Return a batch that keeps the device busy and takes at most half of the free bytes."""
    if device != "cuda":
        return CPU_BATCH
    n_tokens = 2 * max(1, shape[0] * shape[1] // config.patch_size**2)
    wanted = min(MAX_BATCH, TOKENS_PER_BATCH // n_tokens)
    if free is not None:
        wanted = min(wanted, free // 2 // working_bytes(config, shape, 1, half=half))
    return max(1, wanted)


def plan(
    config: ModelConfig,
    shapes: Sequence[Shape],
    pairs: Sequence[Pair],
    free_bytes: int | None,
    device: str,
    *,
    half: bool,
    batch_size: int | None = None,
    max_map_bytes: int = AlignConfig.max_map_bytes,
    samples_per_edge: int = AlignConfig.samples_per_edge,
    host_free_bytes: int | None = None,
    after: Plan | None = None,
) -> Plan:
    """Return the largest run that fits, giving up speed first and quality last.

    In this order: half the batch down to one pair; tokens in host memory; half the pairs down to
    a tree that joins what was joined; views of three quarters the size. A step that would not help
    where memory is missing is left out. Every step is logged.

    Args:
        config: sizes of the network.
        shapes: of the views, (height, width) in pixels.
        pairs: unordered, the more important ones first.
        free_bytes: of the device, before the weights are moved there; None does not bound it. On a
            processor the weights lie in memory already and count in no sum.
        device: type of the device; all but "cuda" share the memory of the host.
        half: whether the arithmetic is 16-bit.
        batch_size: where the user gave one, the first that is tried.
        max_map_bytes: what the alignment keeps of the predictions at most.
        samples_per_edge: pixels of each map that the alignment solves with.
        host_free_bytes: free memory of the host of a CUDA device; None does not bound it.
        after: a plan of these arguments whose run was out of memory, even with a batch of one;
            gives up at least one thing more.

    Raises:
        ResourceError: when even the smallest run does not fit.
    """
    separate = device == "cuda"
    usable, host_usable = (
        None if free is None else int(_USABLE_SHARE * free)
        for free in (free_bytes, host_free_bytes)
    )
    largest = max(shapes, key=lambda shape: shape[0] * shape[1], default=(0, 0))

    def priced(draft: Plan) -> Plan:
        return _priced(draft, config, shapes, device, half, max_map_bytes, samples_per_edge)

    def too_full(draft: Plan) -> tuple[bool, bool]:
        """Say whether the device and the host are."""
        if not separate:
            return _exceeds(draft.host_bytes, usable), False
        return _exceeds(draft.device_bytes, usable), _exceeds(draft.host_bytes, host_usable)

    if after is None:
        first = batch_size or choose_batch_size(config, largest, usable, device, half=half)
        current = priced(_unpriced(first, pairs))
        full, line = too_full(current), "memory: %s"
    else:
        current = priced(replace(after, batch_size=1))
        full, line = (True, False), "out of memory, all views once more: %s"
    while any(full):
        step = _next_step(current, largest, separate, *full)
        if step is None:
            needs = f"needs about {_mb(current.peak_bytes)} and {_mb(free_bytes)} are free"
            raise ResourceError(
                f"the run {needs if after is None else 'is out of memory'}, whatever is given up."
                " Use smaller weights, fewer photos or a smaller --size."
            )
        smaller, words = step
        current = replace(priced(smaller), steps=(*current.steps, words))
        logger.warning(line, words)
        full = too_full(current)
    logger.info(
        "memory: about %s (weights %s, tokens %s, predictions %s; first a batch of %d with %s, then"
        " the alignment with %s), %s free",
        _mb(current.peak_bytes + (0 if separate else current.weights)),
        _mb(current.weights),
        _mb(current.tokens),
        _mb(current.maps),
        current.batch_size,
        _mb(current.working),
        _mb(current.alignment),
        _mb(free_bytes),
    )
    return current


def thinned(pairs: Sequence[Pair], n_keep: int) -> tuple[Pair, ...]:
    """Return about `n_keep` of the pairs that still join all that was joined, in their order.

    First a spanning forest, then pairs of the views that have fewest, earlier pairs first.
    """
    if not pairs:
        return ()
    i, j = np.asarray(pairs).T
    size = int(max(i.max(), j.max())) + 1
    # the earliest pairs that join: each weighs its place, from 1 because 0 is no pair
    forest = minimum_spanning_tree(coo_array((np.arange(1, len(pairs) + 1), (i, j)), (size, size)))
    kept = {pairs[int(place) - 1] for place in forest.data}
    degree = Counter(view for pair in kept for view in pair)
    # a fair share each, rounded down; what then is missing comes in rounds of one more
    level = max(1, 2 * n_keep // len(degree))
    while len(kept) < min(n_keep, len(pairs)):
        for pair in pairs:
            if len(kept) >= n_keep:
                break
            if pair not in kept and max(degree[view] for view in pair) <= level:
                kept.add(pair)
                degree.update(pair)
        level += 1
    return tuple(pair for pair in pairs if pair in kept)


def free_host_bytes() -> int | None:
    """Return the memory that a program could take without swapping, within its container.

    None where the system does not say.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):  # not Linux: half of all there is
        try:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, ValueError, OSError):  # not on Windows, not on every system
            logger.debug("the system does not say how much memory is free: nothing bounds the run")
            return None
    left = memory_left_bytes()
    return free if left is None else min(free, left)


def free_device_bytes(device: torch.device) -> int | None:
    """Return the free memory of the device; of the host where the two are one. None: unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return free_host_bytes()


def _unpriced(batch_size: int, pairs: Sequence[Pair]) -> Plan:
    """Return the run that gives up nothing."""
    return Plan(
        batch_size=batch_size,
        tokens_on_host=False,
        pairs=tuple(pairs),
        share=1.0,
        weights=0,
        tokens=0,
        working=0,
        maps=0,
        alignment=0,
        device_bytes=0,
        host_bytes=0,
    )


def _priced(
    draft: Plan,
    config: ModelConfig,
    shapes: Sequence[Shape],
    device: str,
    half: bool,
    max_map_bytes: int,
    samples_per_edge: int,
) -> Plan:
    separate = device == "cuda"
    scaled = [tuple(max(1, int(draft.share * side)) for side in shape) for shape in shapes]
    pixels = [height * width for height, width in scaled]
    largest = scaled[max(range(len(pixels)), key=pixels.__getitem__)] if pixels else (0, 0)
    degree = Counter(view for pair in draft.pairs for view in pair)  # of the views in use
    in_use = sum(pixels[view] for view in degree)
    tokens = in_use // config.patch_size**2 * config.enc_dim
    tokens *= _HALF_BYTES if half else _FLOAT_BYTES
    maps = 0
    for view, n_pairs in degree.items():
        map_bytes = pixels[view] * _MAPS_VALUES * _HALF_BYTES
        maps += map_bytes * min(2 * n_pairs, most_maps(map_bytes, len(shapes), max_map_bytes))
    samples = sample_bytes(2 * len(draft.pairs), samples_per_edge)
    alignment = alignment_bytes(2 * len(draft.pairs), samples_per_edge)
    alignment += in_use * _SCENE_VALUES * _FLOAT_BYTES
    working = working_bytes(
        config, (largest[0], largest[1]), draft.batch_size, half=half, device=device
    )
    weights = n_parameters(config) * _FLOAT_BYTES
    if separate:
        host_bytes = maps + alignment + (tokens if draft.tokens_on_host else 0)
        device_bytes = weights + working + (0 if draft.tokens_on_host else tokens)
    else:
        host_bytes = maps + tokens + max(working + samples, alignment)
        device_bytes = 0
    return replace(
        draft,
        weights=weights,
        tokens=tokens,
        working=working,
        maps=maps,
        alignment=alignment,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
    )


def _next_step(
    current: Plan, largest: Shape, separate: bool, device_full: bool, host_full: bool
) -> tuple[Plan, str] | None:
    """Return the next smaller run, not yet priced, and what was given up; None at the end."""
    if device_full and current.batch_size > 1:
        batch_size = current.batch_size // 2
        return replace(current, batch_size=batch_size), f"batches of {batch_size}"
    if device_full and separate and not current.tokens_on_host:
        return replace(current, tokens_on_host=True), "tokens wait in the memory of the host"
    if host_full or not separate:  # where the predictions lie
        fewer = thinned(current.pairs, int(_SPARSER * len(current.pairs)))
        if len(fewer) < len(current.pairs):
            words = f"{len(fewer)} of {len(current.pairs)} pairs"
            return replace(current, pairs=fewer), words
    share = _SMALLER * current.share
    long_edge = int(share * max(largest))
    if long_edge < LEAST_LONG_EDGE_PX:
        return None
    return replace(current, share=share), f"views of {long_edge} pixels"


def _exceeds(n_bytes: int, limit: int | None) -> bool:
    return limit is not None and n_bytes > limit


def _mb(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else f"{n_bytes / 1e6:.0f} MB"
