"""Features matched in whole photos: of a warped picture, of others, and of degenerate matches."""

from dataclasses import replace
from itertools import combinations

import cv2
import numpy as np
import torch

from exact_scene import blank_view
from recon3d.config import RefineConfig
from recon3d.features import (
    Features,
    find_features,
    gather_features,
    match_photos,
    most_similar,
    on_epipolar_lines,
    promising_pairs,
)
from recon3d.matches import Matches
from recon3d.types import View

HEIGHT, WIDTH = 240, 320
TURN = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, WIDTH], [0.0, 0.0, 1.0]])  # by 90 degrees, of pixels


def texture(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    picture = sum(
        cv2.GaussianBlur(generator.standard_normal((HEIGHT, WIDTH)), (0, 0), sigma) * sigma
        for sigma in (1.5, 3, 6, 12)
    )
    grey = 127 + 45 * picture / picture.std()
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


# the second is the first turned by 90 degrees: no alignment of poor cameras would find that
PICTURES = {"0.png": texture(0), "1.png": np.rot90(texture(0)).copy(), "2.png": texture(1)}
VIEWS = (
    blank_view("0.png", (HEIGHT // 2, WIDTH // 2)),
    blank_view("1.png", (WIDTH // 2, HEIGHT // 2)),
    blank_view("2.png", (HEIGHT // 2, WIDTH // 2)),
)


def found() -> dict[int, Features]:
    known: dict[int, Features] = {}
    gather_features(range(3), VIEWS, lambda view: PICTURES[view.name], RefineConfig(), known)
    return known


def test_features_are_found_once() -> None:
    read: list[str] = []

    def rgb_of(view: View) -> np.ndarray:
        read.append(view.name)
        return PICTURES[view.name]

    known: dict[int, Features] = {}
    told: list[tuple[str, int, int]] = []
    gather_features([1], VIEWS, rgb_of, RefineConfig(), known)
    gather_features(
        [2, 0, 1, 2], VIEWS, rgb_of, RefineConfig(), known, track=lambda *step: told.append(step)
    )
    assert read == ["1.png", "0.png", "2.png"]
    assert told == [("features", 1, 2), ("features", 2, 2)]
    assert sorted(known) == [0, 1, 2]


def test_features_come_the_largest_first() -> None:
    """Blobs of three sizes, in the order of their sizes wherever they are."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.full((HEIGHT, WIDTH), 100.0)
    for x, y, sigma in ((60, 60, 4), (240, 60, 16), (160, 180, 8)):
        picture += 100 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    rgb = np.repeat(picture.astype(np.uint8)[..., None], 3, axis=2)
    pixels = find_features(VIEWS[0], lambda _: rgb, RefineConfig()).pixels
    seen = [
        int((2 * pixels - torch.tensor(place)).norm(dim=-1).lt(5).nonzero()[0])
        for place in ((240.0, 60.0), (160.0, 180.0), (60.0, 60.0))
    ]
    assert seen == sorted(seen)


def test_masked_features_are_left_out() -> None:
    everywhere = found()[0].pixels
    view = VIEWS[0]
    mask = torch.zeros(view.image.shape[1:], dtype=torch.bool)
    mask[20:, 31:77] = True
    hidden = replace(view, mask=mask)
    kept = find_features(hidden, lambda _: PICTURES["0.png"], RefineConfig()).pixels
    x, y = everywhere.T
    assert torch.equal(kept, everywhere[(x >= 31) & (x < 77) & (y >= 20)])
    assert 0 < len(kept) < len(everywhere)


def test_of_many_photos_each_is_compared_with_those_that_look_alike() -> None:
    known = found() | {3: found()[0], 4: found()[2]}
    pairs = list(combinations(range(5), 2))
    assert promising_pairs(pairs, known, RefineConfig(max_partners=4)) == pairs
    # 0, 1 and 3 show one thing, 2 and 4 another
    best = promising_pairs(pairs, known, RefineConfig(max_partners=1))
    assert {frozenset(pair) for pair in best} == {
        frozenset(pair) for pair in ((0, 3), (0, 1), (2, 4))
    }
    some = promising_pairs(pairs, known, RefineConfig(max_partners=2))
    assert set(best) | {(1, 3)} <= set(some)
    assert some == [pair for pair in pairs if pair in some]


def test_photos_are_matched_wherever_their_features_lie() -> None:
    told: list[tuple[str, int, int]] = []
    pairs = list(combinations(range(3), 2))
    matches = match_photos(
        pairs, VIEWS, found(), RefineConfig(), track=lambda *step: told.append(step)
    )
    # the third shows something else
    (one,) = matches
    assert (one.i, one.j) == (0, 1)
    assert told == [("matching", n, 3) for n in (1, 2, 3)]
    assert len(one.confidence) > 150
    photo = np.c_[2 * one.pixels_i.double().numpy(), np.ones(len(one.pixels_i))] @ TURN.T
    off = np.linalg.norm(photo[:, :2] / 2 - one.pixels_j.double().numpy(), axis=1)
    assert np.median(off) < 0.1
    assert np.quantile(off, 0.95) < 0.5
    assert len(one.pixels_i.unique(dim=0)) == len(one.pixels_j.unique(dim=0)) == len(off)
    assert float(one.confidence.min()) >= 0.8


def test_the_most_similar_against_a_slow_search() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(40, 128, generator=generator)
    second = torch.cat((first[10:30], torch.rand(15, 128, generator=generator)))
    second = second + 0.05 * torch.rand(second.shape, generator=generator)
    first, second = (
        torch.nn.functional.normalize(v.double(), dim=-1).float() for v in (first, second)
    )
    allowed = torch.rand(40, 35, generator=generator) < 0.7
    for mask in (None, allowed):
        expected = {}
        usable = torch.ones(40, 35, dtype=torch.bool) if mask is None else mask
        cosine = torch.where(usable, first @ second.T, -1.0)
        for i in range(40):
            j = int(cosine[i].argmax())
            nearest, next_one = (2 - 2 * cosine[i].topk(2).values).sqrt().tolist()
            if (
                int(cosine[:, j].argmax()) == i
                and cosine[i, j] >= 0.8
                and nearest <= 0.7 * next_one
            ):
                expected[i] = j
        index_i, index_j, similarity = most_similar(
            first, second, 0.7, None if mask is None else lambda rows, mask=mask: mask[rows]
        )
        assert len(expected) > 5
        assert dict(zip(index_i.tolist(), index_j.tolist(), strict=True)) == expected
        assert torch.allclose(similarity, cosine[index_i, index_j])
    assert len(most_similar(first[:0], second, 0.8)[0]) == 0
    assert len(most_similar(first, second[:0], 0.8)[1]) == 0


def test_matches_without_a_common_geometry_are_none() -> None:
    generator = torch.Generator().manual_seed(0)
    some = Matches(
        i=0,
        j=1,
        pixels_i=100 * torch.rand(60, 2, generator=generator),
        pixels_j=100 * torch.rand(60, 2, generator=generator),
        confidence=torch.ones(60),
    )
    assert on_epipolar_lines(some, VIEWS) is None
    few = [getattr(some, name)[:10] for name in ("pixels_i", "pixels_j", "confidence")]
    assert (
        on_epipolar_lines(replace(some, pixels_i=few[0], pixels_j=few[1], confidence=few[2]), VIEWS)
        is None
    )
    # all one point, all on one line: no sample gives a geometry, which OpenCV may report as a fault
    for line in (torch.zeros(60, 2), torch.arange(60.0)[:, None].expand(60, 2)):
        degenerate = replace(some, pixels_i=line + 5, pixels_j=line + 5)
        kept = on_epipolar_lines(degenerate, VIEWS)
        assert kept is None or len(kept.confidence) <= 60
