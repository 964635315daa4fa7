"""Muon, for all matrices of a shape at once: a step is some hundred calls, not some thousand.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; steps as long
as AdamW's at the same rate: Liu et al. 2025, "Muon is scalable for LLM training", eq. 4.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon3d.device import cpu_has_bf16

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Steps matrices along their orthogonalised Nesterov momentum; their weights decay.

    What it remembers of a matrix is called as in `torch.optim.Muon`, which takes the same steps,
    up to rounding, matrix after matrix.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("a step has no closure")
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[tuple(matrix.shape)].append(matrix)
            for shape, matrices in alike.items():
                length = group["lr"] * 0.2 * max(shape) ** 0.5
                update = orthogonalised(torch.stack(self._ahead(matrices)))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(matrices, list((length * update).unbind()))

    def _ahead(self, matrices: list[Tensor]) -> list[Tensor]:
        """Return the momentum as it will be if the gradient stays as it is, and move it."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix, gradient in zip(matrices, gradients, strict=True):
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        return list(torch._foreach_lerp(gradients, momenta, _MOMENTUM))


def _type_on(device: torch.device) -> torch.dtype:
    """Return bf16; fp32 on processors without it: its products take up to 40 times as long."""
    slow = device.type == "cpu" and not cpu_has_bf16()
    return torch.float32 if slow else torch.bfloat16


def orthogonalised(
    matrices: Float[Tensor, "matrix row column"],
) -> Float[Tensor, "matrix row column"]:
    """Return matrices of the same singular vectors, whose singular values are 0.7 to 1.2 instead.

    Newton-Schulz iterations of degree five, in bf16 where that is fast.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(_type_on(matrices.device))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return x.mT if is_tall else x
