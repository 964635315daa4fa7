"""Which photos are of one lens, as far as sizes and metadata tell: those share a focal length."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from recon3d.types import View

_SAME_FOCAL = 1.01  # ratio of EXIF focal lengths of one lens
_LEAST_SHARING = 1 / 3  # of the photos


def lenses_of(views: Sequence[View]) -> Int64[Tensor, " view"]:
    """Return a number for each view, the same for photos against whose one lens nothing speaks.

    They are of equal size, lying or upright, and EXIF says the same of them. Photos without EXIF
    are of the lens of the others of their size where these have but one, else each of its own.
    Where less than a third shares one, sizes are alike by chance, as of photos from the net: then
    each has its own.
    """
    lens, own = torch.arange(len(views)), torch.arange(len(views))
    for size in {_size(view) for view in views}:
        alike = [n for n, view in enumerate(views) if _size(view) == size]
        known = [(focal, n) for n in alike if (focal := views[n].focal_px) is not None]
        groups: list[list[int]] = []
        shortest = 0.0
        for focal, n in sorted(known):
            if groups and focal <= _SAME_FOCAL * shortest:
                groups[-1].append(n)
            else:
                groups.append([n])
                shortest = focal
        if len(groups) <= 1:
            groups = [alike]
        for group in groups:
            lens[group] = min(group)
    _, inverse, count = lens.unique(return_inverse=True, return_counts=True)
    n_sharing = int((count[inverse] > 1).sum())
    return lens if n_sharing >= _LEAST_SHARING * len(views) else own


def of_one_size(views: Sequence[View]) -> bool:
    """Say whether all photos have one size, lying or upright."""
    return len({_size(view) for view in views}) == 1


def first_of_each(lens: Int64[Tensor, "view key"]) -> Int64[Tensor, " view"]:
    """Return the first view with the same keys as each view."""
    return (lens[:, None] == lens).all(-1).int().argmax(1)


def _size(view: View) -> tuple[int, ...]:
    return tuple(sorted((view.photo_width, view.photo_height)))
