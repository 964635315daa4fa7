import logging
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from recon3d import pipeline, weights
from recon3d.config import (
    AlignConfig,
    ModelConfig,
    PhotoConfig,
    Precision,
    PredictConfig,
    RunConfig,
)
from recon3d.errors import InputError, UsageError, WeightsError
from recon3d.model import TwoViewModel
from recon3d.pipeline import reconstruct
from recon3d.progress import Track
from recon3d.types import LeftOut, PairPrediction, Scene, Verdict, View

SMALL = ModelConfig(
    image_size=48, patch_size=8, enc_dim=24, enc_depth=1, dec_dim=24, dec_depth=1, name="small-test"
)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Save a network of random weights."""
    path = tmp_path / "small.safetensors"
    weights.save(TwoViewModel(SMALL), path)
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Write three photos and a text file that is called one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (60, 80, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
    (folder / "note.jpg").write_text("no photo")
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Replace the alignment by one that places all views but the last, and keeps what it got."""
    got: dict[str, object] = {}

    def align(
        predictions: Iterable[PairPrediction],
        views: tuple[View, ...],
        config: AlignConfig,
        *,
        track: Track,
    ) -> Scene:
        got.update(
            predictions=list(predictions),
            views=views,
            config=config,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        placed = views[:-1]
        sizes = [view.image.shape[-2:] for view in placed]
        track("align", 1, 1)
        return Scene(
            views=placed,
            cam2world=torch.eye(4).repeat(len(placed), 1, 1),
            intrinsics=torch.eye(3).repeat(len(placed), 1, 1),
            depth=tuple(torch.ones(size) for size in sizes),
            confidence=tuple(torch.full(size, 2.0) for size in sizes),
            verdicts=tuple(
                Verdict(
                    residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="estimated"
                )
                for _ in placed
            ),
            left_out=(LeftOut(name=views[-1].name, reason="no confident overlap"),),
        )

    monkeypatch.setattr(pipeline, "align", align)
    return got


def config(small: str, **changes: object) -> RunConfig:
    predict = PredictConfig(device="cpu", precision=Precision.FP32)
    return RunConfig(**({"weights": small, "predict": predict} | changes))


def test_photos_become_predictions_of_every_pair(small: str, photos: Path, seen: dict[str, object]):
    scene = reconstruct([str(photos)], config(small))
    pairs = [(each.i, each.j) for each in seen["predictions"]]
    assert sorted(pairs) == [(i, j) for i in range(3) for j in range(3) if i != j]
    assert [view.name for view in seen["views"]] == ["0.png", "1.png", "2.png"]
    assert [view.name for view in scene.views] == ["0.png", "1.png"]


def test_size_and_patch_come_from_the_weights_unless_given(
    small: str, photos: Path, seen: dict[str, object]
):
    reconstruct([str(photos)], config(small))
    assert tuple(seen["views"][0].image.shape) == (3, 32, 48)
    reconstruct([str(photos)], config(small, photos=PhotoConfig(size=64)))
    assert tuple(seen["views"][0].image.shape) == (3, 48, 64)


def test_photos_left_out_by_reading_and_by_alignment_are_both_reported(
    small: str, photos: Path, seen: dict[str, object]
):
    scene = reconstruct([str(photos)], config(small))
    assert [entry.name for entry in scene.left_out] == ["note.jpg", "2.png"]


def test_the_strategy_of_the_config_chooses_the_pairs(
    small: str, photos: Path, seen: dict[str, object]
):
    reconstruct([str(photos)], config(small, pairs="oneref:1"))
    pairs = {(each.i, each.j) for each in seen["predictions"]}
    assert pairs == {(0, 1), (1, 0), (1, 2), (2, 1)}


def test_the_settings_of_the_alignment_arrive(small: str, photos: Path, seen: dict[str, object]):
    wanted = AlignConfig(focal_px=70.0, seed=5)
    reconstruct([str(photos)], config(small, align=wanted))
    assert seen["config"] == wanted


def test_deterministic_holds_inside_and_is_undone(
    small: str, photos: Path, seen: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    state = torch.random.get_rng_state()
    reconstruct([str(photos)], config(small, deterministic=True))
    assert seen["deterministic"] is True
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)
    reconstruct([str(photos)], config(small))
    assert seen["deterministic"] is False


def test_stages_are_tracked_and_the_decision_is_logged(
    small: str, photos: Path, seen: dict[str, object], caplog: pytest.LogCaptureFixture
):
    last: dict[str, tuple[int, int]] = {}
    with caplog.at_level(logging.INFO, "recon3d.pipeline"):
        reconstruct(
            [str(photos)],
            config(small),
            track=lambda stage, done, total: last.update({stage: (done, total)}),
        )
    assert list(last) == ["weights", "photos", "encode", "pairs", "align"]
    assert last["photos"] == (4, 4)
    assert last["pairs"] == (6, 6)
    line, end = [text for name, _, text in caplog.record_tuples if name == "recon3d.pipeline"]
    assert end.startswith("placed 2 of 3 views")
    for word in ("small-test", "cpu", "float32", "3 views", "3 pairs (auto)", " MB "):
        assert word in line


def test_memory_of_predictions_by_hand():
    flat = torch.zeros(3, 10, 20)
    view = View(
        name="a",
        sha256="0" * 64,
        image=flat,
        photo2view=torch.eye(3),
        photo_width=20,
        photo_height=10,
        focal_px=None,
    )
    # two maps of 200 pixels x 4 numbers x 2 bytes, in both orders
    assert pipeline._prediction_bytes((view, view), [(0, 1)]) == 2 * 2 * 200 * 4 * 2


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"weights": "missing.safetensors"}, WeightsError),
        ({"predict": PredictConfig(device="toaster")}, UsageError),
        ({"pairs": "nonsense"}, UsageError),
    ],
)
def test_faults_of_the_settings_pass_through(
    small: str, photos: Path, changes: dict[str, object], fault: type[Exception]
):
    with pytest.raises(fault):
        reconstruct([str(photos)], config(small, **changes))


def test_no_photos_is_an_input_error(small: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        reconstruct([str(tmp_path / "empty")], config(small))
