import io
import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recon3d.errors import UsageError
from recon3d.glb import write_glb
from recon3d.types import PointCloud


def cloud_of(rgb: np.ndarray) -> PointCloud:
    rng = np.random.default_rng(len(rgb))
    return PointCloud(
        points_in_world=rng.normal(size=(len(rgb), 3)).astype(np.float32),
        normals_in_world=np.tile(np.array([0, 0, -1], np.float32), (len(rgb), 1)),
        rgb=rgb.astype(np.uint8),
        confidence=np.full(len(rgb), 2.0, np.float32),
    )


def written(cloud: PointCloud, *, in_first_camera: bool = True, units: str = "arbitrary") -> bytes:
    file = io.BytesIO()
    write_glb(cloud, file, in_first_camera=in_first_camera, units=units)
    return file.getvalue()


def chunks(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the binary part, read by the layout that the specification gives."""
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    n_json, kind = struct.unpack("<I4s", content[12:20])
    assert kind == b"JSON"
    assert n_json % 4 == 0
    n_binary, kind = struct.unpack("<I4s", content[20 + n_json : 28 + n_json])
    assert kind == b"BIN\0"
    assert n_binary % 4 == 0
    assert 28 + n_json + n_binary == len(content)
    return json.loads(content[20 : 20 + n_json]), content[28 + n_json :]


def attribute(content: bytes, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Return the accessor of a vertex attribute and its float vectors."""
    document, binary = chunks(content)
    ((primitive,),) = (mesh["primitives"] for mesh in document["meshes"])
    assert primitive["mode"] == 0  # points
    accessor = document["accessors"][primitive["attributes"][name]]
    assert (accessor["componentType"], accessor["type"]) == (5126, "VEC3")  # float
    assert "normalized" not in accessor  # the specification forbids it for floats
    view = document["bufferViews"][accessor["bufferView"]]
    data = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return accessor, np.frombuffer(data, "<f4").reshape(accessor["count"], 3)


def test_positions_are_y_up_and_within_the_bounds_that_are_stated():
    cloud = cloud_of(np.zeros((5, 3)))
    accessor, positions = attribute(written(cloud), "POSITION")
    x, y, z = cloud.points_in_world.T
    np.testing.assert_array_equal(positions, np.stack((x, -y, -z), axis=1))
    assert accessor["min"] == positions.min(axis=0).tolist()
    assert accessor["max"] == positions.max(axis=0).tolist()


def test_points_far_from_the_origin_are_about_their_middle():
    trimesh = pytest.importorskip("trimesh")
    near = cloud_of(np.zeros((50, 3)))
    far = near.points_in_world + np.array([5e5, 5.3e6, 100.0])
    content = written(replace(near, points_in_world=far))
    _, positions = attribute(content, "POSITION")
    assert np.abs(positions).max() < 10
    read = trimesh.load(io.BytesIO(content), file_type="glb").to_geometry()
    np.testing.assert_allclose(read.vertices, far * [1, -1, -1], rtol=0, atol=1e-6)


def test_more_points_than_a_file_holds_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recon3d.glb._MOST_POINTS", 4)
    assert written(cloud_of(np.zeros((4, 3))))
    with pytest.raises(UsageError, match=r"5 points do not fit .* holds 4 at most\. Lower"):
        written(cloud_of(np.zeros((5, 3))))


def test_colours_are_linear():
    _, colours = attribute(written(cloud_of(np.array([[0, 10, 11], [128, 188, 255]]))), "COLOR_0")
    # IEC 61966-2-1 by hand: 10 / 255 / 12.92, ((11 / 255 + 0.055) / 1.055) ** 2.4, ...
    expected = [[0, 0.0030353, 0.0033465], [0.2158605, 0.5028865, 1]]
    np.testing.assert_allclose(colours, expected, atol=1e-6)


def test_every_tone_stays_apart_from_its_neighbours():
    tones = np.arange(256)
    _, colours = attribute(written(cloud_of(np.stack((tones, tones, tones), axis=1))), "COLOR_0")
    back = np.where(colours < 0.0031308, colours * 12.92, 1.055 * colours ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(255 * back[:, 1], tones, atol=1e-3)


def test_the_material_is_unlit():
    document, _ = chunks(written(cloud_of(np.zeros((1, 3)))))
    ((primitive,),) = (mesh["primitives"] for mesh in document["meshes"])
    assert "KHR_materials_unlit" in document["materials"][primitive["material"]]["extensions"]
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]
    assert "extensionsRequired" not in document


@pytest.mark.parametrize(
    ("in_first_camera", "world"),
    [
        (True, "x right, y up, z backward in the first camera"),
        (False, "of the given cameras, y and z negated"),
    ],
)
def test_the_scene_says_what_its_axes_are(in_first_camera: bool, world: str):
    document, _ = chunks(written(cloud_of(np.zeros((1, 3))), in_first_camera=in_first_camera))
    assert document["scenes"][document["scene"]]["extras"]["world"] == world


@pytest.mark.parametrize("units", ["metres", "arbitrary"])
def test_the_scene_says_what_its_units_are(units: str):
    document, _ = chunks(written(cloud_of(np.zeros((1, 3))), units=units))
    assert document["scenes"][document["scene"]]["extras"]["units"] == units


def test_trimesh_reads_points_and_linear_colours_back():
    trimesh = pytest.importorskip("trimesh")
    tones = np.arange(256)
    cloud = cloud_of(np.stack((tones, tones[::-1], tones), axis=1))
    loaded = trimesh.load(io.BytesIO(written(cloud)), file_type="glb")
    (read,) = loaded.geometry.values()
    assert isinstance(read, trimesh.PointCloud)
    np.testing.assert_array_equal(read.vertices, cloud.points_in_world * [1, -1, -1])
    _, colours = attribute(written(cloud), "COLOR_0")
    np.testing.assert_allclose(read.colors[:, :3], 255 * colours, atol=0.51)
