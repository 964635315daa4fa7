"""Two photos taken side by side: what they cannot tell about depth, and the network can.

Two cameras that look the same way see every point shifted by a constant over its depth. Where their
principal points are not known, part of that shift may be the lenses': the photos tell inverse depth
only up to a number that is added to it. The expected depth tells that number.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.geometry import compose, invert_rigid, rotation_angle

MOST_TURN_DEG = 2.0
"""Relative rotation up to which two cameras count as parallel."""
_GAIN = 0.85
"""Share to which the number must lower the difference between expected and swept depth."""
_ROUNDS = 20


def are_parallel(first: Float[Tensor, "4 4"], second: Float[Tensor, "4 4"]) -> bool:
    """Say whether two cameras (cam2world) look the same way, and stand side by side."""
    relative = compose(invert_rigid(first.double()), second.double())
    move = relative[:3, 3]
    aside = float(move[:2].norm()) > 5 * float(move[2].abs())
    return aside and float(torch.rad2deg(rotation_angle(relative[:3, :3]))) < MOST_TURN_DEG


def inverse_depth_offset(
    expected: Float[Tensor, " pixel"], swept: Float[Tensor, " pixel"]
) -> float:
    """Return what to add to the inverse of swept depth; 0 where that does not help.

    Least unsquared error of: inverse expected depth = factor * (inverse swept depth + offset).
    """
    x, y = 1 / swept.double(), 1 / expected.double()
    factor = (y / x).median()
    plain = float((y - factor * x).abs().median())
    terms = torch.stack((x, torch.ones_like(x)), 1)
    weight = torch.ones_like(x)
    solution = torch.stack((factor, torch.zeros_like(factor)))
    for _ in range(_ROUNDS):
        scaled = terms * weight[:, None]
        solution = torch.linalg.solve(scaled.mT @ terms, scaled.mT @ y)
        left = (y - terms @ solution).abs()
        weight = 1 / left.clamp_min(0.1 * float(left.median()) + 1e-12)
    if float(solution[0]) <= 0 or float(left.median()) > _GAIN * plain:
        return 0.0
    return float(solution[1] / solution[0])


def moved_lens(
    intrinsics: Float[Tensor, "3 3"], cam2world: Float[Tensor, "4 4"],
    reference: Float[Tensor, "4 4"], offset: float,
) -> Float[Tensor, "3 3"]:  # fmt: skip
    """Return the intrinsics of the second camera with which the new depths fit both photos.

    `reference` is the first camera's cam2world; the shift of every point by the offset becomes one
    of the principal point.
    """
    move = compose(invert_rigid(cam2world.double()), reference.double())[:2, 3]
    moved = intrinsics.clone()
    moved[:2, 2] -= offset * (intrinsics[[0, 1], [0, 1]].double() * move).to(intrinsics)
    return moved
