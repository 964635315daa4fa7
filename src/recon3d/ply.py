"""Point cloud -> binary .ply, readable by MeshLab, CloudCompare, Blender and Open3D."""

from io import BufferedIOBase

import numpy as np

from recon3d.types import PointCloud

VERTEX = np.dtype(
    [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("nx", "<f4"),
        ("ny", "<f4"),
        ("nz", "<f4"),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
        ("confidence", "<f4"),
    ]
)
"""One vertex, 31 bytes without padding."""


def write_ply(
    cloud: PointCloud, file: BufferedIOBase, *, in_first_camera: bool, units: str
) -> None:
    """Write positions and normals (world), sRGB colours and confidence (1 + e^c).

    The header says what the world is: the camera of the first view (OpenCV axes), or that of the
    given cameras; and the unit of lengths ("metres" or "arbitrary").
    """
    vertices = np.empty(len(cloud.points_in_world), dtype=VERTEX)
    for column, name in enumerate("xyz"):
        vertices[name] = cloud.points_in_world[:, column]
        vertices[f"n{name}"] = cloud.normals_in_world[:, column]
    for column, name in enumerate(("red", "green", "blue")):
        vertices[name] = cloud.rgb[:, column]
    vertices["confidence"] = cloud.confidence
    ply_names = {"f": "float", "u": "uchar"}
    properties = [f"property {ply_names[VERTEX[name].kind]} {name}" for name in VERTEX.names or ()]
    world = "x right, y down, z forward in the first camera"
    if not in_first_camera:
        world = "of the given cameras"
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment recon3d: world {world}",
        f"comment recon3d: units: {units}",
        f"element vertex {len(vertices)}",
        *properties,
        "end_header",
    ]
    file.write(("\n".join(header) + "\n").encode("ascii"))
    file.write(vertices.view(np.uint8).data)
