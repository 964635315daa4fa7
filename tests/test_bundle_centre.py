"""Principal points of cropped photos: found where tracks tell them, else left in the middle."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon3d import bundle_centre
from recon3d.bundle_centre import find_centres
from recon3d.bundle_check import RefineReport, judged
from recon3d.bundle_doubt import camera_doubt
from recon3d.bundle_solve import Problem, Rig, adjust
from recon3d.geometry import rotation_angle, so3_exp
from recon3d.tracks import Tracks
from recon3d.types import View
from seen_tracks import open_problem, photo, ring, seen_by, tracks_of

pytest.importorskip("pycolmap", reason="needs the extra colmap")

N_VIEWS, N_POINTS = 6, 200
CROPPED = {1: (110.0, 0.0), 4: (0.0, -80.0)}
"""Views, and where their principal points are, in thousandths from the middle."""
WIDTHS, HEIGHTS = [1000, 780, 1000, 1000, 1000, 1000], (750, 750, 750, 750, 590, 750)
"""In pixels, here thousandths: the cropped ones lack 220 and 160."""


def problem() -> Problem:
    return open_problem(
        N_VIEWS,
        centre_spread=torch.full((N_VIEWS,), 7.0).double(),
        focal_spread=torch.full((N_VIEWS,), 0.2).double(),
    )


def true_rig() -> Rig:
    return ring(N_VIEWS)


def observed(seed: int, cropped: dict[int, tuple[float, float]]) -> Tracks:
    """Return points that all views see, with noise of 0.3 thousandths."""
    generator = torch.Generator().manual_seed(seed)
    pixels = seen_by(true_rig(), N_POINTS, generator)
    pixels = pixels + 0.3 * torch.randn(pixels.shape, generator=generator).double()
    for view, centre in cropped.items():
        pixels[view] += torch.tensor(centre).double()
    return tracks_of(pixels)


def photos(widths: Sequence[int], heights: Sequence[int] = (750,) * N_VIEWS) -> list[View]:
    return [
        photo(f"{n}.jpg", width, height)
        for n, (width, height) in enumerate(zip(widths, heights, strict=True))
    ]


def centred(cropped: dict[int, tuple[float, float]]) -> tuple[Rig, Tracks, Tracks, RefineReport]:
    """Return cameras adjusted with principal points in the middle, tracks, and the report."""
    used, aside = observed(0, cropped), observed(1, cropped)
    rig = true_rig()
    for view, (x, y) in cropped.items():  # a turn looks much like a crop
        turn = so3_exp(torch.tensor([-y / 900, x / 900, 0.0]).double())
        rig.cam2world[view, :3, :3] = rig.cam2world[view, :3, :3] @ turn.mT
    for _ in range(6):
        rig = adjust(problem(), rig, used)
    plain = RefineReport(improved=True, reason="", sharp_pairs=1, n_tracks=N_POINTS)
    report = judged(replace(plain, remapped=True), problem(), true_rig(), rig, aside)
    return rig, used, aside, replace(report, reason="", error_before=0.5)


def wrong_deg(rig: Rig) -> Tensor:
    """Return by how much rotations relative to the first view are wrong."""
    true, found = (some.cam2world[:, :3, :3] for some in (true_rig(), rig))
    return torch.rad2deg(rotation_angle((true[:1].mT @ true).mT @ (found[:1].mT @ found)))


def test_principal_points_of_cropped_photos_are_found(caplog: pytest.LogCaptureFixture) -> None:
    rig, used, aside, report = centred(CROPPED)
    assert float(wrong_deg(rig).max()) > 2
    with caplog.at_level("INFO", logger="recon3d"):
        found = find_centres(photos(WIDTHS, HEIGHTS), problem(), rig, (used, aside), report)
    assert found is not None
    moved, better, judgement = found
    true = torch.zeros(N_VIEWS, 2).double()
    for view, centre in CROPPED.items():
        true[view] = torch.tensor(centre)
    assert float((moved.centre - true).abs().max()) < 8
    assert float(wrong_deg(better).max()) < 0.5
    assert judgement.error_after < 0.5 * report.error_after
    assert judgement.error_before == report.error_before
    assert moved.free_centre
    assert "cropped, by what features show: 1.jpg, 4.jpg" in caplog.text


def test_photos_of_one_size_may_be_cropped_at_either_side() -> None:
    """Whole photos keep the lens that they share, cropped ones do not."""
    cropped = {1: (110.0, 0.0), 4: (-110.0, 0.0)}
    rig, used, aside, report = centred(cropped)
    lens = torch.tensor([1 if n in cropped else 0 for n in range(N_VIEWS)])
    views = photos([780 if n in cropped else 1000 for n in range(N_VIEWS)])
    found = find_centres(views, replace(problem(), lens=lens), rig, (used, aside), report)
    assert found is not None
    moved, better, _ = found
    true = torch.tensor([cropped.get(n, (0.0, 0.0)) for n in range(N_VIEWS)]).double()
    assert float((moved.centre - true).abs().max()) < 8
    assert float(wrong_deg(better).max()) < 0.5
    assert moved.lens.tolist() == [0, 1, 0, 0, 4, 0]
    whole = better.focal[[0, 2, 3, 5]]
    assert torch.equal(whole, whole[:1].expand(4))


def test_a_photo_cropped_along_both_sides_is_found_by_what_it_sees_itself() -> None:
    cropped = {1: (170.0, -100.0)}
    rig, used, aside, report = centred(cropped)
    small = dict.fromkeys(cropped, (500, 375))
    views = photos(*zip(*[small.get(n, (1000, 750)) for n in range(N_VIEWS)], strict=True))
    found = find_centres(views, problem(), rig, (used, aside), report)
    assert found is not None
    moved, better, judgement = found
    assert float((moved.centre[1] - torch.tensor(cropped[1])).abs().max()) < 8
    assert float(wrong_deg(better).max()) < 0.5
    assert judgement.n_held_out == report.n_held_out


def test_upright_photos_have_a_principal_point_of_their_own() -> None:
    """That of the sensor, off the middle, turns with the camera."""
    upright, offset = (1, 3), {n: (-4.0, 6.0) if n in (1, 3) else (6.0, 4.0) for n in range(6)}
    offset[4] = (6.0, -80.0)
    rig, used, aside, report = centred(offset)
    views = photos(
        [750 if n in upright else 1000 for n in range(N_VIEWS)],
        tuple(1000 if n in upright else 590 if n == 4 else 750 for n in range(N_VIEWS)),
    )
    one_lens = torch.tensor([0, 0, 0, 0, 4, 0])
    found = find_centres(views, replace(problem(), lens=one_lens), rig, (used, aside), report)
    assert found is not None
    moved, better, judgement = found
    assert moved.lens.tolist() == [0, 1, 0, 1, 4, 0]
    assert judgement.error_after < 0.5
    assert float(wrong_deg(better).max()) < 0.5


def test_what_lenses_of_their_own_gain_is_no_sign_of_a_crop() -> None:
    """Two cameras, and one photo focused nearer: freed of the shared lens, all fits."""
    views = photos([1000, 1000, 1000, 900, 900, 900], (750, 750, 750, 700, 700, 700))
    lens = torch.tensor([0, 0, 0, 3, 3, 3])
    task = replace(problem(), lens=lens)
    true = true_rig()
    true.focal[1] *= 1.01
    generator = torch.Generator().manual_seed(0)
    used, aside = (
        tracks_of(seen + 0.2 * torch.randn(seen.shape, generator=generator).double())
        for seen in (seen_by(true, N_POINTS, generator) for _ in range(2))
    )
    rig = true_rig()
    for _ in range(6):
        rig = adjust(task, rig, used)
    plain = RefineReport(improved=True, reason="", sharp_pairs=1, n_tracks=N_POINTS, remapped=True)
    report = replace(judged(plain, task, true_rig(), rig, aside), reason="")
    assert find_centres(views, task, rig, (used, aside), report) is None


def test_photos_of_unlike_sizes_need_not_be_cropped() -> None:
    rig, used, aside, report = centred({})
    views = photos(WIDTHS, HEIGHTS)
    assert find_centres(views, problem(), rig, (used, aside), report) is None


@pytest.mark.parametrize("known", ["sizes", "lenses", "a shared lens", "two views", "a failure"])
def test_nothing_is_tried_where_nothing_can_be_cropped_or_told(
    known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("adjusted")

    rig, used, aside = true_rig(), observed(0, {}), observed(1, {})
    report = RefineReport(improved=False, reason="", sharp_pairs=1, n_tracks=N_POINTS)
    task, views = problem(), photos(WIDTHS, HEIGHTS)
    if known == "sizes":
        views = photos([1000, 750] * 3, (750, 1000) * 3)  # some upright
    elif known == "lenses":
        task = replace(task, constant_focal=torch.ones(N_VIEWS, dtype=torch.bool))
    elif known == "a shared lens":
        task = replace(task, config=replace(task.config, shared_focal=True))
    elif known == "a failure":
        report = replace(report, reason="the tracks kept aside do not fit better")
    else:
        keep = used.view < 2
        used = replace(used, track=used.track[keep], view=used.view[keep], pixels=used.pixels[keep])
    monkeypatch.setattr(bundle_centre, "adjust_centres", refuse)
    assert find_centres(views, task, rig, (used, aside), report) is None


def test_where_features_only_hint_at_it_cameras_stay_and_are_doubted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, used, aside, report = centred(CROPPED)
    monkeypatch.setattr(bundle_centre, "pays", lambda free, held: False)
    views = photos([1000, 780, 640, 900, 800, 700], (750, 740, 480, 600, 590, 710))
    found = find_centres(views, problem(), rig, (used, aside), report)
    assert found is not None
    doubted, same, judgement = found
    assert same is rig
    assert judgement is report
    assert (doubted.centre == problem().centre).all()
    assert (doubted.centre_spread > problem().centre_spread).all()


def test_known_principal_points_stay_though_focal_lengths_are_free() -> None:
    rig, used, aside, report = centred(CROPPED)
    spread = problem().centre_spread.clone()
    spread[0] = 0
    task = replace(problem(), centre_spread=spread)
    found = find_centres(photos(WIDTHS, HEIGHTS), task, rig, (used, aside), report)
    assert found is not None
    moved, better, _ = found
    assert float(moved.centre[0].norm()) < 0.5
    assert float(moved.centre_spread[0]) == 0
    assert camera_doubt(moved, better, used).isfinite().all()


def test_one_cropped_photo_among_known_lenses_is_found() -> None:
    crop = {4: CROPPED[4]}
    rig, used, aside, report = centred(crop)
    known = torch.arange(N_VIEWS) != 4
    task = replace(problem(), constant_focal=known)
    heights = (750, 750, 750, 750, 590, 750)
    found = find_centres(photos([1000] * 6, heights), task, rig, (used, aside), report)
    assert found is not None
    assert found[0].centre[4].tolist() == pytest.approx(crop[4], abs=3)
    assert (found[0].centre[known] == 0).all()


def test_the_full_size_may_be_upright() -> None:
    crops = {0: (750, 1000), 1: (800, 750), 2: (750, 1000), 3: (500, 700)}
    assert {n: lack.tolist() for n, lack in bundle_centre._missing(crops).items()} == {
        0: [0, 0], 1: [200, 0], 2: [0, 0], 3: [250, 300]
    }  # fmt: skip


def test_sizes_tell_who_is_cropped_and_by_how_much() -> None:
    crops = {0: (1000, 750), 1: (800, 750), 2: (750, 1000), 3: (750, 940), 4: (640, 480)}
    assert {n: lack.tolist() for n, lack in bundle_centre._missing(crops).items()} == {
        0: [0, 0], 1: [200, 0], 2: [0, 0], 3: [0, 60], 4: [360, 270]
    }  # fmt: skip
    unlike = {0: (1000, 750), 1: (640, 480), 2: (900, 600), 3: (800, 500)}
    assert bundle_centre._missing(unlike) == {}
