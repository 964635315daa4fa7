"""Judge weights on held-out pairs: `python benchmarks/held_out.py embedded new.safetensors`.

All families of scenes at their hardest, four shapes of images, the same pairs for all weights.
Prints one JSON line for each: view 2's error with the true view 1 and with one of another scene,
their ratio (1: the other view is ignored), and the median error of the relative rotation beside the
median rotation. Training never sees this seed.
"""

import argparse
import json
from dataclasses import replace

from recon3d.batches import Source, image_shape
from recon3d.device import resolve_device, resolve_precision
from recon3d.train import probe
from recon3d.train_config import TrainConfig
from recon3d.weights import load

SEED = 555
SHAPES = ((3 / 4, False), (2 / 3, True), (1.0, False), (9 / 16, False))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", nargs="+")
    parser.add_argument("--size", type=int, default=160, help="long edge in pixels")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=6, help="scenes of a batch")
    parser.add_argument("--textures", help="folder of photos used as textures")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    device = resolve_device(options.device)
    config = replace(
        TrainConfig(),
        scenes_per_step=options.scenes,
        views_per_scene=2,
        textures=options.textures,
        compile=not options.no_compile,
    )
    dtype = resolve_precision(config.precision, device)
    models = {name: load(name).eval().to(device) for name in options.weights}
    patch = {model.config.patch_size for model in models.values()}
    if len(patch) > 1:
        parser.error("the networks differ in their size of patches: judge them one by one")
    source = Source(config, device, seed=SEED)
    batches = []
    for number in range(options.batches):
        shape = image_shape(options.size, *SHAPES[number % len(SHAPES)], *patch)
        batches.append(source.batch(*shape))
    for name, model in models.items():
        found = probe(model, batches, dtype)
        print(json.dumps({"weights": name} | {k: round(v, 4) for k, v in found.items()}))


if __name__ == "__main__":
    main()
