import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from recon3d.config import CamerasAre, Precision, RunConfig
from recon3d.errors import UsageError
from recon3d.settings import LIMITS, OPTIONS, _leaves, default, run_config

THRESHOLDS = ("--min-confidence", "--confidence-percentile")


def leaf(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults():
    assert run_config(None, {}) == RunConfig()
    assert run_config(None, dict.fromkeys(OPTIONS)) == RunConfig()


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path):
    path = write(
        tmp_path,
        'weights = "mine.safetensors"\n[photos]\nsize = 320\n[align]\nseed = 3\nfocal_px = 900\n'
        '[predict]\nprecision = "bf16"\n',
    )
    config = run_config(path, {"--size": 224, "--device": "cpu"})
    assert (config.photos.size, config.align.seed, config.align.focal_px) == (224, 3, 900.0)
    assert config.weights == "mine.safetensors"
    assert config.predict.precision is Precision.BF16
    assert config.predict.device == "cpu"
    assert config.fuse == RunConfig().fuse
    assert isinstance(config.align.focal_px, float)


def test_a_byte_order_mark_is_no_setting(tmp_path: Path):
    path = write(tmp_path, "\ufeff[photos]\nsize = 64\n")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert run_config(path, {}).photos.size == 64


def test_every_option_reaches_its_field():
    values = {
        "--weights": "w.safetensors",
        "--pairs": "complete",
        "--deterministic": True,
        "--size": 64,
        "--device": "cpu",
        "--precision": Precision.FP32,
        "--focal": 500.0,
        "--shared-focal": True,
        "--cameras": "cameras.json",
        "--cameras-are": CamerasAre.PRIOR,
        "--masks": "masks",
        "--scale-from": "0,1,2.5",
        "--refine": False,
        "--dense": False,
        "--all-components": True,
        "--seed": 7,
        "--min-confidence": 1.5,
        "--confidence-percentile": 10.0,
        "--max-points": 99,
        "--voxel": 0.5,
    }
    assert set(values) == set(OPTIONS)
    for left_out in THRESHOLDS:  # which exclude each other
        given = {flag: value for flag, value in values.items() if flag != left_out}
        config = run_config(None, given)
        assert {flag: leaf(config, OPTIONS[flag]) for flag in given} == given
    changed = [flag for flag in OPTIONS if leaf(RunConfig(), OPTIONS[flag]) != values[flag]]
    assert set(changed) == set(OPTIONS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"--cameras-are": CamerasAre.PRIOR}, "--cameras-are prior says something of given"),
        ({"--dense": True, "--refine": False}, "--dense needs exact cameras, but --no-refine"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(options: dict[str, object], words: str):
    with pytest.raises(UsageError, match=words):
        run_config(None, options)
    assert run_config(None, options | {"--cameras": "cameras.json"}).cameras == "cameras.json"


def test_two_thresholds_of_confidence_are_refused_but_an_option_wins_over_the_file(
    tmp_path: Path,
):
    least, share = THRESHOLDS
    with pytest.raises(
        UsageError, match=r"^--min-confidence 2 and --confidence-percentile 0, both"
    ):
        run_config(None, {least: 2.0, share: 0.0})
    both = write(tmp_path, "[fuse]\nmin_confidence = 2\nconfidence_percentile = 30")
    with pytest.raises(
        UsageError, match=r"^min_confidence 2 and confidence_percentile 30, both in"
    ):
        run_config(both, {})
    fuse = run_config(write(tmp_path, "[fuse]\nmin_confidence = 2"), {share: 30.0}).fuse
    assert (fuse.min_confidence, fuse.confidence_percentile) == (None, 30)
    file = write(tmp_path, "[fuse]\nconfidence_percentile = 30")
    assert run_config(file, {least: 2.0}).fuse.min_confidence == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sise = 3", "'sise' in .* is not a setting"),
        ("[photos]\nsise = 3", "'photos.sise' in .* is not a setting"),
        ("[viewer]\nport = 3", "'viewer' in .* is not a setting"),
        ("photos = 3", "'photos' in .* must be a table"),
        ('cameras = ""', "cameras is '' .* must be a text that is not empty"),
        ("[weights]\na = 1", "weights is {'a': 1} .* must be a text"),
        ('[photos]\nsize = "big"', "photos.size is 'big' in .* must be a whole number"),
        ("[photos]\nsize = true", "photos.size is True in .* must be a whole number"),
        ("[photos]\nsize = 2", "photos.size is 2 in .* must be from 16 to 8192"),
        ("[photos]\nsize = 64.0", "photos.size is 64.0 .* must be a whole number"),
        ("[align]\nshared_focal = 1", "align.shared_focal is 1 .* must be true or false"),
        ("[align]\nfocal_px = nan", "align.focal_px is nan .* must be a finite number"),
        ("[stereo]\nneighbours = 0", "stereo.neighbours is 0 in .* must be from 1 to 64"),
        ("[fuse]\nmax_points = 1" + "0" * 400, "fuse.max_points in .* number of 1329 bits"),
        ("[fuse]\nvoxel = 1" + "0" * 400, "fuse.voxel in .* number of 1329 bits"),
        ("[fuse]\nvoxel = -1", "fuse.voxel is -1 in .* must be at least 0"),
        ("[fuse]\nconfidence_percentile = 101", "must be from 0 to 100"),
        ("[fuse]\nmin_confidence = 0.5", "fuse.min_confidence is 0.5 in .* must be at least 1"),
        ('[predict]\nprecision = "fp8"', "precision is 'fp8' .* one of auto, fp32, bf16, fp16"),
        ("weights", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_named_with_its_value(tmp_path: Path, text: str, words: str):
    with pytest.raises(UsageError, match=words) as caught:
        run_config(write(tmp_path, text), {})
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UsageError, match=r"missing\.toml cannot be read"):
        run_config(tmp_path / "missing.toml", {})
    with pytest.raises(UsageError, match="cannot be read"):
        run_config(tmp_path, {})
    binary = tmp_path / "a.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not valid TOML"):
        run_config(binary, {})


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--size", 0),
        ("--focal", -1.0),
        ("--focal", math.inf),
        ("--seed", -1),
        ("--voxel", -0.1),
        ("--min-confidence", 0.5),
    ],
)
def test_a_bad_option_names_its_flag(flag: str, value: float):
    with pytest.raises(UsageError, match=f"given with {flag}"):
        run_config(None, {flag: value})


def test_limits_name_real_fields_and_hold_for_the_defaults():
    for name, (low, high) in LIMITS.items():
        value = leaf(RunConfig(), name)
        assert value is None or low <= value <= high
    numbers = {name for name, value in _leaves(RunConfig()) if type(value) in (int, float)}
    assert numbers <= LIMITS.keys()


def test_the_help_shows_the_defaults_of_the_configuration():
    assert default("--device") == RunConfig().predict.device
    assert default("--max-points") == str(RunConfig().fuse.max_points)
    assert default("--shared-focal") == "no"


def test_every_table_is_a_dataclass_without_slots():
    # the help reads defaults off the classes
    for field in fields(RunConfig):
        value = getattr(RunConfig(), field.name)
        if is_dataclass(value):
            assert not hasattr(type(value), "__slots__")


@pytest.mark.parametrize("text", ["a = " + "[" * 20_000, "seed = " + "1" * 5_000])
def test_toml_that_python_cannot_take_in_is_not_valid(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not valid TOML"):
        run_config(write(tmp_path, text), {})
