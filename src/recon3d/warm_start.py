"""Start a training from weights: of a two-view network, or of cross-view completion."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from recon3d import croco_file, weights
from recon3d.checkpoint import read_checkpoint
from recon3d.config import CrocoConfig, ModelConfig, PositionType
from recon3d.croco import shared_sizes, to_two_view
from recon3d.errors import WeightsError
from recon3d.grow import can_grow, grown
from recon3d.model import TwoViewModel

logger = logging.getLogger(__name__)

_HEADS = ("downstream_head1.", "downstream_head2.")


def sizes_of(name_or_path: str) -> ModelConfig:
    """Return the sizes of the two-view network that takes the weights of a file.

    Raises:
        WeightsError: no such file, or none of a known layout.
    """
    config = read_checkpoint(weights.locate(name_or_path)).config
    if isinstance(config, ModelConfig):
        return config
    return ModelConfig(**shared_sizes(config))


def start_from(model: TwoViewModel, name_or_path: str) -> None:
    """Give the model, on the CPU, the weights of a file; completion leaves the heads as they are.

    Every tensor of the file is used, but for those of descriptors that the model has not, and, but
    for those heads, every tensor of the model is given. A model that is larger by whole numbers
    computes at first what the network of the file does (`grow`); torch's seed decides how.

    Raises:
        WeightsError: no such file, or one of another size; names the first tensor that does not
            fit.
    """
    try:
        tensors = _two_view_tensors(name_or_path, model.config)
        if not model.config.has_descriptors:
            tensors = {n: t for n, t in tensors.items() if ".head_local_features." not in n}
        if not any(name.startswith(_HEADS) for name in tensors):
            tensors |= {n: t for n, t in model.state_dict().items() if n.startswith(_HEADS)}
        weights.load_tensors(model, tensors, name_or_path)
    except WeightsError as error:
        raise WeightsError(
            f"no start for the preset {model.config.name!r}: {error} Without --preset, training"
            " takes the size of the weights."
        ) from error


def _two_view_tensors(name_or_path: str, sizes: ModelConfig) -> dict[str, Tensor]:
    checkpoint = read_checkpoint(weights.locate(name_or_path))
    if isinstance(checkpoint.config, CrocoConfig):
        config, tensors = croco_file.checked_tensors(checkpoint)
        if config.position is PositionType.COSINE:
            logger.warning(
                "%s has cosine position embeddings (CroCo v1), which a two-view network has not: "
                "it learns positions anew",
                name_or_path,
            )
        return to_two_view(tensors, config)
    small = checkpoint.config
    is_other = replace(small, name=sizes.name, image_size=sizes.image_size) != sizes
    if is_other and can_grow(small, sizes):
        logger.info("%s grows to the size of %r", name_or_path, sizes.name)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        return grown(weights.build(checkpoint).state_dict(), small, sizes, generator)
    return dict(checkpoint.tensors)
