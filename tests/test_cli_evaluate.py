"""`recon3d evaluate` as users meet it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from recon3d import evaluate, weights
from recon3d.cli import main
from recon3d.config import ModelConfig, RunConfig
from recon3d.errors import UsageError
from recon3d.model import TwoViewModel
from recon3d.pipeline import reconstruct
from recon3d.score_table import Table

SAMPLES = Path(__file__).parents[1] / "sample_data"
SMALL = ModelConfig(image_size=64, enc_dim=24, enc_depth=1, dec_dim=24, dec_depth=1)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *map(str, arguments)])
    return int(left.value.code or 0)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    weights.save(TwoViewModel(SMALL), path)
    return path


def test_the_table_is_written_shown_and_printed(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "table.json"
    options = ("--weights", small, "--scenes", "room, object", "--max-photos", 2, "--no-refine")
    assert call(SAMPLES, "-o", output, *options, "--baseline", "sift", "--json") == 0
    written = json.loads(output.read_text())
    assert (written["format"], written["version"]) == ("recon3d-evaluation", 1)
    assert [scene["name"] for scene in written["scenes"]] == ["object", "room"]
    assert [scene["photos"] for scene in written["scenes"]] == [2, 2]
    assert set(written["total"]) == {"recon3d", "sift"}
    assert written["weights"] == str(small)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == written
    assert "Two views, intrinsics known" in shown.err
    assert f"wrote {output}" in shown.err


def test_a_table_that_cannot_be_written_is_shown(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    measure = evaluate.evaluate

    def and_meanwhile(*arguments: object, **options: object) -> Table:
        folder.rmdir()
        return measure(*arguments, **options)

    monkeypatch.setattr(evaluate, "evaluate", and_meanwhile)
    options = ("--weights", small, "--scenes", "room", "--max-photos", 2, "--no-refine", "--json")
    assert call(SAMPLES, "-o", folder / "table.json", *options) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["format"] == "recon3d-evaluation"
    assert "Two views, intrinsics known" in shown.err
    assert "cannot be written" in shown.err


def test_refinement_without_pycolmap_is_refused_before_any_work(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    options = ("--weights", small, "--refine")
    assert call(SAMPLES / "room", "-o", tmp_path / "table.json", *options) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("recon3d: --refine needs pycolmap: pip install 'pycolmap>=")
    with pytest.raises(UsageError, match="--refine needs pycolmap"):
        reconstruct([str(SAMPLES / "room" / "images")], RunConfig(weights="nowhere", refine=True))


def test_quiet_says_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = SAMPLES / "room"
    table = tmp_path / "table.json"
    options = ("--weights", small, "--max-photos", 2, "--no-refine", "-q")
    assert call(folder, "-o", table, *options) == 0
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""
    assert table.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere", "-o", "table.json"), 3, "nowhere is not a folder"),
        ((SAMPLES, "-o", "table.json", "--scenes", "kitchen"), 3, "Known: object, room"),
        ((SAMPLES, "-o", "table.txt"), 2, "must end in .json"),
        ((SAMPLES, "-o", "nowhere/table.json"), 2, "does not exist"),
        ((SAMPLES, "-o", "there.json"), 2, "--overwrite"),
        ((SAMPLES, "-o", "table.json", "--baseline", "orb"), 2, "orb"),
        ((SAMPLES, "-o", "table.json", "--max-photos", 1), 2, "max-photos"),
        ((SAMPLES, "-o", "table.json", "--weights", "none.safetensors"), 7, "none.safetensors"),
    ],
)
def test_faults_are_one_line(
    arguments: tuple[object, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("{}")
    assert call(*arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
