"""What `recon3d run` says when it is done: a sentence for people, a JSON object for programs."""

import math
from collections.abc import Sequence
from typing import Any

from recon3d.align_verdicts import ELSEWHERE
from recon3d.bundle_check import RefineReport, is_poor
from recon3d.cameras import photo_intrinsics
from recon3d.config import PredictConfig
from recon3d.console import Console
from recon3d.dense import DenseReport
from recon3d.pairs import connected_components
from recon3d.pipeline import Reconstruction
from recon3d.predict import resolve_device, resolve_precision
from recon3d.types import PointCloud, Scene

FORMAT = "recon3d-run"
VERSION = 1


def sentence(
    scenes: Sequence[Scene],
    refinements: Sequence[RefineReport] = (),
    dense: Sequence[DenseReport | None] = (),
    *,
    cameras_given: bool = False,
) -> str:
    """Return "3 of 5 photos placed; 2 left out: a.jpg (why), b.jpg (why)".

    With several scenes their sizes are named, pairs that contradict the rest are counted, and it is
    said whether cameras were refined, or given, and how much of the depth the photos confirm.
    """
    left_out = scenes[0].left_out
    n_placed = sum(len(scene.views) for scene in scenes)
    text = f"{n_placed} of {n_placed + len(left_out)} photos placed"
    if len(scenes) > 1:
        sizes = " + ".join(str(len(scene.views)) for scene in scenes)
        text += f" in {len(scenes)} groups ({sizes})"
    n_refined = sum(report.improved for report in refinements)
    if cameras_given:
        text += "; cameras as given" + ", but scaled" * any(scene.metric for scene in scenes)
    elif refinements:
        what = "cameras" if n_refined == len(scenes) else f"cameras of {n_refined} groups"
        text += f"; {what} refined" if n_refined else "; cameras as estimated, not refined"
        if any(map(is_poor, refinements)):
            text += ", but features fit them badly"
    if any(report.parallax is False for report in refinements):
        text += "; no parallax, so that positions are guesses"
    used = [report for report in dense if report is not None and report.used]
    if used:
        n_views = sum(report.views for report in used)
        share = sum(report.share * report.views for report in used) / n_views
        text += f"; {100 * share:.0f} % of the depth confirmed"
    doubtful = len(
        {
            (edge.first, edge.second)
            for scene in scenes
            for edge in scene.edges
            if "contradict" in edge.reason
        }
    )
    if doubtful:
        text += f"; {doubtful} pairs contradict the others and were not used"
    if not left_out:
        return text
    hint, together = "", _together(scenes[0]) if len(scenes) == 1 else 0
    if together:
        hint = f" ({together} of them belong together: --all-components gives them a scene)"
    return f"{text}; {len(left_out)} left out{hint}: " + ", ".join(
        f"{entry.name} ({entry.reason})" for entry in left_out
    )


def _together(scene: Scene) -> int:
    """Return how many photos that were left out good pairs join to one another; 0 if none."""
    number = {entry.name: n for n, entry in enumerate(scene.left_out)}
    good = [
        (number[edge.first], number[edge.second])
        for edge in scene.edges
        if edge.reason == ELSEWHERE and {edge.first, edge.second} <= number.keys()
    ]
    largest = max(connected_components(len(number), good), key=len, default=[])
    return len(largest) if len(largest) > 1 else 0


def document(
    found: Reconstruction,
    clouds: Sequence[PointCloud | None],
    outputs: Sequence[Sequence[str]],
    config: PredictConfig,
    stages: Console,
) -> dict[str, Any]:
    """Return the versioned object of `recon3d run --json`.

    `placed`, `points`, `units`, `outputs`, `refinement` and `dense` (null without one) are of the
    largest scene, `more_scenes` has those of the others. `focal_px` is in pixels of the upright
    original photo. `stages` gives the steps done and the seconds taken by each stage in the order
    they ran; "pairs" counts ordered pairs.
    """
    scenes = found.scenes
    left_out = scenes[0].left_out
    reports = found.refinements or [None] * len(scenes)
    each = [
        _scene_document(scene, cloud, names)
        | {"refinement": _refinement(report), "dense": _dense(dense)}
        for scene, cloud, names, report, dense in zip(
            scenes, clouds, outputs, reports, found.dense, strict=True
        )
    ]
    device = resolve_device(config.device)
    dtype = resolve_precision(config.precision, device)
    return {
        "format": FORMAT,
        "version": VERSION,
        "photos": sum(len(scene.views) for scene in scenes) + len(left_out),
        **each[0],
        "more_scenes": each[1:],
        "left_out": [{"name": entry.name, "reason": entry.reason} for entry in left_out],
        "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "stages": {
            stage: {"count": stages.counts[stage], "seconds": round(seconds, 3)}
            for stage, seconds in stages.seconds.items()
        },
        "seconds": round(stages.total_s, 3),
    }


def _scene_document(
    scene: Scene, cloud: PointCloud | None, outputs: Sequence[str]
) -> dict[str, Any]:
    return {
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
        "pairs_used": sum(edge.used for edge in scene.edges),
        "pairs_refused": [
            {"first": edge.first, "second": edge.second, "reason": edge.reason}
            for edge in scene.edges
            if not edge.used
        ],
        "points": 0 if cloud is None else len(cloud.points_in_world),
        "units": scene.units,
        "outputs": list(outputs),
    }


def _refinement(report: RefineReport | None) -> dict[str, Any] | None:
    """Return what became of the bundle adjustment; errors are relative to the long edge.

    `parallax` false: the photos were turned or zoomed on the spot, and positions are guesses.
    """
    if report is None:
        return None
    return {
        "improved": report.improved,
        "reason": report.reason or None,
        "placed_anew": report.remapped,
        "tracks": report.n_tracks,
        "error_before": _finite(report.error_before),
        "error_after": _finite(report.error_after),
        "depth_error": _finite(report.depth_error),
        "parallax": report.parallax,
    }


def _dense(report: DenseReport | None) -> dict[str, Any] | None:
    """Return the share of the pixels of how many views that the photos confirm."""
    if report is None:
        return None
    return {"used": report.used, "views": report.views, "confirmed": round(report.share, 4)}


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
