"""The exact scene as a folder of ground truth: grey photos, gt.json, true depth."""

import json
from pathlib import Path

import numpy as np

from exact_scene import ExactScene
from picture_bytes import encode, texture
from recon3d.ground_truth import TrueScene, read_scene


def write_truth(truth: ExactScene, folder: Path, *, with_depth: bool = True) -> TrueScene:
    """Write the photos, twice the size of the views, and return what is read back."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    images = []
    for n, view in enumerate(truth.views):
        pixels = texture(view.photo_width, view.photo_height, seed=n)
        (folder / "images" / f"{n}.png").write_bytes(encode(".png", pixels))
        depth = truth.depth[n].numpy().repeat(2, 0).repeat(2, 1)
        np.save(folder / "depth" / f"{n}.npy", depth.astype(np.float32))
        focal = 2 * float(truth.focal[n])
        images.append(
            {
                "file": f"images/{n}.png",
                "width": view.photo_width,
                "height": view.photo_height,
                "fx": focal,
                "fy": focal,
                "cx": view.photo_width / 2 - 0.5,
                "cy": view.photo_height / 2 - 0.5,
                "world_to_camera": np.linalg.inv(truth.cam2world[n].numpy()).tolist(),
            }
            | ({"depth": f"depth/{n}.npy"} if with_depth else {})
        )
    (folder / "gt.json").write_text(json.dumps({"units": "metric", "images": images}))
    return read_scene(folder)
