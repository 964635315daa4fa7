"""What a camera does to a clean render: exposure, white balance, gamma, blur, vignetting, noise."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (torch's own idiom)


def photograph(
    rgb: Float[Tensor, "view 3 height width"], generator: torch.Generator, strength: float = 1.0
) -> Float[Tensor, "view 3 height width"]:
    """Return the views as consumer cameras would record them, in [0, 1], each with own settings.

    `generator` lives on the device of `rgb`; `strength` scales how much settings differ.
    """
    n, _, height, width = rgb.shape
    device = rgb.device

    def draw(*shape: int, low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator, device=device) * (high - low) + low

    exposure = torch.exp2(draw(n, 1, 1, 1, low=-0.6, high=0.6) * strength)
    balance = 1 + draw(n, 3, 1, 1, low=-0.12, high=0.12) * strength
    x = torch.linspace(-1, 1, width, device=device)
    y = torch.linspace(-1, 1, height, device=device)
    radius_squared = x[None, :] ** 2 + y[:, None] ** 2
    vignette = 1 - draw(n, 1, 1, 1, low=0.0, high=0.18) * strength * radius_squared
    out = (rgb * exposure * balance * vignette).clamp(1e-4, 1)
    out = out ** torch.exp2(draw(n, 1, 1, 1, low=-0.4, high=0.4) * strength)
    soft = F.avg_pool2d(F.pad(out, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    # Between a little sharpened (-0.3) and blurred (1), as phones and cheap lenses do.
    out = torch.lerp(out, soft, draw(n, 1, 1, 1, low=-0.3, high=1.0) * strength)
    grey = out.mean(1, keepdim=True)
    out = torch.lerp(grey, out, 1 + draw(n, 1, 1, 1, low=-0.7, high=0.2) * strength)
    out = torch.where(draw(n, 1, 1, 1, low=0.0, high=1.0) < 0.03 * strength, grey, out)
    noise = torch.randn(out.shape, generator=generator, device=device)
    return (out + noise * draw(n, 1, 1, 1, low=0.0, high=0.025) * strength).clamp(0, 1)
