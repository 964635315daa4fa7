import dataclasses
import io
import json
import math

import pytest
import torch

from recon3d.cameras import cameras_document, photo_intrinsics, write_cameras
from recon3d.geometry import project
from recon3d.types import EdgeVerdict, LeftOut, Scene, Verdict, View


def scene_of_one(
    *,
    verdict: Verdict | None = None,
    depth: torch.Tensor | None = None,
    left_out: tuple[LeftOut, ...] = (),
    metric: bool = False,
) -> Scene:
    """A 4000x3000 photo halved in x and y four times (x 1/16), then cropped by (5, 10) pixels."""
    view = View(
        name="album/é.jpg",
        sha256="ab" * 32,
        image=torch.zeros(3, 160, 240),
        photo2view=torch.tensor([[1 / 16, 0, -5], [0, 1 / 16, -10], [0, 0, 1]]),
        photo_width=4000,
        photo_height=3000,
        focal_px=None,
    )
    confidence = torch.linspace(1, 3, 160 * 240, dtype=torch.float64).reshape(160, 240)
    return Scene(
        views=(view,),
        cam2world=torch.eye(4)[None],
        intrinsics=torch.tensor([[[200.0, 0, 120], [0, 201, 80], [0, 0, 1]]]),
        depth=(torch.ones(160, 240) if depth is None else depth,),
        confidence=(confidence,),
        verdicts=(
            verdict
            or Verdict(
                residual=0.02,
                edges=3,
                rotation_uncertainty_deg=0.5,
                focal_source="estimated",
                inliers=0.75,
            ),
        ),
        left_out=left_out,
        metric=metric,
    )


def test_a_hand_computed_camera():
    document = cameras_document(scene_of_one())
    assert document["format"] == "recon3d-cameras"
    assert document["version"] == 1
    assert document["units"] == "arbitrary"
    assert document["convention"] == "OpenCV camera, cam2world, pixel centre at +0.5"
    (entry,) = document["views"]
    # u_view = u_photo / 16 - 5, so fx_photo = 16 * 200 and cx_photo = 16 * (120 + 5)
    assert entry["intrinsics"] == {"fx": 3200, "fy": 3216, "cx": 2000, "cy": 1440}
    assert entry["processed"] == {
        "width": 240,
        "height": 160,
        "fx": 200,
        "fy": 201,
        "cx": 120,
        "cy": 80,
    }
    assert entry["cam2world"] == torch.eye(4).tolist()
    assert (entry["name"], entry["sha256"]) == ("album/é.jpg", "ab" * 32)
    assert (entry["width"], entry["height"]) == (4000, 3000)
    assert (entry["placed"], entry["reason"]) == (True, None)
    assert (entry["focal_source"], entry["residual"]) == ("estimated", 0.02)
    assert entry["rotation_uncertainty_deg"] == 0.5
    assert (entry["inliers"], entry["pairs"], entry["position_uncertainty"]) == (0.75, 3, None)
    assert entry["confidence"]["mean"] == pytest.approx(2)
    assert entry["confidence"]["quantiles"] == pytest.approx([1.2, 2, 2.8])


def test_a_point_projects_to_the_same_photo_pixel_either_way():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20, 3, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 1])
    photo2view = torch.tensor([[0.11, 0, -3.5], [0, 0.13, 2], [0, 0, 1]], dtype=torch.float64)
    in_view = torch.tensor([[210, 0, 99], [0, 220, 88], [0, 0, 1]], dtype=torch.float64)
    direct = project(points, photo_intrinsics(in_view, photo2view))
    pixels = torch.cat((direct, torch.ones(20, 1, dtype=torch.float64)), dim=-1)
    torch.testing.assert_close((pixels @ photo2view.T)[:, :2], project(points, in_view))


def test_a_left_out_photo_keeps_every_field_and_its_reason():
    reason = "no confident overlap with any placed photo"
    scene = scene_of_one(left_out=(LeftOut(name="b.jpg", reason=reason),), metric=True)
    document = cameras_document(scene)
    placed, left_out = document["views"]
    assert document["units"] == "metres"
    assert set(left_out) == set(placed)
    given = {name: value for name, value in left_out.items() if value is not None}
    assert given == {"name": "b.jpg", "placed": False, "reason": reason}


def test_every_pair_is_listed_with_its_verdict():
    pair = EdgeVerdict(first="a.jpg", second="b.jpg", used=False, reason="low", confidence=1.25)
    scene = dataclasses.replace(scene_of_one(), edges=(pair,))
    assert cameras_document(scene)["pairs"] == [
        {
            "first": "a.jpg",
            "second": "b.jpg",
            "used": False,
            "reason": "low",
            "confidence": 1.25,
            "residual": None,
            "rotation_error_deg": None,
            "inliers": None,
        }
    ]


def test_what_is_not_finite_becomes_null_and_the_file_stays_plain_json():
    nothing = Verdict(
        residual=math.nan, edges=0, rotation_uncertainty_deg=math.inf, focal_source="given"
    )
    file = io.BytesIO()
    write_cameras(scene_of_one(verdict=nothing, depth=torch.zeros(160, 240)), file)
    file.getvalue().decode("ascii")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (entry,) = json.loads(file.getvalue(), parse_constant=refuse)["views"]
    assert entry["residual"] is None
    assert entry["rotation_uncertainty_deg"] is None
    assert entry["confidence"] == {"mean": None, "quantiles": [None, None, None]}
    assert entry["name"] == "album/é.jpg"


def test_confidence_is_summarised_over_known_depth_only():
    depth = torch.zeros(160, 240)
    depth[-1, -1] = 1
    (entry,) = cameras_document(scene_of_one(depth=depth))["views"]
    assert entry["confidence"] == {"mean": 3.0, "quantiles": [3.0, 3.0, 3.0]}
