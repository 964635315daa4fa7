"""Photos of two textured walls that meet in a corner, from places far apart; exact cameras."""

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from exact_scene import blank_view
from recon3d.geometry import look_at, unproject
from recon3d.types import View

HEIGHT, WIDTH, FOCAL = 288, 384, 400.0
_SIDE = 4.0  # of the walls x = 0 and z = 0, which meet in the y axis


def wall(seed: int) -> np.ndarray:
    """Return a grey picture with features of all sizes."""
    generator = np.random.default_rng(seed)
    picture = sum(
        cv2.GaussianBlur(generator.standard_normal((800, 800)), (0, 0), sigma) * sigma
        for sigma in (3, 6, 12, 24)
    )
    return (127 + 45 * picture / picture.std()).clip(0, 255).astype(np.float32)


def camera(angle_deg: float, distance: float = 4.0) -> Tensor:
    """Return cam2world of a camera that looks into the corner, so far from its middle."""
    angle = math.radians(45 + angle_deg)
    centre = distance * torch.tensor([math.cos(angle), 0.0, math.sin(angle)])
    return look_at(centre, torch.tensor([0.6, 0.0, 0.6]), torch.tensor([0.0, -1.0, 0.0]))


def photo(cam2world: Tensor, seeds: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Return what the camera sees, RGB; every pixel is the mean of four rays."""
    intrinsics = lens() * torch.tensor([[2.0], [2.0], [1.0]])
    rays = unproject(torch.ones(2 * HEIGHT, 2 * WIDTH), intrinsics).reshape(-1, 3)
    rays = (rays @ cam2world[:3, :3].T).numpy()
    centre = cam2world[:3, 3].numpy()
    to_x, to_z = (np.where(rays[:, k] < 0, -centre[k] / rays[:, k], np.inf) for k in (0, 2))
    points = centre + np.minimum(np.minimum(to_x, to_z), 99)[:, None] * rays
    grey = np.full((2 * HEIGHT, 2 * WIDTH), 127, np.float32)
    for nearer, along, seed in ((to_x < to_z, 2, seeds[0]), (to_z < to_x, 0, seeds[1])):
        place = [points[:, along] / _SIDE * 800, (points[:, 1] / _SIDE + 0.5) * 800]
        x, y = (value.astype(np.float32).reshape(grey.shape) for value in place)
        seen = cv2.remap(wall(seed), x, y, cv2.INTER_LINEAR, borderValue=127)
        grey = np.where(nearer.reshape(grey.shape), seen, grey)
    half = cv2.resize(grey, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.repeat(half.astype(np.uint8)[..., None], 3, axis=2)


def lens() -> Tensor:
    """Return the intrinsics, in pixels of the photo."""
    return torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])


def view(name: str) -> View:
    """Return a view of half the photo's size."""
    return blank_view(name, (HEIGHT // 2, WIDTH // 2))
