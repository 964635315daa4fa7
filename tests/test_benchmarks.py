"""The benchmarks that measure a GPU run to their end on a simulated one and print their figures."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from fake_device import fake_device

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    counters = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats")
    with (
        mock.patch.multiple(torch.cuda, **{name: lambda device: 1000 for name in counters}),
        mock.patch.object(torch.cuda, "get_device_name", return_value="simulated"),
        fake_device(),
    ):
        yield


def figures(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *command.split()])
    __import__(name).main()
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_prediction(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    command = "--preset tiny --size 64x48 --device cuda --pairs 3"
    found = figures("prediction", command, monkeypatch, capsys)
    assert found["device"] == "simulated"
    assert (found["encoder_runs"], found["directed_pairs"]) == (3, 6)
    assert found["ms_per_symmetric_pair"] > 0
    assert found["symmetric_pairs_per_s"] > 0
    apart = figures("prediction", command + " --naive", monkeypatch, capsys)
    assert (apart["naive"], apart["directed_pairs"]) == (True, 6)


@pytest.mark.parametrize(("given", "predicted"), [("", 6), (" --network-pairs 2", 2)])
def test_prediction_and_alignment(
    given: str,
    predicted: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    command = "--photos 4 --preset tiny --size 64x48 --device cuda" + given
    found = figures("whole", command, monkeypatch, capsys)
    assert (found["photos"], found["placed"], found["pairs"]) == (4, 4, 6)
    assert found["network_pairs"] == predicted
    assert found["peak_gpu_mb"] == 0
    total = found["encode_s"] + found["predict_s"] + found["align_s"]
    assert total == pytest.approx(found["seconds"], abs=0.01)


# --- one_gpu.py ---


def summary(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "summary.jsonl").read_text().splitlines()]


def test_commands_that_fail_or_hang_end_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_gpu = __import__("one_gpu")
    monkeypatch.setattr(one_gpu, "GRACE_S", 0.3)
    session = one_gpu.Session(tmp_path, 1.0)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    assert session.run("hangs", ["-c", stubborn], 0.5) is None
    assert session.run("fails", ["-c", "raise SystemExit(3)"], 9.0) is None
    seen: list[bool] = []
    printed = """print('loading'); print('{"speed": 7}')"""
    assert session.run("works", ["-c", printed], 9.0, lambda: seen.append(True)) == [{"speed": 7}]
    assert seen
    session.ends = 0.0
    assert session.run("late", ["-c", printed], 9.0) is None
    hung, failed, worked, late = summary(tmp_path)
    assert (hung["exit"], hung["timed_out"]) == (-9, True)
    assert hung["seconds"] < 10
    assert (failed["exit"], failed["timed_out"], worked["exit"]) == (3, False, 0)
    assert "skipped" in late
    assert "== works: -c" in (tmp_path / "steps.log").read_text()


def test_weights_are_kept_in_pieces_whenever_they_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_gpu = __import__("one_gpu")
    monkeypatch.setattr(one_gpu, "PIECE_BYTES", 4)
    training, kept = tmp_path / "training", tmp_path / "kept"
    training.mkdir()
    kept.mkdir()
    courier = one_gpu.Courier(training, kept)
    courier()
    assert not list(kept.iterdir())
    for content, log in ((b"0123456789", "a"), (b"9876543210", "ab")):
        (training / "model.json").write_text("{}")
        (training / "model.safetensors").write_bytes(content)
        os.utime(training / "model.safetensors", ns=(0, courier.seen_ns + 1))
        (training / "log.jsonl").write_text(log)
        courier()
        pieces = sorted(kept.glob("model.safetensors.?"))
        assert [piece.stat().st_size for piece in pieces] == [4, 4, 2]
        assert b"".join(piece.read_bytes() for piece in pieces) == content
        assert (kept / "train.jsonl").read_text() == log


class Answers:
    """Stands for a session; answers commands by what they hold, and notes them."""

    def __init__(self, *failing: str, **speeds: float) -> None:
        self.failing, self.speeds, self.asked = failing, speeds, list[str]()

    def left_s(self) -> float:
        return 500.0

    def run(self, name: str, arguments: list[str], *_: object) -> list[dict] | None:
        self.asked.append(" ".join(arguments))
        if any(part in self.asked[-1] for part in self.failing):
            return None
        network = "network" if "--compile-network" in arguments else "plain"
        return [{"pairs_per_s": self.speeds.get(network, 0.0)}]


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        (Answers(plain=1.0, network=2.0), [48, ["--compile-network"]]),
        (Answers("--compile-network", plain=1.0), [48, []]),
        (Answers("--scenes 48", plain=2.0, network=1.0), [24, []]),
        (Answers("--scenes"), [24, ["--no-compile"]]),
    ],
)
def test_training_takes_the_fastest_way_that_works(
    session: Answers, expected: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_gpu = __import__("one_gpu")
    options = argparse.Namespace(
        rehearse=False, scenes=48, views=4, preset="small", device="cuda", stages="1:224",
        textures=None, train_minutes=20.0, train_options="--uses 2", steps=["train", "judge"],
        work=tmp_path, output=tmp_path,
    )  # fmt: skip
    one_gpu.throughput(session, options)
    assert json.loads((tmp_path / "way.json").read_text()) == expected
    session.asked.clear()
    session.failing = (f"--batch-scenes {expected[0]}",)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "state.safetensors").touch()
    one_gpu.train(session, options)
    first, second = session.asked
    assert " ".join(["--stages 1:224", *expected[1], "--batch-scenes"]) in first
    assert first.endswith("--minutes 20.000 --stop-after 6.917 --uses 2 --overwrite")
    assert f"--batch-scenes {expected[0] // 2} " in second
    assert "--compile-network" not in second
    assert second.endswith("--resume")
    session.asked.clear()
    monkeypatch.setattr(session, "left_s", lambda: 120.0)
    one_gpu.train(session, options)
    assert len(session.asked) == 1


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "one_gpu.py"), "--rehearse"]
    command += ["-o", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    subprocess.run(command, check=True, capture_output=True)
    found = summary(tmp_path / "out")
    assert {line["step"].split()[0] for line in found} == {
        "check", "prediction", "whole", "throughput", "train", "resume", "judge"
    }  # fmt: skip
    assert [line["exit"] for line in found] == 8 * [0]
    pieces = sorted((tmp_path / "out").glob("model.safetensors.?"))
    whole = (tmp_path / "work" / "train" / "model.safetensors").read_bytes()
    assert b"".join(piece.read_bytes() for piece in pieces) == whole
