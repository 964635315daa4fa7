"""Measure the renderer: `python benchmarks/rendering.py --size 224 --scenes 8 --threads 1`.

Batches as training draws them, views of 4:3, two colour rays a pixel. Prints one JSON line: seconds
of the first batch, which compiles; then rays, views and ordered pairs a second of wall time, and
of processor time a thread on a CPU, over all work of a batch: scenes, cameras, rendering, sensor.
"""

import argparse
import json
import time
from dataclasses import replace

import torch

from recon3d.batches import image_shape
from recon3d.device import resolve_device
from recon3d.supply import training_source
from recon3d.train_config import TrainConfig


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=224, help="long edge in pixels")
    parser.add_argument("--scenes", type=int, default=8, help="scenes of a batch")
    parser.add_argument("--views", type=int, default=3, help="views of a scene")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    config = replace(
        TrainConfig(),
        scenes_per_step=options.scenes,
        views_per_scene=options.views,
        compile=not options.no_compile,
    )
    source = training_source(config, device, seed=0)
    height, width = image_shape(options.size, 3 / 4, False, 16)

    def batch() -> None:
        source.batch(height, width)
        if device.type == "cuda":
            torch.cuda.synchronize()

    wall, cpu = time.perf_counter(), time.process_time()
    batch()
    first_wall, first_cpu = time.perf_counter() - wall, time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(options.batches):
        batch()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    n_views = options.batches * options.scenes * options.views
    n_pairs = n_views * (options.views - 1)
    n_rays = n_views * (height * width + (height + 1) * (width + 1))
    figures: dict[str, object] = {
        "size": f"{width}x{height}",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "scenes": options.scenes,
        "views": options.views,
        "compiled": config.compile,
        "first_batch_s": round(first_wall, 1),
        "first_batch_cpu_s": round(first_cpu, 1),
        "rays_per_s": round(n_rays / wall),
        "views_per_s": round(n_views / wall, 1),
        "ordered_pairs_per_s": round(n_pairs / wall, 1),
    }
    if device.type == "cpu":
        figures["ordered_pairs_per_cpu_s"] = round(n_pairs / cpu, 1)
        figures["cpu_us_per_ray"] = round(cpu / n_rays * 1e6, 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
