"""Training of the descriptor of patches: each nearer to its partner than to any other patch.

Source: Mishchuk et al., Working hard to know your neighbor's margins (HardNet), NeurIPS 2017.
"""

import logging
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from safetensors.torch import save
from torch import Tensor

from recon3d.batches import Source, image_shape
from recon3d.config import Precision
from recon3d.device import resolve_precision
from recon3d.errors import UsageError
from recon3d.files import atomic_write
from recon3d.patch_net import PatchNet, read_patch_net
from recon3d.patch_pairs import PatchPairs, pairs_of_photos, pairs_of_scenes
from recon3d.progress import Track, silent
from recon3d.synth.textures import photograph_files
from recon3d.train_config import DescriptorConfig, LoopConfig
from recon3d.training import learning_rate

logger = logging.getLogger(__name__)

_MARGIN = 1.0  # by which the nearest wrong patch should be further away; HardNet's
_SAME_POINT = 0.08  # patches of a place that are closer than this may show the same
_PLACES, _PAIRS_OF_PLACE = 8, 64  # of a step: patches of one place are hard to tell apart ...
_OTHERS, _PAIRS_OF_OTHER = 16, 16  # ... and those of many are not all alike
_FEWEST_PAIRS = 32  # of a place worth keeping
_HELD_OUT, _HELD_OUT_PAIRS = 8, 400  # places, and pairs of each, that are never trained on
_MAKING = 0.4  # share of the time that goes to making pairs ...
_MADE_BY = 0.7  # ... until this share of the budget
_LONG_EDGES = (384, 448)
_ASPECTS = (0.75, 0.75, 1.0)
_EASE = 0.8
_PHOTO_SHARE = 0.25  # of the places are mosaics of photos, where there are any
_WARMUP_STEPS, _DECAY_SHARE = 100, 0.5
_WEIGHT_DECAY = 1e-4
_LOG_STEPS = 200


class Places:
    """A growing supply of pairs of patches, place by place: rendered scenes and mosaics."""

    def __init__(self, config: DescriptorConfig) -> None:
        folder = config.textures
        self.photos = [] if folder is None else photograph_files(Path(folder))
        loop = LoopConfig(
            scenes_per_step=2, views_per_scene=4, textures=folder, compile=config.compile
        )
        self.source = Source(loop, torch.device("cpu"), config.seed)
        self.chance = np.random.default_rng(config.seed)
        self.held_out: list[PatchPairs] = []
        self.known: deque[PatchPairs] = deque(maxlen=config.max_places)

    def make_more(self) -> None:
        """Add the places of one batch of scenes, or one mosaic."""
        if self.photos and self.chance.random() < 2 * _PHOTO_SHARE / (1 + _PHOTO_SHARE):
            made = [pairs_of_photos(self.photos, self.chance)]
        else:
            aspect = float(self.chance.choice(_ASPECTS))
            shape = image_shape(int(self.chance.choice(_LONG_EDGES)), aspect, False, 32)
            made = pairs_of_scenes(self.source.batch(*shape, _EASE), self.chance)
        made = [place for place in made if len(place) >= _FEWEST_PAIRS]
        kept_aside = max(0, _HELD_OUT - len(self.held_out))
        self.held_out += [place[:_HELD_OUT_PAIRS] for place in made[:kept_aside]]
        self.known.extend(made[kept_aside:])

    def draw(self) -> tuple[Tensor, Tensor, Bool[Tensor, "pair pair"]]:
        """Return patches, their partners, and which others surely show something else.

        All are turned and mirrored alike.
        """
        wanted = [_PAIRS_OF_PLACE] * _PLACES + [_PAIRS_OF_OTHER] * _OTHERS
        chosen = self.chance.integers(len(self.known), size=len(wanted))
        some = [
            self.known[n][self.chance.permutation(len(self.known[n]))[:most]]
            for n, most in zip(chosen, wanted, strict=True)
        ]
        first, second, points = (
            torch.cat([getattr(pairs, name) for pairs in some])
            for name in ("first", "second", "points")
        )
        place = torch.cat(
            [torch.full((len(p),), int(n)) for n, p in zip(chosen, some, strict=True)]
        )
        turns, mirror = int(self.chance.integers(4)), self.chance.random() < 0.5
        views = [torch.rot90(patches, turns, (1, 2)) for patches in (first, second)]
        first, second = (patches.flip(2) if mirror else patches for patches in views)
        return first, second, others(place, points)


def others(
    place: Int64[Tensor, " pair"], points: Float[Tensor, "pair 3"]
) -> Bool[Tensor, "pair pair"]:
    """Say which pairs show something else: another place, or a point far enough away."""
    apart = torch.cdist(points, points) > _SAME_POINT
    return apart | (place[:, None] != place)


def hardest_loss(
    first: Float[Tensor, "pair value"],
    second: Float[Tensor, "pair value"],
    other: Bool[Tensor, "pair pair"],
) -> Float[Tensor, ""]:
    """Return the mean of margin + distance to the partner - distance to the nearest `other`.

    Nearest in row or column, whichever is nearer; below 0 counts as 0. Source: HardNet, eq. 1-3.
    """
    distance = _distances(first, second)
    wrong = torch.where(other, distance, torch.inf)
    nearest = torch.minimum(wrong.amin(0), wrong.amin(1)).clamp_max(2.0)
    return (_MARGIN + distance.diagonal() - nearest).clamp_min(0).mean()


@torch.no_grad()
def right_share(net: PatchNet, held_out: list[PatchPairs]) -> float:
    """Return in what share of pairs the partner is the nearest of all patches of all places."""
    net.eval()
    first = torch.cat([net(place.first) for place in held_out])
    second = torch.cat([net(place.second) for place in held_out])
    net.train()
    points = torch.cat([place.points for place in held_out])
    numbers = torch.cat([torch.full((len(p),), n) for n, p in enumerate(held_out)])
    distance = _distances(first, second)
    wrong = torch.where(others(numbers, points), distance, torch.inf)
    return float((distance.diagonal() < wrong.amin(1)).float().mean())


def train_descriptor(path: Path, config: DescriptorConfig, *, track: Track = silent) -> None:
    """Train a descriptor within a budget of time and write its weights, in half precision.

    They are written every few minutes as well, and when interrupted.

    Raises:
        UsageError: a folder of textures that is none.
        WeightsError: `config.init` is not a descriptor.
        ResourceError: when the file cannot be written.
        KeyboardInterrupt: after Ctrl-C, once the weights are written.
    """
    if config.textures is not None and not Path(config.textures).is_dir():
        raise UsageError(f"the folder of textures {config.textures} does not exist.")
    torch.manual_seed(config.seed)
    net = PatchNet() if config.init is None else read_patch_net(Path(config.init)).train()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY
    )
    dtype = resolve_precision(Precision.AUTO, torch.device("cpu"))
    places = Places(config)
    schedule = LoopConfig(
        learning_rate=config.learning_rate, warmup_steps=_WARMUP_STEPS, decay_share=_DECAY_SHARE
    )
    began, making, step, total = time.monotonic(), 0.0, 0, 0.0
    budget = 60 * config.minutes
    try:
        while (spent := time.monotonic() - began) < budget:
            if not places.known or (making < _MAKING * spent and spent < _MADE_BY * budget):
                start = time.monotonic()
                places.make_more()
                making += time.monotonic() - start
                continue
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, step, spent / budget)
            first, second, other = places.draw()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                described = net(torch.cat((first, second)))
            loss = hardest_loss(described[: len(first)], described[len(first) :], other)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step, total = step + 1, total + loss.item()
            if step % _LOG_STEPS == 0:
                share = right_share(net, places.held_out)
                logger.info(
                    "step %d: loss %.3f, right %.3f, %d pairs of %d places",
                    step,
                    total / _LOG_STEPS,
                    share,
                    sum(len(place) for place in places.known),
                    len(places.known),
                )
                total = 0.0
                _write(net, path)
            track("training", round(spent), round(budget))
    finally:
        _write(net, path)
    right = f"right {right_share(net, places.held_out):.3f}" if places.held_out else "no pairs yet"
    logger.info("training ended after %d steps: %s; wrote %s", step, right, path)


def _distances(
    first: Float[Tensor, "pair value"], second: Float[Tensor, "pair value"]
) -> Float[Tensor, "pair pair"]:
    return (2 - 2 * first @ second.T).clamp_min(1e-6).sqrt()


def _write(net: PatchNet, path: Path) -> None:
    tensors = {
        name: tensor.half().contiguous()
        for name, tensor in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with atomic_write(path) as file:
        file.write(save(tensors))
