"""On a simulated CUDA device, nothing mixes it with the CPU, and results are those of the CPU."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exact_scene import ExactScene, exact_scene
from fake_device import DEVICE, FakeDevice, fake_device
from picture_bytes import encode, texture
from recon3d import (
    align_solve,
    attention,
    batches,
    config,
    device,
    heads,
    matches,
    memory,
    pipeline,
    pretrain,
    train,
    train_config,
    training,
)
from recon3d.align import align_groups
from recon3d.clean import lower_conflicts
from recon3d.config import AlignConfig, CamerasAre, HeadType, MatchConfig, ModelConfig, Precision
from recon3d.errors import DisconnectedError
from recon3d.geometry import so3_exp
from recon3d.model import TwoViewModel
from recon3d.predict import encode_views, predict_encoded
from recon3d.retrieval import pooled_similarity
from recon3d.sky import sky_pixels
from recon3d.throughput import Peak
from recon3d.train_state import State
from recon3d.types import KnownCamera, PairPrediction, Scene, View
from recon3d.weights import save
from recon3d.workers import Workers

NANO = ModelConfig(
    name="nano", enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=32, dec_depth=2, dec_heads=2
)
MATCHING = dataclasses.replace(
    NANO, head=HeadType.CATMLP_DPT, descriptor_dim=4, dpt_layer_dims=(4, 4, 4, 4),
    dpt_feature_dim=8, dpt_last_dim=4,
)  # fmt: skip
LOOP: dict[str, Any] = dict(
    preset="nano", minutes=math.inf, pairs=8, n_procedural_textures=4, probe_batches=1,
    probe_size=32, precision=Precision.FP32, compile=False, scenes_per_step=2, views_per_scene=2,
    stages=((1.0, 32),), warmup_steps=1, log_every_steps=1, render_ahead=0,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture
def cuda() -> Iterator[FakeDevice]:
    with fake_device() as simulated:
        yield simulated


@pytest.fixture(autouse=True)
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.PRESETS, "nano", NANO)
    monkeypatch.setattr(training, "peak_of", lambda *_: Peak(1e12, "not measured"))


def moved(value: Any, place: torch.device) -> Any:
    """Return the dataclass with its tensors, also those in tuples, on the device."""
    if isinstance(value, Tensor):
        return value.to(place)
    if isinstance(value, tuple):
        return tuple(moved(part, place) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, View):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: moved(getattr(value, n), place) for n in fields})
    return value


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from leaves(part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    else:
        yield value


def assert_same(found: Any, expected: Any) -> None:
    """All in the two dataclasses is equal, tensors bit by bit and on the CPU."""
    for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
        if isinstance(theirs, Tensor):
            assert ours.device == CPU
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        else:
            assert str(ours) == str(theirs)  # also of nan


# --- the simulation itself ---


def test_the_simulated_device_rejects_what_cuda_rejects(cuda: FakeDevice):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert there.device == DEVICE
    assert (there * 2).device == there[:2].device == torch.zeros_like(there).device == DEVICE
    for wrong in (
        lambda: here + there,
        lambda: torch.stack((here[0], there[0])),
        lambda: here + there[0],
        lambda: torch.where(there > 0, here, 0.0),
        lambda: here[there > 0],
        lambda: there.__setitem__(there > 0, here),
        lambda: there.index_add_(0, torch.arange(3), there),
        lambda: here.add_(there),
        lambda: there @ torch.ones(3),
        lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
        lambda: torch.rand(3, generator=torch.Generator("cuda")),
    ):
        with pytest.raises(RuntimeError, match=r"same device|device type for generator"):
            wrong()
    for unreadable in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="to numpy"):
            unreadable()
    with pytest.raises(TypeError, match="to numpy"):
        here.to("cuda").numpy()


def test_the_simulated_device_allows_what_cuda_allows_and_counts_waits(cuda: FakeDevice):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert (there + here[0]).device == (there + 1).device == DEVICE
    assert there[torch.tensor([True, False, True])].device == DEVICE
    there[:2] = here[:2]
    here.copy_(there)
    assert (here.device, there.cpu().device, there.numpy(force=True).sum()) == (CPU, CPU, 3)
    assert torch.rand(3, generator=torch.Generator("cuda"), device="cuda").device == DEVICE
    changed = here.to("cuda")
    changed += 1
    assert float(here.sum()) == 3  # a copy, not a view
    layer = torch.nn.Linear(3, 2).to("cuda")
    layer(there[None]).sum().backward()
    assert layer.weight.device == layer.weight.grad.device == DEVICE
    cuda.waits.clear()
    assert bool((there > 0).all())
    there[there > 5] = 0.0  # a fill needs no answer
    arriving, event = there.to("cpu", non_blocking=True), torch.cuda.Event()
    assert sum(cuda.waits.values()) == 1
    assert float(arriving.sum()) == 0  # not yet there
    event.record(torch.cuda.current_stream(DEVICE))
    event.synchronize()
    assert float(arriving.sum()) == 3
    there[there > 0] = torch.zeros_like(there)
    there[there > 0].tolist()
    assert sum(cuda.waits.values()) == 4


def test_the_simulated_device_may_lack_float64():
    with fake_device(has_float64=False):
        there = torch.ones(3, device="cuda")
        assert there.cpu().double().dtype == torch.float64
        for wrong in (
            there.double,
            lambda: torch.zeros(3, dtype=torch.float64, device="cuda"),
            lambda: torch.ones(3).double().to("cuda"),
        ):
            with pytest.raises(TypeError, match="does not support float64"):
                wrong()


# --- alignment ---


def nonsense(i: int, j: int, truth: ExactScene, confidence: float) -> PairPrediction:
    generator = torch.Generator().manual_seed(7 * i + j)
    sizes = [truth.views[n].image.shape[-2:] for n in (i, j)]
    points = [torch.rand(*size, 3, generator=generator) + 0.5 for size in sizes]
    return PairPrediction(
        i=i,
        j=j,
        pointmap_i_in_i=points[0],
        pointmap_j_in_i=points[1],
        confidence_i=torch.full(sizes[0], confidence),
        confidence_j=torch.full(sizes[1], confidence),
    )


def wrong_turn(truth: ExactScene) -> list[PairPrediction]:
    """Return predictions of a ring of pairs, one of which is wrong; no triangle says which."""
    turned = dataclasses.replace(truth, cam2world=truth.cam2world.clone())
    turn = so3_exp(torch.tensor([0.0, 1.3, 0.0]).double())
    turned.cam2world[0, :3, :3] = turn @ turned.cam2world[0, :3, :3]
    return truth.predictions([(1, 2), (2, 3), (0, 3)]) + turned.predictions([(0, 1)])


def known(truth: ExactScene, *which: int) -> list[KnownCamera | None]:
    return [
        KnownCamera(intrinsics=truth.intrinsics(n).float(), cam2world=truth.cam2world[n])
        if n in which
        else None
        for n in range(len(truth.views))
    ]


def left_halves(truth: ExactScene) -> list[Tensor]:
    masks = [torch.ones(view.image.shape[-2:], dtype=torch.bool) for view in truth.views]
    for mask in masks:
        mask[:, : mask.shape[1] // 2] = False
    return masks


FOUR, FIVE, SEVEN = exact_scene(4), exact_scene(5), exact_scene(7)
AT_FOUR = FOUR.predictions(noise=0.01)
STRANGER = [nonsense(3, n, FOUR, 30.0) for n in range(3)]
QUICK: dict[str, Any] = dict(max_iterations=14, samples_per_edge=64)
LOOSE = AlignConfig(
    **QUICK, cameras_are=CamerasAre.PRIOR, shared_focal=True, estimate_principal_point=True
)
GROUPS = SEVEN.predictions([(1, 3), (3, 5), (0, 2), (2, 4), (4, 6), (0, 6)])
# truth, predictions, what else is known, settings; how many views each scene has
SCENES: dict[str, tuple[ExactScene, Sequence[PairPrediction], dict[str, Any], AlignConfig]] = {
    "plain": (FOUR, AT_FOUR, {}, AlignConfig(**QUICK)),
    "one is left out": (
        FOUR, [p for p in AT_FOUR if 3 not in (p.i, p.j)] + STRANGER, {}, AlignConfig(**QUICK)
    ),
    "never first": (FOUR, [p for p in AT_FOUR if p.i == 0], {}, AlignConfig(**QUICK)),
    "two groups": (SEVEN, GROUPS, {}, AlignConfig(**QUICK)),
    "contradiction": (FOUR, wrong_turn(FOUR), {}, AlignConfig(**QUICK)),
    "masks": (
        FOUR, AT_FOUR, {"masks": left_halves(FOUR), "cameras": known(FOUR, 0, 2)},
        AlignConfig(**QUICK),
    ),
    "few maps": (
        FIVE, FIVE.predictions(noise=0.01), {"cameras": known(FIVE, 1)},
        AlignConfig(**QUICK, max_map_bytes=1),
    ),
    "priors": (FOUR, AT_FOUR, {"cameras": known(FOUR, 0, 1, 2)}, LOOSE),
}  # fmt: skip
SIZES = {"one is left out": [3], "two groups": [4, 3], "few maps": [5]}


def aligned(name: str, place: torch.device, work: torch.device | None = None) -> tuple[Scene, ...]:
    """Align predictions that lie at `place`, there or at `work`."""
    truth, predictions, given, settings = SCENES[name]
    predictions = [moved(prediction, place) for prediction in predictions]
    return align_groups(predictions, truth.views, settings, device=work, **given)


@pytest.mark.parametrize(
    ("name", "place"), [*((name, DEVICE) for name in SCENES), ("plain", CPU), ("few maps", CPU)]
)
def test_alignment(name: str, place: torch.device):
    expected = aligned(name, CPU)
    with fake_device() as cuda:
        found = aligned(name, place, DEVICE)
    assert cuda.waits  # it did run there
    assert [len(scene.views) for scene in found] == SIZES.get(name, [4])
    reasons = {edge.reason for edge in found[0].edges}
    assert ("contradicts the other pairs" in reasons) == (name == "contradiction")
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


def test_alignment_of_a_wide_and_a_large_graph(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(align_solve, "_BANDED_VIEWS", 0)
    monkeypatch.setattr(align_solve, "_DENSE_VIEWS", 1)
    test_alignment("plain", DEVICE)


def test_alignment_that_finds_nothing_says_so(cuda: FakeDevice):
    predictions = [moved(nonsense(0, 1, FOUR, 1.05), DEVICE)]
    with pytest.raises(DisconnectedError, match=r"has confidence 1\.05"):
        align_groups(predictions, FOUR.views, AlignConfig(**QUICK))


def test_what_cleans_a_scene_works_where_the_scene_is(cuda: FakeDevice):
    scene = aligned("plain", CPU)[0]
    scene = dataclasses.replace(scene, depth=(scene.depth[0] / 2, *scene.depth[1:]))
    found = lower_conflicts(moved(scene, DEVICE), 0.05)
    assert {c.device for c in found.confidence} == {DEVICE}
    assert_same(moved(found, CPU), lower_conflicts(scene, 0.05))
    image = torch.full((3, 40, 60), 0.9)
    assert sky_pixels(image.to("cuda")).device == DEVICE


# --- prediction ---


def views_of(*sizes: tuple[int, int]) -> tuple[View, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        View(
            name=f"{n}.jpg", sha256=str(n), image=torch.rand(3, *size, generator=generator) * 2 - 1,
            photo2view=torch.eye(3), photo_width=size[1], photo_height=size[0], focal_px=None,
        )
        for n, size in enumerate(sizes)
    )  # fmt: skip


PAIRS = [(0, 1), (0, 2), (1, 2), (2, 3)]


def predicted(
    place: str, precision: Precision, sizes: ModelConfig = NANO, **changes: Any
) -> list[PairPrediction]:
    torch.manual_seed(0)
    settings = config.PredictConfig(device=place, precision=precision, batch_size=2, **changes)
    model, views = TwoViewModel(sizes), views_of((32, 48), (48, 32), (32, 48), (32, 48))
    return list(predict_encoded(model, encode_views(model, views, settings), PAIRS, settings))


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize(("on_host", "sizes"), [(False, NANO), (True, NANO), (False, MATCHING)])
def test_prediction(
    precision: Precision, on_host: bool, sizes: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    # what a processor does instead of the fused kernel, and one by one, rounds differently
    monkeypatch.setattr(attention, "_in_pieces", functional.scaled_dot_product_attention)
    monkeypatch.setattr(heads, "_few_at_a_time", lambda x: (x,))
    expected = predicted("cpu", precision, sizes)
    with fake_device() as cuda:
        found = predicted("cuda", precision, sizes, tokens_on_host=on_host)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    # results come back by asynchronous copies, waited for by an event per batch
    waits = {k: n for k, n in cuda.waits.items() if k.startswith(("predict", "model", "heads"))}
    assert sum(waits.values()) == (3 if on_host else 0)  # batches of tokens that go to the host
    assert len(cuda.uploads) == 1  # the weights; all else goes there by asynchronous copies


def test_matches_and_retrieval_of_what_is_on_the_device(cuda: FakeDevice):
    for stride, described in ((1, False), (4, False), (1, True), (4, True)):
        settings = MatchConfig(stride=stride, min_confidence=1.0)
        for prediction in AT_FOUR[:2]:
            if described:
                prediction = dataclasses.replace(
                    prediction,
                    descriptors_i=prediction.pointmap_i_in_i,
                    descriptors_j=prediction.pointmap_j_in_i,
                )
            both: list[list[matches.Matches]] = [[], []]
            for found, place in zip(both, (CPU, DEVICE), strict=True):
                list(matches.collect_matches([moved(prediction, place)], found, settings))
            ours, theirs = (matches.merge_orders(found) for found in both)
            assert len(theirs[0].pixels_i) > 0
            assert_same(ours[0], theirs[0])
    tokens = [torch.randn(6, 8) for _ in range(3)]
    on_device = pooled_similarity([t.to("cuda") for t in tokens])
    np.testing.assert_array_equal(on_device, pooled_similarity(tokens))


def test_memory_is_planned_for_the_device(cuda: FakeDevice):
    place = device.resolve_device("auto")
    assert (place.type, device.resolve_precision(Precision.AUTO, place)) == ("cuda", torch.bfloat16)
    free = memory.free_device_bytes(place)
    found = memory.plan(
        NANO, [(32, 48)] * 3, PAIRS[:3], free, place.type, half=True, batch_size=None,
        max_map_bytes=10**9, host_free_bytes=memory.free_host_bytes(),
    )  # fmt: skip
    assert (found.share, len(found.pairs)) == (1.0, 3)
    assert found.device_bytes < free


def test_the_whole_program(cuda: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An untrained network finds no scene; up to the alignment, everything is looked at."""
    save(TwoViewModel(NANO), tmp_path / "nano.safetensors")
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(encode(".png", texture(48, 32, seed=n)))
    got: list[PairPrediction] = []

    def align(predictions: Any, *_: object, **__: object) -> tuple[Scene, ...]:
        got.extend(predictions)
        return aligned("plain", CPU)[:1]

    monkeypatch.setattr(pipeline, "align_groups", align)
    settings = config.RunConfig(
        weights=str(tmp_path / "nano.safetensors"), pairs="retrieval:1", refine=False, dense=False
    )
    kept: list[matches.Matches] = []
    done = pipeline.reconstruct_groups(
        [str(tmp_path)], settings, on_matches=lambda found, *_: kept.extend(found)
    )
    assert len(done.views) == 3
    assert got
    assert all(p.pointmap_i_in_i.device == p.confidence_j.device == CPU for p in got)
    assert kept
    assert all(m.pixels_i.device == CPU for m in kept)


def test_a_full_device_leaves_the_tokens_on_the_host(
    cuda: FakeDevice,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Memory runs out, down to a batch of one, until the tokens are no longer there."""
    save(TwoViewModel(NANO), tmp_path / "nano.safetensors")
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(encode(".png", texture(48, 32, seed=n)))
    places: list[str] = []
    encode_views, decode = pipeline.encode_views, TwoViewModel.decode

    def encoded(*args: Any, **named: Any) -> Any:
        found = encode_views(*args, **named)
        places.append(found.tokens[0].device.type)
        return found

    def full(*args: Any, **named: Any) -> Any:
        if places[-1] == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*args, **named)

    def align(predictions: Any, *_: object, **__: object) -> tuple[Scene, ...]:
        assert len(list(predictions)) == 6
        return aligned("plain", CPU)[:1]

    monkeypatch.setattr(pipeline, "encode_views", encoded)
    monkeypatch.setattr(TwoViewModel, "decode", full)
    monkeypatch.setattr(pipeline, "align_groups", align)
    settings = config.RunConfig(
        weights=str(tmp_path / "nano.safetensors"), refine=False, dense=False
    )
    pipeline.reconstruct_groups([str(tmp_path)], settings)
    assert places == ["cuda", "cpu"]
    assert caplog.messages[-1].startswith("out of memory, all views once more: tokens wait")


# --- rendering and training ---


def test_rendering(cuda: FakeDevice):
    settings = train_config.TrainConfig(**LOOP)
    batch = batches.Source(settings, torch.device("cuda"), seed=1).batch(32, 48)
    assert {t.device for t in vars(batch).values()} == {DEVICE}
    expected = batches.Source(settings, CPU, seed=1).batch(32, 48)
    assert_same(moved(batch, CPU), expected)


def test_training_in_both_stages_and_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # what a processor does in bf16 instead of the fused kernel rounds differently
    monkeypatch.setattr(attention, "_in_pieces", functional.scaled_dot_product_attention)
    monkeypatch.setattr(attention, "_KEPT_BYTES", 0)
    settings = train_config.TrainConfig(
        **LOOP | {"precision": Precision.BF16}, smooth_edges=False, attention_layers=(0,),
        matching_share=0.5,
    )  # fmt: skip
    assert_learns_alike(train.train, settings, tmp_path)


def test_pretraining_and_its_resumption(tmp_path: Path):
    settings = train_config.PretrainConfig(**LOOP, smooth_edges=False)
    assert_learns_alike(pretrain.pretrain, settings, tmp_path)


@pytest.mark.parametrize("kind", ["training", "pretraining"])
def test_learning_needs_no_float64_on_the_device(tmp_path: Path, kind: str):
    """It would fail on mps: in a step, in the choice of cameras, or at the first probe."""
    with fake_device(has_float64=False):
        if kind == "training":
            settings = train_config.TrainConfig(**LOOP, attention_layers=(0,), matching_share=0.5)
            train.train(tmp_path, dataclasses.replace(settings, device="cuda"))
        else:
            pretrain.pretrain(tmp_path, train_config.PretrainConfig(**LOOP, device="cuda"))
    assert "probe_ratio" in (tmp_path / "log.jsonl").read_text()


def assert_learns_alike(run: Any, settings: Any, folder: Path) -> None:
    """Train, then some more from the saved state; the losses are those of the CPU."""
    losses = []
    for place in ("cpu", "cuda"):
        now = dataclasses.replace(settings, device=place)
        with fake_device() if place == "cuda" else contextlib.nullcontext():
            run(folder / place, now)
            run(folder / place, dataclasses.replace(now, pairs=2 * now.pairs, resume=True))
        lines = [json.loads(s) for s in (folder / place / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) >= 4
    assert losses[0] == losses[1]


def test_a_step_of_training_waits_for_nothing():
    settings = train_config.TrainConfig(**LOOP, attention_layers=(0,), matching_share=0.0)
    with fake_device() as cuda:
        place = torch.device("cuda")
        model = TwoViewModel(NANO).to(place)
        task, state = train.PairTask(model, settings, torch.bfloat16), State(model, settings)
        source = batches.Source(settings, place, seed=1)
        batch = source.batch(32, 48)
        for progress, number in ((-1.0, 0), (0.5, 1)):  # matching alone, then pairs
            cuda.waits.clear()
            cuda.uploads.clear()
            step = task.step(batch, progress, source.chances(number))
            training._update(state, step.loss, progress, settings, Workers(device=place))
            assert not cuda.waits
            assert not cuda.uploads
