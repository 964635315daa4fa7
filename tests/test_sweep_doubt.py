"""Doubt: what holds a fill little, what sources differ about, and where edges may be misplaced."""

import torch

from plane_world import shot
from recon3d import sweep_fill
from recon3d.sweep_doubt import deviation, doubt


def test_a_fill_deviates_the_more_the_farther_it_is_from_good_pixels():
    depth, grey = torch.full((32, 40), 2.0), torch.zeros(32, 40)
    good = torch.zeros(32, 40, dtype=torch.bool)
    good[:, :4], good[:, 24:28] = True, True
    found = deviation(depth, good, grey)[16]
    assert bool((found[good[16]] < 1).all())
    assert bool((found[4:14].diff() > 0).all())  # to the middle between good pixels
    assert bool((found[28:].diff() > 0).all())
    assert float(found[38]) > 1.5 * float(found[14])  # as far, but beyond the last of them
    grey[:, 32:] = 1
    assert float(deviation(depth, good, grey)[16, 34]) > 1.3 * float(found[34])  # across an edge


def test_the_deviation_is_that_of_fills_of_noisy_depth():
    """A twin by the definition: good and expected depth with noise, each filled exactly."""
    generator = torch.Generator().manual_seed(0)
    good = torch.rand(12, 16, generator=generator) < 0.2
    light = torch.rand(12, 16, generator=generator)
    weights = sweep_fill.bend_weights(torch.ones(12, 16), light)
    rows = [torch.diag(good.flatten().float()), sweep_fill.HOLD**0.5 * torch.eye(192)]
    units = torch.eye(192).view(12, 16, 192)
    for axis in (0, 1):
        bends = sweep_fill._second(units, axis) * weights[axis][..., None].sqrt()
        rows.append(bends.reshape(-1, 192))
    system = torch.cat(rows).double()
    noise = torch.randn(len(system), 4000, generator=generator, dtype=torch.float64)
    spread = torch.linalg.lstsq(system, noise).solution.std(dim=1).view(12, 16)
    found = deviation(torch.full((12, 16), 2.0), good, light)
    torch.testing.assert_close(found, spread.float(), rtol=0.08, atol=0)


def test_where_two_sources_differ_depth_is_doubtful_by_as_much():
    one = shot(0.0, board=False)
    good = torch.zeros_like(one.depth, dtype=torch.bool)
    good[:, ::4] = True
    grey = torch.full_like(one.depth, 0.5)
    plain = doubt(one.depth, good, grey, coarse=one.depth, network=one.depth)
    assert 0 < float(plain.min()) <= float(plain.max()) < 0.2
    coarse, network = one.depth.clone(), one.depth.clone()
    coarse[:, :20] *= 2
    network[::2, 60:] *= 2
    found = doubt(one.depth, good, grey, coarse=coarse, network=network)
    assert 0.69 < float(found[:, :20].mean()) < 0.75
    assert float(found[:, 65:].mean()) > 2 * float(plain[:, 65:].mean())
    torch.testing.assert_close(found[:, 24:50], plain[:, 24:50], rtol=0.1, atol=0)
    bent = doubt(one.depth, good, grey, coarse=one.depth, network=3 * one.depth)
    torch.testing.assert_close(bent, plain, rtol=0.01, atol=0)  # its scale is not asked for


def test_depth_is_doubtful_at_its_edges():
    one = shot(0.0)
    good = torch.ones_like(one.depth, dtype=torch.bool)
    found = doubt(one.depth, good, one.grey, coarse=one.depth, network=one.depth)
    edge = (one.depth[:, 1:] / one.depth[:, :-1]).log().abs() > 0.2
    assert int(edge.sum()) > 20
    assert float(found[:, 1:][edge].mean()) > 2.5 * float(found[:10, :20].mean())
