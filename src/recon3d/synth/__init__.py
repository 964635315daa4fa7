"""Procedural scenes with exact ground truth: scene, textures, render, sensor, folder."""

from recon3d.synth.folder import write_folder

__all__ = ["write_folder"]
