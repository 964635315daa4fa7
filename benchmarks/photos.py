"""Measure how fast photographs become views: `python benchmarks/photos.py [--photos 100]`.

Makes its own photographs of 12 megapixels (shapes, smooth light and sensor noise; about 4 MB each
as a JPEG) in a temporary folder, reads them once to fill the disk cache, and prints one JSON line:
seconds (median of the runs) and cpu_seconds of `load_views`, the parts of one photograph in
milliseconds of one thread, threads, and the load of the machine.
"""

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from recon3d.config import PhotoConfig
from recon3d.photos import load_views, read_photo
from recon3d.views import make_view

WIDTH, HEIGHT = 4032, 3024
QUALITY = 93
NOISE = 5.5  # standard deviation of the sensor noise in grey levels: makes about 4 MB
N_SHAPES = 400


def photograph(seed: int) -> np.ndarray:
    """Return a picture with edges, smooth light and noise, 8-bit BGR."""
    random = np.random.default_rng(seed)
    light = random.uniform(60, 200, (6, 8, 3)).astype(np.float32)
    picture = cv2.resize(light, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for _ in range(N_SHAPES):
        centre = (int(random.integers(WIDTH)), int(random.integers(HEIGHT)))
        axes = tuple(int(length) for length in random.integers(8, 320, 2))
        colour = tuple(random.uniform(0, 255, 3).tolist())
        cv2.ellipse(picture, centre, axes, random.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
    # noise of luminance: that of colour is lost in the JPEG anyway
    noise = NOISE * random.standard_normal((HEIGHT, WIDTH), np.float32)
    return np.clip(picture + noise[..., None], 0, 255).astype(np.uint8)


def write_photographs(folder: Path, n_photos: int) -> float:
    """Write distinct JPEGs into the folder; return their mean size in megabytes."""
    total = 0
    data = b""
    for number in range(n_photos):
        if number % 10 == 0:  # drawing takes longer than all that is measured: ten share a picture
            _, encoded = cv2.imencode(
                ".jpg", photograph(number), (cv2.IMWRITE_JPEG_QUALITY, QUALITY)
            )
            data = encoded.tobytes()
        # a comment segment of its own makes every file another content
        text = f"photo {number}".encode()
        comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
        (folder / f"{number:04}.jpg").write_bytes(data[:2] + comment + data[2:])
        total += len(data)
    return total / n_photos / 1e6


def parts_ms(path: Path, config: PhotoConfig) -> dict[str, float]:
    """Return the milliseconds that the parts of one photograph take, best of five."""

    def best(action: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
        return round(1000 * min(times), 2)

    data = path.read_bytes()
    photo = read_photo(path, path.name, config, reduce=True)
    return {
        "read": best(path.read_bytes),
        "sha256": best(lambda: hashlib.sha256(data).hexdigest()),
        "read_and_decode": best(lambda: read_photo(path, path.name, config, reduce=True)),
        "decode_whole": best(lambda: read_photo(path, path.name, config)),
        "view": best(lambda: make_view(photo, config.size or 512, config.patch_size)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--size", type=int, default=512, help="long edge of a view in pixels")
    parser.add_argument("--threads", type=int, help="default: as many as pay")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    config = PhotoConfig(size=options.size, threads=options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        megabytes = write_photographs(folder, options.photos)
        load_views([name], config)
        seconds, cpu_seconds = [], []
        for _ in range(options.runs):
            wall, cpu = time.perf_counter(), time.process_time()
            load_views([name], config)
            seconds.append(time.perf_counter() - wall)
            cpu_seconds.append(time.process_time() - cpu)
        parts = parts_ms(folder / "0000.jpg", config)
    figures = {
        "photos": options.photos,
        "megabytes_each": round(megabytes, 2),
        "size": options.size,
        "seconds": round(statistics.median(seconds), 3),
        "cpu_seconds": round(statistics.median(cpu_seconds), 3),
        "parts_ms": parts,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "opencv": cv2.__version__,
        "torch_threads": torch.get_num_threads(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
