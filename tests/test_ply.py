import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recon3d.ply import VERTEX, write_ply
from recon3d.types import PointCloud


def random_cloud(n_points: int) -> PointCloud:
    rng = np.random.default_rng(n_points)
    normals = rng.normal(size=(n_points, 3))
    return PointCloud(
        points_in_world=rng.normal(size=(n_points, 3)).astype(np.float32),
        normals_in_world=(normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype("f4"),
        rgb=rng.integers(0, 256, size=(n_points, 3), dtype=np.uint8),
        confidence=(1 + rng.random(n_points)).astype(np.float32),
    )


def to_bytes(cloud: PointCloud, *, in_first_camera: bool = True, units: str = "arbitrary") -> bytes:
    file = io.BytesIO()
    write_ply(cloud, file, in_first_camera=in_first_camera, units=units)
    return file.getvalue()


def comments(content: bytes) -> list[str]:
    header = content.partition(b"end_header\n")[0].decode("ascii")
    return [line for line in header.splitlines() if line.startswith("comment")]


def test_one_point_gives_these_bytes():
    cloud = PointCloud(
        points_in_world=np.array([[1, 2, 3]], dtype=np.float32),
        normals_in_world=np.array([[0, 0, -1]], dtype=np.float32),
        rgb=np.array([[255, 128, 0]], dtype=np.uint8),
        confidence=np.array([2.5], dtype=np.float32),
    )
    header, body = to_bytes(cloud).split(b"end_header\n")
    assert header.splitlines()[:2] == [b"ply", b"format binary_little_endian 1.0"]
    assert header.splitlines()[4:] == [
        b"element vertex 1",
        *(b"property float " + name for name in (b"x", b"y", b"z", b"nx", b"ny", b"nz")),
        *(b"property uchar " + name for name in (b"red", b"green", b"blue")),
        b"property float confidence",
    ]
    assert VERTEX.itemsize == 31
    # 1.0 = 0x3f800000, stored with its low byte first
    assert body[:4] == bytes.fromhex("0000803f")
    assert body == struct.pack("<6f3Bf", 1, 2, 3, 0, 0, -1, 255, 128, 0, 2.5)


def test_trimesh_reads_points_colours_and_every_property_back(tmp_path: Path):
    trimesh = pytest.importorskip("trimesh")
    cloud = random_cloud(100)
    (tmp_path / "a.ply").write_bytes(to_bytes(cloud))
    read = trimesh.load(tmp_path / "a.ply")
    np.testing.assert_array_equal(read.vertices, cloud.points_in_world)
    np.testing.assert_array_equal(read.colors[:, :3], cloud.rgb)
    raw = read.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(np.ravel(raw["confidence"]), cloud.confidence)


def test_open3d_reads_points_normals_colours_and_confidence_back(tmp_path: Path):
    # open3d needs system libraries that a plain machine may lack
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    cloud = random_cloud(100)
    (tmp_path / "a.ply").write_bytes(to_bytes(cloud))
    point = open3d.t.io.read_point_cloud(str(tmp_path / "a.ply")).point
    np.testing.assert_array_equal(point.positions.numpy(), cloud.points_in_world)
    np.testing.assert_array_equal(point.normals.numpy(), cloud.normals_in_world)
    np.testing.assert_array_equal(point.colors.numpy(), cloud.rgb)
    np.testing.assert_array_equal(point["confidence"].numpy()[:, 0], cloud.confidence)


def test_points_far_from_the_origin_are_doubles(tmp_path: Path):
    trimesh = pytest.importorskip("trimesh")
    open3d = pytest.importorskip("open3d", exc_type=ImportError)
    near = random_cloud(100)
    cloud = replace(near, points_in_world=near.points_in_world + np.array([5e5, 5.3e6, 100.0]))
    content = to_bytes(cloud)
    names = [line.split()[1:] for line in content.splitlines() if line.startswith(b"property")]
    assert names[:4] == [[b"double", b"x"], [b"double", b"y"], [b"double", b"z"], [b"float", b"nx"]]
    (tmp_path / "a.ply").write_bytes(content)
    np.testing.assert_array_equal(trimesh.load(tmp_path / "a.ply").vertices, cloud.points_in_world)
    point = open3d.t.io.read_point_cloud(str(tmp_path / "a.ply")).point
    np.testing.assert_array_equal(point.positions.numpy(), cloud.points_in_world)
    np.testing.assert_array_equal(point["confidence"].numpy()[:, 0], cloud.confidence)


def test_the_header_says_what_the_world_and_the_units_are():
    cloud = random_cloud(1)
    axes = "comment recon3d: world x right, y down, z forward in the first camera"
    assert comments(to_bytes(cloud)) == [axes, "comment recon3d: units: arbitrary"]
    given = "comment recon3d: world of the given cameras"
    found = comments(to_bytes(cloud, in_first_camera=False))
    assert found == [given, "comment recon3d: units: arbitrary"]
    found = comments(to_bytes(cloud, in_first_camera=False, units="metres"))
    assert found == [f"{given}, scaled", "comment recon3d: units: metres"]


def test_an_empty_cloud_is_a_valid_file():
    header, body = to_bytes(random_cloud(0)).split(b"end_header\n")
    assert b"element vertex 0" in header
    assert body == b""
