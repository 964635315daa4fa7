"""The renderer against a slow twin and against its own geometry; folders with ground truth."""

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from picture_bytes import png_header
from recon3d.batches import ASPECTS, image_shape
from recon3d.contact_sheet import write_contact_sheet
from recon3d.errors import InputError, UsageError
from recon3d.geometry import compose, invert_rigid, project, transform_points, unproject
from recon3d.synth import folder, write_folder
from recon3d.synth.assembly import N_SOLIDS, Vantage
from recon3d.synth.atlas import MIP_LEVELS, SIDE, build_atlas, look_up
from recon3d.synth.cameras import CameraRanges, clear_of_solids, sample_cameras
from recon3d.synth.draw import Draw
from recon3d.synth.families import KINDS, SHARES, draw_kinds, sample_worlds
from recon3d.synth.folder import covisibility
from recon3d.synth.materials import repainted
from recon3d.synth.render import camera_rays, render, render_depth
from recon3d.synth.sensor import compressed, photograph
from recon3d.synth.shapes import SHAPES, solids
from recon3d.synth.textures import Atlas, make_atlas, photographs, procedural
from recon3d.synth.trace import FAR, nearest, table_of
from recon3d.synth.world import World, pick
from recon3d.train_config import TrainConfig
from slow_caster import SlowScene

ALL_KINDS = torch.tensor(sorted(KINDS.values()))
HEIGHT, WIDTH = 24, 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return make_atlas(28, generator())


@pytest.fixture(scope="module")
def seen(atlas: Atlas) -> tuple[World, torch.Tensor, torch.Tensor]:
    """A scene of every family with three cameras each."""
    world, vantage = sample_worlds(ALL_KINDS, atlas, generator(3))
    ranges = CameraRanges(covisibility=(0.5, 0.9), none_share=0.0)
    return world, *sample_cameras(world, vantage, 3, HEIGHT, WIDTH, generator(4), ranges)


def test_depth_and_solid_equal_those_of_the_slow_caster(
    seen: tuple[World, torch.Tensor, torch.Tensor], atlas: Atlas
) -> None:
    world, cam2world, intrinsics = seen
    recess = world.materials.recess.clamp_min(0.04)  # so that many rays end in one
    world = replace(world, materials=replace(world.materials, recess=recess))
    cameras, matrices = cam2world[:, :1], intrinsics[:, :1]
    depth = render(world, atlas.texels, cameras, matrices, HEIGHT, WIDTH).depth.flatten(2)[:, 0]
    ray = camera_rays(cameras[:, 0], matrices[:, 0], HEIGHT, WIDTH)
    origin = cameras[:, 0, :3, 3]
    hull, solid = nearest(table_of(world.solids, origin, torch.arange(len(ray))), ray)
    pixels = torch.randint(0, HEIGHT * WIDTH, (40,), generator=generator(1)).tolist()
    compared = carved = 0
    for b, name in enumerate(KINDS):
        slow = SlowScene(world, b)
        wrong = 0
        for n in pixels:
            hit = slow.cast(origin[b].double().numpy(), ray[b, :, n].double().numpy())
            found = float(depth[b, n])
            if hit.solid >= 0 and abs(hit.hull - float(hull[b, n])) < 1e-3 * hit.hull:
                assert int(solid[b, n]) == hit.solid
                compared += 1
            carved += hit.depth > hit.hull
            # a ray at an edge may fall on either side of it in float32, nothing else may differ
            wrong += abs(hit.depth - found) > 2e-3 * (0.5 + hit.depth)
        assert wrong <= 1, f"{name}: {wrong} of {len(pixels)} rays differ"
    assert compared > 100
    assert carved > 10


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "nothing"])
def test_every_shape_is_where_its_definition_says(shape: str) -> None:
    """Rays from all around end on the surface of the shape: in its box and on its quadric."""
    part = solids(shape, torch.tensor([[[0.3, -0.2, 0.5]]]), torch.tensor([[[0.5, 0.7, 0.9]]]))
    origin = torch.randn(50, 3, generator=generator(2))
    origin = 5 * origin / origin.norm(dim=-1, keepdim=True)
    goal = torch.tensor([0.3, -0.2, 0.3]) + 0.2 * torch.randn(50, 3, generator=generator(3))
    ray = (goal - origin)[..., None]
    t, _ = nearest(table_of(part, origin, torch.zeros(50, dtype=torch.int64)), ray)
    hit = t[:, 0] < FAR
    assert float(hit.float().mean()) > 0.6
    point = origin + t * ray[..., 0]
    local = ((point - part.centre[0, 0]) / part.half_size[0, 0])[hit]
    weights, linear, constant = part.quadric[0, 0].split((3, 1, 1))
    value = (weights * local**2).sum(-1) + linear * local[:, 2] - constant
    to_box = 1 - local.abs().amax(-1)
    assert bool((to_box > -1e-4).all())
    assert bool((value < 1e-3).all())
    assert bool((torch.minimum(to_box.abs(), value.abs()) < 1e-3).all())


def test_depth_and_colour_reproject_between_views(
    seen: tuple[World, torch.Tensor, torch.Tensor], atlas: Atlas
) -> None:
    """A point seen by two cameras has one place and, in even light, one colour."""
    world, cam2world, intrinsics = seen
    materials, around = world.materials, world.around
    even = World(
        solids=world.solids,
        materials=replace(
            materials,
            gloss=torch.zeros_like(materials.gloss),
            bump=torch.zeros_like(materials.bump),
            glass=torch.zeros_like(materials.glass),
        ),
        around=replace(
            around,
            light_colour=torch.zeros_like(around.light_colour),
            ambient=torch.ones_like(around.ambient),
            haze=torch.zeros_like(around.haze),
        ),
    )
    height, width = 2 * HEIGHT, 2 * WIDTH
    fine = intrinsics[:, :2] * torch.tensor([2.0, 2.0, 1.0])[:, None]
    shot = render(even, atlas.texels, cam2world[:, :2], fine, height, width)
    depth, rgb = shot.depth, shot.rgb
    cam_0_to_1 = compose(invert_rigid(cam2world[:, 1]), cam2world[:, 0])
    points = unproject(depth[:, 0], fine[:, 0]).flatten(1, 2)
    points = transform_points(cam_0_to_1, points)
    pixel = project(points, fine[:, 1, None])
    differences, agreed = [], 0
    for b in range(len(ALL_KINDS)):
        z = points[b, :, 2]
        x, y = pixel[b].floor().long().unbind(-1)
        keep = (z > 0) & (x >= 1) & (x < width - 1) & (y >= 1) & (y < height - 1)
        keep &= depth[b, 0].flatten() > 0
        x, y, z = x[keep], y[keep], z[keep]
        near = [depth[b, 1, y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        there = torch.stack(near)
        there = torch.where(there > 0, there, torch.inf)  # sky
        # visible there, or hidden behind something nearer: never in front of what is seen
        assert float((z > there.amin(0) * 0.99).float().mean()) > 0.97
        same = ((there - z).abs() < 0.02 * z).all(0)
        agreed += int(same.sum())
        differences.append((rgb[b, 1, y, x] - rgb[b, 0].flatten(0, 1)[keep]).abs().mean(-1)[same])
    assert agreed > 1000
    # half a pixel apart, so alike and not equal; a wrong pixel differs by several times as much
    difference = torch.cat(differences).median()
    shuffled = (rgb - rgb.roll(7, 3)).abs().mean(-1).median()
    assert float(difference) < 0.25 * float(shuffled)


def test_compiled_equals_uncompiled_in_blocks_of_any_size(
    seen: tuple[World, torch.Tensor, torch.Tensor],
    atlas: Atlas,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of rays of any shape give the same (the kernel itself is checked by `--slow`)."""
    import recon3d.synth.render as module

    world, cam2world, intrinsics = seen
    whole = render(world, atlas.texels, cam2world[:2], intrinsics[:2], HEIGHT, WIDTH)
    monkeypatch.setitem(module._UNCOMPILED, "cast", (4, 300))
    blocks = render(world, atlas.texels, cam2world[:2], intrinsics[:2], HEIGHT, WIDTH)
    torch.testing.assert_close(blocks.rgb, whole.rgb, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(blocks.depth, whole.depth, rtol=1e-5, atol=1e-5)


_COMPARE = f"""
import torch
from recon3d.synth.cameras import sample_cameras
from recon3d.synth.families import KINDS, sample_worlds
from recon3d.synth.render import render
from recon3d.synth.textures import make_atlas

random = torch.Generator().manual_seed(3)
atlas = make_atlas(28, random)
world, vantage = sample_worlds(torch.arange(len(KINDS)), atlas, random)
cameras = sample_cameras(world, vantage, 3, {HEIGHT}, {WIDTH}, random)
plain = render(world, atlas.texels, *cameras, {HEIGHT}, {WIDTH})
fused = render(world, atlas.texels, *cameras, {HEIGHT}, {WIDTH}, compiled=True)
off = (fused.depth - plain.depth).abs() > 1e-4 * (1 + plain.depth)
assert float(off.float().mean()) < 1e-3, off.float().mean()
assert float((fused.rgb - plain.rgb).abs().median()) < 1e-4
assert float((fused.rgb - plain.rgb).abs().mean()) < 1e-3
"""


@pytest.mark.slow
def test_compiled_kernel_equals_uncompiled() -> None:
    """In a process of its own, since type checks at run time cannot be compiled."""
    subprocess.run([sys.executable, "-c", _COMPARE], check=True, timeout=900)


def test_one_box_by_hand(atlas: Atlas) -> None:
    """A unit box 5 ahead of a camera that looks along +x: its front face is at depth 4."""
    base, _ = sample_worlds(torch.tensor([KINDS["room"]]), atlas, generator())
    materials = base.materials
    world = World(
        solids=solids("box", torch.tensor([[[5.0, 0.0, 1.0]]]), torch.ones(1, 1, 3)),
        materials=replace(materials, recess=torch.zeros_like(materials.recess)),
        around=replace(
            base.around,
            bounds_low=torch.tensor([[-10.0, -10.0, -1.0]]),
            bounds_high=torch.tensor([[10.0, 10.0, 6.0]]),
        ),
    )
    cam2world = torch.eye(4)[None, None].clone()
    cam2world[0, 0, :3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cam2world[0, 0, :3, 3] = torch.tensor([0.0, 0.0, 1.0])
    intrinsics = torch.tensor([[[[10.0, 0, 5], [0, 10, 5], [0, 0, 1]]]])
    for depth in (
        render_depth(world, cam2world, intrinsics, 10, 10)[0, 0],
        render(world, atlas.texels, cam2world, intrinsics, 10, 10).depth[0, 0],
    ):
        assert float(depth[5, 5]) == pytest.approx(4.0, abs=1e-5)
        # +-1 at depth 4 spans +-2.5 pixels around the centre 5: columns 3..6 have centres inside
        assert (depth[5] < 4.001).nonzero().flatten().tolist() == [3, 4, 5, 6]
        assert float(depth[5, 0]) == pytest.approx(10.0, abs=1e-4)
        # the floor is 1 below: a ray that sinks by 0.45 a unit meets it at 1 / 0.45
        assert float(depth[9, 0]) == pytest.approx(1 / 0.45, abs=1e-4)


def test_smooth_colours_are_means_of_centre_and_corners(
    seen: tuple[World, torch.Tensor, torch.Tensor], atlas: Atlas
) -> None:
    world, cam2world, intrinsics = (
        pick(seen[0], torch.tensor([0])), seen[1][:1, :1], seen[2][:1, :1]
    )  # fmt: skip
    plain = render(world, atlas.texels, cam2world, intrinsics, 6, 8)
    smooth = render(world, atlas.texels, cam2world, intrinsics, 6, 8, smooth=True)
    torch.testing.assert_close(smooth.depth, plain.depth)
    corner = intrinsics.clone()
    corner[..., :2, 2] += 0.5
    grid = render(world, atlas.texels, cam2world, corner, 7, 9).rgb
    corners = grid[..., 1:, 1:, :] + grid[..., 1:, :-1, :] + grid[..., :-1, 1:, :]
    corners = corners + grid[..., :-1, :-1, :]
    expected = plain.rgb / 2 + corners / 8
    dim = (plain.rgb < 2) & (corners < 4)  # bright highlights are limited before
    torch.testing.assert_close(smooth.rgb[dim], expected[dim], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def many(atlas: Atlas) -> tuple[World, Vantage, torch.Tensor, torch.Tensor, torch.Tensor]:
    kinds = draw_kinds(72, Draw(generator(7)))
    world, vantage = sample_worlds(kinds, atlas, generator(7))
    cam2world, intrinsics = sample_cameras(world, vantage, 4, HEIGHT, WIDTH, generator(8))
    return world, vantage, kinds, cam2world, intrinsics


def test_cameras_stand_clear_within_their_ranges(
    many: tuple[World, Vantage, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    world, _, _, cam2world, intrinsics = many
    rotation = cam2world[..., :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0
    )
    clear = clear_of_solids(world, cam2world[..., :3, 3])
    assert float(clear.float().mean()) > 0.95
    fov = 2 * torch.rad2deg(torch.atan(WIDTH / 2 / intrinsics[..., 0, 0]))
    low, high = CameraRanges().fov_deg
    assert bool(((fov > low - 1e-3) & (fov < high + 1e-3)).all())
    assert float(fov.min()) < 40
    assert float(fov.max()) > 88
    centre = intrinsics[..., :2, 2] / torch.tensor([WIDTH, HEIGHT])
    assert float((centre - 0.5).abs().max()) <= CameraRanges().principal_point + 1e-6
    assert float(centre.std()) > 0.01
    # where the horizon leans: mostly within 10 degrees, now and then anything
    right = rotation[..., 2, 0].asin().rad2deg().abs()
    assert float((right < 10.1).float().mean()) > 0.85


def test_covisibility_is_spread_evenly(
    many: tuple[World, Vantage, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    world, _, _, cam2world, intrinsics = many
    fine = intrinsics * torch.tensor([2.0, 2.0, 1.0])[:, None]
    depth = render_depth(world, cam2world, fine, 2 * HEIGHT, 2 * WIDTH)
    shares = torch.stack(
        [covisibility(d, c, k) for d, c, k in zip(depth, cam2world, fine, strict=True)]
    )
    known = (depth > 0).float().mean((2, 3))
    torch.testing.assert_close(shares.diagonal(dim1=1, dim2=2), known, atol=0.02, rtol=0)
    relative = shares / known[..., None].clamp_min(0.1)
    with_first = ((relative[:, 0, 1:] + relative[:, 1:, 0]) / 2).flatten()
    assert len(with_first) == 216
    histogram = torch.histc(with_first, 8, 0.1, 0.9) / len(with_first)
    assert float(histogram.min()) > 0.06, histogram
    assert float(histogram.max()) < 0.2, histogram
    assert float(histogram.sum()) > 0.85  # the rest: views with nothing in common
    assert float((with_first < 0.02).float().mean()) > 0.02


def test_easy_cameras_have_more_in_common(
    many: tuple[World, Vantage, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    world, vantage, _, cam2world, intrinsics = many
    few = torch.arange(12)
    part, where = pick(world, few), Vantage(*(value[few] for value in vantage))
    easy, lens = sample_cameras(
        part, where, 3, HEIGHT, WIDTH, generator(9), CameraRanges().eased(0.3)
    )

    def mean_share(cam2world: torch.Tensor, intrinsics: torch.Tensor) -> float:
        depth = render_depth(part, cam2world, intrinsics, HEIGHT, WIDTH)
        both = zip(depth, cam2world, intrinsics, strict=True)
        return float(torch.stack([covisibility(d, c, k)[0, 1:] for d, c, k in both]).mean())

    assert mean_share(easy, lens) > mean_share(cam2world[few], intrinsics[few]) + 0.1


def test_families_are_all_drawn_and_all_different(atlas: Atlas) -> None:
    kinds = draw_kinds(400, Draw(generator(1)))
    share = torch.bincount(kinds, minlength=len(KINDS)) / len(kinds)
    for name, number in KINDS.items():
        assert float(share[number]) == pytest.approx(SHARES.get(name, 0.0), abs=0.07)
    world, _ = sample_worlds(ALL_KINDS, atlas, generator(2))
    assert world.solids.centre.shape == (len(KINDS), N_SOLIDS, 3)
    real = world.solids.quadric[..., 4] > 0
    assert bool((real.sum(-1) > 40).all())
    cut = (world.solids.cut_quadric[..., 4] > 0) & real
    assert 0.03 < float(cut.sum() / real.sum()) < 0.3
    terrain = KINDS["terrain"]
    relief = world.around.waves[..., 3].abs().sum(-1)
    assert float(relief[terrain]) > 5 * float(relief[torch.arange(len(KINDS)) != terrain].max())
    n_roofless = int(world.around.face_is_sky[:, 5].sum())
    assert 3 <= n_roofless < len(KINDS)


def test_images_come_in_all_shapes() -> None:
    shapes = {
        image_shape(224, aspect, portrait, 16) for aspect in ASPECTS for portrait in (False, True)
    }
    ratios = [width / height for height, width in shapes]
    assert min(ratios) < 0.5
    assert max(ratios) > 2
    assert any(width == height for height, width in shapes)


def test_the_same_seed_gives_the_same_scene(atlas: Atlas) -> None:
    pairs = [sample_worlds(ALL_KINDS, atlas, generator(5)) for _ in range(2)]
    for part in ("solids", "materials", "around"):
        one, two = (getattr(world, part) for world, _ in pairs)
        for field in fields(one):
            assert torch.equal(getattr(one, field.name), getattr(two, field.name)), field.name
    assert all(torch.equal(a, b) for a, b in zip(pairs[0][1], pairs[1][1], strict=True))


def test_scenes_are_repainted_surface_by_surface(atlas: Atlas) -> None:
    world, _ = sample_worlds(ALL_KINDS.repeat(6), atlas, generator(6))
    photos = replace(atlas, of_program={**atlas.of_program, "photo": (20, 28)})
    painted = repainted(world.materials, photos, 0.5, Draw(generator(1)))
    for field in fields(painted):
        if field.name != "texture":
            one, two = (getattr(some, field.name) for some in (painted, world.materials))
            assert torch.equal(one, two), field.name
    before, after = world.materials.texture, painted.texture
    changed = (before != after).flatten(1).float().mean(1)
    assert 0.3 < float((changed > 0).float().mean()) < 0.7
    chosen = changed > 0
    assert float(changed[chosen].min()) > 0.5
    share = ((after[chosen] >= 20) & (after[chosen] < 28)).float().mean()
    assert float(share) == pytest.approx(0.5 + 0.5 * 8 / 28, abs=0.1)
    scene = int(chosen.nonzero()[0])
    for texture in before[scene].unique():  # what looked alike still does
        assert len(after[scene][before[scene] == texture].unique()) == 1
    assert torch.equal(repainted(world.materials, photos, 0.0, Draw(generator())).texture, before)


def test_textures_are_varied_and_atlas_halves(tmp_path: Path) -> None:
    textures = procedural(28, generator())
    assert textures.shape == (28, 3, SIDE, SIDE)
    assert float(textures.min()) >= 0
    assert float(textures.max()) <= 1
    assert float(textures.mean((1, 2, 3)).std()) > 0.05
    atlas = build_atlas(textures)
    assert atlas.shape[1] == sum((SIDE >> level) ** 2 for level in range(MIP_LEVELS))
    second = atlas[0, SIDE * SIDE :][: (SIDE // 2) ** 2].view(SIDE // 2, SIDE // 2)
    rgb = torch.stack([(second >> shift) & 255 for shift in (0, 8, 16)])
    first = textures[0].unflatten(1, (SIDE // 2, 2)).unflatten(3, (SIDE // 2, 2)).mean((2, 4))
    torch.testing.assert_close(rgb / 255, first, atol=0.003, rtol=0)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "huge.png").write_bytes(png_header(60_000, 60_000))
    with pytest.raises(InputError, match="holds no readable"):
        photographs(tmp_path)


def test_textures_are_looked_up_between_texels_of_the_right_level() -> None:
    ramp = torch.linspace(0, 1, SIDE).expand(1, 3, SIDE, SIDE)
    atlas = build_atlas(ramp)
    # tiles are mirrored: the ramp falls from 0 to 1 and rises from 1 to 2
    u = torch.tensor([[0.25, 0.75, 1.25, -0.25]])
    for footprint in (0.0, 2 / SIDE, 8 / SIDE):
        red, green, blue = look_up(
            atlas,
            torch.zeros(1, 4, dtype=torch.int64),
            u,
            torch.full_like(u, 0.4),
            torch.full_like(u, footprint),
        )
        expected = torch.tensor([[0.75, 0.25, 0.25, 0.75]])
        torch.testing.assert_close(red, expected, atol=0.01, rtol=0)
        assert torch.equal(red, green)
        assert torch.equal(red, blue)
    noise = build_atlas(torch.rand(1, 3, SIDE, SIDE, generator=generator()))
    far = look_up(
        noise,
        torch.zeros(1, 500, dtype=torch.int64),
        torch.rand(1, 500, generator=generator(1)),
        torch.rand(1, 500, generator=generator(2)),
        torch.ones(1, 500),
    )[0]
    assert float(far.std()) < 0.05  # grey from afar


def test_sensor_keeps_range_and_shape() -> None:
    light = torch.rand(6, 3, 16, 24, generator=generator()) ** 2 * 3
    shot = photograph(light, generator(1))
    assert shot.shape == light.shape
    assert float(shot.min()) >= 0
    assert float(shot.max()) <= 1
    torch.testing.assert_close(photograph(light, generator(1)), shot)  # seeded
    same = photograph(light[:1].expand(6, -1, -1, -1), generator(2))
    brightness = same.mean((1, 2, 3))
    assert float(brightness.std()) > 0.02  # every view has an exposure of its own
    tame = photograph(light[:1].expand(6, -1, -1, -1), generator(2), strength=0.0)
    assert float(tame.std(0).max()) < 1e-6
    # cameras set their exposure: ten times the light gives nearly the same picture
    brighter = photograph(light * 3, generator(2), strength=0.0)
    assert float((brighter.mean() - photograph(light, generator(2), 0.0).mean()).abs()) < 0.1


def test_compression_loses_little_at_high_quality_and_much_at_low() -> None:
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 5, 6, generator=generator()), size=(37, 50), mode="bicubic"
    ).clamp(0, 1)
    noisy = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator(1))).clamp(0, 1)
    errors = [
        float((compressed(noisy, torch.tensor([quality])) - noisy).abs().mean())
        for quality in (100.0, 75.0, 30.0, 5.0)
    ]
    assert errors[0] < 0.006
    assert errors == sorted(errors)
    assert errors[-1] > 0.04
    flat = torch.full((1, 3, 16, 16), 0.5)
    torch.testing.assert_close(compressed(flat, torch.tensor([20.0])), flat, atol=0.05, rtol=0)


def test_contact_sheet_shows_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    few = partial(TrainConfig, n_procedural_textures=28)
    monkeypatch.setattr("recon3d.contact_sheet.TrainConfig", few)
    path = tmp_path / "sheet.png"
    monkeypatch.setattr("recon3d.contact_sheet._CELL", 64)
    told: list[tuple[str, int, int]] = []
    shown = write_contact_sheet(path, rows=4, columns=2, track=lambda *step: told.append(step))
    assert told == [("render", row, 4) for row in (1, 2, 3, 4)]
    sheet = cv2.imread(str(path))
    assert sheet.shape[1] > 2 * 64 * 5 // 2
    assert float(sheet.std()) > 10
    assert float((sheet < 3).all(-1).mean()) < 0.1  # no black beside the pictures
    names = [pair.kind for pair in shown[:-1]]
    assert names == [list(KINDS)[k % len(KINDS)] for k in range(len(names))]
    assert set(names) == set(KINDS)
    assert shown[-1].share < 0.01
    assert max(pair.share for pair in shown) > 0.3
    with pytest.raises(UsageError, match="exists"):
        write_contact_sheet(path)
    with pytest.raises(UsageError, match=r"must end in \.png"):
        write_contact_sheet(tmp_path / "sheet.tiff")
    with pytest.raises(UsageError, match="there is no folder"):
        write_contact_sheet(tmp_path / "nowhere" / "sheet.png")


def test_folder_has_exact_ground_truth(tmp_path: Path) -> None:
    import cv2

    write_folder(
        tmp_path / "s", kind="room", n_photos=2, width=96, height=64, seed=1, overwrite=False
    )
    truth = json.loads((tmp_path / "s" / "gt.json").read_text())
    assert [entry["file"] for entry in truth["images"]] == ["images/0000.jpg", "images/0001.jpg"]
    for entry in truth["images"]:
        image = cv2.imread(str(tmp_path / "s" / entry["file"]))
        assert image.shape == (64, 96, 3)
        assert (entry["cx"], entry["cy"]) == (47.5, 31.5)  # integer pixel centres
        depth = np.load(tmp_path / "s" / entry["depth"], allow_pickle=False)
        assert depth.shape == (64, 96)
        assert np.isfinite(depth).all()
    # what view 0 sees, carried into view 1 by the written cameras, is what view 1 sees
    first, second = truth["images"]
    matrices = [torch.tensor(e["world_to_camera"], dtype=torch.float64) for e in (first, second)]
    depths = [
        torch.from_numpy(np.load(tmp_path / "s" / e["depth"]).astype(np.float64))
        for e in (first, second)
    ]
    intrinsics = torch.tensor(
        [[first["fx"], 0, 48.0], [0, first["fy"], 32.0], [0, 0, 1]], dtype=torch.float64
    )
    share = covisibility(
        torch.stack(depths).float(),
        torch.stack([invert_rigid(m) for m in matrices]).float(),
        intrinsics.expand(2, 3, 3).float(),
    )
    assert float(share[0, 1]) > 0.2
    with pytest.raises(UsageError, match="holds a scene"):
        write_folder(
            tmp_path / "s", kind="room", n_photos=2, width=96, height=64, seed=1, overwrite=False
        )


def test_a_folder_holds_one_scene_alone(tmp_path: Path) -> None:
    arguments = {"kind": "room", "width": 96, "height": 64, "seed": 1}
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0000.jpg").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="holds a scene"):
        write_folder(tmp_path, n_photos=2, overwrite=False, **arguments)
    assert (tmp_path / "images" / "0000.jpg").read_bytes() == b"somebody's"
    (tmp_path / "images" / "notes.txt").write_text("kept")
    for n_photos in (4, 2):
        write_folder(tmp_path, n_photos=n_photos, overwrite=True, **arguments)
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert names == ["0000.jpg", "0001.jpg", "notes.txt"]
    assert sorted(file.name for file in (tmp_path / "depth").iterdir()) == ["0000.npy", "0001.npy"]


def test_folder_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder, "_TRIALS", 2)
    told: list[tuple[str, int, int]] = []

    def track(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        assert ("rendering" in caplog.text) is (stage == "render")

    size = {"n_photos": 3, "width": 96, "height": 64}
    with caplog.at_level("INFO"):
        write_folder(
            tmp_path / "s", kind="room", **size, seed=1, overwrite=False, depth=False, track=track
        )
    assert "chose a room; rendering 3 photos of 96 x 64 pixels" in caplog.messages
    assert told[0] == ("choose", 1, 2)
    assert told[-4:] == [("choose", 2, 2), *(("render", n, 3) for n in (1, 2, 3))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "moon"}, "scene 'moon' is unknown"),
        ({"n_photos": 1}, "photos is 1"),
        ({"n_photos": 1001}, "photos is 1001. Give a number from 2 to 1000"),
        ({"width": 10}, "width is 10"),
        ({"height": 100_000}, "height is 100000"),
    ],
)
def test_folder_refuses(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arguments = {
        "kind": "room", "n_photos": 3, "width": 96, "height": 64, "seed": 0, "overwrite": False
    }  # fmt: skip
    with pytest.raises(UsageError, match=message):
        write_folder(tmp_path / "s", **(arguments | change))
    assert not (tmp_path / "s").exists()


def test_a_scene_of_many_photos_is_chosen_without_comparing_all(
    atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand photos take as much as a few dozen, but for their candidates."""
    judged: list[int] = []

    def count(depth: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        judged.append(len(depth))
        return covisibility(depth, *others)

    monkeypatch.setattr(folder, "_TRIALS", 1)
    monkeypatch.setattr(folder, "covisibility", count)
    for n_photos in (5, 300):
        _, cam2world, intrinsics = folder._choose(
            "room", n_photos, HEIGHT, WIDTH, atlas, generator(1)
        )
        assert cam2world.shape == (1, n_photos, 4, 4)
        assert intrinsics.shape == (1, n_photos, 3, 3)
        assert len(cam2world[0, :, :3, 3].unique(dim=0)) == n_photos
    assert judged == [5, 32]


def test_rays_pass_through_pixel_centres() -> None:
    intrinsics = torch.tensor([[[50.0, 0, 16], [0, 50, 12], [0, 0, 1]]])
    ray = camera_rays(torch.eye(4)[None], intrinsics, 24, 32)
    assert float(ray[0, 2, 0]) == 1.0
    assert float(ray[0, 0, 0]) == pytest.approx((0.5 - 16) / 50)
    assert math.isclose(float(ray[0, 1, -1]), (23.5 - 12) / 50, rel_tol=1e-6)
