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
_FAR_VERTEX = np.dtype([(n, "<f8" if n in "xyz" else VERTEX[n]) for n in VERTEX.names or ()])
"""The same with coordinates in double precision."""
_PLY_NAMES = {"<f4": "float", "<f8": "double", "|u1": "uchar"}


def write_ply(
    cloud: PointCloud, file: BufferedIOBase, *, in_first_camera: bool, units: str
) -> None:
    """Write positions and normals (world), sRGB colours and confidence (1 + e^c).

    The header says what the world is: the camera of the first view (OpenCV axes), or that of the
    given cameras; and the unit of lengths ("metres" or "arbitrary"). Positions are `double` where
    those of the cloud are.
    """
    kind = _FAR_VERTEX if cloud.points_in_world.dtype == np.float64 else VERTEX
    vertices = np.empty(len(cloud.points_in_world), dtype=kind)
    for column, name in enumerate("xyz"):
        vertices[name] = cloud.points_in_world[:, column]
        vertices[f"n{name}"] = cloud.normals_in_world[:, column]
    for column, name in enumerate(("red", "green", "blue")):
        vertices[name] = cloud.rgb[:, column]
    vertices["confidence"] = cloud.confidence
    properties = [f"property {_PLY_NAMES[kind[name].str]} {name}" for name in kind.names or ()]
    world = "x right, y down, z forward in the first camera"
    if not in_first_camera:
        world = "of the given cameras" + ", scaled" * (units == "metres")
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
