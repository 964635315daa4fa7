"""Descriptors of image patches by a small network: alike where two patches show the same point.

Source: Tian et al., L2-Net, CVPR 2017 (fully convolutional, normalised patches and descriptors);
Mishchuk et al., HardNet, NeurIPS 2017. The packaged weights are trained by `patch_training`.
"""

from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)
from torch.nn.utils.fusion import fuse_conv_bn_eval

from recon3d.checkpoint import read_safetensors
from recon3d.config import Precision
from recon3d.device import resolve_precision
from recon3d.errors import WeightsError

SIDE = 32
"""Pixels of a patch."""
N_VALUES = 128
"""Of a descriptor."""
_REACH = 6.0  # sigmas of the feature from its centre to the edge of its patch; SIFT's
_CHANNELS = (32, 32, 64, 64, 64)
_STRIDES = (1, 1, 2, 1, 1)
_LEAST_CONTRAST = 0.25  # grey levels, added to the spread of a patch
_DROPOUT = 0.1
_PATCHES = 256  # described at a time: few enough for the cache
_MOST_LEVELS = 7  # of the pyramid


class PatchNet(nn.Module):
    """From grey patches, shape (patch, 32, 32) and 0 to 255, to unit vectors (patch, 128)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 4
        for channels, stride in zip(_CHANNELS, _STRIDES, strict=True):
            layers += [
                nn.Conv2d(before, channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(channels, affine=False),
                nn.ReLU(),
            ]
            before = channels
        layers += [
            nn.Dropout(_DROPOUT),
            nn.Conv2d(before, N_VALUES, SIDE // 4, bias=False),
            nn.BatchNorm2d(N_VALUES, affine=False),
        ]
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, 0.6)

    def forward(self, patches: UInt8[Tensor, "patch 32 32"]) -> Float[Tensor, "patch 128"]:
        """Return the descriptors; brightness and contrast of a patch make no difference."""
        grey = patches.float()
        spread = grey.std((1, 2), keepdim=True) + _LEAST_CONTRAST
        normal = (grey - grey.mean((1, 2), keepdim=True)) / spread
        four = F.pixel_unshuffle(normal[:, None], 2)
        out = self.layers(four.contiguous(memory_format=torch.channels_last))
        return F.normalize(out.flatten(1).float(), dim=1)


def read_patch_net(path: Path) -> PatchNet:
    """Return the network with the weights of a file, ready to be used.

    Raises:
        WeightsError: a file that is missing or damaged, or that holds something else.
    """
    try:
        tensors, _ = read_safetensors(path)
    except WeightsError as error:
        raise WeightsError(f"the descriptor cannot be read: {error}") from error
    net = PatchNet()
    wanted = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in wanted.items()}:
        raise WeightsError(f"{path} does not hold the weights of a descriptor.")
    net.load_state_dict(tensors, strict=False)
    return net.eval()


@lru_cache(maxsize=1)
def packaged_patch_net() -> PatchNet:
    """Return the descriptor of the package, its normalisations merged into its convolutions."""
    net = read_patch_net(Path(str(files("recon3d") / "data" / "descriptor.safetensors")))
    layers = list(net.layers)
    for n, (layer, after) in enumerate(pairwise(layers)):
        if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
            layers[n], layers[n + 1] = fuse_conv_bn_eval(layer, after), nn.Identity()
    net.layers = nn.Sequential(*layers)
    return net


@torch.no_grad()
def describe(
    patches: UInt8[Tensor, "patch 32 32"], net: PatchNet | None = None
) -> Float[Tensor, "patch 128"]:
    """Return the descriptors of patches, by the packaged network unless another is given.

    In bf16 where the processor has it, which costs nothing in accuracy.
    """
    if not len(patches):
        return torch.zeros(0, N_VALUES)
    net = net or packaged_patch_net()
    dtype = resolve_precision(Precision.AUTO, torch.device("cpu"))
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        return torch.cat([net(some) for some in patches.split(_PATCHES)])


def cut_patches(
    grey: UInt8[np.ndarray, "height width"],
    pixels: Float64[np.ndarray, "feature 2"],
    frames: Float64[np.ndarray, "feature 2 2"],
) -> UInt8[Tensor, "feature 32 32"]:
    """Return what features look like in a picture, turned and scaled as their frames say.

    Args:
        grey: the picture.
        pixels: of the features.
        frames: from the unit circle to the circle of one sigma around each.
    """
    import cv2

    found = torch.zeros(len(pixels), SIDE * SIDE, dtype=torch.uint8)
    along = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    unit = torch.cartesian_prod(along, along).flip(-1) * _REACH
    step = 2 * _REACH / SIDE * np.sqrt(np.abs(np.linalg.det(frames)))
    # of every feature the level of the pyramid that has at most one pixel to a pixel of the patch
    level = np.ceil(np.log2(np.maximum(step, 1e-6))).clip(0, _MOST_LEVELS - 1)
    picture = grey
    for n in range(_MOST_LEVELS):
        if n:
            size = [(length + 1) // 2 for length in picture.shape[::-1]]
            smooth = cv2.GaussianBlur(picture, (5, 5), 0)
            picture = cv2.resize(smooth, size, interpolation=cv2.INTER_AREA)
        own = np.flatnonzero(level == n)
        if not len(own):
            continue
        places = torch.from_numpy(frames[own]).float() @ unit.T
        places = places.mT + torch.from_numpy(pixels[own]).float()[:, None]
        across = places * (2 / torch.tensor(grey.shape[::-1])) - 1
        values = F.grid_sample(
            torch.from_numpy(picture).float()[None, None],
            across[None],
            padding_mode="border",
            align_corners=False,
        )
        found[own] = values[0, 0].round().clamp(0, 255).byte()
    return found.view(-1, SIDE, SIDE)
