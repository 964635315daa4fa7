"""Values that stand apart are the same values."""

import torch

from recon3d import kernels


def test_the_copy_is_what_compilers_are_told_of_it() -> None:
    torch.library.opcheck(kernels.copied, (torch.rand(3, 4, 5).transpose(0, 1),))


def test_nothing_is_copied_but_in_kernels_for_cuda() -> None:
    value = torch.rand(3)
    assert kernels.apart(value) is value
