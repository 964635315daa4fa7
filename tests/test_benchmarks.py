"""The benchmarks that measure a GPU run to their end on a simulated one and print their figures."""

import json
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
