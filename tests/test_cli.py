import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from picture_bytes import png_header
from recon3d import __version__, weights
from recon3d.cli import main
from recon3d.config import ModelConfig, RunConfig
from recon3d.errors import ReconError
from recon3d.export import FOLDER_FILES
from recon3d.model import TwoViewModel
from recon3d.pipeline import Reconstruction
from recon3d.progress import Track
from recon3d.train_config import PretrainConfig, TrainConfig
from recon3d.types import LeftOut, Scene, Verdict, View

SMALL = ModelConfig(image_size=48, enc_dim=24, enc_depth=1, dec_dim=24, dec_depth=1)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    weights.save(TwoViewModel(SMALL), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photos"
    path.mkdir()
    return path


def photograph(path: Path, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)
    data = cv2.imencode(path.suffix, pixels)[1].tobytes()
    path.write_bytes(data)
    return data


def scene_of(*left_out: LeftOut) -> Scene:
    """Return a scene of one view with a plane in front of it."""
    view = View(
        name="a.jpg",
        sha256="0" * 64,
        image=torch.zeros(3, 32, 48),
        photo2view=torch.diag(torch.tensor([0.5, 0.5, 1.0])),
        photo_width=96,
        photo_height=64,
        focal_px=None,
    )
    return Scene(
        views=(view,),
        cam2world=torch.eye(4)[None],
        intrinsics=torch.tensor([[[50.0, 0, 24], [0, 50, 16], [0, 0, 1]]]),
        depth=(torch.full((32, 48), 2.0),),
        confidence=(torch.full((32, 48), 3.0),),
        verdicts=(
            Verdict(residual=0.0, edges=1, rotation_uncertainty_deg=0.0, focal_source="estimated"),
        ),
        left_out=left_out,
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[RunConfig]]:
    """Return a function that replaces the reconstruction by one that gives scenes or a fault."""

    def install(result: Scene | tuple[Scene, ...] | BaseException) -> list[RunConfig]:
        configs: list[RunConfig] = []

        def reconstruct_groups(
            inputs: Sequence[str],
            config: RunConfig,
            *,
            on_matches: Callable[..., None] | None,
            track: Track,
        ) -> Reconstruction:
            configs.append(config)
            track("pairs", 6, 6)
            if isinstance(result, BaseException):
                raise result
            scenes = result if isinstance(result, tuple) else (result,)
            views = tuple(view for scene in scenes for view in scene.views)
            if on_matches is not None:
                on_matches((), views)
            return Reconstruction(
                scenes=scenes, refinements=(), dense=(None,) * len(scenes), views=views
            )

        monkeypatch.setattr("recon3d.pipeline.reconstruct_groups", reconstruct_groups)
        return configs

    return install


def nothing(folder: Path) -> None:
    pass


def one_photo(folder: Path) -> None:
    photograph(folder / "a.jpg")


def text_files(folder: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_text(f"this is {name}")


def truncated(folder: Path) -> None:
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        data = photograph(folder / name, seed)
        (folder / name).write_bytes(data[: len(data) // 2])


def huge_headers(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(png_header(30_000, 30_000) + name.encode())


def same_photo_twice(folder: Path) -> None:
    photograph(folder / "a.jpg")
    photograph(folder / "b.jpg")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (nothing, "holds no photographs"),
        (one_photo, "photograph is not enough"),
        (text_files, "none is a usable photograph"),
        (truncated, "none is a usable photograph"),
        (huge_headers, "30000"),
        (same_photo_twice, "only one is a usable photograph"),
    ],
)
def test_unusable_input_is_one_line_and_code_3(
    folder: Path,
    small: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], None],
    words: str,
):
    prepare(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    output = folder.parent / "scene.ply"
    assert call("run", folder, "-o", output, "--weights", small, "--device", "cpu") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert words in err
    assert not output.exists()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_missing_folder_is_one_line_and_code_3(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("run", tmp_path / "none", "-o", tmp_path / "a.ply", "--weights", small) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_an_existing_output_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]):
    output = folder.parent / "scene.ply"
    output.write_bytes(b"precious")
    assert call("run", folder, "-o", output) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--overwrite" in err
    assert output.read_bytes() == b"precious"


def test_one_bad_output_of_two_stops_before_any_work(
    folder: Path, fake: Callable[..., list[RunConfig]]
):
    configs = fake(scene_of())
    assert call("run", folder, "-o", folder / "a.ply", "-o", folder / "b.xyz") == 2
    assert configs == []
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(
    ("output", "code"),
    [("/proc/self/scene.ply", 6), ("missing/scene.ply", 2), (f"{'a' * 300}.ply", 2)],
)
def test_an_unwritable_output_is_one_line_with_its_code(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    code: int,
):
    monkeypatch.chdir(folder)
    assert call("run", folder, "-o", output) == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert output in err


def another_layout(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"blocks.0.weight": torch.zeros(3)}, path)


def another_size(path: Path) -> None:
    config = path.with_suffix(".json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"enc_dim": 48}))


def unknown_key(path: Path) -> None:
    config = path.with_suffix(".json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"colour": 1}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (another_layout, "lacks"),
        (another_size, "decoder_embed"),
        (unknown_key, "colour"),
        (lambda path: path.write_bytes(b"\0" * 100), "damaged"),
        (lambda path: path.unlink(), "does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["run", "weights info"])
def test_unusable_weights_are_one_line_and_code_7(
    folder: Path,
    small: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
    command: str,
):
    photograph(folder / "a.jpg", 0)
    photograph(folder / "b.jpg", 1)
    damage(small)
    output = folder.parent / "scene.ply"
    arguments = ["run", folder, "-o", output, "--weights", small, "--device", "cpu"]
    assert call(*(arguments if command == "run" else ["weights", "info", small])) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert words in err
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "photos"),
        ("run", "photos", "-o", "a.ply", "--colour"),
        ("run", "photos", "-o", "a.ply", "--size", "big"),
        ("run", "photos", "-o", "a.ply", "--size", "1"),
        ("run", "photos", "-o", "a.ply", "--precision", "fp8"),
        ("run", "photos", "-o", "a.ply", "--focal", "-3"),
        ("run", "photos", "-o", "a.ply", "--config", "missing.toml"),
        ("run", "photos", "-o", "a.xyz"),
        ("runn",),
        ("synth",),
        ("synth", "-o", "a", "--scene", "sea"),
        ("synth", "-o", "a", "--photos", "1001"),
        ("synth", "-o", "a", "--width", "63"),
        ("synth", "-o", "a", "--height", "4097"),
        ("train", "-o", "a", "--preset", "gigantic"),
        ("train", "-o", "a", "--stages", "0.5:128"),
        ("train", "-o", "a", "--stages", "0.5:128,0.4:160,1:224"),
        ("train", "-o", "a", "--stages", "1:100"),
        ("pretrain", "-o", "a", "--stages", "1:64:2"),
    ],
)
def test_usage_faults_are_one_line_and_code_2(
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("recon3d: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("run", "photos", "-o", "a.ply", "--size", "abc"),
            "Invalid value for '--size': 'abc'; it must be a valid integer."
            " See recon3d run --help.",
        ),
        (
            ("evaluate", "data", "-o", "t.json", "--max-photos", "0"),
            "Invalid value for '--max-photos': '0'; it must be greater than or equal to 2."
            " See recon3d evaluate --help.",
        ),
        (
            ("run", "photos", "-o", "a.ply", "--precision", "fp8"),
            "Invalid value for '--precision': 'fp8' is not one of 'auto', 'fp32', 'bf16', 'fp16'."
            " See recon3d run --help.",
        ),
        (("run", "photos"), "Missing option '-o' / '--output'. See recon3d run --help."),
    ],
)
def test_a_usage_fault_names_the_value_and_what_to_do(
    arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
):
    assert call(*arguments) == 2
    assert capsys.readouterr().err == f"recon3d: {line}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "", "-o", "a.ply"), "the argument after run is empty"),
        (("run", "photos", "-o", "a.ply", "--cameras", ""), "the argument after --cameras is"),
        (("run", "photos", "-o", "a.ply", "--weights="), "the value of --weights is empty"),
        (("evaluate", "", "-o", "t.json"), "the argument after evaluate is empty"),
        (("train", "-o", ""), "the argument after -o is empty"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(
    arguments: tuple[str, ...],
    words: str,
    folder: Path,
    fake: Callable[..., list[RunConfig]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(folder)
    configs = fake(scene_of())
    assert call(*arguments) == 2
    assert configs == []
    assert words in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("weights",)])
def test_no_arguments_show_the_help_and_leave_with_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert "Usage" in out
    assert err == ""


def test_help_and_version_leave_with_0(capsys: pytest.CaptureFixture[str]):
    assert call("--help") == 0
    shown = capsys.readouterr().out
    for command in ("run", "synth", "pretrain", "train", "weights", "doctor"):
        assert command in shown
    assert call("--version") == 0
    assert capsys.readouterr().out == f"recon3d {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]):
    code = (
        "import sys\n"
        "from recon3d.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as left:\n"
        "    assert left.code == 0\n"
        "heavy = {'torch', 'cv2', 'numpy', 'scipy', 'open3d', 'trimesh'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    source = str(Path(__file__).parents[1] / "src")
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": source},
        **options,
    )


def test_python_dash_m_runs_it():
    done = run_python("-m", "recon3d", "--version")
    assert (done.returncode, done.stdout) == (0, f"recon3d {__version__}\n")


def test_a_whole_run_writes_every_output_and_says_so(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    configs = fake(scene_of())
    outputs = [folder / "a.ply", folder / "cameras.json", folder / "a.npz"]
    flags = [part for output in outputs for part in ("-o", output)]
    code = call("run", "photos", *flags, "--size", "320", "--voxel", "0.01", "--shared-focal")
    assert code == 0
    assert all(output.stat().st_size > 0 for output in outputs)
    assert (configs[0].photos.size, configs[0].fuse.voxel) == (320, 0.01)
    assert configs[0].align.shared_focal is True
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 of 1 photos placed; wrote" in err
    assert str(outputs[0]) in err


def test_photos_left_out_are_listed_and_give_code_5(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    fake(scene_of(LeftOut(name="b.jpg", reason="cannot be decoded")))
    assert call("run", "photos", "-o", folder / "a.ply", "-q") == 5
    assert (folder / "a.ply").exists()
    err = capsys.readouterr().err
    assert err.startswith("1 of 2 photos placed; 1 left out: b.jpg (cannot be decoded)")


def test_quiet_and_complete_says_nothing(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    fake(scene_of())
    assert call("run", "photos", "-o", folder / "a.ply", "-q") == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_versioned_object_on_stdout(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    fake(scene_of(LeftOut(name="b.jpg", reason="cannot be decoded")))
    arguments = ("--json", "--device", "cpu", "--precision", "fp32", "--confidence-percentile", "0")
    assert call("run", "photos", "-o", folder / "a.ply", *arguments) == 5
    found = json.loads(capsys.readouterr().out)
    stages = found.pop("stages")
    assert found.pop("seconds") == pytest.approx(
        sum(stage["seconds"] for stage in stages.values()), abs=0.01
    )
    assert list(stages) == ["start", "pairs", "fuse", "export"]
    assert stages["pairs"]["count"] == 6
    assert found == {
        "format": "recon3d-run",
        "version": 1,
        "photos": 2,
        # the view is half the photo
        "placed": [{"name": "a.jpg", "focal_px": 100.0, "focal_source": "estimated"}],
        "left_out": [{"name": "b.jpg", "reason": "cannot be decoded"}],
        "pairs_used": 0,
        "pairs_refused": [],
        "points": 32 * 48,
        "units": "arbitrary",
        "outputs": [str(folder / "a.ply")],
        "refinement": None,
        "dense": None,
        "more_scenes": [],
        "matches": None,
        "device": "cpu",
        "precision": "float32",
    }


def test_every_group_has_outputs_of_its_own(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    fake((scene_of(), scene_of()))
    arguments = ("run", "photos", "-o", folder / "a.ply", "-o", f"{folder}/out/")
    assert call(*arguments, "--all-components", "--json", "--matches", folder / "m.npz") == 0
    assert (folder / "a-2.ply").read_bytes().startswith(b"ply\n")
    assert (folder / "out-2" / "cameras.json").is_file()
    assert (folder / "m.npz").is_file()
    spoken = capsys.readouterr()
    assert "2 of 2 photos placed in 2 groups (1 + 1)" in spoken.err
    (other,) = json.loads(spoken.out)["more_scenes"]
    assert other["outputs"] == [str(folder / "a-2.ply"), f"{folder}/out-2/"]
    (folder / "a.ply").unlink()
    fake((scene_of(), scene_of()))
    assert call("run", "photos", "-o", folder / "a.ply", "--all-components") == 2
    assert "a-2.ply exists" in capsys.readouterr().err


def test_a_scene_without_a_point_keeps_its_cameras(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    strict = ("--min-confidence", "50")
    fake(scene_of())
    assert call("run", "photos", "-o", folder / "a.npz", "-o", folder / "a.json", *strict) == 0
    assert capsys.readouterr().err.endswith(" s\n")
    fake(scene_of())
    assert call("run", "photos", "-o", f"{folder}/out/", "--json", *strict) == 4
    assert sorted(file.name for file in (folder / "out").iterdir()) == ["cameras.json", "scene.npz"]
    spoken = capsys.readouterr()
    assert spoken.err.splitlines()[-1].startswith("recon3d: no point is left of 1536 pixels")
    assert json.loads(spoken.out)["points"] == 0
    fake(scene_of())
    assert call("run", "photos", "-o", folder / "b.ply", *strict) == 4
    assert "wrote nothing" in capsys.readouterr().err
    assert not (folder / "b.ply").exists()


def test_a_group_without_a_point_leaves_the_others_theirs(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    sure = replace(scene_of(), confidence=(torch.full((32, 48), 60.0),))
    fake((scene_of(), sure))
    arguments = ("-o", folder / "a.ply", "--all-components", "--min-confidence", "50")
    assert call("run", "photos", *arguments) == 5
    assert [file.name for file in folder.iterdir()] == ["a-2.ply"]
    assert "recon3d: group 1: no point is left" in capsys.readouterr().err


def test_every_file_of_matches_is_written(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    fake(scene_of())
    files = [str(folder / name) for name in ("m.npz", "m.db")]
    given = [argument for file in files for argument in ("--matches", file)]
    assert call("run", "photos", "-o", folder / "a.ply", "--json", *given) == 0
    assert Path(files[0]).read_bytes().startswith(b"PK\x03\x04")
    assert Path(files[1]).read_bytes().startswith(b"SQLite format 3\0")
    spoken = capsys.readouterr()
    assert ", ".join(files) in spoken.err
    assert json.loads(spoken.out)["matches"] == files
    fake(scene_of())
    Path(files[0]).unlink()
    assert call("run", "photos", "-o", folder / "b.ply", *given) == 2
    assert "m.db exists" in capsys.readouterr().err
    assert not Path(files[0]).exists()


def test_matches_with_an_unknown_ending_are_refused_before_any_work(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    configs = fake(scene_of())
    assert call("run", "photos", "-o", folder / "a.ply", "--matches", "m.txt") == 2
    assert configs == []
    assert "known ending" in capsys.readouterr().err


@pytest.mark.parametrize("output", [".", "./", "..", "../", "/", "sub/.."])
def test_a_folder_without_a_name_cannot_be_numbered(
    folder: Path,
    fake: Callable[..., list[RunConfig]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
):
    monkeypatch.chdir(folder)
    configs = fake((scene_of(), scene_of()))
    if output == "sub/..":
        (folder / "sub").mkdir()
    assert call("run", "photos", "-o", output, "--all-components") == 2
    assert configs == []
    assert "has no name that other groups could be numbered by" in capsys.readouterr().err


def test_the_folders_of_groups_stand_beside_each_other(
    folder: Path, fake: Callable[..., list[RunConfig]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    fake((scene_of(), scene_of()))
    (folder / "out").mkdir()
    assert call("run", "photos", "-o", "out/.", "--all-components") == 0
    assert sorted(entry.name for entry in folder.iterdir()) == ["out", "out-2"]
    assert sorted(entry.name for entry in (folder / "out-2").iterdir()) == sorted(FOLDER_FILES)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "n.npz", "--matches", "n.npz"),
        ("-o", "n.npz", "--matches", "../photos/n.npz", "--overwrite"),
        ("-o", "./", "--matches", "scene.npz"),
        ("-o", "n.npz", "--matches", "m.db", "--matches", "./m.db"),
        ("-o", "n.npz", "--matches", "m.db", "--matches", "n-2.npz", "--all-components"),
        ("-o", "n.npz", "--matches", "n-2.npz", "--all-components"),
        ("-o", "n.npz", "-o", "n-3.npz", "--all-components", "--overwrite"),
    ],
)
def test_no_file_is_written_twice(
    folder: Path,
    fake: Callable[..., list[RunConfig]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
):
    monkeypatch.chdir(folder)
    configs = fake((scene_of(), scene_of()))
    assert call("run", "photos", *arguments) == 2
    assert configs == []
    assert list(folder.iterdir()) == []
    assert "would be written twice" in capsys.readouterr().err


def test_overwrite_replaces(folder: Path, fake: Callable[..., list[RunConfig]]):
    fake(scene_of())
    (folder / "a.ply").write_bytes(b"old")
    assert call("run", "photos", "-o", folder / "a.ply", "--overwrite") == 0
    assert (folder / "a.ply").read_bytes().startswith(b"ply\n")


def test_the_config_file_is_read_and_options_win(
    folder: Path, fake: Callable[..., list[RunConfig]]
):
    configs = fake(scene_of())
    (folder / "c.toml").write_text('pairs = "window:2"\n[photos]\nsize = 64\n')
    arguments = ("--config", folder / "c.toml", "--size", "96")
    assert call("run", "photos", "-o", folder / "a.ply", *arguments) == 0
    assert (configs[0].pairs, configs[0].photos.size) == ("window:2", 96)


@pytest.mark.parametrize("kind", ReconError.__subclasses__())
def test_each_fault_has_its_code_and_one_line(
    folder: Path,
    fake: Callable[..., list[RunConfig]],
    capsys: pytest.CaptureFixture[str],
    kind: type[ReconError],
):
    fake(kind("something is wrong.\nMend it."))
    assert call("run", "photos", "-o", folder / "a.ply", "-v") == kind.exit_code
    assert capsys.readouterr().err == "recon3d: something is wrong. Mend it.\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 6, "out of memory"),
        (RuntimeError("boom"), 1, "RuntimeError: boom"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "BrokenPipeError: "),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 6, "device: 'x'. Free some space."),
        (PermissionError(errno.EACCES, "Permission denied", "/r/x"), 6, "3d: /r/x: Permission den"),
        (ModuleNotFoundError("No module named 'scipy'", name="scipy"), 6, "`recon3d doctor`"),
        (ModuleNotFoundError("recon3d.x", name="recon3d.x"), 1, "unexpected fault"),
    ],
)
def test_other_faults(
    folder: Path,
    fake: Callable[..., list[RunConfig]],
    capsys: pytest.CaptureFixture[str],
    fault: BaseException,
    code: int,
    words: str,
):
    fake(fault)
    assert call("run", "photos", "-o", folder / "a.ply") == code
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("module", ["recon3d.errors", "pycolmap"])
def test_sigterm_is_one_line_and_code_143(folder: Path, module: str):
    if module == "pycolmap":
        pytest.importorskip(module)
    code = (
        "import os, signal, time\n"
        "from recon3d import cli\n"
        "from recon3d.colmap_extra import require_pycolmap\n"
        "from recon3d.files import atomic_write\n"
        "from pathlib import Path\n"
        "def wait(*_, **__):\n"
        f"    {'require_pycolmap()' if module == 'pycolmap' else 'pass'}\n"
        "    with atomic_write(Path('half.ply')):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
        "import recon3d.pipeline\n"
        "recon3d.pipeline.reconstruct_groups = wait\n"
        "cli.main(['run', 'photos', '-o', 'a.ply'])\n"
    )
    done = run_python("-c", code, cwd=folder)
    assert (done.returncode, done.stderr) == (143, "recon3d: interrupted (SIGTERM).\n")
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="a folder in use cannot be deleted")
def test_a_current_folder_that_was_deleted_is_said(folder: Path):
    code = (
        "import os, sys\n"
        "from recon3d import cli\n"
        "os.rmdir(os.getcwd())\n"
        "cli.main(['run', '/photos', '-o', '/tmp/a.ply'])\n"
    )
    inside = folder / "gone"
    inside.mkdir()
    done = run_python("-c", code, cwd=inside)
    assert done.returncode == 2
    assert done.stderr == "recon3d: the current folder was deleted. Change to another one.\n"


def test_a_bug_shows_its_traceback_only_with_v(
    folder: Path, fake: Callable[..., list[RunConfig]], capsys: pytest.CaptureFixture[str]
):
    fake(RuntimeError("boom"))
    assert call("run", "photos", "-o", folder / "a.ply", "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_weights_info_shows_the_file(small: Path, capsys: pytest.CaptureFixture[str]):
    assert call("weights", "info", small, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(small)
    assert found["config"]["enc_dim"] == 24
    assert call("weights", "info", small) == 0
    out, err = capsys.readouterr()
    assert f"sha256: {found['sha256']}" in out
    assert "enc_dim: 24" in out
    assert err == ""


def test_synth_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import recon3d.synth

    got: dict[str, object] = {}
    monkeypatch.setattr(
        recon3d.synth,
        "write_folder",
        lambda out_dir, **options: got.update(options, out_dir=out_dir),
        raising=False,
    )
    size = ("--width", "320", "--height", "240")
    assert call("synth", "-o", tmp_path, "--scene", "object", "--photos", "4", *size) == 0
    assert isinstance(got.pop("track"), Track)
    assert got == {
        "out_dir": tmp_path,
        "kind": "object",
        "n_photos": 4,
        "width": 320,
        "height": 240,
        "seed": 0,
        "overwrite": False,
        "textures": None,
    }


@pytest.mark.parametrize("command", ["synth", "train", "pretrain"])
def test_a_file_in_the_place_of_a_folder_has_code_2(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "room.ply").touch()
    assert call(command, "-o", tmp_path / "room.ply", "-q") == 2
    assert "room.ply cannot be written" in capsys.readouterr().err


def test_train_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import recon3d.train

    got: list[tuple[Path, TrainConfig]] = []
    monkeypatch.setattr(
        recon3d.train, "train", lambda out_dir, config, *, track: got.append((out_dir, config))
    )
    assert call("train", "-o", tmp_path) == 0
    assert call("train", "-o", tmp_path, "--preset", "small", "--minutes", "2", "--no-compile") == 0
    assert got[0] == (tmp_path, TrainConfig())
    assert got[1] == (tmp_path, TrainConfig(preset="small", minutes=2.0, compile=False))


def test_train_starts_from_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import recon3d.train

    got: list[TrainConfig] = []
    monkeypatch.setattr(
        recon3d.train, "train", lambda out_dir, config, *, track: got.append(config)
    )
    curriculum = ("--stages", "0.5:128,1:224", "--easy-share", "0")
    assert call("train", "-o", tmp_path, "--init", "croco.safetensors", *curriculum) == 0
    stages = ((0.5, 128), (1.0, 224))
    assert got == [TrainConfig(init="croco.safetensors", stages=stages, easy_share=0.0)]
    lenses = ("--least-size", "0.5", "--usual-lenses", "0.8", "--ray-weight", "2")
    assert call("train", "-o", tmp_path, *lenses) == 0
    assert got[1] == TrainConfig(least_size=0.5, usual_lenses=0.8, ray_weight=2.0)


def test_pretrain_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import recon3d.pretrain

    got: list[tuple[Path, PretrainConfig]] = []
    monkeypatch.setattr(
        recon3d.pretrain,
        "pretrain",
        lambda out_dir, config, *, track: got.append((out_dir, config)),
    )
    assert call("pretrain", "-o", tmp_path) == 0
    options = ("--preset", "small", "--pairs", "7", "--mask-ratio", "0.8", "--device", "cpu")
    assert call("pretrain", "-o", tmp_path, *options) == 0
    assert got[0] == (tmp_path, PretrainConfig())
    assert got[1] == (
        tmp_path,
        PretrainConfig(preset="small", pairs=7, mask_ratio=0.8, device="cpu"),
    )
    (tmp_path / "state.safetensors").write_bytes(b"hours of work")
    assert call("pretrain", "-o", tmp_path) == 2
    assert call("pretrain", "-o", tmp_path, "--resume") == 0


def test_a_training_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "state.safetensors").write_bytes(b"hours of work")
    assert call("train", "-o", tmp_path) == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "state.safetensors").read_bytes() == b"hours of work"


@pytest.mark.parametrize("command", ["train", "pretrain"])
@pytest.mark.parametrize("name", ["model.safetensors", "croco.safetensors"])
def test_weights_are_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
):
    (tmp_path / name).write_bytes(b"hours of work")
    assert call(command, "-o", tmp_path) == 2
    assert f"holds {name}; add --resume" in capsys.readouterr().err


def test_doctor_prints_a_line_a_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from recon3d.doctor import Check

    good = Check(name="torch", ok=True, detail="2.13.0")
    missing = Check(name="open3d", ok=False, detail="gone", remedy="pip install x", needed=False)
    monkeypatch.setattr("recon3d.doctor.checks", lambda: [good, missing])
    assert call("doctor") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["ok", "torch", "2.13.0"]
    assert out[1].split() == ["no", "open3d", "gone"]
    assert out[2].split() == ["->", "pip", "install", "x"]
    needed = Check(name="opencv", ok=False, detail="gone", remedy="pip install opencv-python")
    monkeypatch.setattr("recon3d.doctor.checks", lambda: [good, needed])
    assert call("doctor", "--json") == 6
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"]) == ("recon3d-doctor", 1)
    assert [check["ok"] for check in found["checks"]] == [True, False]
