"""Coarse to fine on exact photos of planes: a guess that is far off, and little texture."""

from dataclasses import replace

import torch

from plane_world import flat, shot
from recon3d.sweep import Shot, sweep
from recon3d.sweep_check import believed, confirmations
from recon3d.sweep_levels import Matched, match

PLACES = (0.0, -0.5, 0.5, 0.9)


def errors(found: dict[int, Matched], shots: list[Shot]) -> tuple[float, float]:
    """Return the share of believed pixels of the first view, and the share of those that err."""
    one = found[0]
    wrong = (one.swept.depth / shots[0].depth - 1).abs()[one.good]
    return float(one.good.float().mean()), float((wrong > 0.05).float().mean())


def test_a_network_that_takes_all_for_far_does_no_harm():
    """The board at 3.5 is nearer than a sweep around 8 looks; the coarse level looks farther."""
    shots = [shot(x) for x in PLACES]
    far = [flat(one, 8.0) for one in shots]
    found = match(far, range(4), 4)
    share, wrong = errors(found, shots)
    assert share > 0.6
    assert wrong < 0.05
    board = shots[0].depth < 4
    assert float(found[0].good[board].float().mean()) > 0.6
    alone = sweep(far[0], far[1:])
    assert float(alone.depth.amin()) > 4  # what one level would see


def test_a_world_far_from_its_origin_makes_no_difference():
    far = torch.tensor([5e5, 5.3e6, 100.0], dtype=torch.float64)
    shots = [flat(shot(x)) for x in PLACES]
    there = [replace(one, cam2world=one.cam2world.double()) for one in shots]
    for one in there:
        one.cam2world[:3, 3] += far
    near, moved = (match(some, range(4), 2)[0] for some in (shots, there))
    torch.testing.assert_close(moved.swept.depth, near.swept.depth, rtol=1e-3, atol=0)
    assert float((moved.good != near.good).float().mean()) < 1e-3


def test_what_has_little_texture_is_found_through_noise():
    """Texture of 1.2 % of the range of grey under noise of 0.8 %: one level tells less of it."""
    generator = torch.Generator().manual_seed(5)
    shots = []
    for x in PLACES:
        one = shot(x, size=(144, 192))
        weak = 0.5 + 0.1 * (one.grey - 0.5) + 0.008 * torch.randn(144, 192, generator=generator)
        shots.append(replace(one, grey=weak))
    rough = [flat(one, 5.0) for one in shots]
    share, wrong = errors(match(rough, range(4), 4), shots)
    swept = {n: sweep(r, [o for o in rough if o is not r]) for n, r in enumerate(rough)}
    confirmed = confirmations(rough, swept, 0, [1, 2, 3])
    alone = Matched(swept[0], believed(swept[0], confirmed, 3), rough[0].depth)
    share_alone, _ = errors({0: alone}, shots)
    assert share > share_alone
    assert wrong < 0.1


def test_inverse_depth_moves_as_one():
    shots = [shot(x) for x in PLACES]
    one = match([flat(s) for s in shots], range(4), 4)[0]
    moved = one.with_offset(0.1)
    torch.testing.assert_close(1 / moved.swept.depth, 1 / one.swept.depth + 0.1)
    torch.testing.assert_close(1 / moved.expected, 1 / one.expected + 0.1)
    assert torch.equal(moved.good, one.good)


def test_progress_counts_both_levels_and_a_view_without_neighbours():
    shots = [flat(shot(x)) for x in (0.0, 0.5)]
    far_away = shot(0.0)
    there = far_away.cam2world.clone()
    there[0, 3] = 100.0
    told: list[tuple[str, int, int]] = []
    found = match(
        [*shots, replace(far_away, cam2world=there)], range(3), 4,
        track=lambda *step: told.append(step),
    )  # fmt: skip
    assert sorted(found) == [0, 1]
    assert told == [("dense", k, 6) for k in range(1, 7)]
