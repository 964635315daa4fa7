"""Given cameras against the features of photos that are not theirs."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recon3d.config import RefineConfig
from recon3d.given_check import warn_of_cameras
from recon3d.ground_truth import read_scene
from recon3d.types import EdgeVerdict, Scene, Verdict, View

ROOM = Path(__file__).parents[1] / "sample_data" / "room"


def scene_of(order: tuple[int, ...] = (0, 1, 2, 3, 4), stretched: float = 1.0) -> Scene:
    """Return the sample room with its true cameras, or with those of other photos."""
    photos = read_scene(ROOM).photos
    views = tuple(
        View(
            name=photo.path.name,
            sha256=photo.path.name,
            image=torch.zeros(3, 480, 640),
            photo2view=torch.eye(3),
            photo_width=640,
            photo_height=480,
            focal_px=None,
        )
        for photo in photos
    )
    intrinsics = torch.stack([torch.from_numpy(photo.intrinsics) for photo in photos])
    intrinsics[:, [0, 1], [0, 1]] *= stretched
    names = [view.name for view in views]
    edges = tuple(
        EdgeVerdict(first=names[i], second=names[j], used=True, reason="", confidence=2.0)
        for i in range(5)
        for j in range(i + 1, 5)
    )
    verdict = Verdict(residual=0.0, edges=4, rotation_uncertainty_deg=0.0, focal_source="given")
    return Scene(
        views=views,
        cam2world=torch.stack([torch.from_numpy(photos[n].cam2world) for n in order]),
        intrinsics=intrinsics,
        depth=(torch.ones(480, 640),) * 5,
        confidence=(torch.ones(480, 640),) * 5,
        verdicts=(verdict,) * 5,
        edges=edges,
    )


def rgb_of(view: View) -> np.ndarray:
    found: np.ndarray = cv2.imread(str(ROOM / "images" / view.name))[..., ::-1].copy()
    return found


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (scene_of(), None),
        (scene_of((0, 3, 2, 1, 4)), "contradict the given cameras in"),
        (scene_of(stretched=1.4), "contradict the given cameras in"),
    ],
)
def test_cameras_of_other_photos_are_warned_of(
    scene: Scene, words: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        warn_of_cameras(scene, [v.name for v in scene.views], rgb_of, RefineConfig())
    assert (words is None) == (not caplog.records)
    if words is not None:
        assert words in caplog.text
        assert len(caplog.records) == 1


def test_the_photos_most_of_whose_pairs_are_wrong_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = scene_of((0, 3, 2, 1, 4))
    warn_of_cameras(scene, [v.name for v in scene.views], rgb_of, RefineConfig())
    named = caplog.text.split("in most of")[1].split(". Check")[0]
    assert {"0001.jpg", "0003.jpg"} <= {name.strip() for name in named.split(",")}


def test_only_what_was_given_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    scene = scene_of((0, 3, 2, 1, 4))
    warn_of_cameras(scene, ["0000.jpg", "0002.jpg", "0004.jpg"], rgb_of, RefineConfig())
    warn_of_cameras(scene, ["0001.jpg"], rgb_of, RefineConfig())
    assert not caplog.records
