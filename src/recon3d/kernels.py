"""Where a compiled kernel has to end."""

import torch
from torch import Tensor


@torch.library.custom_op("recon3d::apart", mutates_args=())
def copied(value: Tensor) -> Tensor:
    """Return a copy, by an operation that the compiler knows nothing of."""
    return value.clone()


@copied.register_fake
def _(value: Tensor) -> Tensor:
    return torch.empty_like(value)


def apart(value: Tensor) -> Tensor:
    """Return the same values; in kernels for CUDA, what follows is not fused with what precedes.

    To be put around a reduction with much work before or after it: Triton gives a reduction a
    thread for every term, and what is fused with it is repeated in all of them and takes their
    registers. Elsewhere it does nothing.
    """
    return copied(value) if value.is_cuda and torch.compiler.is_compiling() else value
