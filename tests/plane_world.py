"""Photos of a textured wall and a board before it, by closed-form rays: exact depth and cameras."""

from dataclasses import replace

import torch
from torch import Tensor

from recon3d.geometry import look_at, unproject
from recon3d.sweep import Shot

WALL, BOARD = 5.0, 3.5


def shot(
    x: float, *, size: tuple[int, int] = (72, 96), turn: float = 0.0, board: bool = True
) -> Shot:
    """Return what a camera at (x, 0, 0) sees, its depth exact.

    The wall is the plane z = 5 + 0.3 x; the board z = 3.5 covers |x| < 0.6, |y| < 0.6.
    """
    height, width = size
    intrinsics = torch.tensor([[90.0, 0, width / 2], [0, 90.0, height / 2], [0, 0, 1]])
    centre = torch.tensor([x, 0.0, 0.0])
    cam2world = look_at(centre, centre + torch.tensor([turn, 0.0, 1.0]), torch.tensor([0.0, -1, 0]))
    rays = unproject(torch.ones(size), intrinsics).reshape(-1, 3) @ cam2world[:3, :3].T
    to_wall = (WALL + 0.3 * centre[0] - centre[2]) / (rays[:, 2] - 0.3 * rays[:, 0])
    to_board = (BOARD - centre[2]) / rays[:, 2]
    on_board = (centre + to_board[:, None] * rays)[:, :2].abs().amax(-1) < 0.6
    depth = torch.where(on_board & board, to_board, to_wall)
    points = centre + depth[:, None] * rays
    grey = texture(points)
    return Shot(
        grey=grey.view(size), intrinsics=intrinsics, cam2world=cam2world, depth=depth.view(size)
    )


def texture(points: Tensor) -> Tensor:
    """Return a grey that no shift repeats."""
    generator = torch.Generator().manual_seed(4)
    waves = torch.randn(3, 40, generator=generator) * 12
    phase = torch.rand(40, generator=generator) * 6.28
    return 0.5 + 0.08 * (points @ waves + phase).sin().sum(-1) / 40**0.5 * 2


def flat(one: Shot, depth: float = 4.2) -> Shot:
    """Return the shot with one and the same expected depth everywhere."""
    return replace(one, depth=torch.full_like(one.depth, depth))
