"""Adjustments of points that all views see: what is known, and the tracks."""

from dataclasses import replace

import torch
from torch import Tensor

from recon3d.bundle_solve import Problem
from recon3d.config import RefineConfig
from recon3d.tracks import Tracks


def open_problem(n_views: int, focal: float = 900.0, **changes: object) -> Problem:
    """Return a problem in which nothing stays, and next to nothing is known of focal lengths."""
    problem = Problem(
        unit=torch.ones(n_views, 2).double(),
        centre=torch.zeros(n_views, 2).double(),
        likely_focal=torch.full((n_views,), focal).double(),
        focal_spread=torch.ones(n_views).double(),
        centre_spread=torch.zeros(n_views).double(),
        constant_focal=torch.zeros(n_views, dtype=torch.bool),
        constant_pose=torch.zeros(n_views, dtype=torch.bool),
        config=RefineConfig(),
    )
    return replace(problem, **changes)


def tracks_of(pixels: Tensor) -> Tracks:
    """Return a track for each point of pixels [view, point, 2]."""
    n_views, n_points = pixels.shape[:2]
    return Tracks(
        track=torch.arange(n_points).repeat_interleave(n_views),
        view=torch.arange(n_views).repeat(n_points),
        pixels=pixels.transpose(0, 1).reshape(-1, 2).contiguous(),
        n_tracks=n_points,
    )
