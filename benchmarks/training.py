"""Measure training: `python benchmarks/training.py --preset small --scenes 48 --views 4`.

Prints one JSON line for each size: ordered pairs a second of rendering alone (each rendered once
and photographed for all its uses), of the steps alone (network, loss, optimiser on a batch that is
there) and of both as training runs them, MFU of the latter, seconds before the first step
(compiling), and on CUDA the peak of memory, which includes a step of square images, the largest.
The weights are those of the start; landscapes and portraits alternate. `--profile` also writes to
stderr what rendering and steps are made of.
"""

import argparse
import json
import time
from dataclasses import replace

import torch
from profiling import print_profile

from recon3d import training
from recon3d.batches import image_shape
from recon3d.config import PRESETS
from recon3d.device import resolve_device, resolve_precision
from recon3d.model import TwoViewModel
from recon3d.supply import Supply, supply_of, training_source
from recon3d.throughput import TRAINING_PASSES, peak_of
from recon3d.train import PairTask
from recon3d.train_config import Optimizer, TrainConfig
from recon3d.train_state import State
from recon3d.workers import Workers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--sizes", default="224", help="long edges, with commas between")
    parser.add_argument("--scenes", type=int, default=8, help="scenes of a batch")
    parser.add_argument("--views", type=int, default=4, help="views of a scene")
    parser.add_argument("--uses", type=int, default=1, help="steps that a rendering serves")
    parser.add_argument("--optimizer", default="adamw", choices=list(Optimizer))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-compile", action="store_true", help="neither renderer nor network")
    parser.add_argument("--compile-network", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    config = replace(
        TrainConfig(),
        scenes_per_step=options.scenes,
        views_per_scene=options.views,
        uses=options.uses,
        optimizer=Optimizer(options.optimizer),
        compile=not options.no_compile,
        compile_network=options.compile_network and not options.no_compile,
    )
    dtype = resolve_precision(config.precision, device)
    model = TwoViewModel(PRESETS[options.preset]).to(device)
    task, state = PairTask(model, config, dtype), State(model, config)
    for size in map(int, options.sizes.split(",")):
        measure(task, state, config, device, size, options.steps, profile=options.profile)


def measure(
    task: PairTask,
    state: State,
    config: TrainConfig,
    device: torch.device,
    size: int,
    steps: int,
    *,
    profile: bool,
) -> None:
    """Measure one size and print its line."""

    def plan(number: int) -> tuple[int, int, float]:
        portrait = number // config.uses % 2 == 1
        return *image_shape(size, 3 / 4, portrait, task.patch_size), 1.0

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def train(supply: Supply | None, n_steps: int) -> tuple[float, int, int]:
        """Return (seconds, pairs, operations) of some steps, on the same batches without supply."""
        began, pairs, flops = wait(), 0, 0
        for number in range(n_steps):
            batch = there[number % 2] if supply is None else supply.take(plan)
            step = task.step(batch, 0.5, source.chances(number))
            training._update(state, step.loss, 0.5, config, alone)
            pairs, flops = pairs + step.n_pairs, flops + TRAINING_PASSES * step.forward_flops
        return wait() - began, pairs, flops

    alone, source = Workers(device=device), training_source(config, device, seed=0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = wait()
    there = [source.batch(*plan(number * config.uses)) for number in range(2)]
    render_first_s = wait() - began
    step_first_s, *_ = train(None, 2)
    square = source.batch(*image_shape(size, 1.0, False, task.patch_size))
    training._update(state, task.step(square, 0.5, source.chances(0)).loss, 0.5, config, alone)
    del square

    def render(n_renderings: int) -> None:
        for _ in range(n_renderings * config.uses):
            source.batch(*plan(source.served))

    began = wait()
    render(steps)
    render_s = wait() - began
    step_s, pairs, _ = train(None, steps)
    with supply_of(source, config.render_ahead) as supply:
        train(supply, 2)
        both_s, pairs_of_both, flops = train(supply, steps)
    views = config.scenes_per_step * config.views_per_scene
    rendered = steps * views * (config.views_per_scene - 1)
    peak = peak_of(device, task.dtype)
    figures: dict[str, object] = {
        "size": size,
        "device": str(device),
        "precision": str(task.dtype).removeprefix("torch."),
        "pairs_of_a_batch": pairs // steps,
        "compile_network": config.compile_network,
        "render_first_s": round(render_first_s, 1),
        "step_first_s": round(step_first_s, 1),
        "render_pairs_per_s": round(rendered / render_s, 1),
        "step_pairs_per_s": round(pairs / step_s, 1),
        "pairs_per_s": round(pairs_of_both / both_s, 1),
        "mfu": round(flops / both_s / peak.flops_per_s, 4),
        "peak_source": peak.source,
    }
    if device.type == "cuda":
        figures["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 1)
    print(json.dumps(figures), flush=True)
    if profile:
        print_profile(f"{size}: 2 renderings", lambda: render(2), device)
        print_profile(f"{size}: 2 steps", lambda: train(None, 2), device)


if __name__ == "__main__":
    main()
