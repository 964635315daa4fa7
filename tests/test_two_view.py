"""Single pairs: exact predictions give exact cameras; doubtful ones are refused unless forced."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from exact_scene import ExactScene, exact_scene
from recon3d.config import AlignConfig, ModelConfig, PredictConfig
from recon3d.metrics import relative_pose_errors
from recon3d.model import TwoViewModel
from recon3d.two_view import (
    KNOWN,
    KNOWN_FORCED,
    UNKNOWN,
    UNKNOWN_FORCED,
    VARIANTS,
    Answers,
    answer_pairs,
)
from recon3d.types import PairPrediction

PAIRS = [(0, 1), (2, 1)]
Spoil = Callable[[PairPrediction], PairPrediction]


@pytest.fixture(scope="module")
def truth() -> ExactScene:
    return exact_scene(3)


def answers(
    truth: ExactScene, monkeypatch: pytest.MonkeyPatch, spoil: Spoil = lambda p: p
) -> Answers:
    """Let the exact predictions, spoilt, take the place of the network's."""

    def predict(*_: object, **__: object) -> Iterator[PairPrediction]:
        yield from map(spoil, truth.predictions(PAIRS))

    monkeypatch.setattr("recon3d.two_view.predict_pairs", predict)
    model = TwoViewModel(ModelConfig(image_size=32, enc_dim=24, enc_depth=1, dec_dim=24))
    in_photo = [
        np.diag([2.0, 2.0, 1.0]) @ truth.intrinsics(n).numpy() for n in range(len(truth.views))
    ]
    return answer_pairs(model, truth.views, PAIRS, in_photo, PredictConfig(), AlignConfig())


def worst_deg(truth: ExactScene, cam2world: np.ndarray) -> list[float]:
    true = truth.cam2world.numpy()
    return [
        float(relative_pose_errors(own, true[list(pair)]).worst_deg[0])
        for own, pair in zip(cam2world, PAIRS, strict=True)
    ]


def test_exact_predictions_give_exact_cameras(
    truth: ExactScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers(truth, monkeypatch)
    for name in VARIANTS:
        assert max(worst_deg(truth, found.cam2world[name])) < 0.1
    # in pixels of the photo, which is twice the size of the view
    expected = 2 * truth.focal.numpy()[np.array(PAIRS)]
    assert np.allclose(found.focal_px, expected, rtol=1e-2)
    assert found.extra_s > 0


def test_known_intrinsics_are_used(truth: ExactScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that believes in a focal length a third too long is put right by the true one."""

    def too_long(p: PairPrediction) -> PairPrediction:
        flat = p.pointmap_i_in_i.new_tensor([1, 1, 1.35])
        return replace(
            p, pointmap_i_in_i=p.pointmap_i_in_i * flat, pointmap_j_in_i=p.pointmap_j_in_i * flat
        )

    found = answers(truth, monkeypatch, too_long)
    known, unknown = (worst_deg(truth, found.cam2world[name]) for name in (KNOWN, UNKNOWN))
    assert np.mean(known) < 0.8 * np.mean(unknown)


def test_a_pair_without_confidence_is_refused_unless_forced(
    truth: ExactScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubtful(p: PairPrediction) -> PairPrediction:
        if 0 not in (p.i, p.j):
            return p
        low = 1 + 0.01 * p.confidence_i
        return replace(p, confidence_i=low, confidence_j=1 + 0.01 * p.confidence_j)

    found = answers(truth, monkeypatch, doubtful)
    for name in (UNKNOWN, KNOWN):
        assert np.isnan(found.cam2world[name][0]).all()
        assert np.isfinite(found.cam2world[name][1]).all()
    assert np.isnan(found.focal_px).tolist() == [[True, True], [False, False]]
    for name in (UNKNOWN_FORCED, KNOWN_FORCED):
        assert max(worst_deg(truth, found.cam2world[name])) < 0.1


def test_where_the_orders_contradict_each_other_the_surer_one_is_taken(
    truth: ExactScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(p: PairPrediction) -> PairPrediction:
        if (p.i, p.j) != (1, 0):  # the second order of the first pair
            return p
        return replace(p, pointmap_j_in_i=100 * p.pointmap_j_in_i, confidence_i=p.confidence_i / 2)

    found = answers(truth, monkeypatch, torn)
    assert np.isnan(found.cam2world[UNKNOWN][0]).all()
    assert max(worst_deg(truth, found.cam2world[UNKNOWN_FORCED])) < 0.1
