"""Camera accuracy on folders with ground truth: `python benchmarks/poses.py DIR [DIR ...]`.

A folder holds images/ and gt.json as `recon3d synth` writes them (world_to_camera per image).
Prints one JSON line a folder: photos placed, median and worst error of the relative rotations
over all pairs of placed photos beside the median true rotation, median error of the direction
between camera centres, focal error; error of each camera's rotation, all turned together to fit
best, beside the uncertainty that the scene states of it (root mean squares); seconds.
"""

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from recon3d.config import RunConfig
from recon3d.errors import ReconError
from recon3d.pipeline import reconstruct


def angle_deg(rotation: np.ndarray) -> float:
    """Angle of a rotation matrix."""
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def own_errors_deg(true: np.ndarray, ours: np.ndarray) -> list[float]:
    """Error of each rotation [camera, 3, 3] after the one turn of all that fits best."""
    u, _, vh = np.linalg.svd((true @ ours.transpose(0, 2, 1)).sum(0))
    turn = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vh)]) @ vh
    return [angle_deg(a.T @ turn @ b) for a, b in zip(true, ours, strict=True)]


def measure(folder: Path, config: RunConfig) -> dict[str, object]:
    """Reconstruct one folder and compare its cameras with gt.json."""
    truth = {}
    for entry in json.loads((folder / "gt.json").read_text())["images"]:
        world2cam = np.array(entry["world_to_camera"], dtype=np.float64)
        truth[Path(entry["file"]).name] = (np.linalg.inv(world2cam), entry["fx"])
    began = time.monotonic()
    try:
        scene = reconstruct([str(folder / "images")], config)
    except ReconError as error:
        return {"scene": folder.name, "failed": str(error)}
    seconds = time.monotonic() - began
    rotations, sizes, directions = [], [], []
    cam2world = scene.cam2world.double().numpy()
    names = [Path(view.name).name for view in scene.views]
    for a, b in combinations(range(len(names)), 2):
        true = np.linalg.inv(truth[names[a]][0]) @ truth[names[b]][0]
        ours = np.linalg.inv(cam2world[a]) @ cam2world[b]
        rotations.append(angle_deg(true[:3, :3].T @ ours[:3, :3]))
        sizes.append(angle_deg(true[:3, :3]))
        lengths = np.linalg.norm(true[:3, 3]) * np.linalg.norm(ours[:3, 3])
        cosine = true[:3, 3] @ ours[:3, 3] / max(lengths, 1e-12)
        directions.append(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))
    own = own_errors_deg(np.stack([truth[n][0][:3, :3] for n in names]), cam2world[:, :3, :3])
    said = [verdict.rotation_uncertainty_deg for verdict in scene.verdicts]
    focal = [
        abs(float(k[0, 0]) / float(view.photo2view[0, 0]) / truth[name][1] - 1)
        for k, view, name in zip(scene.intrinsics, scene.views, names, strict=True)
    ]
    return {
        "scene": folder.name,
        "placed": f"{len(names)}/{len(truth)}",
        "rotation_deg_median": round(float(np.median(rotations)), 2),
        "rotation_deg_max": round(max(rotations), 2),
        "true_rotation_deg_median": round(float(np.median(sizes)), 2),
        "direction_deg_median": round(float(np.median(directions)), 1),
        "focal_pct_median": round(100 * float(np.median(focal)), 1),
        "own_rotation_deg_rms": round(float(np.sqrt(np.mean(np.square(own)))), 3),
        "uncertainty_deg_rms": round(float(np.sqrt(np.nanmean(np.square(said)))), 3),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--refine", action="store_true", help="adjust cameras to image features")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for folder in arguments.folders:
        config = RunConfig(weights=arguments.weights, refine=arguments.refine)
        print(json.dumps(measure(folder, config)), flush=True)


if __name__ == "__main__":
    main()
