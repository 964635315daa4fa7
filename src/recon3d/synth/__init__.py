"""Procedural scenes with exact ground truth: photographs, depth and cameras of made-up worlds."""

from recon3d.synth.folder import write_folder

__all__ = ["write_folder"]
