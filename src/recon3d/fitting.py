"""What of a run fits into memory: the size of the views, the batches, and the number of pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from recon3d.config import ModelConfig, RunConfig
from recon3d.memory import Plan, free_device_bytes, free_host_bytes, plan
from recon3d.pairs import pair_outline
from recon3d.photos import find_photos, load_views
from recon3d.progress import Track, silent
from recon3d.types import LeftOut, View


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """The views in their size, the unusable photos, and the settings that memory allows.

    `photos` are all that were given, in natural order, each with the index of its view or None.
    `most_pairs` is None where memory does not bound the pairs.
    """

    views: tuple[View, ...]
    unusable: tuple[LeftOut, ...]
    photos: dict[str, int | None]
    config: RunConfig
    most_pairs: int | None


def smaller_and_smaller(
    inputs: Sequence[str],
    config: RunConfig,
    network: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    track: Track = silent,
) -> Iterator[Fit]:
    """Yield the largest run that should fit; asked again, because it did not, a smaller one.

    `recon3d.memory.plan` says what is given up. Free memory is what it was before the first.

    Args:
        inputs: folders, files or patterns.
        config: all settings.
        network: sizes of the network, which is not yet on the device.
        device: where the network runs.
        dtype: what it computes in.
        track: told the stage "photos".

    Raises:
        UsageError, InputError: as `load_views` and `pair_graph`.
        ResourceError: nothing smaller is left.
    """
    size, patch = config.photos.size or network.image_size, network.patch_size
    photos = replace(config.photos, size=size, patch_size=patch)
    views, unusable = load_views(inputs, photos, track=track)
    shapes = [(view.image.shape[-2], view.image.shape[-1]) for view in views]
    numbered = _numbered(inputs, views)
    outline = pair_outline(config.pairs, len(views), photos=numbered)
    free = free_device_bytes(device)
    host_free = free_host_bytes() if device.type == "cuda" else None
    planned: Plan | None = None
    while True:
        planned = plan(
            network,
            shapes,
            outline,
            free,
            device.type,
            half=dtype != torch.float32,
            batch_size=config.predict.batch_size,
            max_map_bytes=config.align.max_map_bytes,
            samples_per_edge=config.align.samples_per_edge,
            host_free_bytes=host_free,
            after=planned,
        )
        fitting = max(patch, int(planned.share * size) // patch * patch)
        if planned.share < 1 and fitting != photos.size:
            photos = replace(photos, size=fitting)
            views, unusable = load_views(inputs, photos)
            numbered = _numbered(inputs, views)
        predict = replace(
            config.predict,
            batch_size=planned.batch_size,
            tokens_on_host=planned.tokens_on_host or config.predict.tokens_on_host,
        )
        yield Fit(
            views=views,
            unusable=unusable,
            photos=numbered,
            config=replace(config, photos=photos, predict=predict),
            most_pairs=None if planned.pairs == tuple(outline) else len(planned.pairs),
        )


def _numbered(inputs: Sequence[str], views: Sequence[View]) -> dict[str, int | None]:
    index = {view.name: n for n, view in enumerate(views)}
    return {name: index.get(name) for _, name in find_photos(inputs)}
