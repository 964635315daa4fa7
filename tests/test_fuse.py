import dataclasses

import numpy as np
import pytest
import torch

from recon3d.config import FuseConfig
from recon3d.errors import ReconstructionError, UsageError
from recon3d.fuse import best_per_voxel, depth_edges, fuse, surface_normals
from recon3d.geometry import look_at, project, transform_points, unproject
from recon3d.types import Scene, Verdict, View

ALL = FuseConfig(confidence_percentile=0.0, depth_edge=0.0)


def make_scene(
    depth: list[torch.Tensor],
    *,
    cam2world: torch.Tensor | None = None,
    confidence: list[torch.Tensor] | None = None,
    image: list[torch.Tensor] | None = None,
) -> Scene:
    n_views = len(depth)
    intrinsics = torch.tensor([[20.0, 0, 7], [0, 22, 5], [0, 0, 1]])
    return Scene(
        views=tuple(
            View(
                name=f"{index}.jpg",
                sha256="0" * 64,
                image=torch.zeros(3, *depth[index].shape) if image is None else image[index],
                photo2view=torch.eye(3),
                photo_width=depth[index].shape[1],
                photo_height=depth[index].shape[0],
                focal_px=None,
            )
            for index in range(n_views)
        ),
        cam2world=torch.eye(4).repeat(n_views, 1, 1) if cam2world is None else cam2world,
        intrinsics=intrinsics.repeat(n_views, 1, 1),
        depth=tuple(depth),
        confidence=tuple(confidence or [torch.full_like(each, 2.0) for each in depth]),
        verdicts=(
            Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="given"),
        )
        * n_views,
    )


def plane_depth(
    normal: torch.Tensor, offset: float, cam2world: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Depth of the world plane normal . x = offset, by intersecting every pixel's ray with it."""
    intrinsics = make_scene([torch.zeros(1, 1)]).intrinsics[0]
    rays = unproject(torch.ones(height, width), intrinsics).double() @ cam2world[:3, :3].mT.double()
    return (
        (offset - normal.double() @ cam2world[:3, 3].double()) / (rays @ normal.double())
    ).float()


def test_points_are_doubles_only_where_floats_are_coarse():
    depth = torch.full((10, 14), 4.0)
    cam2world = torch.eye(4, dtype=torch.float64)[None]
    near = fuse(make_scene([depth], cam2world=cam2world), ALL)
    assert near.points_in_world.dtype == np.float32
    far = cam2world.clone()
    far[0, :3, 3] = torch.tensor([5e5, 5.3e6, 100.0])
    cloud = fuse(make_scene([depth], cam2world=far), ALL)
    assert cloud.points_in_world.dtype == np.float64
    moved = near.points_in_world + far[0, :3, 3].numpy()
    np.testing.assert_allclose(cloud.points_in_world, moved, rtol=0, atol=1e-6)
    np.testing.assert_allclose(cloud.normals_in_world, near.normals_in_world, atol=1e-6)


def test_a_hand_computed_point():
    depth = torch.zeros(10, 14)
    depth[2, 4] = 4.0
    image = torch.full((3, 10, 14), -1.0)
    image[:, 2, 4] = torch.tensor([1.0, 0.0, -1.0])
    cam2world = torch.tensor([[[0.0, 0, 1, 10], [0, 1, 0, 20], [-1, 0, 0, 30], [0, 0, 0, 1]]])
    cloud = fuse(make_scene([depth], cam2world=cam2world, image=[image]), ALL)
    # camera: x = (4.5 - 7) / 20 * 4 = -0.5, y = (2.5 - 5) / 22 * 4, z = 4; world: (z, y, -x) + t
    np.testing.assert_allclose(cloud.points_in_world, [[14, 20 - 10 / 22, 30.5]], rtol=1e-6)
    np.testing.assert_array_equal(cloud.rgb, [[255, 128, 0]])
    np.testing.assert_array_equal(cloud.confidence, [2.0])
    # alone, it faces its camera
    towards = np.array([10, 20, 30]) - cloud.points_in_world[0]
    np.testing.assert_allclose(
        cloud.normals_in_world[0], towards / np.linalg.norm(towards), rtol=1e-5
    )


def test_every_8_bit_colour_comes_back_exactly():
    levels = torch.arange(256, dtype=torch.float32).reshape(16, 16)
    image = torch.stack((levels, levels.flip(0), levels.T)) / 127.5 - 1
    cloud = fuse(make_scene([torch.ones(16, 16)], image=[image]), ALL)
    expected = torch.stack((levels, levels.flip(0), levels.T), dim=-1).reshape(-1, 3)
    np.testing.assert_array_equal(cloud.rgb, expected.numpy().astype(np.uint8))


def test_two_views_of_a_plane_give_points_on_it_and_its_normal():
    normal = torch.nn.functional.normalize(torch.tensor([0.2, -0.3, -1.0]), dim=0)
    cam2world = torch.stack(
        [
            torch.eye(4),
            look_at(
                torch.tensor([1.0, -0.5, 0.3]),
                torch.tensor([0.0, 0, 4]),
                torch.tensor([0.0, -1, 0]),
            ),
        ]
    )
    depth = [
        plane_depth(normal, -4.0, cam2world[0], 10, 14),
        plane_depth(normal, -4.0, cam2world[1], 12, 9),
    ]
    cloud = fuse(make_scene(depth, cam2world=cam2world), FuseConfig(confidence_percentile=0.0))
    assert len(cloud.points_in_world) == 10 * 14 + 12 * 9
    np.testing.assert_allclose(cloud.points_in_world @ normal.numpy(), -4.0, atol=1e-4)
    # the plane's normal points to the cameras: at the origin n . x = 0 > -4
    np.testing.assert_allclose(cloud.normals_in_world, np.tile(normal, (248, 1)), atol=1e-3)


def test_fused_points_project_back_to_their_pixels():
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(10, 14, generator=generator) + 1
    cam2world = look_at(
        torch.tensor([[1.0, 2, 3]]), torch.tensor([[0.0, 0, 9]]), torch.tensor([[0.0, -1, 0]])
    )
    scene = make_scene([depth], cam2world=cam2world)
    points = torch.from_numpy(fuse(scene, ALL).points_in_world)
    pixels = project(transform_points(torch.linalg.inv(cam2world[0]), points), scene.intrinsics[0])
    rows, columns = torch.meshgrid(torch.arange(10), torch.arange(14), indexing="ij")
    expected = torch.stack((columns, rows), dim=-1).reshape(-1, 2) + 0.5
    torch.testing.assert_close(pixels, expected, atol=1e-3, rtol=0)


def test_normals_are_unit_and_face_the_camera_on_any_depth():
    generator = torch.Generator().manual_seed(2)
    depth = torch.rand(10, 14, generator=generator) + 1
    depth[torch.rand(10, 14, generator=generator) < 0.3] = 0
    cloud = fuse(make_scene([depth]), ALL)
    np.testing.assert_allclose(np.linalg.norm(cloud.normals_in_world, axis=1), 1, rtol=1e-5)
    assert (np.sum(cloud.normals_in_world * cloud.points_in_world, axis=1) <= 1e-6).all()


def test_surface_normals_equal_a_loop():
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(5, 6, 3, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 2])
    usable = torch.rand(5, 6, generator=generator) > 0.25
    centre = torch.zeros(3, dtype=torch.float64)
    normals = surface_normals(points, usable, centre)

    def step(y: int, x: int, dy: int, dx: int) -> torch.Tensor:
        total = torch.zeros(3, dtype=torch.float64)
        for sign in (1, -1):
            y1, x1 = y + sign * dy, x + sign * dx
            if 0 <= y1 < 5 and 0 <= x1 < 6 and usable[y, x] and usable[y1, x1]:
                total += sign * (points[y1, x1] - points[y, x])
        return total

    for y in range(5):
        for x in range(6):
            cross = torch.linalg.cross(step(y, x, 0, 1), step(y, x, 1, 0))
            if cross.norm() == 0:
                cross = centre - points[y, x]
            if cross @ (centre - points[y, x]) < 0:
                cross = -cross
            torch.testing.assert_close(normals[y, x], cross / cross.norm())


def test_depth_edges_equal_a_loop():
    generator = torch.Generator().manual_seed(4)
    depth = 1 + 0.2 * torch.rand(7, 9, generator=generator)
    known = torch.rand(7, 9, generator=generator) > 0.2
    expected = torch.zeros(7, 9, dtype=torch.bool)
    for y in range(7):
        for x in range(9):
            for y1, x1 in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= y1 < 7 and 0 <= x1 < 9 and known[y, x] and known[y1, x1]:
                    a, b = float(depth[y, x]), float(depth[y1, x1])
                    expected[y, x] |= abs(a - b) > 0.1 * min(a, b)
    assert torch.equal(depth_edges(depth, known, 0.1), expected)
    assert 0 < expected.sum() < known.sum()


def test_both_sides_of_a_depth_step_are_dropped():
    depth = torch.ones(10, 14)
    depth[:, 6:] = 2.0
    cloud = fuse(make_scene([depth]), FuseConfig(confidence_percentile=0.0, depth_edge=0.06))
    assert len(cloud.points_in_world) == 10 * 12
    assert len(fuse(make_scene([depth]), ALL).points_in_world) == 10 * 14


def test_a_point_that_another_view_looks_through_is_dropped():
    wall, floating = torch.full((10, 14), 4.0), torch.full((10, 14), 4.0)
    floating[3:6, 5:9] = 3.0
    confidence = [torch.full((10, 14), 3.0), torch.full((10, 14), 2.0)]
    scene = make_scene([wall, floating], confidence=confidence)
    assert len(fuse(scene, ALL).confidence) == 2 * 140 - 12
    assert len(fuse(scene, dataclasses.replace(ALL, free_space=0.0)).confidence) == 2 * 140
    assert len(fuse(scene, dataclasses.replace(ALL, free_space=0.3)).confidence) == 2 * 140


def test_unknown_pixels_are_dropped():
    depth = torch.ones(10, 14)
    confidence = torch.full((10, 14), 2.0)
    depth[0, :4] = torch.tensor([0.0, -1.0, torch.nan, torch.inf])
    confidence[5, 5] = torch.nan
    cloud = fuse(
        make_scene([depth], confidence=[confidence]), FuseConfig(confidence_percentile=0.0)
    )
    assert len(cloud.points_in_world) == 10 * 14 - 5
    assert all(
        np.isfinite(getattr(cloud, name)).all() for name in ("points_in_world", "confidence")
    )


def test_the_percentile_is_over_all_known_pixels_of_the_scene():
    weak, strong = torch.full((10, 14), 1.5), torch.full((10, 14), 4.0)
    half = torch.ones(10, 14)
    half[5:] = 0  # 70 weak pixels are known, 140 strong ones
    scene = make_scene([half, torch.ones(10, 14)], confidence=[weak, strong])
    assert len(fuse(scene, FuseConfig(confidence_percentile=50.0)).confidence) == 140
    assert len(fuse(scene, FuseConfig(confidence_percentile=20.0)).confidence) == 210
    ramp = torch.arange(140.0).reshape(10, 14) + 2
    cloud = fuse(make_scene([torch.ones(10, 14)], confidence=[ramp]), FuseConfig())
    assert len(cloud.confidence) == 105


def test_guesses_are_left_out_unless_all_is_wanted_or_nothing_else_is_there():
    depth, guess = torch.full((10, 14), 3.0), torch.full((10, 14), 1.0005)
    mixed = make_scene([depth, depth], confidence=[guess, torch.full((10, 14), 1.5)])
    few = dataclasses.replace(ALL, confidence_percentile=10.0)
    assert fuse(mixed, few).confidence.tolist() == [1.5] * 140
    assert len(fuse(mixed, ALL).confidence) == 280
    assert len(fuse(mixed, dataclasses.replace(few, min_confidence=1.0)).confidence) == 280
    assert len(fuse(make_scene([depth], confidence=[guess]), few).confidence) == 140


def test_an_absolute_threshold_takes_the_place_of_the_percentile():
    ramp = torch.arange(140.0).reshape(10, 14) + 2
    config = FuseConfig(min_confidence=100.0, confidence_percentile=99.0)
    cloud = fuse(make_scene([torch.ones(10, 14)], confidence=[ramp]), config)
    assert cloud.confidence.min() == 100
    assert len(cloud.confidence) == 42


def test_the_most_confident_point_of_every_voxel_equals_a_loop():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 3)).astype(np.float32)
    confidence = rng.integers(1, 20, size=500).astype(np.float32)  # with ties
    best: dict[tuple[int, ...], int] = {}
    for index, point in enumerate(points):
        cell = tuple(int(np.floor(float(value) / 0.5)) for value in point)
        if cell not in best or confidence[index] > confidence[best[cell]]:
            best[cell] = index
    np.testing.assert_array_equal(best_per_voxel(points, confidence, 0.5), sorted(best.values()))
    assert len(best) < 400


def test_a_voxel_as_large_as_the_scene_keeps_one_point_and_a_tiny_one_all():
    depth = torch.full((10, 14), 2.0)
    confidence = torch.ones(10, 14)
    confidence[3, 3] = 9
    scene = make_scene([depth], confidence=[confidence])
    shifted = dataclasses.replace(scene, cam2world=scene.cam2world + 5 * torch.eye(4)[3])
    big = fuse(shifted, dataclasses.replace(ALL, voxel=1e3))
    assert big.confidence.tolist() == [9.0]
    assert len(fuse(scene, dataclasses.replace(ALL, voxel=1e-30)).confidence) == 140


def test_what_is_contradicted_does_not_shift_the_percentile():
    wall, floating = torch.full((10, 14), 4.0), torch.full((10, 14), 4.0)
    floating[:8] = 2.0
    ramp = torch.linspace(2, 3, 140).view(10, 14)
    scene = make_scene([wall, floating], confidence=[torch.full((10, 14), 5.0), ramp])
    half = dataclasses.replace(ALL, confidence_percentile=50.0)
    # 112 of 280 pixels are lost; of the 168 left those of 5.0 are more than half
    assert len(fuse(scene, ALL).confidence) == 168
    assert fuse(scene, half).confidence.min() == 5.0


def test_sky_is_dropped_only_when_asked_for():
    image = torch.zeros(3, 10, 14)
    image[:, :5] = torch.tensor([0.0, 0.4, 1.0])[:, None, None]
    scene = make_scene([torch.ones(10, 14)], image=[image])
    assert len(fuse(scene, ALL).confidence) == 140
    cloud = fuse(scene, dataclasses.replace(ALL, sky=True))
    assert len(cloud.confidence) == 70
    assert (cloud.points_in_world[:, 1] > 0).all()


def test_max_points_keeps_the_same_subset_every_time():
    scene = make_scene([torch.rand(10, 14) + 1])
    everything = fuse(scene, ALL).points_in_world
    first, second = (
        fuse(scene, dataclasses.replace(ALL, max_points=50)).points_in_world for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert len(first) == 50
    rows = [int(np.flatnonzero((everything == point).all(axis=1))[0]) for point in first]
    assert rows == sorted(set(rows))
    # spread over the whole image, not cut off somewhere
    assert rows[0] < 20
    assert rows[-1] > 120


@pytest.mark.parametrize(
    ("depth", "config", "advice"),
    [
        (torch.zeros(10, 14), ALL, "Give photos"),
        (torch.ones(10, 14), FuseConfig(min_confidence=100.0), "Lower --min-confidence"),
        (torch.ones(10, 14), FuseConfig(min_confidence=float("nan")), "Lower --min-confidence"),
        (
            # a checkerboard: the best pixels are all beside a step of depth
            1.0 + (torch.arange(10)[:, None] + torch.arange(14)) % 2,
            FuseConfig(confidence_percentile=100.0),
            r"Lower --confidence-percentile \(100\)",
        ),
    ],
)
def test_nothing_left_says_what_to_do(depth: torch.Tensor, config: FuseConfig, advice: str):
    with pytest.raises(
        ReconstructionError, match=rf"no point is left of \d+ .*\. {advice}.* overlap more\.$"
    ):
        fuse(make_scene([depth]), config)


@pytest.mark.parametrize(
    "change",
    [
        {"min_confidence": 0.5},
        {"confidence_percentile": 101.0},
        {"max_points": 0},
        {"voxel": -1.0},
        {"depth_edge": -0.1},
    ],
)
def test_settings_out_of_range_are_usage_errors(change: dict[str, float]):
    value = next(iter(change.values()))
    with pytest.raises(UsageError, match=f" {value:g} must be "):
        fuse(make_scene([torch.ones(10, 14)]), dataclasses.replace(ALL, **change))
