"""Point cloud -> binary .glb (glTF 2.0), readable by Blender and by web and phone viewers.

Source: Khronos, glTF 2.0 specification, sections 3.7.2 (COLOR_0 is linear) and 4.4 (layout of a
GLB file); KHR_materials_unlit; IEC 61966-2-1 (sRGB).
"""

import json
import struct
from io import BufferedIOBase
from typing import Any

import numpy as np
from jaxtyping import Float32

from recon3d.errors import UsageError
from recon3d.types import PointCloud

_FLOAT, _VERTICES, _POINTS = 5126, 34962, 0
"""glTF's numbers of a type of component, a kind of buffer view and a kind of primitive."""
_MOST_POINTS = (2**32 - 2**16) // 24
"""What the 32 bits of a file's length hold, at 24 bytes each, beside the JSON part."""
_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4).astype("<f4")
"""Linear intensity, 0 to 1, of every sRGB byte."""


def write_glb(
    cloud: PointCloud, file: BufferedIOBase, *, in_first_camera: bool, units: str
) -> None:
    """Write points, y and z negated, with linear colours, unlit.

    That turns the camera of the first view into glTF's y-up axes. A world of given cameras is
    turned alike, wherever its up is. The scene's extras say which of the two it is, and `units`
    ("metres" or "arbitrary"): glTF itself takes all lengths for metres.
    Colours are floats: in linear bytes dark tones would fall together, and of 16-bit integers
    trimesh reads the low byte alone. Positions are float32; where those of the cloud are float64,
    they are about its middle, to which the node moves them. The cloud holds a point at least: glTF
    knows no empty arrays.

    Raises:
        UsageError: more points than fit into the 4 GiB that such a file can have.
    """
    if len(cloud.points_in_world) > _MOST_POINTS:
        raise UsageError(
            f"{len(cloud.points_in_world)} points do not fit into a .glb, which holds"
            f" {_MOST_POINTS} at most. Lower --max-points, or write .ply alone."
        )
    points = cloud.points_in_world * np.array([1, -1, -1], dtype="<f4")
    node: dict[str, Any] = {"mesh": 0}
    if points.dtype == np.float64:
        middle = np.round((points.min(axis=0) + points.max(axis=0)) / 2)
        points, node["translation"] = (points - middle).astype("<f4"), middle.tolist()
    colours = _LINEAR[cloud.rgb]
    world = "x right, y up, z backward in the first camera"
    if not in_first_camera:
        world = "of the given cameras, " + "scaled, " * (units == "metres") + "y and z negated"
    document = _document(points, node, {"world": world, "units": units})
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)
    n_bytes = points.nbytes + colours.nbytes
    file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + n_bytes))
    file.write(struct.pack("<I4s", len(text), b"JSON") + text)
    file.write(struct.pack("<I4s", n_bytes, b"BIN\0"))
    file.write(points.tobytes())
    file.write(colours.tobytes())


def _document(
    points: Float32[np.ndarray, "point 3"], node: dict[str, Any], extras: dict[str, str]
) -> dict[str, Any]:
    """Return the JSON part: one cloud; the binary part is its points, then as many colours."""
    vectors = {"componentType": _FLOAT, "type": "VEC3", "count": len(points)}
    part = {"buffer": 0, "byteLength": points.nbytes, "target": _VERTICES}  # both alike
    bounds = {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()}
    # metal and roughness are for viewers that do not know the extension, as it recommends
    dull = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    cloud = {"mode": _POINTS, "attributes": {"POSITION": 0, "COLOR_0": 1}, "material": 0}
    return {
        "asset": {"version": "2.0", "generator": "recon3d"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0], "extras": extras}],
        "nodes": [node],
        "meshes": [{"primitives": [cloud]}],
        "materials": [{"pbrMetallicRoughness": dull, "extensions": {"KHR_materials_unlit": {}}}],
        "accessors": [{"bufferView": 0, **vectors, **bounds}, {"bufferView": 1, **vectors}],
        "bufferViews": [part | {"byteOffset": 0}, part | {"byteOffset": points.nbytes}],
        "buffers": [{"byteLength": 2 * points.nbytes}],
    }
