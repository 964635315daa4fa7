"""Adjustments of points that all views see: what is known, and the tracks."""

from dataclasses import replace

import torch
from torch import Tensor

from recon3d.bundle_solve import Problem, Rig
from recon3d.config import RefineConfig
from recon3d.geometry import invert_rigid, look_at, transform_points
from recon3d.tracks import Tracks
from recon3d.types import View


def open_problem(n_views: int, focal: float = 900.0, **changes: object) -> Problem:
    """Return a problem in which nothing stays, and next to nothing is known of focal lengths."""
    problem = Problem(
        unit=torch.ones(n_views, 2).double(),
        centre=torch.zeros(n_views, 2).double(),
        likely_focal=torch.full((n_views,), focal).double(),
        focal_spread=torch.ones(n_views).double(),
        centre_spread=torch.zeros(n_views).double(),
        lens=torch.arange(n_views),
        constant_focal=torch.zeros(n_views, dtype=torch.bool),
        constant_pose=torch.zeros(n_views, dtype=torch.bool),
        config=RefineConfig(),
    )
    return replace(problem, **changes)


def photo(name: str, width: int, height: int, focal_px: float | None = None) -> View:
    """Return a view of a photo of that size, of which only size and EXIF count."""
    return View(
        name=name,
        sha256="",
        image=torch.zeros(3, 16, 16),
        photo2view=torch.eye(3),
        photo_width=width,
        photo_height=height,
        focal_px=focal_px,
    )


def ring(n_views: int, focal: float = 900.0) -> Rig:
    """Return cameras around the point 4 in front of the first, which all look at."""
    angle = torch.linspace(0, 1.2, n_views).double()
    centre = torch.stack((4 * angle.sin(), torch.zeros(n_views), 4 - 4 * angle.cos()), -1)
    target = torch.tensor([0.0, 0.0, 4.0]).double().expand(n_views, 3)
    up = torch.tensor([0.0, -1.0, 0.1]).double()
    return Rig(cam2world=look_at(centre, target, up), focal=torch.full((n_views,), focal).double())


def seen_by(rig: Rig, n_points: int, generator: torch.Generator) -> Tensor:
    """Return where the cameras of a ring see points around its middle, [view, point, 2]."""
    points = torch.randn(n_points, 3, generator=generator).double() + torch.tensor([0.0, 0, 4])
    in_cam = transform_points(invert_rigid(rig.cam2world), points.expand(len(rig.focal), -1, -1))
    return rig.focal[:, None, None] * in_cam[..., :2] / in_cam[..., 2:]


def tracks_of(pixels: Tensor) -> Tracks:
    """Return a track for each point of pixels [view, point, 2]."""
    n_views, n_points = pixels.shape[:2]
    return Tracks(
        track=torch.arange(n_points).repeat_interleave(n_views),
        view=torch.arange(n_views).repeat(n_points),
        pixels=pixels.transpose(0, 1).reshape(-1, 2).contiguous(),
        n_tracks=n_points,
    )
