"""Spoil the simulated scenes of the alignment benchmark and align them all the same.

    python benchmarks/robustness.py INPUT.npz [...] [--seeds 1]

Prints one JSON line per input, way of spoiling and seed of its random choices: camera errors of the
clean input and of the spoilt one (`benchmarks/alignment.py` says how they are measured), their
ratios, photos placed and placed wrongly.

nonsense: of 10 % of the pairs, both orders get a wrong relative pose, each its own;
conspiracy: of 10 % of the pairs, both orders agree on the same wrong relative pose;
elsewhere: 30 % of the photos are of another scene. Pairs within either scene are right, pairs
across see a relative pose that is nonsense. Confidence is everywhere that of a right pair.

A photo counts as placed wrongly if its rotation is off by more than 5 degrees or its centre by more
than 10 % of the size of the scene, after the similarity that fits most photos of the scene.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment import Arrays, angle_deg, fit_similarity, inputs, score

from recon3d.align import align_groups
from recon3d.config import AlignConfig
from recon3d.geometry import so3_exp
from recon3d.types import Scene

NONSENSE_SHARE = 0.1
ELSEWHERE_SHARE = 0.3
WRONG_DEG = 5.0
WRONG_CENTRE = 0.1


def main() -> None:
    """Measure every input."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("inputs", nargs="+", metavar="INPUT.npz")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    for path in options.inputs:
        with np.load(path) as archive:
            truth = {n: archive[n] for n in archive.files if n not in ("pts3d_world", "depth")}
        clean = largest(truth)
        before = score(truth, clean)
        kinds = ("nonsense", "conspiracy", "elsewhere")
        for kind, seed in itertools.product(kinds, range(options.seeds)):
            figures = measure(truth, kind, seed)
            line = {"input": Path(path).name, "kind": kind, "seed": seed}
            line |= {f"clean_{name}": round(float(v), 5) for name, v in before.items()}
            if kind != "elsewhere":
                line |= {
                    f"{name}_ratio": round(figures[name] / float(before[name]), 3)
                    for name in ("rot_deg_mean", "trans_rel_mean")
                }
            sys.stdout.write(json.dumps(line | figures) + "\n")
            sys.stdout.flush()


def measure(truth: Arrays, kind: str, seed: int) -> dict[str, Any]:
    """Return the figures of one way of spoiling."""
    random = np.random.default_rng(seed)
    n_views = len(truth["cam2world"])
    pairs = sorted({tuple(sorted(edge)) for edge in truth["edges"].tolist()})
    there = np.zeros(n_views, dtype=bool)
    if kind == "elsewhere":
        there[random.permutation(n_views)[: round(ELSEWHERE_SHARE * n_views)]] = True
        wrong = [pair for pair in pairs if there[pair[0]] != there[pair[1]]]
    else:
        n_wrong = max(1, round(NONSENSE_SHARE * len(pairs)))
        wrong = [pairs[k] for k in random.permutation(len(pairs))[:n_wrong]]
    spoilt = dict(truth, pts3d_2_in_1=truth["pts3d_2_in_1"].copy())
    for a, b in wrong:
        turn, shift = nonsense_pose(random)
        for e, (i, j) in enumerate(truth["edges"].tolist()):
            if (i, j) not in ((a, b), (b, a)):
                continue
            if kind != "conspiracy":
                turn, shift = nonsense_pose(random)
            spoilt["pts3d_2_in_1"][e] = misplaced(truth, e, turn, shift, backwards=(i, j) != (a, b))
    predictions, views = inputs(spoilt)
    scenes = align_groups(predictions, views, AlignConfig())
    figures: dict[str, Any] = {
        "photos": n_views,
        "pairs": len(pairs),
        "spoilt_pairs": len(wrong),
        "sizes": [len(scene.views) for scene in scenes],
        "photos_elsewhere": int(there.sum()),
    }
    n_wrong_photos = 0
    for scene in scenes:
        members = np.array([int(view.name) for view in scene.views])
        home = not bool(there[members].mean() > 0.5)
        part = members[there[members] != home]
        n_wrong_photos += len(members) - len(part)  # of the other scene
        n_wrong_photos += misplaced_photos(truth, scene, members, part)
    figures["wrong"] = n_wrong_photos
    first = scenes[0]
    members = np.array([int(view.name) for view in first.views])
    taken = dict(truth, cam2world=truth["cam2world"][members], focals=truth["focals"][members])
    figures |= {name: round(float(value), 5) for name, value in score(taken, first).items()}
    return figures


def nonsense_pose(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a rotation by 30 to 150 degrees and a direction to move in."""
    axis = random.normal(size=3)
    axis *= np.radians(random.uniform(30, 150)) / np.linalg.norm(axis)
    shift = random.normal(size=3)
    turn = so3_exp(torch.from_numpy(axis)).numpy()
    return turn, shift / np.linalg.norm(shift)


def misplaced(
    truth: Arrays, e: int, turn: np.ndarray, shift: np.ndarray, *, backwards: bool
) -> np.ndarray:
    """Return view 2's points of an edge with its camera at a wrong relative pose.

    The pose of the second camera in the first is that of `turn` and half a median depth along
    `shift`, or the inverse of that; the shape that view 2 predicts stays.
    """
    i, j = truth["edges"][e]
    cameras = truth["cam2world"].astype(np.float64)
    true = np.linalg.inv(cameras[i]) @ cameras[j]
    depth = float(np.median(truth["pts3d_1"][e][..., 2]))
    true_depth = float(np.median(truth["depth"][i])) if "depth" in truth else None
    points = truth["pts3d_2_in_1"][e].astype(np.float64)
    unit = depth / median_depth(truth, int(i)) if true_depth is None else depth / true_depth
    in_j = (points - unit * true[:3, 3]) @ true[:3, :3]
    wrong = np.eye(4)
    wrong[:3, :3], wrong[:3, 3] = turn, 0.5 * shift
    if backwards:
        wrong = np.linalg.inv(wrong)
    return (in_j @ wrong[:3, :3].T + depth * wrong[:3, 3]).astype(np.float32)


def median_depth(truth: Arrays, view: int) -> float:
    """Return a view's median depth in world units, from any edge's relation to the baseline."""
    scales = []
    for e, (i, j) in enumerate(truth["edges"].tolist()):
        if i != view:
            continue
        back = next(k for k, (a, b) in enumerate(truth["edges"].tolist()) if (a, b) == (j, i))
        true = np.linalg.inv(truth["cam2world"][i].astype(float)) @ truth["cam2world"][j].astype(
            float
        )
        # view j's own points (edge back) moved to i differ from those seen by the edge's scale
        own = truth["pts3d_1"][back].reshape(-1, 3)[::97].astype(float)
        seen = truth["pts3d_2_in_1"][e].reshape(-1, 3)[::97].astype(float)
        turned = own @ true[:3, :3].T
        # seen = s1 * turned + s2 * t: two unknown scales, least squares
        columns = np.stack((turned.ravel(), np.tile(true[:3, 3], len(turned))), axis=1)
        _, unit = np.linalg.lstsq(columns, seen.ravel(), rcond=None)[0]
        scales.append(float(np.median(truth["pts3d_1"][e][..., 2])) / unit)
    return float(np.median(scales))


def largest(truth: Arrays) -> Scene:
    """Return the scene of the clean input."""
    predictions, views = inputs(truth)
    return align_groups(predictions, views, AlignConfig(), limit=1)[0]


def misplaced_photos(truth: Arrays, scene: Scene, members: np.ndarray, part: np.ndarray) -> int:
    """Return how many of the photos `part` are placed wrongly among themselves."""
    rows = [int(np.flatnonzero(members == n)[0]) for n in part]
    if len(rows) < 3:
        return 0
    ours = scene.cam2world.double().numpy()[rows]
    true = truth["cam2world"][part].astype(np.float64)
    size = float(np.linalg.norm(true[:, :3, 3] - true[:, :3, 3].mean(0), axis=1).max())
    best = len(rows)
    relative = np.swapaxes(ours[:, :3, :3], 1, 2)
    for k in range(len(rows)):  # the world rotation that each photo votes for
        turn = true[k, :3, :3] @ relative[k]
        off = angle_deg(np.swapaxes(true[:, :3, :3], 1, 2) @ turn @ ours[:, :3, :3])
        near = off < WRONG_DEG
        if near.sum() < 3:
            continue
        scale, rotation, shift = fit_similarity(
            ours[near, :3, 3], true[near, :3, 3], np.ones(int(near.sum()))
        )
        centre = scale * ours[:, :3, 3] @ rotation.T + shift
        far = np.linalg.norm(centre - true[:, :3, 3], axis=1) > WRONG_CENTRE * size
        best = min(best, int((far | ~near).sum()))
    return best


if __name__ == "__main__":
    main()
