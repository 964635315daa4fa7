import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from recon3d import fitting, pipeline, weights
from recon3d.align_samples import Cameras, Masks
from recon3d.cli import main
from recon3d.config import (
    AlignConfig,
    DenseConfig,
    ModelConfig,
    PhotoConfig,
    Precision,
    PredictConfig,
    RunConfig,
)
from recon3d.dense import DenseReport
from recon3d.errors import DisconnectedError, InputError, ResourceError, UsageError, WeightsError
from recon3d.memory import Plan, plan
from recon3d.model import TwoViewModel
from recon3d.pairs import connected_components
from recon3d.pipeline import reconstruct, reconstruct_groups
from recon3d.progress import Track
from recon3d.refinement import REFINED_BY_ITSELF, is_refining
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

    def align_groups(
        predictions: Iterable[PairPrediction],
        views: tuple[View, ...],
        config: AlignConfig,
        *,
        cameras: Cameras,
        masks: Masks,
        limit: int | None,
        device: torch.device | None,
        track: Track,
    ) -> tuple[Scene, ...]:
        got.update(
            device=device,
            predictions=list(predictions),
            views=views,
            config=config,
            cameras=cameras,
            masks=masks,
            limit=limit,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        placed = views[:-1]
        sizes = [view.image.shape[-2:] for view in placed]
        track("align", 1, 1)
        scene = Scene(
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
        return (scene,)

    monkeypatch.setattr(pipeline, "align_groups", align_groups)
    return got


def config(small: str, **changes: object) -> RunConfig:
    predict = PredictConfig(device="cpu", precision=Precision.FP32)
    plain = {"weights": small, "predict": predict, "refine": False}
    return RunConfig(**(plain | changes))


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
    for word in ("small-test", "cpu", "float32", "3 views", "3 pairs (auto)"):
        assert word in line


def test_known_cameras_and_masks_reach_the_alignment(
    small: str, photos: Path, seen: dict[str, object], tmp_path: Path
):
    frame = {"file_path": "photos/1.png", "transform_matrix": np.eye(4).tolist()}
    given = tmp_path / "transforms.json"
    given.write_text(json.dumps({"fl_x": 70.0, "w": 80, "h": 60, "frames": [frame]}))
    black = np.zeros((60, 80), np.uint8)
    black[:, 40:] = 255
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "2.png.png"), black)
    reconstruct([str(photos)], config(small, cameras=str(given), masks=str(tmp_path / "masks")))
    first, second, third = seen["cameras"]
    assert first is None and third is None  # noqa: PT018 - two of a kind
    assert second.intrinsics[0, 0] == pytest.approx(70.0 * 48 / 80, rel=0.1)
    assert second.cam2world.shape == (4, 4)
    assert seen["masks"][:2] == (None, None)
    assert not bool(seen["masks"][2][:, :23].any())
    assert bool(seen["masks"][2][:, 25:].all())


def test_transparent_pixels_are_masked_and_masks_count_as_well(
    small: str, photos: Path, seen: dict[str, object], tmp_path: Path
):
    bgr = cv2.imread(str(photos / "1.png"))
    alpha = np.full(bgr.shape[:2], 255, np.uint8)
    alpha[:30] = 0
    cv2.imwrite(str(photos / "1.png"), np.dstack((bgr, alpha)))
    reconstruct([str(photos)], config(small))
    assert seen["masks"][0] is seen["masks"][2] is None
    top, bottom = seen["masks"][1][:16], seen["masks"][1][16:]
    assert not bool(top.any())
    assert bool(bottom.all())
    black = np.zeros(bgr.shape[:2], np.uint8)
    black[:, 40:] = 255
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "1.png.png"), black)
    scene = reconstruct([str(photos)], config(small, masks=str(tmp_path / "masks")))
    both = torch.zeros(32, 48, dtype=torch.bool)
    both[16:, 24:] = True
    assert torch.equal(seen["masks"][1], both)
    assert torch.equal(scene.views[1].mask, both)


def test_given_cameras_are_not_refined(
    small: str,
    photos: Path,
    seen: dict[str, object],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    frames = [{"file_path": f"{n}.png", "transform_matrix": np.eye(4).tolist()} for n in range(3)]
    given = tmp_path / "transforms.json"
    given.write_text(json.dumps({"fl_x": 70.0, "w": 80, "h": 60, "frames": frames}))
    wanted = config(small, cameras=str(given), refine=True)
    lenses: list[torch.Tensor] = []
    with caplog.at_level("WARNING"):
        found = reconstruct_groups(
            [str(photos)], wanted, on_matches=lambda *given: lenses.extend(given[2])
        )
    # three photos of noise: nothing is seen twice
    assert "the photos confirm only 0 % of the depth. Check that --cameras" in caplog.text
    assert found.cameras_given
    assert found.refinements == ()
    assert "bundle" not in caplog.text
    assert [matrix[0, 0].item() for matrix in lenses] == pytest.approx([70.0] * 3)
    both = replace(wanted, align=AlignConfig(focal_px=60.0))
    with pytest.raises(UsageError, match="--focal 60 contradicts --cameras"):
        reconstruct([str(photos)], both)
    # one of which the pose is not known is of no matter where it is not placed
    given.write_text(json.dumps({"fl_x": 70.0, "w": 80, "h": 60, "frames": frames[:2]}))
    assert reconstruct_groups([str(photos)], wanted).cameras_given
    given.write_text(json.dumps({"fl_x": 70.0, "w": 80, "h": 60, "frames": frames[1:]}))
    assert not reconstruct_groups([str(photos)], wanted).cameras_given


def test_depth_from_photos_that_was_asked_for_is_missed(
    small: str, photos: Path, seen: dict[str, object], caplog: pytest.LogCaptureFixture
):
    for wanted in (None, False, True):
        with caplog.at_level("WARNING"):
            reconstruct([str(photos)], config(small, dense=wanted))
        assert ("--dense: no two cameras are exact" in caplog.text) == (wanted is True)


def test_what_memory_does_not_suffice_for_is_done_without(
    small: str,
    photos: Path,
    seen: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def too_much(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    sizes: list[int] = []

    def stereo(most: int, scene: Scene, _: object, *, config: DenseConfig, **__: object) -> object:
        assert max(max(view.image.shape) for view in scene.views) == 48
        sizes.append(config.size)
        return too_much() if config.size > most else (scene, found)

    monkeypatch.setattr(pipeline, "refined_with_strays", too_much)
    monkeypatch.setattr(pipeline, "exact_views", lambda scene, *_: {v.name for v in scene.views})
    found = DenseReport(used=True, views=2, share=0.5)
    for most, expected in ((200, found), (100, None)):
        monkeypatch.setattr(pipeline, "dense_scene", partial(stereo, most))
        made = reconstruct_groups([str(photos)], config(small, refine=True))
        assert made.dense == (expected,)
        assert [(one.improved, one.reason) for one in made.refinements] == [
            (False, "memory ran out")
        ]
    assert sizes == [320, 160, 320, 160]
    monkeypatch.setattr(pipeline, "dense_scene", partial(stereo, 0))
    sizes.clear()
    for size in (60, 30):  # views of the network have 48 pixels
        reconstruct([str(photos)], config(small, refine=True, stereo=DenseConfig(size=size)))
    assert sizes == [60, 48, 48]
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert said.count("out of memory while refining: the cameras stay as they were aligned") == 4
    assert said[-1] == "depth stays that of the network"


def test_features_alone_that_memory_does_not_suffice_for_leave_no_scene(
    small: str, photos: Path, monkeypatch: pytest.MonkeyPatch
):
    def too_much(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pipeline, "from_features_alone", too_much)
    blind = config(small, refine=True, align=AlignConfig(min_edge_confidence=99.0))
    with pytest.raises(DisconnectedError, match="needs 99"):
        reconstruct([str(photos)], blind)


def test_all_components_asks_for_every_group(small: str, photos: Path, seen: dict[str, object]):
    reconstruct([str(photos)], config(small, all_components=True))
    assert seen["limit"] == 1  # one scene is all that `reconstruct` returns
    result = reconstruct_groups([str(photos)], config(small, all_components=True))
    assert seen["limit"] is None
    assert [view.name for view in result.views] == ["0.png", "1.png", "2.png"]


def test_of_several_scenes_the_first_names_the_photos_that_are_in_none():
    def scene(name: str, *out: str) -> Scene:
        view = View(
            name=name,
            sha256=name,
            image=torch.zeros(3, 8, 8),
            photo2view=torch.eye(3),
            photo_width=8,
            photo_height=8,
            focal_px=None,
        )
        return Scene(
            views=(view,),
            cam2world=torch.eye(4)[None],
            intrinsics=torch.eye(3)[None],
            depth=(torch.ones(8, 8),),
            confidence=(torch.ones(8, 8),),
            verdicts=(
                Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="exif"),
            ),
            left_out=tuple(LeftOut(name=n, reason="no overlap") for n in out),
        )

    scenes = pipeline._with_left_out(
        (scene("a", "b", "c"), scene("b", "a", "c")), (LeftOut(name="d", reason="damaged"),)
    )
    assert [[entry.name for entry in one.left_out] for one in scenes] == [["d", "c"], []]


def test_a_known_distance_gives_metres(
    small: str,
    photos: Path,
    seen: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    placed = pipeline.align_groups

    def apart(*args: object, **named: object) -> tuple[Scene, ...]:
        (scene,) = placed(*args, **named)
        scene.cam2world[1, :3, 3] = torch.tensor([0.0, 3.0, 4.0])
        return (scene,)

    monkeypatch.setattr(pipeline, "align_groups", apart)
    scene = reconstruct([str(photos)], config(small, scale_from="0,1.png,10"))
    assert scene.metric
    assert scene.cam2world[1, :3, 3].tolist() == [0, 6, 8]
    with caplog.at_level("WARNING"):
        scene = reconstruct([str(photos)], config(small, scale_from="0,2,10"))
    assert "'2.png' could not be placed" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("No scene is in metres.")
    assert not scene.metric
    (photos / "0-broken.png").write_text("no photo")
    with caplog.at_level("INFO"):
        scene = reconstruct([str(photos)], config(small, scale_from="1,2,10"))
    assert "in metres: 10 m between the cameras of 0.png and 1.png" in caplog.text
    assert scene.cam2world[1, :3, 3].tolist() == [0, 6, 8]
    with pytest.raises(UsageError, match=r"'0-broken\.png' could not be placed: not a"):
        reconstruct([str(photos)], config(small, scale_from="0,1,10"))
    with pytest.raises(UsageError, match="I,J,METRES"):
        reconstruct([str(photos)], config(small, scale_from="0,2"))


def test_above_a_dozen_photos_those_that_look_alike_are_compared(
    small: str, tmp_path: Path, seen: dict[str, object]
):
    for index in range(14):
        grey = np.full((60, 80, 3), 17 * index, np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.png"), grey)
    reconstruct([str(tmp_path)], config(small))
    pairs = {(each.i, each.j) for each in seen["predictions"]}
    assert len(pairs) < 14 * 13
    assert len(connected_components(14, pairs)) == 1
    assert all((j, i) in pairs for i, j in pairs)


def test_little_memory_means_fewer_pairs_or_smaller_views(
    small: str, photos: Path, seen: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fitting, "free_device_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match="are free"):
        reconstruct([str(photos)], config(small))


def only_narrow_views_fit(monkeypatch: pytest.MonkeyPatch, most_tokens: int) -> None:
    """Have memory run out for every batch of pairs of larger views, whatever its size."""
    decode = TwoViewModel.decode

    def limited(self: TwoViewModel, tokens_i: Tensor, *rest: object, **named: object) -> object:
        if tokens_i.shape[1] > most_tokens:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return decode(self, tokens_i, *rest, **named)

    monkeypatch.setattr(TwoViewModel, "decode", limited)


def test_a_run_out_of_memory_goes_on_with_fewer_pairs_then_smaller_views(
    small: str,
    tmp_path: Path,
    seen: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (240, 320, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.png"), pixels)
    wanted = config(small, photos=PhotoConfig(size=224))
    only_narrow_views_fit(monkeypatch, (168 // 8) * (128 // 8))
    scene = reconstruct([str(tmp_path)], wanted)
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert [line for line in said if "batch" not in line] == [
        "out of memory, all views once more: 2 of 3 pairs",
        "out of memory, all views once more: views of 168 pixels",
    ]
    assert said[:3] == [
        "out of memory on cpu: batch 2",
        "out of memory on cpu: batch 1",
        "out of memory, all views once more: 2 of 3 pairs",
    ]
    assert max(scene.views[0].image.shape) == 168
    assert len(seen["predictions"]) == 4
    only_narrow_views_fit(monkeypatch, 0)
    with pytest.raises(ResourceError, match="the run is out of memory, whatever is given up") as e:
        reconstruct([str(tmp_path)], wanted)
    assert e.value.exit_code == 6


def test_fewer_pairs_for_memory_are_not_made_up_for_by_a_second_step(
    small: str, tmp_path: Path, seen: dict[str, object], monkeypatch: pytest.MonkeyPatch
):
    for index in range(14):
        grey = np.full((60, 80, 3), 17 * index, np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.png"), grey)
    monkeypatch.setattr("recon3d.two_step.extra_pairs", lambda *given: spare(*given))
    budgets: list[int] = []

    def spare(n_views: int, pairs: list[tuple[int, int]], *rest: object) -> list[tuple[int, int]]:
        budget = rest[-1]
        assert isinstance(budget, int)
        budgets.append(budget)
        every = {(i, j) for i in range(n_views) for j in range(i + 1, n_views)}
        return sorted(every - set(pairs))[:budget]

    reconstruct([str(tmp_path)], config(small))
    assert budgets == [7]
    n_pairs = len(seen["predictions"]) // 2
    monkeypatch.setattr(fitting, "plan", lambda *given, **named: thin_plan(*given, **named))

    def thin_plan(*given: object, **named: object) -> Plan:
        planned = plan(*given, **named)
        return replace(planned, pairs=planned.pairs[: n_pairs - 5])

    reconstruct([str(tmp_path)], config(small))
    assert budgets == [7, 2]
    assert len(seen["predictions"]) == 2 * (n_pairs - 5)


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


def test_cameras_are_refined_where_that_can_be_had(monkeypatch: pytest.MonkeyPatch):
    installed = [True]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed[0] else None)
    assert is_refining(RunConfig(), REFINED_BY_ITSELF)
    assert not is_refining(RunConfig(), REFINED_BY_ITSELF + 1)
    assert is_refining(RunConfig(refine=True), 500)
    assert not is_refining(RunConfig(refine=False), 5)
    installed[0] = False
    assert not is_refining(RunConfig(), 5)
    assert is_refining(RunConfig(refine=True), 5)


def test_no_photos_is_an_input_error(small: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        reconstruct([str(tmp_path / "empty")], config(small))


def test_the_alignment_goes_to_a_gpu_that_has_room_for_it(monkeypatch: pytest.MonkeyPatch):
    cuda, mps = torch.device("cuda"), torch.device("mps")
    whole = RunConfig()
    needed = 4 * 100 * whole.align.samples_per_edge * 2 * 4 * 8  # both orders, and twice as many
    for free, place in (
        (20 * needed, cuda),
        (8 * needed, None),
    ):  # eight copies, half of what is free
        monkeypatch.setattr(pipeline, "free_device_bytes", lambda device, free=free: free)
        assert pipeline._device_to_align_on(cuda, 100, whole) == place
        assert pipeline._device_to_align_on(torch.device("cpu"), 100, whole) is None
        assert pipeline._device_to_align_on(mps, 100, whole) is None  # has no float64


def test_matches_are_kept_of_photos_that_make_no_scene(
    small: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "note.jpg").unlink()
    (photos / "blind.toml").write_text("[align]\nmin_edge_confidence = 99.0\n")
    kept, cloud = photos / "m.npz", photos / "scene.ply"
    arguments = [str(photos), "-o", str(cloud), "--matches", str(kept), "--weights", small, "-q"]
    with pytest.raises(SystemExit) as left:
        main(["run", *arguments, "--config", str(photos / "blind.toml"), "--no-refine"])
    assert left.value.code == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert not cloud.exists()
    with np.load(kept) as file:
        assert file["pairs"].tolist() == [[0, 1], [0, 2], [1, 2]]
        assert file["offsets"][-1] == len(file["confidence"])
