"""The training loop: it learns, logs, resumes, and its probe tells whether both views are used."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

from recon3d import batches, config, train, train_config, training, weights
from recon3d.config import ModelConfig
from recon3d.errors import UsageError, WeightsError
from recon3d.geometry import unproject
from recon3d.model import TwoViewModel, TwoViewOutput
from recon3d.throughput import Peak
from recon3d.train_config import TrainConfig
from recon3d.train_state import State
from recon3d.workers import Workers

TINY = ModelConfig(
    name="nano", enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=32, dec_depth=2, dec_heads=2
)
DPT = replace(
    TINY,
    head=config.HeadType.DPT,
    dpt_layer_dims=(8, 8, 8, 8),
    dpt_feature_dim=16,
    dpt_last_dim=8,
)
QUICK = TrainConfig(
    preset="nano",
    minutes=10.0,
    pairs=12,
    n_procedural_textures=9,
    probe_batches=1,
    probe_size=32,
    device="cpu",
    precision=config.Precision.FP32,
    compile=False,
    smooth_edges=False,
    scenes_per_step=2,
    views_per_scene=2,
    stages=((1.0, 32),),
    warmup_steps=1,
    attention_layers=(0,),
    matching_share=0.5,
)


@pytest.fixture(autouse=True)
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.PRESETS, "nano", TINY)


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def batch_of(height: int = 48, width: int = 64) -> batches.Batch:
    return batches.Source(QUICK, torch.device("cpu"), seed=1).batch(height, width)


def test_runs_both_stages_and_writes_loadable_weights(tmp_path: Path) -> None:
    done: list[int] = []
    train.train(tmp_path, QUICK, track=lambda stage, n, total: done.append(n))
    assert done == sorted(done)
    last = records(tmp_path)[-1]
    assert last["pairs"] >= 12
    assert 0 < last["probe_true"] < 10
    model = weights.load(str(tmp_path / "model.safetensors"))
    assert model.config.image_size == 32
    out = model.decode(
        model.encode(torch.zeros(1, 3, 32, 32)), torch.zeros(1, 4, 32), (2, 2), (2, 2)
    )
    assert bool(out.pointmap_i.isfinite().all())


def test_resume_goes_on_from_the_saved_counters_and_moments(tmp_path: Path) -> None:
    train.train(tmp_path, QUICK)
    before = records(tmp_path)[-1]
    train.train(tmp_path, replace(QUICK, pairs=20, resume=True))
    after = records(tmp_path)[-1]
    assert after["pairs"] >= 20
    assert after["step"] > before["step"]
    model = TwoViewModel(TINY)
    state = State(model, QUICK)
    state.load(tmp_path)
    assert state.pairs == after["pairs"]
    assert float(state.moments()["second.enc_norm.weight"].sum()) > 0
    with pytest.raises(UsageError, match="does not exist"):
        train.train(tmp_path / "empty", replace(QUICK, resume=True))
    assert not (tmp_path / "empty").exists()
    with pytest.raises(UsageError, match="has the seed 0, not 3: give --seed 0"):
        train.train(tmp_path, replace(QUICK, pairs=40, seed=3, resume=True))


def test_unknown_preset_and_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'huge' is unknown"):
        train.train(tmp_path, replace(QUICK, preset="huge"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        train.train(tmp_path / "file" / "out", QUICK)


def test_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    model, batch = TwoViewModel(TINY), batch_of()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        generator = torch.Generator().manual_seed(0)
        loss, parts, n_pairs = train.loss_of(model, batch, QUICK, torch.float32, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert n_pairs == 5  # two scenes, both orders, and one unrelated pair
    assert losses[-1] < 0.75 * losses[0]
    assert {"error_i", "error_j", "attention", "right"} <= set(parts)


def test_loss_in_bf16_is_near_that_in_fp32() -> None:
    torch.manual_seed(0)
    model, batch = TwoViewModel(TINY), batch_of()
    full, half = (
        train.loss_of(model, batch, QUICK, dtype, torch.Generator().manual_seed(0))[0]
        for dtype in (torch.float32, torch.bfloat16)
    )
    half.backward()
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=0.02)


def test_matching_stage_learns_correspondence() -> None:
    torch.manual_seed(0)
    model, batch = TwoViewModel(TINY), batch_of()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    right = []
    for _ in range(40):
        loss, parts, _ = train.matching_loss_of(model, batch, torch.float32)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append(parts["right"])
    assert right[-1] > right[0] + 0.2
    grads = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith("dec_blocks") for name in grads)  # the encoder alone


def test_pair_targets_agree_with_the_cameras() -> None:
    batch = batch_of()
    target = batches.pair_targets(batch, torch.tensor([0]), torch.tensor([1]))
    points = batch.points_in_cam[0, 1, 10, 20]
    world = batch.cam2world[0, 1] @ torch.cat((points, torch.ones(1)))
    in_i = torch.linalg.inv(batch.cam2world[0, 0]) @ world
    torch.testing.assert_close(target.points_j[0, 10, 20], in_i[:3], atol=1e-4, rtol=1e-4)


class Oracle(TwoViewModel):
    """Answers with the truth where it sees view 1 of the pair, with nonsense otherwise."""

    def __init__(self, batch: batches.Batch) -> None:
        super().__init__(TINY)
        self.batch, self.calls = batch, 0

    def heads(self, decoded, grid_i, grid_j) -> TwoViewOutput:
        n = len(self.batch.images)
        first = torch.arange(n) * self.batch.images.shape[1]
        one, two = (first, first + 1) if self.calls < 2 else (first + 1, first)
        target = batches.pair_targets(self.batch, one, two)
        points_j = target.points_j if self.calls != 1 else torch.randn_like(target.points_j)
        self.calls += 1
        ones = torch.full(target.valid_i.shape, 2.0)
        return TwoViewOutput(target.points_i, ones, points_j, ones)


def test_probe_tells_an_oracle_from_a_network_that_ignores_view_1() -> None:
    batch = batch_of()
    figures = train.probe(Oracle(batch), [batch], torch.float32)
    assert figures["probe_true"] < 1e-4
    assert figures["probe_wrong"] > 0.5
    assert figures["probe_rotation_deg"] < 0.05
    assert figures["probe_rotation_true_deg"] > 0.1

    class Blind(TwoViewModel):
        def decode_tokens(self, tokens_i, tokens_j, grid_i, grid_j, attention_layers=frozenset()):
            zero = torch.zeros_like(tokens_i)
            return super().decode_tokens(zero, tokens_j, grid_i, grid_j, attention_layers)

    assert train.probe(Blind(TINY), [batch], torch.float32)["probe_ratio"] == pytest.approx(1)


def test_schedule() -> None:
    assert training.learning_rate(QUICK, 0, 0.0) == QUICK.learning_rate
    assert training.learning_rate(QUICK, 9, 1.0) == pytest.approx(0.01 * QUICK.learning_rate)
    assert training.learning_rate(replace(QUICK, warmup_steps=4), 1, 0.0) == pytest.approx(5e-4)
    assert training.learning_rate(QUICK, 9, 0.75) == pytest.approx(0.5 * QUICK.learning_rate)
    stages = replace(QUICK, stages=((0.5, 32), (1.0, 64)))
    assert [training.stage_size(stages, share) for share in (0.0, 0.5, 0.51, 1.2)] == [
        32,
        32,
        64,
        64,
    ]
    easy = replace(QUICK, easy_share=0.5)
    eases = [training.ease_at(easy, share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert eases == pytest.approx([0.3, 0.65, 1.0, 1.0])
    assert training.ease_at(replace(QUICK, easy_share=0.0), 0.0) == 1
    assert batches.image_shape(128, 0.75, False, 16) == (96, 128)
    assert batches.image_shape(224, 2 / 3, True, 16) == (224, 144)


def test_batch_is_a_function_of_seed_rank_and_number() -> None:
    def images(rank: int, number: int) -> torch.Tensor:
        source = batches.Source(QUICK, torch.device("cpu"), seed=1, rank=rank)
        source.served = number
        return source.batch(32, 48).images

    source = batches.Source(QUICK, torch.device("cpu"), seed=1)
    in_turn = [source.batch(32, 48).images for _ in range(3)]
    assert torch.equal(images(0, 2), in_turn[2])
    assert not torch.equal(in_turn[0], in_turn[1])
    assert not torch.equal(images(1, 2), in_turn[2])


def test_scenes_drawn_together_are_a_function_of_the_number_too() -> None:
    def source() -> batches.Source:
        return batches.Source(QUICK, torch.device("cpu"), seed=1, drawn_at_once=3)

    def depth(number: int, source: batches.Source) -> torch.Tensor:
        source.served = number
        return source.batch(32, 48).depth

    one = source()
    found = [depth(number, one) for number in range(4)]
    assert torch.equal(depth(3, source()), found[3])
    assert torch.equal(depth(1, source()), found[1])
    assert all(not torch.equal(found[k], found[m]) for k in range(4) for m in range(k))


def test_a_rendering_serves_several_steps_the_second_in_a_mirror() -> None:
    twice = replace(QUICK, uses=2)
    source = batches.Source(twice, torch.device("cpu"), seed=1)
    first, second, third = (source.batch(32, 48) for _ in range(3))
    assert torch.equal(second.depth, first.depth.flip(-1))
    assert not torch.equal(second.images, first.images.flip(-1))  # another photograph of it
    assert float((second.images - first.images.flip(-1)).abs().median()) < 0.3
    assert not torch.equal(third.depth, first.depth)
    resumed = batches.Source(twice, torch.device("cpu"), seed=1)
    resumed.served = 1
    assert torch.equal(resumed.batch(32, 48).images, second.images)
    resumed.served = 1
    assert resumed.batch(48, 32).depth.shape[-2:] == (48, 32)
    shapes = [training._plan(twice, 0.0, 16, number)[:2] for number in range(40)]
    assert shapes[0::2] == shapes[1::2]
    assert len(set(shapes)) > 1


def test_the_mirrored_world_is_seen_by_its_cameras_where_it_stands() -> None:
    batch = batch_of(64, 96)
    intrinsics = batch.intrinsics.clone()
    intrinsics[..., 0, 2] += 5.0  # not in the middle: a mirror moves it
    batch = replace(batch, intrinsics=intrinsics, points_in_cam=unproject(batch.depth, intrinsics))
    other = batches.mirrored(batch)
    torch.testing.assert_close(other.points_in_cam, unproject(other.depth, other.intrinsics))
    assert float(torch.linalg.det(other.cam2world[..., :3, :3]).min()) > 0.99
    i, j = batches.ordered_pairs(batch)
    target, mirrored = (batches.pair_targets(one, i, j) for one in (batch, other))
    flip = torch.tensor([-1.0, 1.0, 1.0])
    for name in ("points_i", "points_j", "points_i_in_j"):
        expected = getattr(target, name).flip(-2) * flip
        torch.testing.assert_close(getattr(mirrored, name), expected, atol=1e-4, rtol=1e-4)


def test_muon_steps_the_matrices_of_the_blocks(tmp_path: Path) -> None:
    train.train(tmp_path, replace(QUICK, optimizer=train_config.Optimizer.MUON))
    state = load_file(tmp_path / "state.safetensors")
    assert "momentum.dec_blocks2.1.mlp.fc1.weight" in state
    assert "second.dec_blocks2.1.mlp.fc1.weight" not in state
    assert "second.dec_blocks2.1.mlp.fc1.bias" in state
    assert "second.downstream_head1.proj.weight" in state


def test_a_scene_a_step_is_probed_with_a_view_of_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train.train(tmp_path, replace(QUICK, scenes_per_step=1, pairs=4))
    last = records(tmp_path)[-1]
    assert last["probe_true"] != last["probe_wrong"]
    assert last["loss"] > 0  # also of a piece that ends before its first record
    assert "training ended after" in caplog.text
    assert f"wrote {tmp_path}" in caplog.text
    with caplog.at_level("INFO"):
        train.train(tmp_path, replace(QUICK, pairs=10**9, resume=True, stop_after=0.001))
    assert "training paused (--resume goes on) after" in caplog.text


def test_another_optimiser_starts_with_moments_of_its_own(tmp_path: Path) -> None:
    train.train(tmp_path, QUICK)
    other = replace(QUICK, optimizer=train_config.Optimizer.MUON, pairs=40, resume=True)
    state = State(TwoViewModel(TINY), other)
    state.load(tmp_path)
    assert "second.enc_norm.weight" in state.moments()
    assert not any(name.startswith("momentum") for name in state.moments())
    train.train(tmp_path, other)
    assert records(tmp_path)[-1]["pairs"] >= 40


def test_shapes_vary_with_the_step_alone() -> None:
    shapes = [batches.shape_of_step(0, step) for step in range(200)]
    assert {aspect for aspect, _ in shapes} == set(batches.ASPECTS)
    assert 50 < sum(portrait for _, portrait in shapes) < 110
    assert batches.shape_of_step(0, 7) == shapes[7]


def test_sizes_vary_with_the_step_alone() -> None:
    some = replace(QUICK, least_size=0.5)
    sizes = [batches.size_of_step(some, 224, step, 16) for step in range(300)]
    assert set(sizes) == {112, 128, 144, 160, 176, 192, 208, 224}
    assert sizes.count(112) > 15
    assert sizes.count(224) > 15
    assert batches.size_of_step(some, 224, 7, 16) == sizes[7]
    assert {batches.size_of_step(QUICK, 224, step, 16) for step in range(9)} == {224}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_lenses_are_as_usual_as_asked_for(share: float) -> None:
    settings = replace(QUICK, usual_lenses=share, scenes_per_step=60)
    batch = batches.Source(settings, torch.device("cpu"), seed=3).batch(32, 32)
    fov = 2 * torch.rad2deg(torch.atan(16 / batch.intrinsics[:, 0, 0, 0]))
    unusual = float(((fov - 62).abs() > 22).float().mean())
    assert unusual < 0.07 if share else unusual > 0.2


def test_directions_count_as_much_as_asked_for() -> None:
    batch = batches.Source(QUICK, torch.device("cpu"), seed=3).batch(32, 32)
    model = TwoViewModel(TINY)

    def of(weight: float) -> tuple[float, float]:
        settings, chances = replace(QUICK, ray_weight=weight), torch.Generator().manual_seed(0)
        loss, parts, _ = train.loss_of(model, batch, settings, torch.float32, chances)
        return float(loss.detach()), float(parts["rays"])

    (plain, rays), (loss, _) = of(0.0), of(2.0)
    assert rays > 0.1
    assert loss - plain == pytest.approx(2 * rays, rel=1e-3)


class PowerCutError(Exception):
    """Ends a run at any moment."""


@pytest.mark.parametrize("optimizer", train_config.Optimizer)
def test_resume_gives_what_an_uninterrupted_training_gives(
    optimizer: train_config.Optimizer, tmp_path: Path
) -> None:
    every_step = replace(QUICK, minutes=math.inf, pairs=20, save_every_s=0.0, optimizer=optimizer)
    train.train(tmp_path / "whole", every_step)

    def cut(stage: str, done: int, total: int) -> None:
        if done >= 600:  # past the matching stage, between a step and its saving
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train.train(tmp_path / "cut", every_step, track=cut)
    train.train(tmp_path / "cut", replace(every_step, resume=True))
    whole, cut_one = (load_file(tmp_path / n / "state.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut_one.keys()
    assert all(torch.equal(whole[name], cut_one[name]) for name in whole)


def test_state_of_another_network_is_named(tmp_path: Path) -> None:
    model = TwoViewModel(TINY)
    State(model, QUICK).save(tmp_path)
    other = State(TwoViewModel(replace(TINY, enc_dim=16)), QUICK)
    with pytest.raises(UsageError, match=r"patch_embed.*another preset"):
        other.load(tmp_path)
    with pytest.raises(UsageError, match=r"lacks dec_blocks\.2.*another preset"):
        State(TwoViewModel(replace(TINY, dec_depth=3)), QUICK).load(tmp_path)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    state = State(TwoViewModel(TINY), QUICK)
    state.save(tmp_path)
    path = tmp_path / "state.safetensors"
    whole = path.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        b"",
        b"nonsense" * 9,
        whole.replace(b"pairs", b"pears"),
    ):
        path.write_bytes(content)
        with pytest.raises(
            WeightsError, match=r"state\.safetensors is damaged \(.+\)\. Start"
        ) as why:
            state.load(tmp_path)
        assert "\n" not in str(why.value)


def test_a_new_training_begins_anew(tmp_path: Path) -> None:
    train.train(tmp_path, QUICK)
    assert len(records(tmp_path)) > 1

    def cut(*_: object) -> None:
        raise PowerCutError

    with pytest.raises(PowerCutError):
        train.train(tmp_path, QUICK, track=cut)
    assert not (tmp_path / "state.safetensors").exists()
    assert [record["step"] for record in records(tmp_path)] == [0]
    assert weights.load(str(tmp_path / "model.safetensors"))


def test_a_piece_ends_where_a_rendering_does(tmp_path: Path) -> None:
    pressed: list[int] = []

    def press(stage: str, done: int, total: int) -> None:
        pressed.append(done)
        if len(pressed) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path, replace(QUICK, pairs=10**9, uses=3), track=press)
    assert records(tmp_path)[-1]["step"] == 3


def test_log_tells_throughput_and_utilisation(tmp_path: Path) -> None:
    train.train(tmp_path, replace(QUICK, log_every_steps=1))
    first, *steps, last = records(tmp_path)
    assert first["parameters"] == sum(p.numel() for p in TwoViewModel(TINY).parameters())
    assert first["peak_tflops"] > 0
    assert "measured" in first["peak_source"]
    for record in steps:
        assert 0 < record["mfu"] < 1.5
        assert record["pairs_per_s"] > 0
        assert 0 < record["render_share"] < 1
    assert "probe_ratio" in last
    matching, pairs = steps[0]["gflop_per_pair"], steps[-1]["gflop_per_pair"]
    assert matching < pairs  # the decoders come on top


def test_start_from_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    begun = TwoViewModel(TINY)
    weights.save(begun, tmp_path / "start.safetensors")
    # one step at a rate of next to nothing
    once = replace(QUICK, pairs=1, learning_rate=1e-9, init=str(tmp_path / "start.safetensors"))
    train.train(tmp_path / "out", once)
    state = load_file(tmp_path / "out" / "state.safetensors")
    for name in ("enc_blocks.0.attn.qkv.weight", "downstream_head1.proj.weight"):
        torch.testing.assert_close(state[f"weight.{name}"], begun.state_dict()[name])


def test_the_start_has_the_size_of_its_weights(tmp_path: Path) -> None:
    deeper = TwoViewModel(replace(DPT, enc_depth=3))
    weights.save(deeper, tmp_path / "deep.safetensors")
    given = replace(QUICK, preset=None, pairs=1, init=str(tmp_path / "deep.safetensors"))
    train.train(tmp_path / "out", given)
    train.train(tmp_path / "out", replace(given, pairs=8, resume=True, init=None))
    trained = weights.load(str(tmp_path / "out" / "model.safetensors")).config
    assert (trained.enc_depth, trained.head, trained.image_size) == (3, config.HeadType.DPT, 32)
    with pytest.raises(WeightsError, match="no start for the preset 'nano'"):
        train.train(tmp_path / "other", replace(given, preset="nano"))


def test_descriptors_for_which_there_is_no_loss_are_left_behind(tmp_path: Path) -> None:
    begun = TwoViewModel(replace(DPT, head=config.HeadType.CATMLP_DPT))
    weights.save(begun, tmp_path / "start.safetensors")
    start = str(tmp_path / "start.safetensors")
    once = replace(QUICK, preset=None, pairs=1, learning_rate=1e-9, init=start)
    train.train(tmp_path / "out", once)
    trained = weights.load(str(tmp_path / "out" / "model.safetensors"))
    assert trained.config.head is config.HeadType.DPT
    state = load_file(tmp_path / "out" / "state.safetensors")
    name = "downstream_head2.dpt.head.4.weight"
    torch.testing.assert_close(state[f"weight.{name}"], begun.state_dict()[name])


def test_ctrl_c_leaves_what_was_learnt(tmp_path: Path) -> None:
    asked: list[int] = []

    def press(stage: str, done: int, total: int) -> None:
        if not asked:
            os.kill(os.getpid(), signal.SIGTERM)
        asked.append(done)

    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path, replace(QUICK, pairs=10**9), track=press)
    assert len(asked) == 1  # the step was ended, and no other begun
    assert weights.load(str(tmp_path / "model.safetensors")).config.image_size == 32
    assert records(tmp_path)[-1]["step"] == 1
    train.train(tmp_path, replace(QUICK, resume=True))
    assert records(tmp_path)[-1]["pairs"] >= 12


def test_a_piece_ends_in_time_and_counts_all_of_its_time(tmp_path: Path) -> None:
    began = time.monotonic()
    # nearly no time: what comes before the first step takes longer
    train.train(tmp_path, replace(QUICK, pairs=10**9, stop_after=1e-9))
    assert records(tmp_path)[-1]["step"] == 0
    train.train(tmp_path, replace(QUICK, pairs=10**9, stop_after=0.02, resume=True))
    first = records(tmp_path)[-1]
    assert first["elapsed_s"] <= time.monotonic() - began + 0.1
    assert "probe_ratio" in first
    train.train(tmp_path, replace(QUICK, pairs=first["pairs"] + 1, resume=True))
    assert records(tmp_path)[-1]["elapsed_s"] >= first["elapsed_s"]


def test_what_was_learnt_is_written_before_the_last_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PowerCutError

    monkeypatch.setattr(train.PairTask, "probe", fail)
    with pytest.raises(PowerCutError):
        train.train(tmp_path, replace(QUICK, minutes=1e6))
    assert load_file(tmp_path / "state.safetensors")
    assert weights.load(str(tmp_path / "model.safetensors"))


def test_the_optimiser_takes_its_step_in_few_calls() -> None:
    """Each is one launch on a GPU at least, and keeps Python from rendering."""
    state = State(TwoViewModel(TINY), QUICK)
    calls: list[str] = []

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    for parameter in state.named.values():
        parameter.grad = torch.ones_like(parameter)
    state.follow_gradient(1e-3)
    with Calls():
        state.follow_gradient(1e-3)
    work = [name for name in calls if name not in ("__get__", "__hash__", "is_complex")]
    assert "_fused_adamw_" in work
    assert len(work) < len(state.named) / 2


def test_a_gradient_that_is_not_finite_is_not_followed(tmp_path: Path) -> None:
    model, batch = TwoViewModel(TINY), batch_of()
    state = State(model, QUICK)
    alone = Workers(device=torch.device("cpu"))
    meter = training.Meter(Peak(1e12, "not measured"), 1)
    before = {name: p.detach().clone() for name, p in state.named.items()}
    for factor in (float("nan"), float("inf"), 1.0):
        step = train.PairTask(model, QUICK, torch.float32).step(
            batch, 0.9, torch.Generator().manual_seed(0)
        )
        _, lost = training._update(state, step.loss * factor, 0.9, QUICK, alone)
        assert bool(lost) == (factor != 1)
        meter.add(step, lost, 1.0, 0.5)
        assert all(bool(p.isfinite().all()) for p in model.parameters())
        if factor == 1:
            assert any(not torch.equal(p, before[name]) for name, p in state.named.items())
    assert meter.take()["steps_lost"] == 2
    meter.add(step, torch.tensor(True), 1.0, 0.5)
    with pytest.raises(FloatingPointError, match="no gradient of the last 1 steps"):
        meter.take()
    assert meter.take(closing=True)["steps_lost"] == 1


def test_a_training_that_diverges_says_so_and_keeps_what_was_good(tmp_path: Path) -> None:
    train.train(tmp_path, QUICK)
    good = {p.name: p.read_bytes() for p in tmp_path.glob("model.*")}
    with pytest.raises(UsageError, match=r"diverged: weights are .* Lower --learning-rate\."):
        train.train(tmp_path, replace(QUICK, learning_rate=1e38))
    assert {p.name: p.read_bytes() for p in tmp_path.glob("model.*")} == good
    broken = TwoViewModel(TINY)
    for parameter in broken.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    figures = train.probe(broken, [batch_of()], torch.float32)
    assert math.isnan(figures["probe_rotation_deg"])
    assert figures["probe_rotation_true_deg"] > 0


def test_a_step_lost_leaves_a_log_that_is_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = train.PairTask.step
    factors = iter((1.0, float("nan"), 1.0, 1.0))

    def lose_the_second(self, batch, progress, generator) -> training.Step:
        found = step(self, batch, progress, generator)
        return found._replace(loss=found.loss * next(factors))

    monkeypatch.setattr(train.PairTask, "step", lose_the_second)
    train.train(tmp_path, replace(QUICK, minutes=1e6, log_every_steps=2))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    (lost,) = (record for record in found if "steps_lost" in record)
    assert lost["steps_lost"] == 1
    assert lost["gradient_norm"] is None
    assert lost["loss"] is None
    assert lost["right"] is not None


def test_workers_that_do_not_log_keep_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[training.Meter] = []

    class Kept(training.Meter):
        def __init__(self, peak: Peak, n_workers: int) -> None:
            super().__init__(peak, n_workers)
            kept.append(self)

    monkeypatch.setattr(training, "Meter", Kept)
    settings = replace(QUICK, log_every_steps=1000)
    for rank in (0, 1):
        task = train.PairTask(TwoViewModel(TINY), settings, torch.float32)
        training.run(task, settings, tmp_path, Workers(rank=rank, device=torch.device("cpu")))
    # rank 0 has taken what it had for its last record
    assert [len(meter.lost) for meter in kept] == [0, 0]


_COMPARE_BLOCKS = """
import copy, torch
from recon3d import batches, config, train, train_config, training
from recon3d.model import TwoViewModel
graphs = []
def count(graph, inputs):
    graphs.append(graph)
    return graph
compiler = torch.nn.Module.compile
torch.nn.Module.compile = lambda module, **given: compiler(module, backend=count, **given)
sizes = config.ModelConfig(
    enc_dim=32, enc_depth=2, enc_heads=2, dec_dim=32, dec_depth=3, dec_heads=2
)
settings = train_config.TrainConfig(
    n_procedural_textures=4, compile=False, smooth_edges=False, scenes_per_step=2,
    views_per_scene=2, attention_layers=(1,),
)
plain = TwoViewModel(sizes)
fast = copy.deepcopy(plain)
training.compile_blocks(fast)
for seed, shape in enumerate(((48, 64), (80, 32), (64, 64))):
    batch = batches.Source(settings, torch.device("cpu"), seed).batch(*shape)
    for model in (plain, fast):
        chances = torch.Generator().manual_seed(0)
        model.zero_grad()
        train.loss_of(model, batch, settings, torch.bfloat16, chances)[0].backward()
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)
# of encoder blocks the first and the others, of decoder blocks with attention and without
assert len(graphs) == 4, len(graphs)
"""


def test_compiled_blocks_compute_the_same() -> None:
    """In a process of its own, since type checks at run time cannot be compiled.

    No compiler stands behind it: the graphs must be right, and not one for every shape and layer.
    """
    subprocess.run([sys.executable, "-c", _COMPARE_BLOCKS], check=True, timeout=300)


_LEARN_COMPILED = """
import torch
from recon3d.model import CrossAttention, rope_table
block = CrossAttention(96, 3)
block.compile(dynamic=True)
for rows in (8, 6, 10):
    tokens = torch.randn(4, 10 * rows, 96, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rope = rope_table((rows, 10), 32, 100.0, tokens.device, torch.bfloat16)
        out, attention = block(tokens, tokens, rope, rope, 1)
    (out.float().sum() + attention.sum()).backward()
    assert tokens.grad.isfinite().all()
"""


@pytest.mark.slow
def test_watched_attention_compiles_for_all_numbers_of_tokens() -> None:
    subprocess.run([sys.executable, "-c", _LEARN_COMPILED], check=True, timeout=300)
