"""Runs of two photos alone: `python benchmarks/two_photos.py DATA --pairs 7`.

Of every scene with ground truth below the folders that has more than two photos, some pairs, evenly
spread over eight photos, go through what `recon3d run A B` does (but for dense stereo), intrinsics
unknown. Prints one JSON line a pair: its true rotation and the errors of the rotation and of the
direction between the cameras in degrees, the uncertainty that is said of each camera's rotation,
the focal length over the true one, seconds. The last line is about all: the median of the larger
error of each pair, the number of pairs within 2, 5, 10 and 20 degrees, AUC@20. A pair without an
answer is 180 degrees off.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from recon3d.cameras import photo_intrinsics
from recon3d.config import RunConfig
from recon3d.errors import ReconError
from recon3d.evaluate import spread
from recon3d.ground_truth import TruePhoto, find_scenes, read_scene
from recon3d.metrics import area_under_curve, relative_pose_errors
from recon3d.pipeline import reconstruct

N_PHOTOS = 8
LIMITS_DEG = (2, 5, 10, 20)


def measure(two: Sequence[TruePhoto], config: RunConfig) -> dict[str, object]:
    """Reconstruct two photos and compare their cameras with the truth."""
    began = time.monotonic()
    true = np.stack([photo.cam2world for photo in two])
    same = np.repeat(true[:1], 2, axis=0)
    found: dict[str, object] = {
        "photos": [photo.path.name for photo in two],
        "true_rotation_deg": round(float(relative_pose_errors(same, true).rotation_deg[0]), 1),
    }
    try:
        scene = reconstruct([str(photo.path) for photo in two], config)
    except ReconError as error:
        return found | {"error_deg": 180.0, "failed": str(error)}
    place = {Path(view.name).name: n for n, view in enumerate(scene.views)}
    order = [place[photo.path.name] for photo in two]
    errors = relative_pose_errors(scene.cam2world.double().numpy()[order], true)
    focal = [
        float(photo_intrinsics(scene.intrinsics[n], scene.views[n].photo2view)[0, 0]) for n in order
    ]
    return found | {
        "error_deg": round(float(errors.worst_deg[0]), 2),
        "rotation_deg": round(float(errors.rotation_deg[0]), 2),
        "direction_deg": round(float(errors.direction_deg[0]), 2),
        "uncertainty_deg": round(scene.verdicts[order[0]].rotation_uncertainty_deg, 2),
        "focal": [round(f / photo.focal_px, 2) for f, photo in zip(focal, two, strict=True)],
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=7, help="of a scene, at most")
    options = parser.parse_args()
    config = replace(RunConfig(), refine=True, dense=False)
    worst = []
    for folder in find_scenes(options.folders, ()):
        scene = read_scene(folder)
        if len(scene.photos) < 3:
            continue
        chosen = set(spread(range(len(scene.photos)), N_PHOTOS))
        pairs = [p for p in scene.pairs if scene.is_pair_set or chosen.issuperset(p)]
        for pair in spread(pairs, options.pairs):
            found = measure([scene.photos[n] for n in pair], config)
            worst.append(found["error_deg"])
            print(json.dumps({"scene": scene.name} | found), flush=True)
    error_deg = np.array(worst, dtype=np.float64)
    summary = {
        "pairs": len(error_deg),
        "median_deg": round(float(np.median(error_deg)), 2),
        "within": {f"{limit}": int((error_deg < limit).sum()) for limit in LIMITS_DEG},
        "auc_20": round(area_under_curve(error_deg, 20), 3),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
