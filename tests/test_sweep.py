"""The plane sweep on exact photos of planes: depth, exposure, occlusion, no texture, a twin."""

from dataclasses import replace

import torch

from plane_world import flat, shot
from recon3d.geometry import compose, invert_rigid, project, transform_points
from recon3d.sweep import RADIUS, Shot, Swept, _Compared, sweep
from recon3d.sweep_check import believed, confirmations

INSIDE = (slice(8, -8), slice(16, -16))


def error(found: torch.Tensor, one: Shot) -> torch.Tensor:
    return (found / one.depth - 1).abs()[INSIDE]


def test_the_depth_of_planes_is_found_from_a_flat_guess():
    one = shot(0.0)
    found = sweep(flat(one), [flat(shot(x)) for x in (-0.5, 0.4, 0.8)])
    wrong = error(found.depth, one)
    assert float(wrong.median()) < 0.01
    assert float((wrong > 0.05).float().mean()) < 0.08  # the rim of the board
    assert float(found.score[INSIDE].median()) > 0.95


def test_exposure_and_contrast_change_nothing():
    one, other = shot(0.0, board=False), shot(0.5, board=False)
    darker = replace(other, grey=0.3 * other.grey + 0.05)
    plain, exposed = (sweep(flat(one), [flat(o)]) for o in (other, darker))
    assert float(error(exposed.depth, one).median()) < 0.01
    # what changes a little is how much the least contrast weighs
    assert float((exposed.depth / plain.depth - 1).abs()[INSIDE].quantile(0.95)) < 0.01


def test_a_hidden_place_is_found_from_the_neighbour_that_sees_it():
    """Right beside the board the left neighbour sees the board only, the right one the wall."""
    one = shot(0.0)
    found = sweep(flat(one), [flat(shot(x)) for x in (-0.8, 0.8, 0.4)])
    right = (one.depth > 4) & (one.depth.roll(-6, 1) > 4) & (one.depth.roll(6, 1) < 4)
    assert int(right.sum()) > 50
    assert float((found.depth / one.depth - 1).abs()[right].median()) < 0.02


def test_without_texture_the_expectation_stays():
    one = shot(0.0)
    blank = replace(one, grey=torch.full_like(one.grey, 0.4))
    expected = replace(blank, depth=one.depth * 1.1)
    found = sweep(expected, [replace(shot(0.5), grey=blank.grey)])
    assert float((found.depth / expected.depth - 1).abs()[INSIDE].median()) < 0.03
    assert float(found.score.abs()[INSIDE].max()) < 0.05


def test_correlation_matches_a_loop():
    one, other = shot(0.0, size=(24, 32)), shot(0.4, size=(24, 32), turn=0.05)
    inverse = [0.2, 0.25]
    compared = _Compared(one, other)
    fast = [compared.at(w) for w in inverse]
    one2other = compose(invert_rigid(other.cam2world), one.cam2world)
    for plane, (row, column) in ((0, (12, 16)), (1, (14, 19))):
        mine, theirs = [], []
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                pixel = torch.tensor([column + dx + 0.5, row + dy + 0.5])
                point = torch.cat(((pixel - one.intrinsics[:2, 2]) / 90.0, torch.ones(1)))
                moved = transform_points(one2other, point[None] / inverse[plane])
                x, y = (project(moved, other.intrinsics)[0] - 0.5).tolist()
                left, top = int(x), int(y)
                near = other.grey[top : top + 2, left : left + 2]
                across = near[:, 0] * (left + 1 - x) + near[:, 1] * (x - left)
                theirs.append(float(across[0] * (top + 1 - y) + across[1] * (y - top)))
                mine.append(float(one.grey[row + dy, column + dx]))
        a, b = torch.tensor(mine).double(), torch.tensor(theirs).double()
        a, b = a - a.mean(), b - b.mean()
        least = 1 / 256**2  # the variance of no texture
        spread = ((a.square().mean() + least) * (b.square().mean() + least)).sqrt()
        assert abs(float(fast[plane][row, column]) - float((a * b).mean() / spread)) < 1e-3


def test_neighbours_confirm_true_depth_and_refuse_wrong_depth():
    shots = [shot(x) for x in (0.0, -0.5, 0.5, 0.9)]
    swept = {n: sweep(flat(s), [flat(o) for o in shots if o is not s]) for n, s in enumerate(shots)}
    count = confirmations(shots, swept, 0, [1, 2, 3])
    good = believed(swept[0], count, 3)
    assert float(good[INSIDE].float().mean()) > 0.7
    wrong = error(torch.where(good, swept[0].depth, shots[0].depth), shots[0])
    assert float(wrong.median()) < 0.01
    assert float((wrong > 0.05).float().mean()) < 0.03  # the rim of the board, a window wide
    spoilt = swept | {0: swept[0]._replace(depth=1.1 * swept[0].depth)}
    assert float((confirmations(shots, spoilt, 0, [1, 2, 3]) > 0).float().mean()) < 0.05


def test_specks_and_unlike_windows_are_not_believed():
    one = shot(0.0)
    result = sweep(flat(one), [flat(shot(0.5))])
    count = torch.ones(one.depth.shape, dtype=torch.int64)
    assert not bool(believed(result._replace(score=torch.zeros_like(result.score)), count, 1).any())
    speck = torch.zeros_like(count)
    speck[30, 40] = 1
    assert not bool(believed(result._replace(score=torch.ones_like(result.score)), speck, 1).any())


def test_the_rim_of_photos_is_not_believed():
    """Undistorted photos have a rim, which looks alike in all and lies at no depth."""
    one = shot(0.0, size=(120, 160))
    swept = Swept(one.depth, torch.ones_like(one.depth))
    good = believed(swept, torch.ones_like(one.depth, dtype=torch.int64), 1)
    rows, columns = good.nonzero().T
    least = RADIUS + 2  # a window, and 1 % of the long edge
    assert (int(rows.min()), int(rows.max())) == (least, 119 - least)
    assert (int(columns.min()), int(columns.max())) == (least, 159 - least)
