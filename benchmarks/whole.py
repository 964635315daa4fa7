"""Measure prediction and alignment together: `python benchmarks/whole.py --photos 32`.

Photos of noise, compared completely, go through a network of random weights of the published sizes.
Nonsense cannot be aligned, so in place of each prediction the alignment is given one of a simulated
scene (noise of 3 %), of the same size and type, made beforehand. Prints one JSON line: seconds of
encoding, of prediction with what the alignment takes from it as it streams by, of the alignment
after that, and of all three; peak_mb beyond the weights (resident memory; torch's on CUDA as well)
beside the plan.

With `--network-pairs K` only the first K pairs go through the network and the simulated ones are
made as they are needed: seconds then mean nothing, but memory is that of the whole run.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from alignment import PeakMemory
from prediction import random_views

from recon3d.align import align
from recon3d.config import PRESETS, AlignConfig, Precision, PredictConfig
from recon3d.device import resolve_device, resolve_precision
from recon3d.geometry import compose, invert_rigid, look_at, transform_points, unproject
from recon3d.memory import free_device_bytes, free_host_bytes, plan
from recon3d.model import TwoViewModel
from recon3d.predict import encode_views, predict_encoded
from recon3d.types import PairPrediction

NOISE = 0.03


class Ring:
    """Cameras around a hilly middle, all of which see the same."""

    def __init__(self, n_views: int, height: int, width: int) -> None:
        """Place the cameras; pointmaps are made when they are asked for."""
        self.size, self.focal_px = (height, width), float(max(height, width))
        angle = torch.arange(n_views).double() * (2 * torch.pi / n_views)
        centre = torch.stack((4 * angle.cos(), 0.3 * (3 * angle).sin(), 4 * angle.sin()), -1)
        self.cam2world = look_at(centre, 0 * centre, torch.tensor([0.0, -1.0, 0.0]).double())
        generator = torch.Generator().manual_seed(0)
        self.noise = NOISE * torch.randn(7, height, width, 1, generator=generator)
        self.confidence = (2 + 6 * torch.rand(7, height, width, generator=generator)).half()

    def predict(self, i: int, j: int) -> PairPrediction:
        """Return noisy pointmaps of two views in camera i, as a network streams them."""
        own, other = self.pointmap(i), self.pointmap(j)
        cam_j2cam_i = compose(invert_rigid(self.cam2world[i]), self.cam2world[j]).float()
        seen = transform_points(cam_j2cam_i, other.view(-1, 3)).view(other.shape)
        own, seen = (
            (points * (1 + self.noise[(i + 3 * j + k) % 7])).half()
            for k, points in enumerate((own, seen))
        )
        return PairPrediction(
            i=i,
            j=j,
            pointmap_i_in_i=own,
            pointmap_j_in_i=seen,
            confidence_i=self.confidence[i % 7].clone(),
            confidence_j=self.confidence[j % 7].clone(),
        )

    def pointmap(self, view: int) -> torch.Tensor:
        """Return a view's own points, about 4 units away."""
        height, width = self.size
        y, x = torch.meshgrid(
            torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij"
        )
        depth = 4 + 0.5 * (9 * x + view).sin() + 0.5 * (7 * y + 2 * view).cos()
        f = self.focal_px
        return unproject(depth, torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="large")
    parser.add_argument("--size", default="512x384", help="width x height of a view in pixels")
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--network-pairs", type=int, help="measure memory: pairs really predicted")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    device = resolve_device(options.device)
    views = random_views(options.photos, height, width)
    pairs = list(itertools.combinations(range(options.photos), 2))
    model = TwoViewModel(PRESETS[options.preset]).to(device).eval()
    half = resolve_precision(options.precision, device) != torch.float32
    planned = plan(
        model.config,
        [(height, width)] * options.photos,
        pairs,
        free_device_bytes(device),
        device.type,
        half=half,
        host_free_bytes=free_host_bytes() if device.type == "cuda" else None,
    )
    config = PredictConfig(
        device=options.device, precision=options.precision, batch_size=planned.batch_size
    )
    ring = Ring(options.photos, height, width)
    ordered = [order for i, j in pairs for order in ((i, j), (j, i))]
    lazily = options.network_pairs is not None
    made = [] if lazily else [ring.predict(i, j) for i, j in ordered]
    # loads the libraries and the kernels; memory it keeps must not hide what is measured
    few = encode_views(model, random_views(3, 48, 64) if lazily else views[:3], config)
    list(predict_encoded(model, few, [(0, 1), (0, 2), (1, 2)], config))
    small = Ring(4, 48, 64)
    align(
        [small.predict(i, j) for i, j in itertools.permutations(range(4), 2)],
        tuple(random_views(4, 48, 64)),
        AlignConfig(),
        device=device,
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    weights = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    times: dict[str, float] = {}

    def swapped(predictions: Iterable[PairPrediction]) -> Iterator[PairPrediction]:
        """Yield a simulated prediction for every real one."""
        n_done = 0
        for n_done, found in enumerate(predictions, start=1):
            same = ring.predict(found.i, found.j) if lazily else made[n_done - 1]
            yield replace(same, i=found.i, j=found.j)
        for i, j in ordered[n_done:]:
            yield ring.predict(i, j)
        times["predicted"] = time.perf_counter()

    with PeakMemory() as peak:
        began = time.perf_counter()
        encoded = encode_views(model, views, config)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times["encoded"] = time.perf_counter()
        some = pairs[: options.network_pairs]
        stream = swapped(predict_encoded(model, encoded, some, config))
        scene = align(stream, tuple(views), AlignConfig(), device=device)
        ended = time.perf_counter()
    figures = {
        "photos": options.photos,
        "pairs": len(pairs),
        "network_pairs": len(some),
        "preset": options.preset,
        "size": options.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "batch": planned.batch_size,
        "placed": len(scene.views),
        "encode_s": round(times["encoded"] - began, 3),
        "predict_s": round(times["predicted"] - times["encoded"], 3),
        "align_s": round(ended - times["predicted"], 3),
        "seconds": round(ended - began, 3),
        "peak_mb": round(peak.megabytes, 1),
        "planned_host_mb": round(planned.host_bytes / 1e6, 1),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device) - weights
        figures["peak_gpu_mb"] = round(most / 1e6, 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
