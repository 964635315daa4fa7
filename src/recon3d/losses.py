"""Training losses: confidence-weighted pointmap regression and supervised cross-attention."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon3d.geometry import seen_from


def normalise(
    points: tuple[Float[Tensor, "pair height width 3"], ...],
    valid: tuple[Bool[Tensor, "pair height width"], ...],
) -> tuple[Float[Tensor, "pair height width 3"], ...]:
    """Return the pointmaps divided by the mean distance of all their valid points together.

    Source: Wang et al., DUSt3R (CVPR 2024), eq. 3.
    """
    distance = sum(
        torch.where(mask, point.norm(dim=-1), 0).sum((1, 2))
        for point, mask in zip(points, valid, strict=True)
    )
    count = sum(mask.sum((1, 2)) for mask in valid)
    mean = (distance / torch.as_tensor(count).clamp_min(1)).clamp_min(1e-6)
    return tuple(point / mean[:, None, None, None] for point in points)


def pointmap_errors(
    predicted: tuple[Float[Tensor, "pair height width 3"], ...],
    target: tuple[Float[Tensor, "pair height width 3"], ...],
    valid: tuple[Bool[Tensor, "pair height width"], ...],
) -> tuple[Float[Tensor, "pair height width"], ...]:
    """Return the distance of each predicted point from its target, both normalised to mean 1."""
    return tuple(
        (p - t).norm(dim=-1)
        for p, t in zip(normalise(predicted, valid), normalise(target, valid), strict=True)
    )


def confidence_loss(
    error: Float[Tensor, "*pixel"], confidence: Float[Tensor, "*pixel"], alpha: float
) -> Float[Tensor, "*pixel"]:
    """Return `confidence * error - alpha * log(confidence)` a pixel (DUSt3R, eq. 4)."""
    return confidence * error - alpha * confidence.log()


def mean_where(
    values: Float[Tensor, "pair height width"], valid: Bool[Tensor, "pair height width"]
) -> Float[Tensor, ""]:
    """Return the mean of the valid values, 0 of none; the device need not be waited for."""
    return torch.where(valid, values, 0).sum() / valid.sum().clamp_min(1)


def regression_loss(
    predicted: tuple[Float[Tensor, "pair height width 3"], Float[Tensor, "pair height width 3"]],
    confidence: tuple[Float[Tensor, "pair height width"], Float[Tensor, "pair height width"]],
    target: tuple[Float[Tensor, "pair height width 3"], Float[Tensor, "pair height width 3"]],
    valid: tuple[Bool[Tensor, "pair height width"], Bool[Tensor, "pair height width"]],
    alpha: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (confidence-weighted loss of both views, mean error of view i, of view j)."""
    error_i, error_j = pointmap_errors(predicted, target, valid)
    loss = mean_where(confidence_loss(error_i, confidence[0], alpha), valid[0])
    loss = loss + mean_where(confidence_loss(error_j, confidence[1], alpha), valid[1])
    return loss, mean_where(error_i, valid[0]), mean_where(error_j, valid[1])


def ray_loss(
    predicted: Float[Tensor, "pair height width 3"],
    target: Float[Tensor, "pair height width 3"],
    valid: Bool[Tensor, "pair height width"],
) -> Float[Tensor, ""]:
    """Return the mean distance of predicted from true directions of sight, as unit vectors.

    Of points in their own camera's frame it depends on the focal length and on nothing else that
    a view has to tell; in a distance of points, errors of depth hide it.
    """
    unit = torch.nn.functional.normalize(predicted, dim=-1)
    return mean_where((unit - torch.nn.functional.normalize(target, dim=-1)).norm(dim=-1), valid)


def token_matches(
    points_i_in_j: Float[Tensor, "pair row_i column_i 3"],
    valid_i: Bool[Tensor, "pair row_i column_i"],
    depth_j: Float[Tensor, "pair height_j width_j"],
    intrinsics_j: Float[Tensor, "pair 3 3"],
    a_side: int,
    patch_size: int,
    tolerance: float = 0.03,
) -> Float[Tensor, "pair token_i token_j"]:
    """Return how many points of each patch of view i are seen in each patch of view j.

    A point is seen where it projects into view j within `tolerance` of the depth there. Patches of
    view i have `a_side` rows and columns of points, those of j `patch_size` of pixels. Rows are
    counts, not normalised.
    """
    n, rows_i, columns_i = points_i_in_j.shape[:3]
    height_j, width_j = depth_j.shape[1:]
    seen, y, x = seen_from(points_i_in_j, depth_j, intrinsics_j, tolerance)
    seen = seen & valid_i
    columns_j = width_j // patch_size
    token_j = (y // patch_size) * columns_j + x // patch_size
    row = torch.arange(rows_i, device=seen.device)[:, None] // a_side
    column = torch.arange(columns_i, device=seen.device)[None, :] // a_side
    token_i = (row * (columns_i // a_side) + column).expand(n, -1, -1)
    n_i = (rows_i // a_side) * (columns_i // a_side)
    n_j = (height_j // patch_size) * columns_j
    counts = torch.zeros(n, n_i * n_j, device=seen.device)
    counts.scatter_add_(1, (token_i * n_j + token_j).flatten(1), seen.float().flatten(1))
    return counts.view(n, n_i, n_j)


def attention_loss(
    log_attention: Float[Tensor, "pair head token_i token_j"],
    matches: Float[Tensor, "pair token_i token_j"],
) -> Float[Tensor, ""]:
    """Return the cross-entropy between attention heads and the true correspondences.

    Averaged over patches, each weighted by the share of its pixels that are seen in view j.
    Plain pointmap regression discovers matching only after very many pairs; this starts it.
    """
    cross_entropy = -(log_attention * matches[:, None]).sum(-1).mean(1)
    return cross_entropy.sum() / matches.sum().clamp_min(1)


def descriptor_loss(
    descriptors_i: Float[Tensor, "pair token_i channel"],
    descriptors_j: Float[Tensor, "pair token_j channel"],
    matches: Float[Tensor, "pair token_i token_j"],
    temperature: float = 0.07,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return InfoNCE between the patches of two views, and how often the best one is right.

    Cosine similarities over `temperature`, soft-maxed over the patches of the other view, in both
    directions; `matches` counts true correspondences. Source: van den Oord et al. 2018, eq. 4.
    """
    unit_i = torch.nn.functional.normalize(descriptors_i.float(), dim=-1)
    unit_j = torch.nn.functional.normalize(descriptors_j.float(), dim=-1)
    logits = unit_i @ unit_j.mT / temperature
    cross_entropy = -(matches * (logits.log_softmax(-1) + logits.log_softmax(-2))).sum() / 2
    best = matches.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)
    total = matches.sum().clamp_min(1)
    return cross_entropy / total, best.sum() / total
