"""How alignment grows with the photos: `python benchmarks/growth.py [--photos 100 1000]`.

Simulates pointmaps of a long walk, one pair at a time as a network gives them (both orders, half
precision, noise of 3 %, mean degree 10: four neighbours either way and one photo anywhere near),
and aligns them. Prints one JSON line per number of photos: seconds of the alignment without those
of the simulation (the smaller of wall and processor time), also per photo; peak_mb (resident memory
above that before it, the input being streamed); errors of the cameras as in
`benchmarks/alignment.py`.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from alignment import PeakMemory, score

from recon3d.align import align
from recon3d.config import AlignConfig
from recon3d.geometry import compose, invert_rigid, look_at, transform_points, unproject
from recon3d.types import PairPrediction, View

HEIGHT, WIDTH = 168, 224
FOCAL_PX = 200.0
NEIGHBOURS = 4
NOISE = 0.03


def main() -> None:
    """Measure each number of photos in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, nargs="+", default=[100, 1000])
    fresh = multiprocessing.get_context("spawn")
    for n_views in parser.parse_args().photos:
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            figures = pool.submit(measure, n_views).result()
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()


def measure(n_views: int) -> dict[str, float]:
    """Return the figures of one number of photos."""
    warm = Walk(12)
    align(warm.predictions(), warm.views, AlignConfig())  # loads the libraries
    walk = Walk(n_views)
    with PeakMemory() as peak:
        started = now()
        scene = align(walk.predictions(), walk.views, AlignConfig())
        seconds = float((now() - started - walk.simulating_s).min())
    if len(scene.views) != n_views:
        raise SystemExit(f"only {len(scene.views)} of {n_views} photos were placed")
    centres = walk.cam2world[:, :3, 3]
    truth = {
        "cam2world": walk.cam2world.numpy(),
        "focals": np.full(n_views, FOCAL_PX),
        "scene_size": float((centres - centres.mean(0)).norm(dim=-1).max()),
    }
    errors = score(truth, scene)
    return {
        "photos": n_views,
        "pairs": len(walk.pairs),
        "seconds": round(seconds, 2),
        "ms_per_photo": round(1000 * seconds / n_views, 2),
        "peak_mb": round(peak.megabytes, 1),
        **{name: round(float(value), 5) for name, value in errors.items()},
    }


def now() -> np.ndarray:
    """Return wall and processor time in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


class Walk:
    """Cameras along a winding path around a court, and the pairs between them."""

    def __init__(self, n_views: int) -> None:
        """Lay out the path; nothing is simulated yet."""
        angle = torch.arange(n_views).double() * (2 * torch.pi / n_views)
        radius = n_views / 20 * (1 + 0.2 * (5 * angle).sin())
        centre = torch.stack(
            (radius * angle.cos(), 0.2 * (9 * angle).sin(), radius * angle.sin()), -1
        )
        target = 1.5 * centre + torch.stack((-angle.sin(), 0 * angle, angle.cos()), -1)
        self.cam2world = look_at(centre, target, torch.tensor([0.0, -1.0, 0.0]).double())
        random = np.random.default_rng(0)
        pairs = {
            tuple(sorted((n, (n + k) % n_views)))
            for n in range(n_views)
            for k in range(1, NEIGHBOURS + 1)
        }
        for n in range(n_views):
            other = (n + int(random.integers(NEIGHBOURS + 1, 25))) % n_views
            if other != n:
                pairs.add(tuple(sorted((n, other))))
        self.pairs = sorted(pairs)
        self.views = tuple(
            View(
                name=f"{n:05}",
                sha256=str(n),
                image=torch.zeros(3, HEIGHT, WIDTH),
                photo2view=torch.eye(3),
                photo_width=WIDTH,
                photo_height=HEIGHT,
                focal_px=None,
            )
            for n in range(n_views)
        )
        self.simulating_s = np.zeros(2)

    def predictions(self) -> Iterator[PairPrediction]:
        """Yield both orders of every pair; the time taken adds to `simulating_s`."""
        for number, (a, b) in enumerate(self.pairs):
            for i, j in ((a, b), (b, a)):
                started = now()
                prediction = self.predict(i, j, seed=2 * number + (i > j))
                self.simulating_s += now() - started
                yield prediction

    def predict(self, i: int, j: int, seed: int) -> PairPrediction:
        """Return noisy pointmaps of two views at a scale of their own."""
        generator = torch.Generator().manual_seed(seed)
        own, other = self.pointmap(i), self.pointmap(j)
        cam_j2cam_i = compose(invert_rigid(self.cam2world[i]), self.cam2world[j]).float()
        seen = transform_points(cam_j2cam_i, other.view(-1, 3)).view(other.shape)
        scale = 0.5 + float(torch.rand((), generator=generator))
        maps = []
        for points in (own, seen):
            distance = points.norm(dim=-1, keepdim=True)
            noise = torch.randn(points.shape, generator=generator)
            maps.append((scale * (points + NOISE * distance * noise)).half())
        confidence = 2 + 6 * torch.rand(2, HEIGHT, WIDTH, generator=generator)
        return PairPrediction(
            i=i,
            j=j,
            pointmap_i_in_i=maps[0],
            pointmap_j_in_i=maps[1],
            confidence_i=confidence[0].half(),
            confidence_j=confidence[1].half(),
        )

    def pointmap(self, view: int) -> torch.Tensor:
        """Return a view's own points: hills and valleys at about 4 units."""
        y, x = torch.meshgrid(
            torch.linspace(0, 1, HEIGHT), torch.linspace(0, 1, WIDTH), indexing="ij"
        )
        depth = 4 + (9 * x + view).sin() + (7 * y + 2 * view).cos()
        intrinsics = torch.tensor([[FOCAL_PX, 0, WIDTH / 2], [0, FOCAL_PX, HEIGHT / 2], [0, 0, 1]])
        return unproject(depth, intrinsics)


if __name__ == "__main__":
    main()
