"""Measure the network: `python benchmarks/prediction.py --preset large --size 512x384 --pairs 1`.

Random weights of the published sizes and random views: only the arithmetic counts. Prints one JSON
line: seconds and CPU seconds of encoding a view and of predicting a directed pair from encoded
views, milliseconds of a symmetric pair (both orders) and pairs a second, encoder runs, the peak
memory beyond the weights (resident size on the CPU, allocated bytes on CUDA) beside what was
predicted, and the plan for `--photos` photos compared completely. On CUDA it runs once before,
unmeasured.

With `--naive` every directed pair is run by itself in fp32 and both of its views are encoded anew,
as the published programs do. `--profile` also writes to stderr what the work is made of.
"""

import argparse
import itertools
import json
import os
import resource
import sys
import time
from dataclasses import asdict

import torch
from profiling import print_profile

from recon3d.config import PRESETS, Compile, Precision, PredictConfig
from recon3d.device import resolve_device, resolve_precision
from recon3d.memory import free_device_bytes, plan
from recon3d.model import TwoViewModel
from recon3d.predict import encode_views, predict_encoded
from recon3d.types import View


def random_views(n_views: int, height: int, width: int) -> list[View]:
    """Return views of noise."""
    generator = torch.Generator().manual_seed(0)
    return [
        View(
            name=f"{index}",
            sha256="",
            image=torch.rand(3, height, width, generator=generator) * 2 - 1,
            photo2view=torch.eye(3),
            photo_width=width,
            photo_height=height,
            focal_px=None,
        )
        for index in range(n_views)
    ]


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory so far: of the device, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def name_of(device: torch.device) -> str:
    """Return the name of the card, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def naive(
    model: TwoViewModel, views: list[View], pairs: list[tuple[int, int]], device: torch.device
) -> dict[str, object]:
    """Return what directed pairs cost that share nothing, one at a time in fp32."""
    patch = model.config.patch_size
    wall, cpu, n_directed = time.perf_counter(), time.process_time(), 0
    for i, j in ((a, b) for pair in pairs for a, b in (pair, pair[::-1])):
        with torch.inference_mode():
            images = [views[n].image[None].to(device) for n in (i, j)]
            grids = [(x.shape[2] // patch, x.shape[3] // patch) for x in images]
            output = model.decode(*(model.encode(x) for x in images), *grids)
            output.pointmap_j.to("cpu")
        n_directed += 1
    return {
        "naive": True,
        "device": name_of(device),
        "seconds_per_directed_pair": round((time.perf_counter() - wall) / n_directed, 4),
        "cpu_seconds_per_directed_pair": round((time.process_time() - cpu) / n_directed, 4),
        "directed_pairs": n_directed,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="large")
    parser.add_argument("--size", default="512x384", help="width x height of a view in pixels")
    parser.add_argument("--pairs", type=int, default=1, help="unordered pairs, both orders each")
    parser.add_argument("--batch", type=int, help="directed pairs run together")
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--photos", type=int, default=50, help="of the plan that is printed")
    parser.add_argument("--warm-up", action="store_true", help="run once before, unmeasured")
    parser.add_argument("--compile", type=Compile, default=Compile.AUTO)
    parser.add_argument("--naive", action="store_true", help="encode anew for each directed pair")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    config = PredictConfig(
        device=options.device,
        precision=options.precision,
        batch_size=options.batch,
        compile=options.compile,
    )
    device = resolve_device(config.device)
    half = resolve_precision(config.precision, device) != torch.float32
    model = TwoViewModel(PRESETS[options.preset]).to(device).eval()
    n_views = next(n for n in itertools.count(2) if n * (n - 1) // 2 >= options.pairs)
    views = random_views(n_views, height, width)
    pairs = list(itertools.combinations(range(n_views), 2))[: options.pairs]
    if options.naive:
        print(json.dumps(naive(model, views, pairs, device)))
        return
    runs = 0

    def counted(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal runs
        runs += len(given[0])

    if options.warm_up or device.type == "cuda":
        list(predict_encoded(model, encode_views(model, views, config), pairs, config))
    model.patch_embed.register_forward_pre_hook(counted)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = peak_bytes(device)
    wall, cpu = time.perf_counter(), time.process_time()
    encoded = encode_views(model, views, config)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    encoded_wall, encoded_cpu = time.perf_counter(), time.process_time()
    n_directed = sum(1 for _ in predict_encoded(model, encoded, pairs, config))
    end_wall, end_cpu = time.perf_counter(), time.process_time()
    shapes = [(height, width)] * options.photos
    complete = list(itertools.combinations(range(options.photos), 2))
    free = free_device_bytes(device)

    def planned(n_views: int, graph: list[tuple[int, int]]) -> dict[str, object]:
        found = asdict(
            plan(
                model.config,
                shapes[:n_views],
                graph,
                free,
                device.type,
                half=half,
                batch_size=options.batch,
            )
        )
        return found | {"pairs": len(graph)}

    print(
        json.dumps(
            {
                "preset": options.preset,
                "size": options.size,
                "device": name_of(device),
                "precision": str(resolve_precision(config.precision, device)),
                "seconds_per_view": round((encoded_wall - wall) / n_views, 4),
                "cpu_seconds_per_view": round((encoded_cpu - cpu) / n_views, 4),
                "seconds_per_directed_pair": round((end_wall - encoded_wall) / n_directed, 4),
                "cpu_seconds_per_directed_pair": round((end_cpu - encoded_cpu) / n_directed, 4),
                "ms_per_symmetric_pair": round(2000 * (end_wall - wall) / n_directed, 2),
                "symmetric_pairs_per_s": round(n_directed / 2 / (end_wall - wall), 2),
                "directed_pairs": n_directed,
                "encoder_runs": runs,
                "peak_bytes_beyond_weights": peak_bytes(device) - before,
                "planned": planned(options.photos, complete),
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )
    if options.profile:
        print_profile(
            f"{len(pairs)} pairs",
            lambda: list(predict_encoded(model, encoded, pairs, config)),
            device,
        )


if __name__ == "__main__":
    main()
