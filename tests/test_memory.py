"""What a run is predicted to take, what is given up for less, and the measured truth."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon3d import memory
from recon3d.align_samples import KeptMaps
from recon3d.config import PRESETS, HeadType, ModelConfig, Precision
from recon3d.errors import ResourceError
from recon3d.memory import (
    CPU_BATCH,
    SKIPS_PER_PAIR,
    choose_batch_size,
    free_device_bytes,
    free_host_bytes,
    n_parameters,
    plan,
    thinned,
    working_bytes,
)
from recon3d.model import TwoViewModel
from recon3d.pairs import connected_components
from recon3d.types import PairPrediction

LARGE = PRESETS["large"]
COMPLETE = [(i, j) for i in range(50) for j in range(i + 1, 50)]
SHAPES = [(384, 512)] * 50
GB = 10**9


@pytest.mark.parametrize("head", list(HeadType))
@pytest.mark.parametrize("preset", ["tiny", "base", "large"])
def test_parameters_are_counted(preset: str, head: HeadType):
    config = replace(PRESETS[preset], head=head)
    with torch.device("meta"):
        exact = sum(parameter.numel() for parameter in TwoViewModel(config).parameters())
    assert 0.98 * exact < n_parameters(config) <= exact


def test_fifty_large_photos_by_hand():
    found = plan(LARGE, SHAPES, COMPLETE, 20 * GB, "cpu", half=True)
    assert found.batch_size == CPU_BATCH
    assert found.tokens == 50 * 768 * 1024 * 2
    # each view keeps its fiftieth of 1.5 GB, whole maps, of 2450 x 2 x 384 x 512 x 8 = 7.7 GB
    assert found.maps == 50 * 19 * 384 * 512 * 8
    # 512 pixels of two maps a prediction, x, y, z and a weight in fp64, eight copies; depth maps
    assert found.alignment == 8 * 2450 * 512 * 2 * 4 * 8 + 50 * 384 * 512 * 3 * 4
    assert found.working + 2450 * 512 * 2 * 4 * 8 > found.alignment
    assert found.host_bytes == (found.tokens + found.maps + found.working + 2450 * 512 * 2 * 4 * 8)
    assert found.host_bytes <= 3 * GB
    assert (found.device_bytes, found.steps, found.share) == (0, (), 1.0)
    assert found.pairs == tuple(COMPLETE)
    few = plan(LARGE, SHAPES, [(0, 1)], 20 * GB, "cpu", half=True)
    assert few.maps == 2 * 2 * 384 * 512 * 8
    assert few.tokens == 2 * 768 * 1024 * 2


def test_what_is_kept_of_single_views_is_counted(monkeypatch: pytest.MonkeyPatch):
    counted = working_bytes(LARGE, SHAPES[0], 4, half=True)
    monkeypatch.setattr(memory, "SKIPS_PER_PAIR", 0)
    without = working_bytes(LARGE, SHAPES[0], 4, half=True)
    assert counted - without == 4 * SKIPS_PER_PAIR * 256 * 96 * 128 * 4  # 201 MB


def test_many_photos_keep_four_maps_each_whatever_the_limit():
    ring = [(i, (i + k) % 1000) for k in (1, 2) for i in range(1000)]
    found = plan(LARGE, [(384, 512)] * 1000, ring, 10**12, "cpu", half=True)
    assert found.maps == 1000 * 4 * 384 * 512 * 8  # 6.3 GB, not 1.5


@pytest.mark.parametrize("limit", [0, 10**5, 10**6, 10**9])
def test_as_many_maps_are_kept_as_planned(limit: int):
    """All predictions of small photos of two sizes, one of which has few pairs."""
    shapes = [(48, 64), (32, 48), (48, 64), (48, 64), (48, 64), (32, 48)]
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)] + [(0, 5)]
    planned = plan(PRESETS["tiny"], shapes, pairs, GB, "cpu", half=True, max_map_bytes=limit)
    kept = KeptMaps([None] * len(shapes), limit)
    for number, (i, j) in enumerate([*pairs, *((j, i) for i, j in pairs)]):
        maps = {
            f"{name}_{side}": torch.zeros(*shapes[view], *rest, dtype=torch.float16)
            for side, view in (("i_in_i", i), ("j_in_i", j), ("i", i), ("j", j))
            for name, rest in ([("pointmap", (3,))] if "_in_" in side else [("confidence", ())])
        }
        kept.add(number, PairPrediction(i=i, j=j, **maps))
    found = [one for view in range(len(shapes)) for one in kept.of(view)]
    assert sum(one.points.nbytes + one.confidence.nbytes for one in found) == planned.maps


def test_many_pairs_of_small_photos_are_counted_in_the_alignment():
    """Measured with `benchmarks/whole.py --preset tiny --photos 80 --size 64x48`: 1389 MB."""
    pairs = [(i, j) for i in range(80) for j in range(i + 1, 80)]
    found = plan(PRESETS["tiny"], [(48, 64)] * 80, pairs, 10**12, "cpu", half=True)
    assert 1389e6 < found.host_bytes < 2 * 1389e6
    assert found.host_bytes == found.tokens + found.maps + found.alignment


@pytest.mark.parametrize(("device", "ladder"), [("cpu", "bpv"), ("cuda", "btv")])
def test_the_less_is_free_the_more_is_given_up_in_order(
    device: str, ladder: str, caplog: pytest.LogCaptureFixture
):
    """b: batch, t: tokens to the host, p: pairs, v: views smaller."""
    before = plan(LARGE, SHAPES, COMPLETE, 10**12, device, half=True, batch_size=8)
    assert before.steps == ()
    assert not caplog.records
    free = int(1.2 * before.peak_bytes)
    seen = ""
    while True:
        free -= 40_000_000
        caplog.clear()
        try:
            found = plan(LARGE, SHAPES, COMPLETE, free, device, half=True, batch_size=8)
        except ResourceError:
            break
        assert (found.device_bytes or found.host_bytes) <= free
        assert found.batch_size <= before.batch_size
        assert found.tokens_on_host >= before.tokens_on_host
        assert len(found.pairs) <= len(before.pairs)
        assert found.share <= before.share
        kinds = ["p" if "pairs" in text else text[0] for text in found.steps]
        assert kinds == sorted(kinds, key=ladder.index)
        assert [r.message for r in caplog.records] == [f"memory: {text}" for text in found.steps]
        seen = seen if "".join(dict.fromkeys(kinds)) in seen else "".join(dict.fromkeys(kinds))
        before = found
    assert seen == ladder
    assert before.batch_size == 1
    assert before.share < 1
    assert before.tokens_on_host == (device == "cuda")
    assert len(before.pairs) == (49 if device == "cpu" else len(COMPLETE))


def test_what_does_not_fit_at_all_is_one_clear_line():
    with pytest.raises(ResourceError, match=r"needs about .* MB and 1 MB are free.*--size") as e:
        plan(LARGE, SHAPES, COMPLETE, 10**6, "cpu", half=True)
    assert "\n" not in str(e.value)


def test_parts_of_a_gpu_run():
    full = plan(LARGE, SHAPES, COMPLETE, 10**12, "cuda", half=True)
    assert full.weights == 4 * n_parameters(LARGE)
    assert full.device_bytes == full.weights + full.tokens + full.working
    assert full.host_bytes == full.maps + full.alignment
    fp32 = plan(LARGE, SHAPES, COMPLETE, 10**12, "cuda", half=False)
    assert fp32.tokens == 2 * full.tokens
    assert fp32.working >= full.working


def test_a_host_that_is_full_gives_up_pairs_but_not_the_batch():
    found = plan(LARGE, SHAPES, COMPLETE, 10**12, "cuda", half=True, host_free_bytes=800_000_000)
    assert found.host_bytes <= 720_000_000
    assert found.batch_size == 32
    assert not found.tokens_on_host
    assert found.share == 1
    assert len(found.pairs) == 76
    # of 76 x 2 x 2 maps, the hub of the tree keeps its share, 19 of 98
    assert found.maps == (76 * 4 - (98 - 19)) * 384 * 512 * 8
    assert connected_components(50, found.pairs) == [list(range(50))]
    assert found.steps[-1] == "76 of 153 pairs"


@pytest.mark.parametrize(("device", "ladder"), [("cpu", "pv"), ("cuda", "tv")])
def test_a_run_out_of_memory_gives_up_one_thing_more_each_time(
    device: str, ladder: str, caplog: pytest.LogCaptureFixture
):
    """Also where much memory should be free; t: tokens to the host, p: pairs, v: smaller views."""
    found = plan(LARGE, SHAPES, COMPLETE, 10**12, device, half=True)
    assert not found.steps
    while True:
        caplog.clear()
        try:
            after = plan(LARGE, SHAPES, COMPLETE, 10**12, device, half=True, after=found)
        except ResourceError:
            break
        assert after.steps[:-1] == found.steps
        (line,) = [record.message for record in caplog.records]
        assert line == f"out of memory, all views once more: {after.steps[-1]}"
        assert after.batch_size == 1
        found = after
    kinds = ["p" if "pairs" in text else text[0] for text in found.steps]
    assert "".join(dict.fromkeys(kinds)) == ladder
    assert found.share < 1
    assert len(found.pairs) == (49 if device == "cpu" else len(COMPLETE))


def test_the_batch_that_is_asked_for_is_where_it_starts():
    assert plan(LARGE, SHAPES, COMPLETE, 10**12, "cpu", half=True, batch_size=16).batch_size == 16
    tight = plan(LARGE, SHAPES, [(0, 1)], GB, "cpu", half=True, batch_size=16)
    assert tight.batch_size < 16
    assert tight.steps[0] == "batches of 8"


def test_the_batch_of_a_gpu_grows_with_its_memory_and_shrinks_with_the_network():
    free = 139 * 2**30
    assert choose_batch_size(LARGE, (384, 512), free, "cuda", half=True) == 32
    assert choose_batch_size(PRESETS["tiny"], (160, 224), free, "cuda", half=True) == 175
    assert choose_batch_size(LARGE, (384, 512), 8 * GB, "cuda", half=True) < 32
    assert choose_batch_size(LARGE, (384, 512), 1, "cuda", half=True) == 1


@given(
    st.integers(2, 30).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=80),
            st.integers(0, 90),
        )
    )
)
def test_thinning_keeps_what_is_joined(case: tuple[int, list[tuple[int, int]], int]):
    n_views, drawn, n_keep = case
    pairs = list(dict.fromkeys((min(p), max(p)) for p in drawn if p[0] != p[1]))
    kept = thinned(pairs, n_keep)
    groups = connected_components(n_views, pairs)
    assert connected_components(n_views, kept) == groups
    assert [pair for pair in pairs if pair in set(kept)] == list(kept)
    forest = n_views - len(groups)
    assert len(kept) == min(len(pairs), max(n_keep, forest))


def test_thinning_is_fair_and_quick():
    n_views = 300
    complete = [(i, j) for i in range(n_views) for j in range(i + 1, n_views)]
    kept = thinned(complete, 3000)
    degree = torch.bincount(torch.tensor(kept).flatten(), minlength=n_views)
    assert len(kept) == 3000
    # the tree of a complete graph given in this order is a star: its hub has them all
    assert int(degree[1:].max()) <= 40


def test_where_the_system_does_not_say_what_is_free_nothing_bounds_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As on Windows."""

    def missing(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert free_host_bytes() > 10**7  # half of all there is
    monkeypatch.delattr(os, "sysconf")
    with caplog.at_level(logging.DEBUG, "recon3d.memory"):
        assert free_host_bytes() is None
    assert len(caplog.records) == 1
    for device in ("cpu", "mps"):
        assert free_device_bytes(torch.device(device)) is None
        found = plan(LARGE, SHAPES, COMPLETE, None, device, half=True)
        assert (found.steps, found.batch_size) == ((), CPU_BATCH)


def test_what_is_free_is_a_plausible_number():
    free = free_host_bytes()
    assert 10**7 < free < 10**14
    assert 10**7 < free_device_bytes(torch.device("cpu")) < 10**14


@pytest.mark.parametrize(("left", "bounds"), [(7_000_000, True), (10**15, False), (None, False)])
def test_control_groups_bound_what_is_free(
    monkeypatch: pytest.MonkeyPatch, left: int | None, bounds: bool
):
    monkeypatch.setattr(memory, "memory_left_bytes", lambda: left)
    assert (free_host_bytes() == left) == bounds


_MEASURE = """
import json, os, re, sys, torch
from recon3d.config import ModelConfig, Precision, PredictConfig
from recon3d.model import TwoViewModel
from recon3d.predict import predict_pairs
from recon3d.types import View
torch.set_num_threads(1)
def views(h, w):
    return [View(name=str(k), sha256="", image=torch.rand(3, h, w), photo2view=torch.eye(3),
                 photo_width=w, photo_height=h, focal_px=None) for k in range(3)]
def peak():  # of this process alone; getrusage also remembers the one that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
def measured(sizes, height, width, precision):
    torch.manual_seed(0)
    sizes["dpt_layer_dims"] = tuple(sizes["dpt_layer_dims"])
    model = TwoViewModel(ModelConfig(**sizes))
    config = PredictConfig(device="cpu", precision=Precision(precision), batch_size=4)
    pairs = [(0, 1), (0, 2)]
    list(predict_pairs(model, views(32, 32), pairs, config))
    big = views(height, width)
    before = peak()
    n = sum(1 for _ in predict_pairs(model, big, pairs, config))
    assert n == 4
    return peak() - before
for case in json.loads(sys.argv[1]):
    sys.stdout.flush()
    if os.fork() == 0:
        print(measured(*case))
        sys.exit()
    assert os.wait()[1] == 0
"""
CASES = [
    (head, precision)
    for head in (HeadType.LINEAR, HeadType.DPT)
    for precision in (Precision.FP32, Precision.BF16)
]
SIZES = {
    "enc_dim": 192,
    "enc_depth": 1,
    "enc_heads": 3,
    "dec_dim": 192,
    "dec_depth": 4,
    "dec_heads": 3,
    "dpt_layer_dims": (16, 32, 64, 64),
    "dpt_feature_dim": 64,
    "dpt_last_dim": 32,
}
SHAPE = (256, 384)


@pytest.fixture(scope="module")
def peaks() -> dict[tuple[HeadType, Precision], int]:
    """The peak resident size of each case in a process of its own; all start from one."""
    cases = [(SIZES | {"head": head}, *SHAPE, precision) for head, precision in CASES]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, json.dumps(cases)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(int, done.stdout.split()), strict=True))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
@pytest.mark.parametrize(("head", "precision"), CASES)
def test_a_batch_takes_at_most_what_is_predicted(
    head: HeadType, precision: Precision, peaks: dict[tuple[HeadType, Precision], int]
):
    config = ModelConfig(**(SIZES | {"head": head}))
    half = precision is Precision.BF16
    predicted = working_bytes(config, SHAPE, 4, half=half, device="cpu")
    measured = peaks[head, precision]
    assert measured <= predicted
    assert predicted <= 4 * measured
