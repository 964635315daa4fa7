"""Measure the global alignment on synthetic scenes with ground truth.

    python benchmarks/alignment.py INPUT.npz [...]

Prints one JSON line per input: seconds (the smaller of wall and processor time, best of three
after a first run), peak_mb (resident memory above the loaded input, first run), errors of the
cameras after a similarity, and the published objective with log-confidence weights (Wang et al.,
DUSt3R, section 3.4; unsquared, each side averaged over its pixels, geometric mean of the pair
scales 0.5), for which the pair similarities are solved optimally given our cameras and depths.

Input arrays: edges (E,2), pts3d_1 and pts3d_2_in_1 (E,H,W,3), conf_1 and conf_2 (E,H,W), cam2world
(N,4,4), focals (N,), scene_size. There the principal point lies on the centre of pixel (W/2, H/2),
as that of a photo of (W+1) x (H+1) pixels does, whose last row and column are cropped.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from recon3d.align import align
from recon3d.config import AlignConfig
from recon3d.geometry import transform_points, unproject
from recon3d.types import PairPrediction, Scene, View

RUNS = 3
IRLS_ROUNDS = 20
Arrays = dict[str, np.ndarray]


def main(paths: list[str]) -> None:
    """Measure every input."""
    if not paths:
        raise SystemExit(__doc__)
    # A fresh process each, because memory that one run gives back is reused by the next.
    fresh = multiprocessing.get_context("spawn")
    for path in paths:
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            figures = pool.submit(measure, Path(path)).result()
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


def measure(path: Path) -> dict[str, str | float]:
    """Return all figures of one input."""
    with np.load(path) as archive:
        truth = {
            name: archive[name] for name in archive.files if name not in ("pts3d_world", "depth")
        }
    predictions, views = inputs(truth)
    config = AlignConfig()
    align(*inputs(excerpt(truth)), config)  # loads the libraries
    with PeakMemory() as peak:
        align(predictions, views, config)
    seconds = []
    for _ in range(RUNS):
        wall, processor = time.perf_counter(), time.process_time()
        scene = align(predictions, views, config)
        seconds.append(min(time.perf_counter() - wall, time.process_time() - processor))
    if len(scene.views) != len(views):
        raise SystemExit(f"{path.name}: only {len(scene.views)} of {len(views)} views were placed")
    figures = score(truth, scene) | {"objective": objective(truth, scene)}
    return {
        "input": path.name,
        "seconds": round(min(seconds), 3),
        "peak_mb": round(peak.megabytes, 1),
        **{name: round(float(value), 6) for name, value in figures.items()},
    }


def excerpt(truth: Arrays) -> Arrays:
    """Return the first views at an eighth of the resolution."""
    edges = truth["edges"]
    few = (edges < 3).all(1)
    small = {
        name: truth[name][few][:, ::8, ::8]
        for name in ("pts3d_1", "pts3d_2_in_1", "conf_1", "conf_2")
    }
    return small | {"edges": edges[few], "cam2world": truth["cam2world"][:3]}


def inputs(truth: Arrays) -> tuple[list[PairPrediction], tuple[View, ...]]:
    """Return the predictions and blank views of one input."""
    height, width = truth["conf_1"].shape[1:]
    views = tuple(
        View(
            name=str(n),
            sha256=str(n),
            image=torch.zeros(3, height, width),
            photo2view=torch.eye(3),
            photo_width=width + 1,
            photo_height=height + 1,
            focal_px=None,
        )
        for n in range(len(truth["cam2world"]))
    )
    predictions = [
        PairPrediction(
            i=int(i),
            j=int(j),
            pointmap_i_in_i=torch.from_numpy(truth["pts3d_1"][e]),
            pointmap_j_in_i=torch.from_numpy(truth["pts3d_2_in_1"][e]),
            confidence_i=torch.from_numpy(truth["conf_1"][e]),
            confidence_j=torch.from_numpy(truth["conf_2"][e]),
        )
        for e, (i, j) in enumerate(truth["edges"])
    ]
    return predictions, views


class PeakMemory:
    """Watch the resident memory of this process (Linux) from a thread."""

    def __enter__(self) -> "PeakMemory":
        """Start watching."""
        self.start = self.most = resident_bytes()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        """Look every millisecond."""
        while not self.done.wait(0.001):
            self.most = max(self.most, resident_bytes())

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self.done.set()
        self.thread.join()
        self.megabytes = (self.most - self.start) / 1e6


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fit_similarity(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, pull: float = 0.0
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return scale, rotation and translation of least weighted squares (Umeyama, PAMI 1991).

    With a `pull`, of half the squares minus pull times log scale: the larger root of a quadratic.
    """
    pull = pull / weight.sum()
    weight = weight / weight.sum()
    mean_source, mean_target = weight @ source, weight @ target
    centred, wanted = source - mean_source, target - mean_target
    left, singular, right = np.linalg.svd((wanted * weight[:, None]).T @ centred)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = (left * sign) @ right
    spread = float(weight @ np.square(centred).sum(1))
    scale = float((singular * sign).sum()) / spread
    scale = (scale + np.sqrt(scale**2 + 4 * pull / spread)) / 2
    return scale, rotation, mean_target - scale * rotation @ mean_source


def angle_deg(rotation: np.ndarray) -> np.ndarray:
    """Return the angle of rotation matrices, accurate near zero."""
    skew = rotation - np.swapaxes(rotation, -1, -2)
    sine = np.linalg.norm(np.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0])), axis=0) / 2
    return np.degrees(np.arctan2(sine, (np.trace(rotation, axis1=-2, axis2=-1) - 1) / 2))


def score(truth: Arrays, scene: Scene) -> dict[str, float]:
    """Return the errors of cameras and focals.

    The similarity's rotation is fitted to all centres and to points ahead on the three axes, as far
    off as the centres spread, so that centres on a line do no harm; its scale and translation to
    the centres alone. Translation errors are relative to the size of the scene.
    """
    ours, theirs = scene.cam2world.double().numpy(), truth["cam2world"].astype(np.float64)
    centre, wanted = ours[:, :3, 3], theirs[:, :3, 3]
    spread = np.linalg.norm(wanted - wanted.mean(0), axis=1).mean()
    scale = 1.0
    for _ in range(10):
        ends = [
            np.concatenate((c[:, :3, 3], *(c[:, :3, 3] + far * c[:, :3, k] for k in range(3))))
            for c, far in ((ours, spread / scale), (theirs, spread))
        ]
        rotation = fit_similarity(*ends, np.ones(len(ends[0])))[1]
        turned = (centre - centre.mean(0)) @ rotation.T
        scale = float((turned * (wanted - wanted.mean(0))).sum() / np.square(turned).sum())
        scale = max(scale, 1e-9)
    moved = scale * turned + wanted.mean(0)
    rotations = np.swapaxes(theirs[:, :3, :3], 1, 2) @ (rotation @ ours[:, :3, :3])
    focal = scene.intrinsics[:, 0, 0].double().numpy()
    distance = np.linalg.norm(moved - wanted, axis=1) / float(truth["scene_size"])
    return {
        "rot_deg_mean": angle_deg(rotations).mean(),
        "rot_deg_max": angle_deg(rotations).max(),
        "trans_rel_mean": distance.mean(),
        "focal_pct_mean": 100 * np.abs(focal / truth["focals"] - 1).mean(),
    }


def objective(truth: Arrays, scene: Scene) -> float:
    """Return the published objective, minimal over the similarities of the pairs."""
    world = [
        transform_points(
            scene.cam2world[n].double(),
            unproject(depth.double(), scene.intrinsics[n].double()).reshape(-1, 3),
        ).numpy()
        for n, depth in enumerate(scene.depth)
    ]
    pairs = []
    for e, (i, j) in enumerate(truth["edges"]):
        maps = (truth["pts3d_1"][e], truth["pts3d_2_in_1"][e])
        source = np.concatenate([m.reshape(-1, 3) for m in maps]).astype(np.float64)
        weight = np.log(np.concatenate((truth["conf_1"][e].ravel(), truth["conf_2"][e].ravel())))
        pairs.append((source, np.concatenate((world[i], world[j])), weight, weight))
    pull, value = 0.0, np.inf
    for _ in range(IRLS_ROUNDS):
        total, log_scales = 0.0, []
        for e, (source, target, weight, robust) in enumerate(pairs):
            scale, rotation, shift = fit_similarity(source, target, robust, pull)
            distance = np.linalg.norm(scale * source @ rotation.T + shift - target, axis=1)
            total += float(weight @ distance)
            log_scales.append(float(np.log(scale)))
            near = np.maximum(distance, 1e-4 * np.median(distance))
            pairs[e] = (source, target, weight, weight / near)
        pull = total / len(pairs)  # d(total) / d(log scale) where the mean log scale is held
        value = min(value, total * 0.5 / float(np.exp(np.mean(log_scales))))
    return value / truth["conf_1"].size  # the same number for both sides


if __name__ == "__main__":
    main(sys.argv[1:])
