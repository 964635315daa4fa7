"""One test, or more, for each numbered line of docs/conventions.md."""

import io
import json
import math
import re
import struct
import sys
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recon3d import config, types
from recon3d.align import align
from recon3d.cameras import cameras_document
from recon3d.config import AlignConfig, FuseConfig, ModelConfig, PhotoConfig
from recon3d.export import export, load_scene
from recon3d.fuse import fuse
from recon3d.geometry import (
    compose,
    invert_rigid,
    look_at,
    pixel_grid,
    project,
    rotation_angle,
    so3_exp,
    transform_points,
    unproject,
)
from recon3d.model import TwoViewModel, activate
from recon3d.photos import load_views
from recon3d.ply import write_ply
from recon3d.types import LeftOut, PairPrediction, Scene, Verdict, View

DOC = Path(__file__).parents[1] / "docs" / "conventions.md"
INTRINSICS = torch.tensor([[10.0, 0.0, 6.0], [0.0, 10.0, 4.0], [0.0, 0.0, 1.0]])
PATCH = PhotoConfig(size=64, patch_size=16)


def view(name: str = "a.jpg", height: int = 8, width: int = 12) -> View:
    """Return a view whose photo was twice as large and had a border of 2 pixels cut off."""
    return View(
        name=name,
        sha256="0" * 64,
        image=torch.rand(3, height, width) * 2 - 1,
        photo2view=torch.tensor([[0.5, 0.0, -2.0], [0.0, 0.5, -2.0], [0.0, 0.0, 1.0]]),
        photo_width=2 * (width + 4),
        photo_height=2 * (height + 4),
        focal_px=None,
    )


def scene(depth: float = 2.0, *, metric: bool = False) -> Scene:
    """Return a scene of one camera that looks at a plane with z = `depth`."""
    return Scene(
        views=(view(),),
        cam2world=torch.eye(4)[None],
        intrinsics=INTRINSICS[None],
        depth=(torch.full((8, 12), depth),),
        confidence=(torch.linspace(1.5, 3.0, 96).view(8, 12),),
        verdicts=(
            Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.5, focal_source="estimated"),
        ),
        left_out=(LeftOut(name="b.jpg", reason="cannot be decoded"),),
        metric=metric,
    )


def write_photo(path: Path, rgb: np.ndarray, exif: bytes = b"") -> None:
    ok, data = cv2.imencode(path.suffix, rgb[..., ::-1])
    assert ok
    raw = data.tobytes()
    path.write_bytes(raw[:2] + exif + raw[2:] if exif else raw)


def orientation_exif(value: int) -> bytes:
    """Return a JPEG APP1 segment that says how the photo is to be turned."""
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def test_every_line_of_the_document_has_a_test() -> None:
    lines = {int(n) for n in re.findall(r"^(\d+)\. ", DOC.read_text(), flags=re.MULTILINE)}
    marked = {
        mark.args[0]
        for function in vars(sys.modules[__name__]).values()
        for mark in getattr(function, "pytestmark", [])
        if mark.name == "convention"
    }
    assert lines == set(range(1, len(lines) + 1))
    assert marked == lines


@pytest.mark.convention(1)
def test_x_is_right_y_is_down_z_is_forward() -> None:
    ahead = torch.tensor([[0.0, 0.0, 2.0], [0.4, 0.0, 2.0], [0.0, 0.4, 2.0]])
    pixels = project(ahead, INTRINSICS)
    assert pixels.tolist() == [[6.0, 4.0], [8.0, 4.0], [6.0, 6.0]]
    towards_z = look_at(
        torch.zeros(3), torch.tensor([0.0, 0.0, 5.0]), torch.tensor([0.0, -1.0, 0.0])
    )
    torch.testing.assert_close(towards_z, torch.eye(4))


@pytest.mark.convention(2)
def test_the_world_is_the_camera_of_the_first_view() -> None:
    views, predictions, _ = exact_pair()
    found = align(predictions, views, AlignConfig())
    torch.testing.assert_close(found.cam2world[0].float(), torch.eye(4))
    assert torch.linalg.det(found.cam2world[1, :3, :3].double()) == pytest.approx(1, abs=1e-4)
    assert found.in_first_camera


@pytest.mark.convention(2)
@pytest.mark.parametrize("cameras_are", config.CamerasAre)
@pytest.mark.parametrize("n_given", [1, 2])
def test_a_world_of_given_poses_stays_theirs_and_files_say_so(
    tmp_path: Path, cameras_are: config.CamerasAre, n_given: int
) -> None:
    views, predictions, cam2world = exact_pair()
    given2world = torch.eye(4)
    given2world[:3, :3] = so3_exp(torch.tensor([0.3, 0.0, 0.0]))
    given2world[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    given = compose(given2world, cam2world)
    cameras = tuple(
        types.KnownCamera(intrinsics=None, cam2world=given[n]) if n < n_given else None
        for n in range(2)
    )
    found = align(predictions, views, AlignConfig(cameras_are=cameras_are), cameras=cameras)
    torch.testing.assert_close(found.cam2world[0], given[0].double(), atol=1e-2, rtol=0)
    assert not found.in_first_camera
    cloud = fuse(found, FuseConfig())
    for name in ("a.ply", "a.glb"):
        export(found, cloud, str(tmp_path / name))
        assert b"of the given cameras" in (tmp_path / name).read_bytes()


@pytest.mark.convention(3)
def test_a2b_acts_on_column_vectors_and_composes_from_the_right() -> None:
    a2b = torch.eye(4)
    a2b[:3, :3] = so3_exp(torch.tensor([0.0, 0.0, math.pi / 2]))  # x to y
    a2b[:3, 3] = torch.tensor([0.0, 0.0, 7.0])
    point_in_a = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(transform_points(a2b, point_in_a), torch.tensor([[0.0, 1.0, 7.0]]))
    b2c = torch.eye(4)
    b2c[:3, 3] = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(
        transform_points(compose(b2c, a2b), point_in_a), torch.tensor([[1.0, 1.0, 7.0]])
    )
    torch.testing.assert_close(compose(invert_rigid(a2b), a2b), torch.eye(4))


@pytest.mark.convention(4)
def test_the_centre_of_the_top_left_pixel_is_a_half() -> None:
    grid = pixel_grid(2, 3)
    assert grid[0, 0].tolist() == [0.5, 0.5]
    assert grid[1, 2].tolist() == [2.5, 1.5]
    centred = torch.tensor([[10.0, 0.0, 1.5], [0.0, 10.0, 1.0], [0.0, 0.0, 1.0]])
    middle_column = unproject(torch.ones(2, 3), centred)[:, 1, 0]
    assert middle_column.tolist() == [0.0, 0.0]


@pytest.mark.convention(5)
def test_depth_is_z_and_zero_is_unknown() -> None:
    points = unproject(torch.full((8, 12), 2.0), INTRINSICS)
    assert (points[..., 2] == 2).all()
    assert points[0, 0].norm() > 2
    half_known = scene()
    half_known.depth[0][:, :6] = 0
    cloud = fuse(half_known, FuseConfig(confidence_percentile=0.0))
    assert len(cloud.points_in_world) == 8 * 6


@pytest.mark.convention(6)
def test_images_are_rgb_and_from_minus_one_to_one_in_views(tmp_path: Path) -> None:
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    write_photo(tmp_path / "a.png", red)
    write_photo(tmp_path / "b.png", np.full((64, 64, 3), 255, np.uint8))
    (first, second), _ = load_views([str(tmp_path)], PATCH)
    assert first.image[:, 5, 5].tolist() == [1.0, -1.0, -1.0]
    assert second.image[:, 5, 5].tolist() == [1.0, 1.0, 1.0]
    seen = scene()
    seen.views[0].image[:] = torch.tensor([1.0, -1.0, 0.0])[:, None, None]
    cloud = fuse(seen, FuseConfig(confidence_percentile=0.0))
    assert cloud.rgb.dtype == np.uint8
    assert cloud.rgb[0].tolist() == [255, 0, 128]


@pytest.mark.convention(7)
def test_sizes_are_those_of_the_upright_photo(tmp_path: Path) -> None:
    lying = np.zeros((64, 96, 3), np.uint8)
    lying[:, :48, 0] = 250  # red on the left, blue on the right
    lying[:, 48:, 2] = 250
    # 6: turn 90 degrees clockwise; what was left is now above
    write_photo(tmp_path / "a.jpg", lying, orientation_exif(6))
    write_photo(tmp_path / "b.jpg", lying)
    (turned, plain), _ = load_views([str(tmp_path)], PhotoConfig(size=96, patch_size=16))
    assert (turned.photo_width, turned.photo_height) == (64, 96)
    assert (plain.photo_width, plain.photo_height) == (96, 64)
    assert tuple(turned.image.shape) == (3, 96, 64)
    assert turned.image[0, 10, 32] > 0.8 > turned.image[2, 10, 32]
    assert turned.image[2, 86, 32] > 0.8 > turned.image[0, 86, 32]


@pytest.mark.convention(8)
def test_photo2view_maps_photo_pixels_to_view_pixels(tmp_path: Path) -> None:
    dark = np.zeros((480, 1000, 3), np.uint8)
    dark[200:240, 700:740] = 255  # its centre is at (720, 220) in the photo
    write_photo(tmp_path / "a.png", dark)
    write_photo(tmp_path / "b.png", np.full((64, 64, 3), 9, np.uint8))
    (spot, _), _ = load_views([str(tmp_path)], PhotoConfig(size=224, patch_size=16))
    weight = (spot.image[0] + 1) / 2
    centre = (pixel_grid(*weight.shape) * weight[..., None]).sum((0, 1)) / weight.sum()
    expected = spot.photo2view @ torch.tensor([720.0, 220.0, 1.0])
    torch.testing.assert_close(centre, expected[:2], atol=0.02, rtol=0)


@pytest.mark.convention(9)
def test_angles_are_radians_and_units_are_in_the_names() -> None:
    quarter = so3_exp(torch.tensor([0.0, math.pi / 2, 0.0]))
    assert float(rotation_angle(quarter)) == pytest.approx(math.pi / 2)
    names = [
        field.name
        for module in (config, types)
        for kind in vars(module).values()
        if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")
        for field in fields(kind)
    ]
    dimensional = [name for name in names if re.search(r"focal|rotation|angle|every", name)]
    assert dimensional
    for name in dimensional:
        assert re.search(r"_(px|deg|rad|s|source|steps)$|^(shared|refine)_focal$", name), name


@pytest.mark.convention(10)
def test_both_pointmaps_are_in_camera_i() -> None:
    views, predictions, cam2world = exact_pair()
    found = align(predictions, views, AlignConfig())
    relative = found.cam2world[1].double()
    expected = cam2world[1].double()
    assert float(rotation_angle(relative[:3, :3].mT @ expected[:3, :3])) < 1e-3
    direction = relative[:3, 3] / relative[:3, 3].norm()
    assert float(direction @ expected[:3, 3] / expected[:3, 3].norm()) > 0.9999


@pytest.mark.convention(11)
def test_confidence_is_one_plus_an_exponential() -> None:
    raw = torch.zeros(1, 4, 1, 2)
    raw[0, 3, 0] = torch.tensor([0.0, -5.0])
    _, confidence = activate(raw)
    torch.testing.assert_close(confidence, torch.tensor([[[2.0, 1 + math.exp(-5)]]]))
    model = TwoViewModel(ModelConfig(enc_dim=24, enc_depth=1, dec_dim=24, dec_depth=1)).eval()
    with torch.no_grad():
        tokens = model.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
        out = model.decode(tokens, tokens, (2, 2), (2, 2))
    assert (out.confidence_i > 1).all()
    assert (out.confidence_j > 1).all()


@pytest.mark.convention(12)
@pytest.mark.parametrize(("metric", "units"), [(False, "arbitrary"), (True, "metres")])
def test_units_are_arbitrary_unless_metric(tmp_path: Path, metric: bool, units: str) -> None:
    assert not scene().metric
    known = scene(metric=metric)
    assert cameras_document(known)["units"] == units
    for name in ("a.ply", "a.glb", "a.npz"):
        export(known, fuse(known, FuseConfig()), str(tmp_path / name))
    assert f"\ncomment recon3d: units: {units}\n".encode() in (tmp_path / "a.ply").read_bytes()
    assert f'"units":"{units}"'.encode() in (tmp_path / "a.glb").read_bytes()
    assert load_scene(tmp_path / "a.npz").metric == metric


@pytest.mark.convention(13)
def test_ply_layout_axes_and_normals() -> None:
    plane = scene(depth=2.0)
    cloud = fuse(plane, FuseConfig(confidence_percentile=0.0))
    file = io.BytesIO()
    write_ply(cloud, file, in_first_camera=plane.in_first_camera, units=plane.units)
    header, _, body = file.getvalue().partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert [line.split()[1:] for line in lines if line.startswith("property")] == [
        *(["float", name] for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(["uchar", name] for name in ("red", "green", "blue")),
        ["float", "confidence"],
    ]
    x, y, z, *normal = struct.unpack("<6f", body[:24])
    # the top-left pixel: (0.5 - 6) / 10 * 2, (0.5 - 4) / 10 * 2, and the normal towards z = 0
    assert (x, y, z) == pytest.approx((-1.1, -0.7, 2.0), abs=1e-6)
    assert normal == pytest.approx([0.0, 0.0, -1.0], abs=1e-6)
    assert struct.unpack("<f", body[27:31])[0] == pytest.approx(1.5)


@pytest.mark.convention(14)
def test_glb_is_y_up_and_nothing_else_is(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    flat = scene()
    cloud = fuse(flat, FuseConfig(confidence_percentile=0.0))
    export(flat, cloud, str(tmp_path / "a.glb"))
    loaded = trimesh.load(tmp_path / "a.glb")
    points = np.concatenate([each.vertices for each in loaded.geometry.values()])
    np.testing.assert_allclose(points, cloud.points_in_world * [1, -1, -1], atol=1e-6)
    colours = np.concatenate([each.colors[:, :3] for each in loaded.geometry.values()])
    linear = ((cloud.rgb / 255 + 0.055) / 1.055) ** 2.4  # right for bytes above 10
    bright = cloud.rgb > 10
    np.testing.assert_allclose(colours[bright], 255 * linear[bright], atol=0.51)
    source = Path(__file__).parents[1] / "src" / "recon3d"
    flips = [
        path.name for path in source.rglob("*.py") if re.search(r"\[1, -1, -1", path.read_text())
    ]
    assert flips == ["glb.py"]


@pytest.mark.convention(15)
def test_cameras_json_is_in_pixels_of_the_full_photo() -> None:
    one, out = json.loads(json.dumps(cameras_document(scene())))["views"]
    assert (one["width"], one["height"]) == (32, 24)
    # the view is half the photo less 2 pixels: x_photo = 2 (x_view + 2)
    assert one["intrinsics"] == pytest.approx({"fx": 20, "fy": 20, "cx": 16, "cy": 12})
    assert one["processed"] == pytest.approx(
        {"width": 12, "height": 8, "fx": 10, "fy": 10, "cx": 6, "cy": 4}
    )
    assert one["cam2world"] == np.eye(4).tolist()
    assert (out["placed"], out["reason"]) == (False, "cannot be decoded")


@pytest.mark.convention(16)
def test_npz_is_loss_free_and_without_pickle(tmp_path: Path) -> None:
    before = scene()
    cloud = fuse(before, FuseConfig())
    export(before, cloud, str(tmp_path / "a.npz"))
    after = load_scene(tmp_path / "a.npz")
    assert torch.equal(before.depth[0], after.depth[0])
    assert torch.equal(before.views[0].image, after.views[0].image)
    assert after.left_out == before.left_out
    with np.load(tmp_path / "a.npz", allow_pickle=False) as members:
        assert all(members[name].dtype != object for name in members.files)


def exact_pair() -> tuple[tuple[View, ...], list[PairPrediction], torch.Tensor]:
    """Return two views of a bumpy wall with exact pointmaps in both orders, and their cameras."""
    intrinsics = torch.tensor([[60.0, 0.0, 24.0], [0.0, 60.0, 16.0], [0.0, 0.0, 1.0]])
    cam2world = torch.eye(4).repeat(2, 1, 1)
    cam2world[1, :3, :3] = so3_exp(torch.tensor([0.02, -0.12, 0.05]))
    cam2world[1, :3, 3] = torch.tensor([0.6, -0.1, 0.05])
    x, y = pixel_grid(32, 48).unbind(-1)
    depth = [4 + 0.5 * torch.sin(x / 6 + k) * torch.cos(y / 5) for k in range(2)]
    points = [unproject(each, intrinsics) for each in depth]
    confidence = torch.full((32, 48), 5.0)
    predictions = []
    for i, j in ((0, 1), (1, 0)):
        cam_j2cam_i = compose(invert_rigid(cam2world[i]), cam2world[j])
        in_i = transform_points(cam_j2cam_i, points[j].flatten(0, 1)).view_as(points[j])
        predictions.append(
            PairPrediction(
                i=i,
                j=j,
                pointmap_i_in_i=points[i],
                pointmap_j_in_i=in_i,
                confidence_i=confidence,
                confidence_j=confidence,
            )
        )
    views = tuple(
        View(
            name=f"{k}.jpg",
            sha256=str(k) * 64,
            image=torch.zeros(3, 32, 48),
            photo2view=torch.eye(3),
            photo_width=48,
            photo_height=32,
            focal_px=None,
        )
        for k in range(2)
    )
    return views, predictions, cam2world
