"""The whole yardstick on small folders: exact cameras, no cameras, and the choice of photos."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_scene import ExactScene, exact_scene
from picture_bytes import encode
from recon3d import weights
from recon3d.align import align
from recon3d.config import (
    AlignConfig,
    Baseline,
    EvaluateConfig,
    ModelConfig,
    PhotoConfig,
    RunConfig,
)
from recon3d.errors import DisconnectedError, InputError, ResourceError, UsageError
from recon3d.evaluate import evaluate, spread, thinned
from recon3d.given_files import Given, read_given
from recon3d.ground_truth import read_scene
from recon3d.model import TwoViewModel
from recon3d.photos import read_photo
from recon3d.score_table import Table, totals
from recon3d.two_view import VARIANTS, Answers, answer_pairs
from recon3d.types import Photo, Scene, Verdict
from recon3d.views import make_view
from true_scene import write_truth

SAMPLES = Path(__file__).parents[1] / "sample_data"
SMALL = ModelConfig(image_size=128, enc_dim=24, enc_depth=1, dec_dim=24, dec_depth=1)
SHAPES = ((96, 128),)
N_VIEWS = 3


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A network that has learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    weights.save(TwoViewModel(SMALL), path)
    return RunConfig(weights=str(path), photos=PhotoConfig(size=128), refine=False)


@pytest.fixture(scope="module")
def truth() -> ExactScene:
    return exact_scene(N_VIEWS, shapes=SHAPES)


@pytest.fixture
def exact(truth: ExactScene, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[RunConfig]]:
    """Return what replaces the network by exact predictions, in a scene and for pairs."""

    def install() -> list[RunConfig]:
        configs: list[RunConfig] = []

        def reconstruct(inputs: Sequence[str], config: RunConfig) -> Scene:
            configs.append(config)
            scene = align(truth.predictions(), truth.views, AlignConfig())
            views = [
                replace(v, name=Path(path).name)
                for v, path in zip(scene.views, inputs, strict=True)
            ]
            return replace(scene, views=tuple(views))

        monkeypatch.setattr("recon3d.contestants.reconstruct", reconstruct)
        monkeypatch.setattr(
            "recon3d.two_view.predict_pairs",
            lambda _m, _v, pairs, *_, **__: truth.predictions(pairs),
        )
        return configs

    return install


def figures(table: Table, method: str = "recon3d") -> dict[str, dict[str, float | int]]:
    (own,) = (result for result in table.results if result.method == method)
    return {block: dict(values) for block, values in own.figures.items()}


def test_exact_predictions_score_perfectly(
    truth: ExactScene, exact: Callable[[], list[RunConfig]], small: RunConfig, tmp_path: Path
) -> None:
    write_truth(truth, tmp_path / "scene")
    configs = exact()
    steps: list[tuple[str, int, int]] = []
    table = evaluate(tmp_path, EvaluateConfig(run=small), track=lambda *step: steps.append(step))
    assert configs == [small]
    assert steps == [("evaluate", 1, 1)]
    (result,) = table.results
    assert (result.scene, result.method, result.failure) == ("scene", "recon3d", None)
    found = figures(table)
    for block in ("multi_view", "two_view", "two_view_known", "two_view_forced"):
        assert found[block]["pairs"] == 3
        assert found[block]["failed"] == 0
        assert found[block]["auc_5"] > 0.95
    assert found["photos"] == {"given": 3, "placed": 3, "placed_share": 1.0}
    assert found["focal"]["error_pct"] < 1
    assert found["multi_view"]["ate_pct"] < 1
    assert found["depth"]["abs_rel"] < 0.02
    assert found["cloud"]["accuracy_pct"] < 1
    assert found["cost"]["seconds"] > 0
    assert len(result.error_by_decile) == 10
    assert table.settings["size"] == 128


def test_the_refined_reconstruction_has_a_row_of_its_own(
    truth: ExactScene, exact: Callable[[], list[RunConfig]], small: RunConfig, tmp_path: Path
) -> None:
    write_truth(truth, tmp_path / "scene")
    configs = exact()
    table = evaluate(tmp_path, EvaluateConfig(run=replace(small, refine=True)))
    assert [result.method for result in table.results] == ["recon3d", "recon3d --refine"]
    assert [config.refine for config in configs] == [False, True]
    refined = figures(table, "recon3d --refine")
    assert refined["multi_view"]["auc_5"] > 0.95
    assert "two_view" not in refined


def test_a_reconstruction_that_fails_keeps_its_row(
    truth: ExactScene,
    exact: Callable[[], list[RunConfig]],
    small: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Scene:
        raise DisconnectedError("no two photos overlap.")

    exact()
    monkeypatch.setattr("recon3d.contestants.reconstruct", fail)
    write_truth(truth, tmp_path / "scene")
    table = evaluate(tmp_path / "scene", EvaluateConfig(run=small))
    found = figures(table)
    assert table.results[0].failure == "no two photos overlap."
    assert found["multi_view"]["failed"] == 3
    assert found["multi_view"]["maa_30"] == 0
    assert found["photos"]["placed_share"] == 0
    assert found["two_view"]["auc_5"] > 0.95
    assert "depth" not in found
    assert "focal" not in found


def test_an_untrained_network_beside_sift(small: RunConfig) -> None:
    config = EvaluateConfig(run=small, baselines=(Baseline.SIFT,), scenes=("room",), max_photos=2)
    table = evaluate(SAMPLES, config)
    ours, sift = figures(table), figures(table, "sift")
    assert ours["two_view"]["pairs"] == sift["two_view_known"]["pairs"] == 1
    assert ours["two_view_forced"]["auc_20"] < 0.5
    assert sift["two_view_known"]["auc_20"] > 0.7
    assert sift["multi_view"] == sift["two_view_known"]


def pair_set(folder: Path) -> Path:
    """Write photos of the object as a set of two pairs, the second of one photo and a wall."""
    scene = read_scene(SAMPLES / "object")
    folder.mkdir()
    entries = []
    for n, (i, j) in enumerate(((0, 1), (3, 2))):
        first, second = scene.photos[i], scene.photos[j]
        for k, photo in enumerate((first, second)):
            data = photo.path.read_bytes()
            if n == 1 and k == 1:
                data = encode(".jpg", np.full((photo.height, photo.width, 3), 99, np.uint8))
            (folder / f"{n}{k}.jpg").write_bytes(data)
        centred = scene.photos[i].intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        entries.append(
            {
                "image0": f"{n}0.jpg",
                "image1": f"{n}1.jpg",
                "width": first.width,
                "height": first.height,
                "K0": centred.tolist(),
                "K1": centred.tolist(),
                "T_0to1": (np.linalg.inv(second.cam2world) @ first.cam2world).tolist(),
            }
        )
    (folder / "pairs.json").write_text(json.dumps({"units": "metric", "pairs": entries}))
    return folder


def test_a_pair_set_with_both_baselines(small: RunConfig, tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    config = EvaluateConfig(run=small, baselines=(Baseline.SIFT, Baseline.COLMAP))
    table = evaluate(pair_set(tmp_path / "pairs"), config)
    ours, sift, colmap = (figures(table, name) for name in ("recon3d", "sift", "colmap"))
    assert ours["two_view"]["pairs"] == 2
    assert "multi_view" not in ours
    assert sift["two_view_known"]["failed"] == 1
    assert sift["two_view_known"]["auc_20"] > 0.3  # of at most 0.5
    assert colmap["two_view_known"]["failed"] == 1
    assert colmap["two_view_known"]["auc_20"] > 0.3
    assert "1 of 2 pairs" in str(table.results[2].failure)


def test_a_pair_set_is_refined_pair_by_pair(
    small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pair's cameras are true only where its intrinsics are given; the second fails."""
    folder = pair_set(tmp_path / "pairs")
    first, second = read_scene(folder).photos[:2]
    asked: list[tuple[list[str], list[Given]]] = []

    def reconstruct(inputs: list[str], config: RunConfig) -> Scene:
        assert config.refine
        assert not config.dense
        lenses = [] if config.cameras is None else read_given(Path(config.cameras))
        asked.append(([Path(one).name for one in inputs], lenses))
        if "10.jpg" in asked[-1][0]:
            raise DisconnectedError("no two photos overlap.")
        views = tuple(
            make_view(read_photo(p.path, p.path.name, PhotoConfig()), 128, 8)
            for p in (first, second)
        )
        truth = np.stack([np.eye(4), np.linalg.inv(first.cam2world) @ second.cam2world])
        if not lenses:
            truth[1, :3] = np.eye(4)[:3]
            truth[1, 1, 3] = 1.0
        cam2world = torch.from_numpy(truth).float()
        empty = tuple(torch.zeros(view.image.shape[1:]) for view in views)
        return Scene(
            views=views,
            cam2world=cam2world,
            intrinsics=torch.stack(
                [v.photo2view @ torch.from_numpy(first.intrinsics).float() for v in views]
            ),
            depth=empty,
            confidence=empty,
            verdicts=(
                Verdict(
                    residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="estimated"
                ),
            )
            * 2,
        )

    monkeypatch.setattr("recon3d.contestants.reconstruct", reconstruct)
    table = evaluate(folder, EvaluateConfig(run=replace(small, refine=True)))
    refined = figures(table, "recon3d --refine")
    assert [names for names, _ in asked] == 2 * [["00.jpg", "01.jpg"], ["10.jpg", "11.jpg"]]
    assert [len(lenses) for _, lenses in asked] == [0, 0, 2, 2]
    for given, photo in zip(asked[2][1], (first, second), strict=True):
        assert given.name == photo.path.name
        assert given.cam2world is None
        assert [given.fx, given.fy, given.cx, given.cy] == pytest.approx(
            [photo.intrinsics[k] for k in ((0, 0), (1, 1), (0, 2), (1, 2))]
        )
    assert refined["two_view_known"]["auc_5"] == pytest.approx(0.5, abs=0.01)
    assert refined["two_view"]["auc_5"] < 0.1
    assert refined["two_view"]["failed"] == 1
    assert refined["photos"]["placed"] == 2
    assert refined["focal"]["error_pct"] < 0.1
    assert table.results[1].failure == "1 of 2 pairs: no two photos overlap."


def test_an_unreadable_photo_is_the_failure_of_the_scene(
    small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object, **__: object) -> Photo:
        raise InputError("damaged or cut short (JPEG data)")

    monkeypatch.setattr("recon3d.contestants.read_photo", damaged)
    (result,) = evaluate(pair_set(tmp_path / "pairs"), EvaluateConfig(run=small)).results
    assert str(result.failure).endswith("00.jpg cannot be used: damaged or cut short (JPEG data).")
    assert set(result.figures) == {*VARIANTS, "photos", "cost"}
    assert [result.figures[name]["failed"] for name in VARIANTS] == [2, 2, 2, 2]
    assert result.figures["photos"] == {"given": 4, "placed": 0, "placed_share": 0.0}


def test_pairs_without_an_answer_are_failures_of_the_scene_and_in_total(
    truth: ExactScene,
    exact: Callable[[], list[RunConfig]],
    small: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def fail_at_first(*given: object) -> Answers:
        asked.append(given)
        if len(asked) == 1:
            raise ResourceError("out of memory")
        return answer_pairs(*given)

    exact()
    monkeypatch.setattr("recon3d.contestants.answer_pairs", fail_at_first)
    for name in ("a", "b"):
        write_truth(truth, tmp_path / name)
    table = evaluate(tmp_path, EvaluateConfig(run=small))
    first, second = (result.figures for result in table.results)
    (total,) = totals(table.results)
    assert table.results[0].failure == "out of memory"
    for name in VARIANTS:
        assert (first[name]["pairs"], first[name]["failed"]) == (3, 3)
        assert second[name]["failed"] == 0
        assert (total.figures[name]["pairs"], total.figures[name]["failed"]) == (6, 3)
        assert total.figures[name]["auc_5"] == pytest.approx(second[name]["auc_5"] / 2)


@pytest.mark.parametrize(
    ("n", "limit", "expected"),
    [
        (5, 9, [0, 1, 2, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (5, 3, [0, 2, 4]),
        (9, 2, [0, 8]),
        (4, 1, [0]),
    ],
)
def test_items_are_spread_evenly(n: int, limit: int, expected: list[int]) -> None:
    assert list(spread(range(n), limit)) == expected


def test_a_thinned_scene_keeps_its_photos_and_pairs_together(tmp_path: Path) -> None:
    room = read_scene(SAMPLES / "room")
    three = thinned(room, EvaluateConfig(max_photos=3))
    assert [photo.path.name for photo in three.photos] == ["0000.jpg", "0002.jpg", "0004.jpg"]
    assert three.pairs == ((0, 1), (0, 2), (1, 2))
    assert thinned(room, EvaluateConfig(max_photos=5)) is room
    pairs = thinned(read_scene(pair_set(tmp_path / "pairs")), EvaluateConfig(max_photos=3))
    assert [photo.path.name for photo in pairs.photos] == ["00.jpg", "01.jpg"]
    assert pairs.pairs == ((0, 1),)


@pytest.mark.parametrize("change", [{"max_photos": 1}, {"max_pairs": 0}])
def test_limits_without_a_pair_are_refused(change: dict[str, int], small: RunConfig) -> None:
    with pytest.raises(UsageError, match=r"Give at least"):
        evaluate(SAMPLES, EvaluateConfig(run=small, **change))  # type: ignore[arg-type]


def test_an_unknown_scene_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="no scene 'kitchen'"):
        evaluate(SAMPLES, EvaluateConfig(run=RunConfig(weights="nowhere"), scenes=("kitchen",)))
