"""Random numbers of the kinds that scenes need, all from one generator."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Draw:
    """Draws tensors on the device of its generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return numbers between low and high."""
        unit = torch.rand(shape, generator=self.generator, device=self.generator.device)
        return unit * (high - low) + low

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Return numbers between low and high, as many in each octave."""
        return torch.exp(self.uniform(*shape, low=math.log(low), high=math.log(high)))

    def normal(self, *shape: int) -> Tensor:
        """Return numbers of mean 0 and deviation 1."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def chance(self, *shape: int, share: float) -> Bool[Tensor, "..."]:
        """Return booleans, `share` of them true."""
        return self.uniform(*shape) < share

    def number(self, *shape: int, below: int) -> Int[Tensor, "..."]:
        """Return whole numbers from 0."""
        return torch.randint(
            0, below, shape, generator=self.generator, device=self.generator.device
        )

    def within(
        self, low: Float[Tensor, "scene 3"], high: Float[Tensor, "scene 3"], count: int
    ) -> Float[Tensor, "scene count 3"]:
        """Return points in boxes."""
        return low[:, None] + self.uniform(len(low), count, 3) * (high - low)[:, None]

    def box(self, *shape: int, low: tuple[float, ...], high: tuple[float, ...]) -> Tensor:
        """Return vectors whose components lie each between its own bounds."""
        start, end = torch.tensor(low), torch.tensor(high)
        return start + self.uniform(*shape, len(low)) * (end - start)
