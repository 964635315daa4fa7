"""Scene -> cameras.json, the versioned file that other programs read cameras from."""

import json
import math
from io import BufferedIOBase
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recon3d.types import EdgeVerdict, LeftOut, Scene

FORMAT = "recon3d-cameras"
VERSION = 1
CONVENTION = "OpenCV camera, cam2world, pixel centre at +0.5"


def write_cameras(scene: Scene, file: BufferedIOBase) -> None:
    """Write `cameras_document` as ASCII JSON without NaN or infinity (they become null)."""
    text = json.dumps(cameras_document(scene), indent=1, allow_nan=False)
    file.write((text + "\n").encode("ascii"))


def cameras_document(scene: Scene) -> dict[str, Any]:
    """Return the content of cameras.json: placed views, those left out, and the pairs.

    Placed views come in scene order, then those left out, then every pair with its verdict.

    `intrinsics` are in pixels of the upright original photo, `processed` in pixels of the view
    the network saw. What is unknown is null.
    """
    placed = [_placed(scene, index) for index in range(len(scene.views))]
    return {
        "format": FORMAT,
        "version": VERSION,
        "units": scene.units,
        "convention": CONVENTION,
        "views": placed + [_left_out(entry) for entry in scene.left_out],
        "pairs": [_pair(edge) for edge in scene.edges],
    }


def photo_intrinsics(
    intrinsics: Float[Tensor, "3 3"], photo2view: Float[Tensor, "3 3"]
) -> Float[Tensor, "3 3"]:
    """Return intrinsics in pixels of the original photo from those in pixels of the view."""
    in_photo: Tensor = torch.linalg.solve(photo2view.double(), intrinsics.double())
    return in_photo


def _placed(scene: Scene, index: int) -> dict[str, Any]:
    view, verdict = scene.views[index], scene.verdicts[index]
    height, width = view.image.shape[-2:]
    in_view = scene.intrinsics[index].double()
    return {
        "name": view.name,
        "sha256": view.sha256,
        "placed": True,
        "reason": None,
        "width": view.photo_width,
        "height": view.photo_height,
        "intrinsics": _pinhole(photo_intrinsics(in_view, view.photo2view)),
        "processed": {"width": width, "height": height, **_pinhole(in_view)},
        "cam2world": [
            [_finite(value) for value in row] for row in scene.cam2world[index].double().tolist()
        ],
        "focal_source": verdict.focal_source,
        "confidence": _confidence_summary(scene.confidence[index], scene.depth[index]),
        "residual": _finite(verdict.residual),
        "rotation_uncertainty_deg": _finite(verdict.rotation_uncertainty_deg),
        "position_uncertainty": _finite(verdict.position_uncertainty),
        "inliers": _finite(verdict.inliers),
        "pairs": verdict.edges,
    }


def _left_out(entry: LeftOut) -> dict[str, Any]:
    return {
        "name": entry.name,
        "sha256": None,
        "placed": False,
        "reason": entry.reason,
        "width": None,
        "height": None,
        "intrinsics": None,
        "processed": None,
        "cam2world": None,
        "focal_source": None,
        "confidence": None,
        "residual": None,
        "rotation_uncertainty_deg": None,
        "position_uncertainty": None,
        "inliers": None,
        "pairs": None,
    }


def _pair(edge: EdgeVerdict) -> dict[str, Any]:
    return {
        "first": edge.first,
        "second": edge.second,
        "used": edge.used,
        "reason": edge.reason or None,
        "confidence": _finite(edge.confidence),
        "residual": _finite(edge.residual),
        "rotation_error_deg": _finite(edge.rotation_error_deg),
        "inliers": _finite(edge.inliers),
    }


def _pinhole(intrinsics: Float[Tensor, "3 3"]) -> dict[str, float | None]:
    rows = intrinsics.tolist()
    return {
        "fx": _finite(rows[0][0]),
        "fy": _finite(rows[1][1]),
        "cx": _finite(rows[0][2]),
        "cy": _finite(rows[1][2]),
    }


def _confidence_summary(
    confidence: Float[Tensor, "height width"], depth: Float[Tensor, "height width"]
) -> dict[str, Any]:
    """Return mean and quantiles (10, 50, 90 %) over the pixels with known depth, else nulls."""
    values = confidence[(depth > 0) & confidence.isfinite()].double().numpy(force=True)
    if values.size == 0:
        return {"mean": None, "quantiles": [None, None, None]}
    return {
        "mean": float(values.mean()),
        "quantiles": [float(value) for value in np.quantile(values, (0.1, 0.5, 0.9))],
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
