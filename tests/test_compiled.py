"""Compiled blocks: tried where that can pay, kept where it does, given up where it fails."""

import subprocess
import sys
from collections.abc import Iterable
from unittest import mock

import pytest
import torch

from fake_device import fake_device
from recon3d import compiled
from recon3d.compiled import Trial, compiled_if_possible
from recon3d.config import Compile

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def used(
    trial: Trial, sizes: Iterable[int], seconds: dict[bool, float], clock: pytest.MonkeyPatch
) -> list[bool]:
    """Return for each batch whether it ran compiled, batches taking so many seconds."""
    now, ran = 0.0, []
    clock.setattr(Trial, "_now", lambda self: now)

    def compute(is_compiled: bool) -> None:
        nonlocal now
        now += seconds[is_compiled]
        ran.append(is_compiled)

    for size in sizes:
        trial.run(size, compute)
    return ran


@pytest.mark.parametrize(
    ("mode", "device", "n_batches", "seconds", "expected"),
    [
        (Compile.AUTO, CUDA, 100, {False: 2.0, True: 1.5}, "ppc" + 97 * "c"),
        (Compile.AUTO, CUDA, 100, {False: 2.0, True: 2.0}, "ppcc" + 96 * "p"),  # not faster
        (Compile.AUTO, CUDA, 100, {False: 1.0, True: 0.5}, 100 * "p"),  # too little left
        (Compile.AUTO, CUDA, 31, {False: 99.0, True: 1.0}, 31 * "p"),
        (Compile.AUTO, CPU, 100, {False: 2.0, True: 1.5}, 100 * "p"),
        (Compile.AUTO, CPU, 300, {False: 2.0, True: 1.9}, "ppc" + 297 * "c"),
        (Compile.AUTO, torch.device("mps"), 300, {False: 2.0, True: 1.0}, 300 * "p"),
        (Compile.YES, CPU, 6, {False: 0.2, True: 0.1}, "ppcccc"),
        (Compile.YES, CPU, 3, {False: 0.2, True: 0.1}, "ppp"),  # no batch to gain on
        (Compile.NO, CUDA, 100, {False: 2.0, True: 1.5}, 100 * "p"),
    ],
)
def test_the_faster_way_does_the_rest(
    mode: Compile,
    device: torch.device,
    n_batches: int,
    seconds: dict[bool, float],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
):
    trial = Trial(mode, device, n_batches, 4)
    ran = used(trial, n_batches * [4], seconds, monkeypatch)
    assert "".join("pc"[is_compiled] for is_compiled in ran) == expected


def test_a_batch_of_another_size_is_never_compiled(monkeypatch: pytest.MonkeyPatch):
    trial = Trial(Compile.YES, CPU, 8, 4)
    ran = used(trial, [4, 4, 3, 4, 4, 4, 4, 1], {False: 2.0, True: 1.0}, monkeypatch)
    assert ran == [False, False, False, True, True, True, True, False]


def test_nothing_is_tried_where_every_run_must_be_the_same(monkeypatch: pytest.MonkeyPatch):
    torch.use_deterministic_algorithms(True)
    try:
        trial = Trial(Compile.YES, CPU, 9, 4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert used(trial, 9 * [4], {False: 2.0, True: 1.0}, monkeypatch) == 9 * [False]


def broken_compiler(error: Exception):
    def compile_(function, **_: object):
        def fused(*given: object) -> None:
            raise error

        return fused

    return mock.patch.object(torch, "compile", compile_)


def test_a_function_that_cannot_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture):
    def half(number: int) -> float:
        return {2: 1.0, 4: 2.0}[number]

    with broken_compiler(RuntimeError("ptxas fell over\nsomewhere")):
        call = compiled_if_possible(half)
    with pytest.raises(KeyError):  # the function's own fault says nothing of the compiler
        call(3)
    assert [call(2), call(4)] == [1.0, 2.0]
    assert [record.message for record in caplog.records] == [
        "half cannot be compiled (ptxas fell over) and is slow therefore"
    ]
    with broken_compiler(torch.OutOfMemoryError("CUDA out of memory")):
        call = compiled_if_possible(half)
    with pytest.raises(torch.OutOfMemoryError):
        call(2)


def test_what_is_compiled_fails_for_once_while_another_thread_compiles(
    caplog: pytest.LogCaptureFixture,
):
    answers = iter(("fused", RuntimeError("FX is tracing"), "fused"))

    def fused() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with mock.patch.object(torch, "compile", return_value=fused):
        call = compiled_if_possible(lambda: "plain")
    assert [call() for _ in range(3)] == ["fused", "plain", "fused"]
    assert not caplog.records


def test_what_cannot_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture):
    trial = Trial(Compile.YES, CPU, 9, 4)

    def compute(is_compiled: bool) -> str:
        if is_compiled:
            raise RuntimeError("no compiler\nof any kind")
        return "done"

    assert [trial.run(4, compute) for _ in range(9)] == 9 * ["done"]
    assert [record.message for record in caplog.records] == [
        "blocks cannot be compiled (no compiler); they run as they are"
    ]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("a bug")])
def test_other_faults_pass(error: Exception):
    trial = Trial(Compile.YES, CPU, 9, 4)

    def compute(is_compiled: bool) -> None:
        if is_compiled:
            raise error

    trial.run(4, compute)
    trial.run(4, compute)
    with pytest.raises(type(error), match=str(error)):
        trial.run(4, compute)


def test_the_clock_waits_for_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "_LEAST_BATCHES", 2)
    with fake_device() as cuda:
        trial = Trial(Compile.AUTO, CUDA, 9, 4)
        for _ in range(9):
            trial.run(4, lambda is_compiled: None)
    assert sum(cuda.waits.values()) == 2  # before and after the one that is timed


def test_the_clock_waits_for_mps(monkeypatch: pytest.MonkeyPatch):
    waits: list[None] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(None))
    trial = Trial(Compile.YES, torch.device("mps"), 9, 4)
    for _ in range(9):
        trial.run(4, lambda is_compiled: None)
    assert len(waits) == 6  # around a plain batch, the one that compiles, and a compiled one


_TRACE = """
import torch
from recon3d import compiled, model
from recon3d.config import Compile, ModelConfig, Precision, PredictConfig
from recon3d.model import TwoViewModel
from recon3d.predict import predict_pairs
from recon3d.types import View

graphs = []
def backend(graph, example):  # traces as torch.compile does, but runs that without a compiler
    graphs.append(graph)
    return graph.forward
traced = torch.compile(model._run_block, backend=backend, dynamic=False, fullgraph=True)
model._compiled_block = lambda: traced
compiled._WORTH = 1e9  # kept in any case
sizes = dict(enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=32, dec_depth=3, dec_heads=2)
network = TwoViewModel(ModelConfig(**sizes))
views = [View(name=str(n), sha256="", image=torch.rand(3, 32, 48), photo2view=torch.eye(3),
              photo_width=48, photo_height=32, focal_px=None) for n in range(4)]
pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
for precision in (Precision.FP32, Precision.BF16):
    torch.compiler.reset()
    graphs.clear()
    plain, fast = (
        list(predict_pairs(network, views, pairs, PredictConfig(
            device="cpu", precision=precision, batch_size=2, compile=mode)))
        for mode in (Compile.NO, Compile.YES)
    )
    assert len(graphs) == 1, len(graphs)  # for three layers of two decoders
    for a, b in zip(fast, plain, strict=True):
        assert (a.i, a.j) == (b.i, b.j)
        assert torch.equal(a.pointmap_j_in_i, b.pointmap_j_in_i)
"""


def test_all_blocks_are_traced_once_and_give_the_same():
    """In a process of its own: torch cannot trace the checks of shapes that tests add."""
    done = subprocess.run(
        [sys.executable, "-c", _TRACE], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be compiled" not in done.stderr
