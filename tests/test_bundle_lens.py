"""Which photos share a lens: by size, and by EXIF."""

import pytest
import torch

from recon3d.bundle_lens import first_of_each, lenses_of, of_one_size
from recon3d.types import View
from seen_tracks import photo

Photo = tuple[int, int, float | None]
"""Width, height and focal length in EXIF (pixels)."""
FULL, UPRIGHT, SMALL = (1000, 750), (750, 1000), (800, 600)


def photos(*those: Photo) -> list[View]:
    return [photo(f"{n}.jpg", *one) for n, one in enumerate(those)]


@pytest.mark.parametrize(
    ("those", "lenses"),
    [
        ([(*FULL, None), (*UPRIGHT, None), (*FULL, None)], [0, 0, 0]),
        ([(*FULL, None), (*SMALL, None), (*FULL, None), (*SMALL, None)], [0, 1, 0, 1]),
        # EXIF of one lens, of others, and none
        ([(*FULL, 900.0), (*FULL, None), (*UPRIGHT, 905.0)], [0, 0, 0]),
        ([(*FULL, 900.0), (*FULL, 450.0), (*FULL, 902.0), (*FULL, 451.0)], [0, 1, 0, 1]),
        ([(*FULL, 900.0), (*FULL, None), (*FULL, 450.0), (*FULL, None)], [0, 1, 2, 3]),
        ([(*FULL, 900.0), (*SMALL, 900.0), (*SMALL, None)], [0, 1, 1]),
        # a zoom lens: no chain from one end to the other
        ([(*FULL, 900.0), (*FULL, 908.0), (*FULL, 916.0)], [0, 0, 2]),
        # two of seven are alike by chance, three of eight are not
        ([(1000, 700 + n % 6, None) for n in range(7)], [0, 1, 2, 3, 4, 5, 6]),
        ([(1000, 700 + max(0, n - 2), None) for n in range(8)], [0, 0, 0, 3, 4, 5, 6, 7]),
        ([], []),
    ],
)
def test_lenses(those: list[Photo], lenses: list[int]) -> None:
    assert lenses_of(photos(*those)).tolist() == lenses


def test_size_is_that_of_lying_and_upright_photos_alike() -> None:
    assert of_one_size(photos((*FULL, None), (*UPRIGHT, 900.0)))
    assert not of_one_size(photos((*FULL, None), (*SMALL, None)))


def test_the_first_view_with_the_same_keys() -> None:
    keys = torch.tensor([[5, 0], [5, 1], [2, 0], [5, 0], [5, 1]])
    assert first_of_each(keys).tolist() == [0, 1, 2, 0, 1]
