"""A procedural scene as a folder of photographs with exact ground truth."""

import json
import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.config import SYNTH_PHOTOS, SYNTH_PIXELS
from recon3d.errors import InputError, UsageError
from recon3d.files import atomic_write, not_writable
from recon3d.geometry import compose, invert_rigid, seen_from, transform_points, unproject
from recon3d.progress import Track, silent
from recon3d.synth.cameras import CameraRanges, sample_cameras
from recon3d.synth.families import KINDS, sample_worlds
from recon3d.synth.render import render, render_depth
from recon3d.synth.sensor import photograph
from recon3d.synth.textures import Atlas, make_atlas
from recon3d.synth.world import World

logger = logging.getLogger(__name__)

CONVENTIONS = (
    "OpenCV camera axes (x right, y down, z forward); world_to_camera maps homogeneous world "
    "points to camera; intrinsics in pixels of the stored image, integer coordinates at pixel "
    "centres (top-left pixel centre = (0,0)); no lens distortion; depth = z-depth, 0 = unknown"
)
RANGES = CameraRanges(
    fov_deg=(55.0, 68.0),
    usual_share=0.0,
    covisibility=(0.47, 0.77),
    none_share=0.0,
    rotation_share=0.0,
    zoom_share=0.0,
    near_share=0.0,
    far_share=0.0,
    own_lens_share=0.0,
    roll_deg=3.0,
    any_roll_share=0.0,
    principal_point=0.0,
)
_TRIALS = 30
_JUDGED = 32
"""Most photos of a scene that is tried in which each is compared with each."""


def covisibility(
    depth: Float[Tensor, "view height width"],
    cam2world: Float[Tensor, "view 4 4"],
    intrinsics: Float[Tensor, "view 3 3"],
) -> Float[Tensor, "view view"]:
    """Return the share of the pixels of view i (row) that view j (column) sees as well."""
    n = len(depth)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    i, j = i.flatten(), j.flatten()
    points = unproject(depth, intrinsics).flatten(1, 2)
    cam_i2cam_j = compose(invert_rigid(cam2world[j]), cam2world[i])
    seen, _, _ = seen_from(transform_points(cam_i2cam_j, points[i]), depth[j], intrinsics[j])
    return (seen & (depth.flatten(1)[i] > 0)).float().mean(-1).view(n, n)


def _choose(
    kind: str,
    n_photos: int,
    height: int,
    width: int,
    atlas: Atlas,
    generator: torch.Generator,
    track: Track = silent,
) -> tuple[World, Tensor, Tensor]:
    """Draw scenes until every photo overlaps its neighbours well but not wholly."""
    kinds = torch.tensor([KINDS[kind]])
    best: tuple[float, World, Tensor, Tensor] | None = None
    for n_drawn in range(1, _TRIALS + 1):
        scene, vantage = sample_worlds(kinds, atlas, generator)
        cam2world, intrinsics = sample_cameras(
            scene, vantage, n_photos, height, width, generator, RANGES
        )
        shrink = 64 / max(height, width)
        low_height, low_width = round(height * shrink), round(width * shrink)
        scale = torch.tensor([shrink, shrink, 1.0])[:, None]
        some = torch.linspace(0, n_photos - 1, min(n_photos, _JUDGED)).round().long()
        cameras, lenses = cam2world[:, some], intrinsics[:, some] * scale
        depth = render_depth(scene, cameras, lenses, low_height, low_width)[0]
        known = depth > 0
        share = covisibility(depth, cameras[0], lenses[0])
        off_diagonal = share[~torch.eye(len(some), dtype=torch.bool)]
        near = torch.where(known, depth, torch.inf).flatten(1).amin(-1).amin()
        # 0.45 to 0.8 of a photo is seen again, nothing blocks the lens, little sky.
        score = -float((off_diagonal - off_diagonal.clamp(0.45, 0.8)).abs().mean())
        score -= float((0.5 - near).clamp_min(0)) + 2 * max(0.0, 0.7 - float(known.float().mean()))
        if best is None or score > best[0]:
            best = (score, scene, cam2world, intrinsics)
        track("choose", n_drawn, _TRIALS)
        if score > -0.02:
            break
    track("choose", _TRIALS, _TRIALS)
    if best is None:
        raise InputError("no scene could be drawn: give at least one trial.")
    return best[1:]


def write_folder(
    out_dir: Path,
    *,
    kind: str,
    n_photos: int,
    width: int,
    height: int,
    seed: int,
    overwrite: bool,
    textures: Path | None = None,
    depth: bool = True,
    track: Track = silent,
) -> None:
    """Write `out_dir`/images/*.jpg, gt.json and, where asked for, depth/*.npy (float16).

    The layout is that of evaluation data sets: per image width, height, fx, fy, cx, cy (integer
    pixel centres) and world_to_camera. Edges are smooth in colour; depth is of pixel centres.
    `track` is told the stages "choose", of a scene whose photos overlap well, and "render".

    Raises:
        UsageError: an unknown kind, too few or too many photos, sizes out of bounds, or a folder
            that already holds a scene.
        ResourceError: when the folder cannot be written.
    """
    import cv2

    if kind not in KINDS:
        raise UsageError(f"scene {kind!r} is unknown. Known: {', '.join(KINDS)}.")
    for name, value, (low, high) in (
        ("photos", n_photos, SYNTH_PHOTOS),
        ("width", width, SYNTH_PIXELS),
        ("height", height, SYNTH_PIXELS),
    ):
        if not low <= value <= high:
            raise UsageError(f"{name} is {value}. Give a number from {low} to {high}.")
    parts = [out_dir / "images", out_dir / "depth"]
    held = [part for part in parts if part.is_dir() and any(part.iterdir())]
    if (held or (out_dir / "gt.json").exists()) and not overwrite:
        raise UsageError(f"{out_dir} holds a scene; add --overwrite or choose another folder.")
    generator = torch.Generator().manual_seed(seed)
    atlas = make_atlas(256, generator, textures)
    scene, cam2world, intrinsics = _choose(kind, n_photos, height, width, atlas, generator, track)
    logger.info("chose a %s; rendering %d photos of %d x %d pixels", kind, n_photos, width, height)
    images = []
    try:
        (out_dir / "images").mkdir(parents=True, exist_ok=True)
        if depth:
            (out_dir / "depth").mkdir(exist_ok=True)
        for old in (file for part in held for file in part.glob("[0-9]" * 4 + ".*")):
            old.unlink()  # else photos of two scenes would lie side by side
        (out_dir / "gt.json").unlink(missing_ok=True)
    except OSError as error:
        raise not_writable(out_dir, error) from error
    for view in range(n_photos):
        one = slice(view, view + 1)
        seen = render(
            scene, atlas.texels, cam2world[:, one], intrinsics[:, one], height, width, smooth=True
        )
        light = seen.rgb[0].permute(0, 3, 1, 2)
        shot = (
            (photograph(light, generator, strength=0.3)[0].permute(1, 2, 0) * 255)
            .round()
            .to(torch.uint8)
        )
        ok, encoded = cv2.imencode(".jpg", shot.numpy()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        if not ok:
            raise InputError(f"OpenCV cannot encode a JPEG of {width}x{height}.")
        name = f"{view:04d}"
        with atomic_write(out_dir / "images" / f"{name}.jpg") as file:
            file.write(encoded.tobytes())
        matrix = intrinsics[0, view]
        entry = {
            "file": f"images/{name}.jpg",
            "width": width,
            "height": height,
            "fx": float(matrix[0, 0]),
            "fy": float(matrix[1, 1]),
            "cx": float(matrix[0, 2]) - 0.5,
            "cy": float(matrix[1, 2]) - 0.5,
            "world_to_camera": invert_rigid(cam2world[0, view].double()).tolist(),
        }
        if depth:
            _write_depth(out_dir / "depth" / f"{name}.npy", seen.depth[0, 0])
            entry["depth"] = f"depth/{name}.npy"
        images.append(entry)
        track("render", view + 1, n_photos)
    description = {
        "scene": f"synth_{kind}_{seed}",
        "description": f"procedural {kind}, rendered by recon3d synth",
        "units": "metric",
        "gt_kind": "exact intrinsics, poses" + (" and depth" if depth else ""),
        "conventions": CONVENTIONS,
        "images": images,
    }
    with atomic_write(out_dir / "gt.json") as file:
        file.write((json.dumps(description, indent=1) + "\n").encode())


def _write_depth(path: Path, depth: Float[Tensor, "height width"]) -> None:
    import numpy as np

    with atomic_write(path) as file:
        np.save(file, depth.numpy().astype(np.float16), allow_pickle=False)
