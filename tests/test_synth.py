"""The renderer against a slow twin and against its own geometry; folders with ground truth."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recon3d.errors import InputError, UsageError
from recon3d.geometry import compose, invert_rigid, project, transform_points, unproject
from recon3d.synth import write_folder
from recon3d.synth.folder import covisibility
from recon3d.synth.render import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    MIP_LEVELS,
    SceneBatch,
    camera_rays,
    cast_depth,
    render,
    render_depth,
)
from recon3d.synth.scene import (
    CLEARANCE,
    KINDS,
    CameraRanges,
    _distance_to_solids,
    sample_cameras,
    sample_scenes,
)
from recon3d.synth.sensor import photograph
from recon3d.synth.textures import SIDE, build_atlas, make_atlas, photographs, procedural

ALL_KINDS = torch.tensor(sorted(KINDS.values()))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def atlas() -> torch.Tensor:
    return make_atlas(18, generator())


@pytest.fixture(scope="module")
def world() -> tuple[SceneBatch, torch.Tensor, torch.Tensor]:
    scene = sample_scenes(ALL_KINDS, 18, generator(3))
    cam2world, intrinsics = sample_cameras(scene, ALL_KINDS, 3, 24, 32, generator(4))
    return scene, cam2world, intrinsics


def slow_depth(scene: SceneBatch, b: int, origin: np.ndarray, ray: np.ndarray) -> float:
    """March along one ray in tiny steps and bisect the first change of inside or outside."""

    def inside(t: float) -> bool:
        point = origin + t * ray
        low, high = scene.bounds_low[b].numpy(), scene.bounds_high[b].numpy()
        if (point < low).any() or (point > high).any():
            return True
        for s in range(scene.kind.shape[1]):
            local = scene.world2solid[b, s].numpy() @ (point - scene.centre[b, s].numpy())
            local = np.abs(local) / scene.half_size[b, s].numpy()
            kind = int(scene.kind[b, s])
            if kind == BOX and (local < 1).all():
                return True
            if kind == ELLIPSOID and (local**2).sum() < 1:
                return True
            if kind == CYLINDER and local[2] < 1 and (local[:2] ** 2).sum() < 1:
                return True
        return False

    t, step = 1e-3, 8e-3
    while not inside(t):
        t += step
    low, high = t - step, t
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if inside(middle) else (middle, high)
    return high


def test_depth_equals_a_slow_march(
    world: tuple[SceneBatch, torch.Tensor, torch.Tensor],
) -> None:
    scene, cam2world, intrinsics = world
    scene = replace(scene, face_is_sky=torch.zeros_like(scene.face_is_sky))
    origin, ray, _ = camera_rays(cam2world, intrinsics, 24, 32)
    depth = cast_depth(scene, origin, ray)
    pick = torch.randint(0, ray.shape[1], (5,), generator=generator(1))
    agreed = 0
    for b in range(len(ALL_KINDS)):
        for n in pick.tolist():
            slow = slow_depth(scene, b, origin[b, n].double().numpy(), ray[b, n].double().numpy())
            # a march in steps may jump over a thin edge; nothing else may differ
            agreed += abs(slow - float(depth[b, n])) < 2e-3 * slow
    assert agreed >= 14, f"{agreed} of 15 rays agree"


def test_depth_reprojects_between_views(
    world: tuple[SceneBatch, torch.Tensor, torch.Tensor],
) -> None:
    """A point seen by two cameras has the same place: its depth in view 1 is the one rendered."""
    scene, cam2world, intrinsics = world
    height, width = 96, 128
    scale = torch.tensor([4.0, 4.0, 1.0])[:, None]
    fine = intrinsics * scale
    depth = render_depth(scene, cam2world, fine, height, width)
    cam_0_to_1 = compose(invert_rigid(cam2world[:, 1]), cam2world[:, 0])
    points = unproject(depth[:, 0], fine[:, 0]).flatten(1, 2)
    points = transform_points(cam_0_to_1, points)
    pixel = project(points, fine[:, 1, None])
    compared = 0
    for b in range(len(ALL_KINDS)):
        z = points[b, :, 2]
        x, y = pixel[b].floor().long().unbind(-1)
        keep = (z > 0) & (x >= 1) & (x < width - 1) & (y >= 1) & (y < height - 1)
        keep &= depth[b, 0].flatten() > 0
        there = torch.stack(
            [depth[b, 1, y[keep] + dy, x[keep] + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        )
        there = torch.where(there > 0, there, torch.inf)  # sky
        # visible there, or hidden behind something nearer: never in front of what is seen
        assert float((z[keep] > there.amin(0) * 0.999).float().mean()) > 0.995
        seen = (z[keep] - there[4]).abs() < 0.01 * z[keep]
        assert float(seen.float().mean()) > 0.4
        compared += int(keep.sum())
    assert compared > 1000


def test_compiled_equals_eager(
    world: tuple[SceneBatch, torch.Tensor, torch.Tensor], atlas: torch.Tensor
) -> None:
    """Chunked rays give what one piece gives (the compiled kernel is checked by `--slow`)."""
    scene, cam2world, intrinsics = world
    whole = render(scene, atlas, cam2world, intrinsics, 24, 32)
    single = render(scene, atlas, cam2world[:, 1:2], intrinsics[:, 1:2], 24, 32)
    torch.testing.assert_close(whole.rgb[:, 1:2], single.rgb)
    torch.testing.assert_close(whole.depth[:, 1:2], single.depth)


@pytest.mark.slow
def test_compiled_kernel_equals_eager(
    world: tuple[SceneBatch, torch.Tensor, torch.Tensor], atlas: torch.Tensor
) -> None:
    scene, cam2world, intrinsics = world
    eager = render(scene, atlas, cam2world, intrinsics, 24, 32)
    fused = render(scene, atlas, cam2world, intrinsics, 24, 32, compiled=True)
    torch.testing.assert_close(fused.depth, eager.depth, rtol=1e-5, atol=1e-5)
    assert float((fused.rgb - eager.rgb).abs().mean()) < 1e-4


def test_one_box_by_hand(atlas: torch.Tensor) -> None:
    """A unit box 5 ahead of a camera that looks along +x: its front face is at depth 4."""
    base = sample_scenes(torch.tensor([KINDS["room"]]), 18, generator())
    scene = replace(
        base,
        bounds_low=torch.tensor([[-10.0, -10.0, 0.0]]),
        bounds_high=torch.tensor([[10.0, 10.0, 6.0]]),
        kind=torch.zeros(1, 1, dtype=torch.int64),
        centre=torch.tensor([[[5.0, 0.0, 1.0]]]),
        world2solid=torch.eye(3)[None, None],
        half_size=torch.ones(1, 1, 3),
    )
    cam2world = torch.eye(4)[None, None].clone()
    cam2world[0, 0, :3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    cam2world[0, 0, :3, 3] = torch.tensor([0.0, 0.0, 1.0])
    intrinsics = torch.tensor([[[[10.0, 0, 5], [0, 10, 5], [0, 0, 1]]]])
    depth = render_depth(scene, cam2world, intrinsics, 10, 10)[0, 0]
    assert float(depth[5, 5]) == pytest.approx(4.0, abs=1e-5)
    # +-1 at depth 4 spans +-2.5 pixels around the centre 5: columns 3..6 have centres inside
    assert (depth[5] < 4.001).nonzero().flatten().tolist() == [3, 4, 5, 6]
    assert float(depth[5, 0]) == pytest.approx(10.0, abs=1e-5)


def test_cameras_stand_clear_and_overlap() -> None:
    kinds = ALL_KINDS.repeat(8)
    scene = sample_scenes(kinds, 18, generator(7))
    cam2world, intrinsics = sample_cameras(scene, kinds, 4, 48, 64, generator(8))
    rotation = cam2world[..., :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0
    )
    clear = _distance_to_solids(scene, cam2world[..., :3, 3]) >= CLEARANCE - 1e-6
    assert float(clear.float().mean()) > 0.97
    fov = 2 * torch.rad2deg(torch.atan(32 / intrinsics[..., 0, 0]))
    low, high = CameraRanges().fov_deg
    assert bool(((fov > low - 1e-3) & (fov < high + 1e-3)).all())
    depth = render_depth(scene, cam2world, intrinsics, 48, 64)
    share = torch.stack(
        [covisibility(d, c, k) for d, c, k in zip(depth, cam2world, intrinsics, strict=True)]
    )
    off_diagonal = share[:, ~torch.eye(4, dtype=torch.bool)]
    assert 0.3 < float(off_diagonal.mean()) < 0.85
    assert float(off_diagonal.std()) > 0.1  # easy and hard pairs
    diagonal = share.diagonal(dim1=1, dim2=2)
    known = (depth > 0).float().mean((2, 3))
    torch.testing.assert_close(diagonal, known, atol=0.02, rtol=0)


def test_textures_are_varied_and_atlas_halves(tmp_path: Path) -> None:
    textures = procedural(27, generator())
    assert textures.shape == (27, 3, SIDE, SIDE)
    assert float(textures.min()) >= 0
    assert float(textures.max()) <= 1
    assert float(textures.mean((1, 2, 3)).std()) > 0.05
    atlas = build_atlas(textures)
    assert atlas.shape[1] == sum((SIDE >> level) ** 2 for level in range(MIP_LEVELS))
    second = atlas[0, SIDE * SIDE :][: (SIDE // 2) ** 2].float().view(SIDE // 2, SIDE // 2, 3)
    first = textures[0].unflatten(1, (SIDE // 2, 2)).unflatten(3, (SIDE // 2, 2)).mean((2, 4))
    torch.testing.assert_close(second / 255, first.permute(1, 2, 0), atol=0.003, rtol=0)
    with pytest.raises(InputError, match="holds no readable"):
        photographs(tmp_path)


def test_sensor_keeps_range_and_shape() -> None:
    clean = torch.rand(4, 3, 16, 24, generator=generator())
    shot = photograph(clean, generator(1))
    assert shot.shape == clean.shape
    assert float(shot.min()) >= 0
    assert float(shot.max()) <= 1
    torch.testing.assert_close(photograph(clean, generator(1)), shot)  # seeded
    torch.testing.assert_close(
        photograph(clean, generator(1), strength=0.0), clean.clamp_min(1e-4), atol=1e-5, rtol=0
    )


def test_the_same_seed_gives_the_same_scene() -> None:
    one, two = (sample_scenes(ALL_KINDS, 18, generator(5)) for _ in range(2))
    for field in fields(one):
        assert torch.equal(getattr(one, field.name), getattr(two, field.name))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "moon"}, "scene 'moon' is unknown"),
        ({"n_photos": 1}, "photos is 1"),
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


def test_pixel_angle_matches_focal() -> None:
    cam2world = torch.eye(4)[None, None]
    intrinsics = torch.tensor([[[[50.0, 0, 16], [0, 50, 12], [0, 0, 1]]]])
    _, ray, angle = camera_rays(cam2world, intrinsics, 24, 32)
    assert float(angle[0, 0]) == pytest.approx(1 / 50)
    assert float(ray[0, 0, 2]) == 1.0
    assert float(ray[0, 0, 0]) == pytest.approx((0.5 - 16) / 50)
    assert math.isclose(float(ray[0, -1, 1]), (23.5 - 12) / 50, rel_tol=1e-6)
