"""Cameras and similarity transforms: pure functions on tensors with any leading batch axes."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def pixel_grid(
    height: int, width: int, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "{height} {width} 2"]:
    """Return the (x, y) coordinates of all pixel centres; the top-left centre is (0.5, 0.5)."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32) + 0.5,
        torch.arange(width, device=device, dtype=torch.float32) + 0.5,
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1)


def transform_points(
    a2b: Float[Tensor, "*#batch 4 4"], points_in_a: Float[Tensor, "*#batch point 3"]
) -> Float[Tensor, "*batch point 3"]:
    """Return the points in frame b; `a2b` is rigid or a similarity."""
    return points_in_a @ a2b[..., :3, :3].mT + a2b[..., None, :3, 3]


def dot(
    a: Float[Tensor, "*#batch axis"], b: Float[Tensor, "*#batch axis"]
) -> Float[Tensor, "*batch"]:
    """Return the inner products of vectors, component by component: a sum of three is slow."""
    total = a[..., 0] * b[..., 0]
    for k in range(1, a.shape[-1]):
        total = torch.addcmul(total, a[..., k], b[..., k])
    return total


def invert_rigid(a2b: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Return `b2a` of a rigid transform (rotation and translation, no scale)."""
    rotation = a2b[..., :3, :3].mT
    b2a = torch.zeros_like(a2b)
    b2a[..., :3, :3] = rotation
    b2a[..., :3, 3] = -(rotation @ a2b[..., :3, 3:]).squeeze(-1)
    b2a[..., 3, 3] = 1
    return b2a


def compose(
    b2c: Float[Tensor, "*#batch 4 4"], a2b: Float[Tensor, "*#batch 4 4"]
) -> Float[Tensor, "*batch 4 4"]:
    """Return `a2c`: first `a2b`, then `b2c`."""
    return b2c @ a2b


def similarity(
    scale: Float[Tensor, "*#batch"],
    rotation: Float[Tensor, "*#batch 3 3"],
    translation: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "*batch 4 4"]:
    """Return the 4x4 matrix of x -> scale * rotation @ x + translation."""
    linear = scale[..., None, None] * rotation
    matrix = linear.new_zeros((*linear.shape[:-2], 4, 4))
    matrix[..., :3, :3] = linear
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def moved_cameras(
    cam2world: Float[Tensor, "camera 4 4"],
    scale: float,
    rotation: Float[Tensor, "3 3"],
    translation: Float[Tensor, "3"],
) -> Float[Tensor, "camera 4 4"]:
    """Return the cameras after the world went through x -> scale * rotation @ x + translation."""
    moved = cam2world.clone()
    moved[:, :3, :3] = rotation @ cam2world[:, :3, :3]
    moved[:, :3, 3] = scale * cam2world[:, :3, 3] @ rotation.mT + translation
    return moved


def unproject(
    depth: Float[Tensor, "*batch height width"], intrinsics: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch height width 3"]:
    """Return the points in the camera frame seen at every pixel centre; `depth` is z."""
    height, width = depth.shape[-2:]
    pixels = pixel_grid(height, width, device=depth.device).to(depth.dtype)
    centre = intrinsics[..., None, None, :2, 2]
    focal = torch.stack((intrinsics[..., 0, 0], intrinsics[..., 1, 1]), dim=-1)[..., None, None, :]
    xy = (pixels - centre) / focal * depth[..., None]
    return torch.cat((xy, depth[..., None]), dim=-1)


def project(
    points_in_cam: Float[Tensor, "*batch 3"], intrinsics: Float[Tensor, "*#batch 3 3"]
) -> Float[Tensor, "*batch 2"]:
    """Return pixel coordinates (x, y); points with z <= 0 give values without meaning."""
    z = points_in_cam[..., 2]
    safe_z = torch.where(z.abs() < 1e-8, torch.full_like(z, 1e-8), z)
    x = intrinsics[..., 0, 0] * points_in_cam[..., 0] / safe_z + intrinsics[..., 0, 2]
    y = intrinsics[..., 1, 1] * points_in_cam[..., 1] / safe_z + intrinsics[..., 1, 2]
    return torch.stack((x, y), dim=-1)


def seen_from(
    points_in_cam: Float[Tensor, "batch *point 3"],
    depth: Float[Tensor, "batch height width"],
    intrinsics: Float[Tensor, "batch 3 3"],
    tolerance: float = 0.03,
) -> tuple[Bool[Tensor, "batch *point"], Int[Tensor, "batch *point"], Int[Tensor, "batch *point"]]:
    """Return (seen, row, column): which points a camera with this depth map sees, and where.

    A point is seen if it projects inside the image and its z is within `tolerance` (relative) of
    the depth there; depth 0 is unknown and sees nothing.
    """
    height, width = depth.shape[1:]
    n_axes = points_in_cam.ndim - 2
    spread = (slice(None), *(None,) * n_axes)
    z = points_in_cam[..., 2]
    pixel = project(points_in_cam, intrinsics[spread])
    pixel = torch.where(torch.isfinite(pixel), pixel, -1.0).clamp(-1, 2 * max(height, width))
    column, row = pixel[..., 0].floor().long(), pixel[..., 1].floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (z > 1e-3)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    index = torch.arange(len(depth), device=depth.device).reshape(-1, *(1,) * n_axes)
    there = depth[index, row, column]
    return inside & (there > 0) & ((z - there).abs() < tolerance * z), row, column


def rotation_angle(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Return the angle of a rotation in radians, 0 to pi, accurate near 0 as well."""
    skew = rotation - rotation.mT
    axis = torch.stack((skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]), dim=-1)
    sine = axis.norm(dim=-1) / 2
    cosine = (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.atan2(sine, cosine)


def so3_exp(axis_angle: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation matrix of an axis-angle vector in radians (Rodrigues)."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1)
    return torch.linalg.matrix_exp(skew.unflatten(-1, (3, 3)))


def umeyama(
    points_in_a: Float[Tensor, "*batch point 3"],
    points_in_b: Float[Tensor, "*batch point 3"],
    weights: Float[Tensor, "*batch point"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch 3 3"], Float[Tensor, "*batch 3"]]:
    """Return (scale, rotation, translation) of the similarity a2b with the least weighted squares.

    Weights are non-negative with a positive sum. Source: Umeyama, PAMI 1991, eqs. 34-42.
    """
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    mean_a = weights[..., None, :] @ points_in_a
    mean_b = weights[..., None, :] @ points_in_b
    centred_a, centred_b = points_in_a - mean_a, points_in_b - mean_b
    covariance = (weights[..., None] * centred_b).mT @ centred_a
    u, singular, vh = torch.linalg.svd(covariance)
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.sign(torch.linalg.det(u @ vh))
    rotation = (u * sign[..., None, :]) @ vh
    variance_a = (weights * dot(centred_a, centred_a)).sum(-1)
    scale = (singular * sign).sum(-1) / variance_a.clamp_min(1e-30)
    moved_mean = (rotation @ mean_a.mT).squeeze(-1)
    return scale, rotation, mean_b.squeeze(-2) - scale[..., None] * moved_mean


def look_at(
    centre: Float[Tensor, "*batch 3"],
    target: Float[Tensor, "*batch 3"],
    up: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "*batch 4 4"]:
    """Return `cam2world` of a camera at `centre` that looks at `target`; `up` is on its -y side."""
    forward = torch.nn.functional.normalize(target - centre, dim=-1)
    right = torch.nn.functional.normalize(
        torch.linalg.cross(forward, up.expand_as(forward)), dim=-1
    )
    down = torch.linalg.cross(forward, right)
    matrix = centre.new_zeros((*centre.shape[:-1], 4, 4))
    matrix[..., :3, :3] = torch.stack((right, down, forward), dim=-1)
    matrix[..., :3, 3] = centre
    matrix[..., 3, 3] = 1
    return matrix
