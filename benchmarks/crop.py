"""Crop photos with ground truth: `python benchmarks/crop.py DIR [DIR ...] -o OUT`, for `poses.py`.

Of the first photos of each folder (images/ and gt.json) three in five, drawn at random, lose 12 to
25 % of one side. Written are the photos (PNG) and a gt.json that tells the new principal points.
"""

import argparse
import json
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np


def crop(folder: Path, out: Path, n_photos: int) -> int:
    """Write cropped photos of a folder; returns how many were cropped."""
    chances = np.random.default_rng(crc32(folder.name.encode()))
    truth = json.loads((folder / "gt.json").read_text())
    (out / "images").mkdir(parents=True)
    n_cropped = 0
    truth["images"] = truth["images"][:n_photos]
    for entry in truth["images"]:
        path = folder / "images" / Path(entry["file"]).name
        bgr = cv2.imread(str(path))
        height, width = bgr.shape[:2]
        start, stop = [0, 0], [width, height]
        if chances.random() < 0.6:
            n_cropped += 1
            axis, at_start = int(chances.integers(2)), bool(chances.integers(2))
            cut = round(stop[axis] * chances.uniform(0.12, 0.25))
            if at_start:
                start[axis] = cut
            else:
                stop[axis] -= cut
        entry.pop("depth", None)
        entry["file"] = f"images/{path.stem}.png"
        entry["width"], entry["height"] = stop[0] - start[0], stop[1] - start[1]
        for key, middle, cut in (("cx", width / 2, start[0]), ("cy", height / 2, start[1])):
            entry[key] = entry.get(key, middle) - cut
        part = bgr[start[1] : stop[1], start[0] : stop[0]]
        cv2.imwrite(str(out / entry["file"]), part)
    (out / "gt.json").write_text(json.dumps(truth))
    return n_cropped


def main() -> None:
    """Parse, crop, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--photos", type=int, default=8, help="of each folder, at most")
    options = parser.parse_args()
    if len({folder.name for folder in options.folders}) < len(options.folders):
        parser.error("two folders have one name")
    for folder in options.folders:
        n_cropped = crop(folder, options.out / folder.name, options.photos)
        print(json.dumps({"scene": folder.name, "cropped": n_cropped}))


if __name__ == "__main__":
    main()
