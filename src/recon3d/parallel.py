"""Two photos taken side by side: what they cannot tell about depth, and the network can.

Two cameras that look the same way see every point shifted by a constant over its depth. Where their
principal points are not known, part of that shift may be the lenses': the photos tell inverse depth
only up to a number that is added to it. The expected depth tells that number.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.geometry import compose, invert_rigid, rotation_angle

MOST_TURN_DEG = 2.0
"""Relative rotation up to which two cameras count as parallel."""
_GAIN = 0.9
"""Share to which the number must lower the difference between expected and swept depth."""
_LEAST, _MOST, _STEPS = 0.01, 10.0, 100
"""Numbers that are tried, of either sign, relative to the median inverse depth."""
_MAX_PIXELS = 8000
"""Of those at hand that are looked at, drawn evenly."""


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

    Least absolute error of: log inverse expected = log (inverse swept + offset) + constant, for
    the network errs by factors.
    """
    few = slice(None, None, -(-len(swept) // _MAX_PIXELS))
    inverse, log_expected = 1 / swept[few].double(), -expected[few].double().log()
    unit = float(inverse.median())
    size = torch.logspace(math.log10(_LEAST), math.log10(_MOST), _STEPS, dtype=torch.float64)
    tried = torch.cat((torch.zeros(1, dtype=torch.float64), size, -size))
    tried = tried[float(inverse.amin()) / unit + tried > 0] * unit
    left = log_expected - (inverse + tried[:, None]).log()
    error = (left - left.median(-1, keepdim=True).values).abs().mean(-1)
    best = error.argmin()
    return float(tried[best]) if float(error[best]) < _GAIN * float(error[0]) else 0.0


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
