"""What `recon3d run` says when it is done: a sentence for people, a JSON object for programs."""

from collections.abc import Sequence
from typing import Any

from recon3d.cameras import photo_intrinsics
from recon3d.config import PredictConfig
from recon3d.console import Console
from recon3d.predict import resolve_device, resolve_precision
from recon3d.types import PointCloud, Scene

FORMAT = "recon3d-run"
VERSION = 1


def sentence(scene: Scene) -> str:
    """Return "3 of 5 photos placed; 2 left out: a.jpg (why), b.jpg (why)"."""
    n_placed, n_out = len(scene.views), len(scene.left_out)
    text = f"{n_placed} of {n_placed + n_out} photos placed"
    if not n_out:
        return text
    return f"{text}; {n_out} left out: " + ", ".join(
        f"{entry.name} ({entry.reason})" for entry in scene.left_out
    )


def document(
    scene: Scene,
    cloud: PointCloud,
    outputs: Sequence[str],
    config: PredictConfig,
    stages: Console,
) -> dict[str, Any]:
    """Return the versioned object of `recon3d run --json`.

    `focal_px` is in pixels of the upright original photo. `stages` gives the steps done and the
    seconds taken by each stage in the order they ran; "pairs" counts ordered pairs.
    """
    device = resolve_device(config.device)
    dtype = resolve_precision(config.precision, device)
    return {
        "format": FORMAT,
        "version": VERSION,
        "photos": len(scene.views) + len(scene.left_out),
        "placed": [
            {
                "name": view.name,
                "focal_px": float(photo_intrinsics(intrinsics, view.photo2view)[0, 0]),
                "focal_source": verdict.focal_source,
            }
            for view, intrinsics, verdict in zip(
                scene.views, scene.intrinsics, scene.verdicts, strict=True
            )
        ],
        "left_out": [{"name": entry.name, "reason": entry.reason} for entry in scene.left_out],
        "points": len(cloud.points_in_world),
        "units": "metres" if scene.metric else "arbitrary",
        "outputs": list(outputs),
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "stages": {
            stage: {"count": stages.counts[stage], "seconds": round(seconds, 3)}
            for stage, seconds in stages.seconds.items()
        },
        "seconds": round(stages.total_s, 3),
    }
