"""Pairs of patches that show the same point, to train descriptors: from scenes and from photos.

Both patches of a pair are of features that were found as `wide_features` finds them, in two
pictures of which it is known where each point of one lies in the other.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from recon3d.batches import Batch
from recon3d.features import in_opencv
from recon3d.geometry import invert_rigid, project, seen_from, transform_points
from recon3d.synth.sensor import photograph
from recon3d.wide_features import N_PICTURES, WidePatches, find_wide_patches

_FEATURES = 800  # of a picture at most
_COMPRESSIONS = 6  # of each picture, drawn anew: all of them would show the same again
_MOST_PAIRS = 600  # of two pictures
_OFF_SIGMAS = 1.0  # how far from where it should be a feature may lie
_UNLIKE = 0.7  # Frobenius norm: how much the frames of a pair may differ
_BENDS_PX = 0.3  # second differences of where points lie: at more the surface has an edge
_TILES, _TILE = 3, 192  # photos along the edge of a mosaic, and pixels along theirs
_MOST_TILT = 3.3  # by which a mosaic is compressed


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PatchPairs:
    """Patches of one place, the k-th of `first` like the k-th of `second`.

    `points` says where in the place they are, in units of its typical depth or of 100 pixels.
    """

    first: UInt8[Tensor, "pair 32 32"]
    second: UInt8[Tensor, "pair 32 32"]
    points: Float[Tensor, "pair 3"]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.points)

    def __getitem__(self, rows: slice | Int64[np.ndarray, " pair"]) -> "PatchPairs":
        """Return some of the pairs."""
        return PatchPairs(
            first=self.first[rows], second=self.second[rows], points=self.points[rows]
        )


def pairs_of_scenes(batch: Batch, chance: np.random.Generator) -> list[PatchPairs]:
    """Return the pairs of each scene of a batch, from all its pairs of views."""
    pictures = ((batch.images.mean(2) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    return [_of_scene(batch, scene, pictures[scene], chance) for scene in range(len(pictures))]


def pairs_of_photos(paths: list[Path], chance: np.random.Generator) -> PatchPairs:
    """Return pairs from a mosaic of photos and the same as it looks from elsewhere.

    Both are photographed by the simulated sensor: other exposure, blur, noise and compression.
    """
    drawn = [paths[n] for n in chance.permutation(len(paths))[: _TILES**2]]
    tiles = [_tile(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)) for path in drawn]
    tiles = tiles * _TILES**2
    mosaic = np.vstack([np.hstack(tiles[_TILES * k : _TILES * (k + 1)]) for k in range(_TILES)])
    size = mosaic.shape[0]
    moved = _homography(size, chance)
    other = cv2.warpPerspective(mosaic, in_opencv(moved), (size, size), flags=cv2.INTER_AREA)
    rows, columns = np.mgrid[:size, :size] + 0.5
    here = np.stack((columns, rows, np.ones_like(rows)), axis=-1)
    there = here @ moved.T
    field = there[..., :2] / there[..., 2:]
    inside = (there[..., 2] > 0.2) & (field > 2).all(-1) & (field < size - 2).all(-1)
    first, second = (_features(_shot(picture, chance), chance) for picture in (mosaic, other))
    one, two = _alike(first, second, field, inside, chance)
    return PatchPairs(
        first=first.patches[one],
        second=second.patches[two],
        points=torch.from_numpy(np.c_[first.pixels[one], np.zeros(len(one))]).float() / 100,
    )


def _tile(
    grey: UInt8[np.ndarray, "height width"] | None,
) -> UInt8[np.ndarray, "192 192"]:
    """Return the photo cut to a square and reduced or enlarged; black where there is none."""
    if grey is None:
        return np.zeros((_TILE, _TILE), np.uint8)
    side = min(grey.shape)
    result: np.ndarray = cv2.resize(
        grey[:side, :side], (_TILE, _TILE), interpolation=cv2.INTER_AREA
    )
    return result


def _of_scene(
    batch: Batch,
    scene: int,
    pictures: UInt8[np.ndarray, "view height width"],
    chance: np.random.Generator,
) -> PatchPairs:
    depth, cameras = batch.depth[scene], batch.cam2world[scene]
    world = transform_points(cameras, batch.points_in_cam[scene].flatten(1, 2))
    world = world.view(*depth.shape, 3)
    known = depth[depth > 0]
    unit = float(known.median()) if len(known) else 1.0
    features = [_features(picture, chance) for picture in pictures]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for i in range(len(pictures)):
        for j in range(i + 1, len(pictures)):
            points = transform_points(invert_rigid(cameras[j]), world[i].flatten(0, 1))
            lens = batch.intrinsics[scene, j]
            seen, _, _ = seen_from(points[None], depth[j, None], lens[None], tolerance=0.02)
            visible = (seen.view(depth[i].shape) & (depth[i] > 0)).numpy()
            field = project(points, lens).view(*depth[i].shape, 2).double().numpy()
            one, two = _alike(features[i], features[j], field, visible & _smooth(field), chance)
            column, row = features[i].pixels[one].astype(np.int64).T
            found.append(
                (features[i].patches[one], features[j].patches[two], world[i][row, column] / unit)
            )
    first, second, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    return PatchPairs(first=first, second=second, points=places)


def _features(grey: UInt8[np.ndarray, "height width"], chance: np.random.Generator) -> WidePatches:
    compressions = 1 + chance.permutation(N_PICTURES - 1)[:_COMPRESSIONS]
    return find_wide_patches(grey, _FEATURES, {0, *compressions.tolist()})


def _alike(
    first: WidePatches,
    second: WidePatches,
    field: Float64[np.ndarray, "height width 2"],
    usable: Bool[np.ndarray, "height width"],
    chance: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of features of two pictures whose places and frames agree, each at most once.

    Args:
        first: features of one picture.
        second: features of the other.
        field: where in the other picture each pixel of the first lies.
        usable: where that is known and smooth.
        chance: decides which of too many are taken.
    """
    from scipy.spatial import KDTree

    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if not len(first.pixels) or not len(second.pixels):
        return nothing
    column, row = first.pixels.astype(np.int64).T
    slope = np.stack(np.gradient(field, axis=(1, 0)), axis=-1)[row, column]
    within = first.pixels - np.floor(first.pixels) - 0.5
    there = field[row, column] + np.einsum("nab,nb->na", slope, within)
    frames = slope @ first.frames
    own = np.flatnonzero(usable[row, column])
    reach = np.sqrt(np.abs(np.linalg.det(frames[own]))).clip(1.0, 10.0)
    close = KDTree(second.pixels).query_ball_point(there[own], reach)
    one = np.repeat(own, [len(some) for some in close])
    two = np.array([n for some in close for n in some], dtype=np.int64)
    if not len(one):
        return nothing
    into = np.linalg.inv(second.frames[two])
    off = np.linalg.norm(np.einsum("nab,nb->na", into, there[one] - second.pixels[two]), axis=1)
    unlike = np.linalg.norm(into @ frames[one] - np.eye(2), axis=(1, 2))
    good = np.flatnonzero((off < _OFF_SIGMAS) & (unlike < _UNLIKE))
    good = good[chance.permutation(len(good))]
    for rows in (one, two):
        good = good[np.unique(rows[good], return_index=True)[1]]
    good = chance.permutation(good)[:_MOST_PAIRS]
    return one[good], two[good]


def _smooth(field: Float64[np.ndarray, "height width 2"]) -> Bool[np.ndarray, "height width"]:
    """Say where the surface has no edge: neighbours move alike."""
    smooth = np.zeros(field.shape[:2], dtype=bool)
    middle = 2 * field[1:-1, 1:-1]
    bend = np.linalg.norm(field[1:-1, 2:] + field[1:-1, :-2] - middle, axis=-1)
    bend += np.linalg.norm(field[2:, 1:-1] + field[:-2, 1:-1] - middle, axis=-1)
    smooth[1:-1, 1:-1] = bend < _BENDS_PX
    return smooth


def _homography(size: int, chance: np.random.Generator) -> Float64[np.ndarray, "3 3"]:
    """Return how a square picture, its centre kept, looks turned, scaled and from aside."""

    def turned(angle: float) -> np.ndarray:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    tilt = np.exp(chance.uniform(0, np.log(_MOST_TILT)))
    along = chance.uniform(0, np.pi)
    roll = chance.uniform(-np.pi, np.pi) if chance.random() < 0.5 else chance.normal(0, 0.2)
    squeeze = np.diag([tilt**-0.5, tilt**0.5]) * np.exp(chance.uniform(-0.5, 0.5))
    move = np.eye(3)
    move[:2, :2] = turned(roll) @ turned(along) @ squeeze @ turned(-along)
    move[2, :2] = chance.normal(0, 0.25 / size, 2)
    centre = np.eye(3)
    centre[:2, 2] = size / 2
    result: np.ndarray = centre @ move @ np.linalg.inv(centre)
    return result


def _shot(
    grey: UInt8[np.ndarray, "height width"], chance: np.random.Generator
) -> UInt8[np.ndarray, "height width"]:
    """Return the picture as the simulated sensor takes it."""
    generator = torch.Generator().manual_seed(int(chance.integers(2**31)))
    light = (torch.from_numpy(grey).float() / 255) ** 2.2
    shot = photograph(light.expand(1, 3, -1, -1), generator)[0].mean(0)
    result: np.ndarray = (shot * 255).round().clamp(0, 255).byte().numpy()
    return result
