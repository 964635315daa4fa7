"""How alike the photographs look, from what the encoder says of each."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)


def pooled_similarity(
    tokens: Sequence[Float[Tensor, "_ channel"]],
) -> Float[np.ndarray, "view view"]:
    """Return the cosine similarity of the mean tokens of every two views, from -1 to 1.

    The mean over the views is taken off first: it is what all photographs have in common and would
    make any two look alike. A view that equals this mean is like no other (0); the diagonal is 1.
    The result does not depend on the order of the views but for rounding.

    Args:
        tokens: of each view, any number, on any device and of any type; finite.

    Raises:
        ValueError: when there is no view, or a value that is not finite.
    """
    if not tokens:
        raise ValueError("no views")
    # float64 on the CPU: neighbours must not change with the device
    pooled = torch.stack([view.float().mean(dim=0).cpu() for view in tokens]).double()
    if not bool(pooled.isfinite().all()):
        raise ValueError("tokens that are not finite")
    pooled = F.normalize(pooled, dim=-1)
    centred = pooled - pooled.mean(dim=0)
    # what is left of equal views is rounding, not a direction
    centred = torch.where(centred.norm(dim=-1, keepdim=True) > 1e-6, centred, 0.0)
    direction = F.normalize(centred, dim=-1)
    cosine = direction @ direction.mT
    cosine = ((cosine + cosine.mT) / 2).clamp(-1, 1)  # the product is not symmetric to the last bit
    cosine.fill_diagonal_(1.0)
    result: Float[np.ndarray, "view view"] = cosine.numpy()
    return result
