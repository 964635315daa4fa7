"""Weights on disk: round trips, strictness, and every way a file can be wrong."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recon3d.checkpoint import fill_aliases
from recon3d.config import PRESETS, HeadType, ModelConfig
from recon3d.errors import ResourceError, WeightsError
from recon3d.model import TwoViewModel
from recon3d.model_config import config_from_dict, config_to_dict
from recon3d.weights import (
    EMBEDDED,
    load,
    load_tensors,
    locate,
    save,
)
from recon3d.weights_info import describe

TINY = ModelConfig(
    name="test",
    enc_dim=16,
    enc_depth=1,
    enc_heads=2,
    dec_dim=16,
    dec_depth=2,
    dec_heads=2,
    dpt_layer_dims=(4, 6, 8, 10),
    dpt_feature_dim=8,
    dpt_last_dim=4,
)
TINY_DPT = replace(TINY, head=HeadType.DPT)
TINY_DESCRIPTORS = replace(TINY, head=HeadType.CATMLP_DPT, descriptor_dim=3)
ALIASES = [
    (f"downstream_head{head}.dpt.scratch.layer_rn.{k}.weight",
     f"downstream_head{head}.dpt.scratch.layer{k + 1}_rn.weight")
    for head in (1, 2)
    for k in range(4)
]  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(TwoViewModel(TINY), path)
    return path


def edit_config(path: Path, change: Callable[[dict], object]) -> None:
    file = path.with_suffix(".json")
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_tensors(path: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("config", [TINY, TINY_DPT, TINY_DESCRIPTORS])
def test_round_trip_is_exact(tmp_path: Path, config: ModelConfig) -> None:
    model = TwoViewModel(config)
    save(model, tmp_path / "net.safetensors", metadata={"trained": "never"})
    loaded = load(str(tmp_path / "net.safetensors"))
    assert loaded.config == config
    assert not loaded.training
    assert not loaded.mask_token.requires_grad
    assert loaded.enc_norm.weight.requires_grad
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata() == {"format": "recon3d", "trained": "never"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_values_beyond_half_precision_are_not_written(tmp_path: Path) -> None:
    model = TwoViewModel(TINY)
    torch.nn.init.constant_(model.enc_norm.weight, 70_000.0)
    with pytest.raises(WeightsError, match=r"enc_norm\.weight has values beyond 65504"):
        save(model, tmp_path / "half.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []
    save(model, tmp_path / "full.safetensors")


def test_half_is_rounded_on_disk_and_fp32_in_memory(tmp_path: Path) -> None:
    model = TwoViewModel(TINY)
    save(model, tmp_path / "full.safetensors")
    save(model, tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.7 * sizes[1]
    for name, tensor in load(str(tmp_path / "half.safetensors")).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, model.state_dict()[name].half().float()), name


def test_a_loaded_model_does_not_depend_on_its_file(saved: Path) -> None:
    model = load(str(saved))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saved.write_bytes(bytes(saved.stat().st_size))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_save_leaves_the_old_file_when_it_cannot_write(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = saved.read_bytes()

    def no_space(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(ResourceError, match="No space left"):
        save(TwoViewModel(TINY), saved)
    assert saved.read_bytes() == old
    assert sorted(p.name for p in saved.parent.iterdir()) == ["net.json", "net.safetensors"]


@pytest.mark.parametrize("config", [*PRESETS.values(), TINY_DPT])
def test_configs_survive_json(config: ModelConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config))), "x") == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enc_dim", 4097),
        ("enc_dim", 10**30),
        ("enc_dim", 0),
        ("enc_dim", -16),
        ("enc_dim", 16.0),
        ("enc_dim", "16"),
        ("enc_dim", True),
        ("enc_dim", None),
        ("enc_dim", 12),  # head of 6 channels
        ("dec_dim", 20),
        ("enc_heads", 0),
        ("dec_heads", 3),
        ("enc_depth", 65),
        ("dec_depth", 0),
        ("patch_size", 2),
        ("patch_size", 128),
        ("image_size", 100_000),
        ("mlp_ratio", 0),
        ("rope_base", 0),
        ("rope_base", float("nan")),
        ("rope_base", float("inf")),
        ("rope_base", "100"),
        ("head", "pixel"),
        ("head", ["linear"]),
        ("name", 3),
        ("name", "x" * 200),
        ("dpt_layer_dims", [4, 6, 8]),
        ("dpt_layer_dims", [4, 6, 8, 0]),
        ("dpt_layer_dims", [4, 6, 8, 9999]),
        ("dpt_layer_dims", 96),
        ("dpt_feature_dim", 1),
        ("dpt_last_dim", 10**9),
        ("descriptor_dim", 0),
        ("descriptor_dim", 10**6),
    ],
)
def test_bad_config_value_is_named(saved: Path, key: str, value: object) -> None:
    edit_config(saved, lambda values: values.update({key: value}))
    with pytest.raises(WeightsError, match=key) as fault:
        load(str(saved))
    assert fault.value.exit_code == 7
    assert "\n" not in str(fault.value)


def test_configs_of_earlier_versions_are_read(saved: Path) -> None:
    edit_config(saved, lambda values: values.pop("descriptor_dim"))
    assert load(str(saved)).config == TINY


@pytest.mark.parametrize("key", sorted(set(config_to_dict(TINY)) - {"descriptor_dim"}))
def test_missing_config_key_is_named(saved: Path, key: str) -> None:
    edit_config(saved, lambda values: values.pop(key))
    with pytest.raises(WeightsError, match=f"lacks '{key}'"):
        load(str(saved))


def test_unknown_config_key_is_named(saved: Path) -> None:
    edit_config(saved, lambda values: values.update(layers=3))
    with pytest.raises(WeightsError, match="unknown key 'layers'"):
        load(str(saved))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 60_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b" " * 70_000, "larger than"),
    ],
)
def test_bad_config_file(saved: Path, text: bytes, says: str) -> None:
    saved.with_suffix(".json").write_bytes(text)
    with pytest.raises(WeightsError, match=says):
        load(str(saved))


def test_missing_tensor_is_named(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors.pop("enc_norm.bias"))
    with pytest.raises(WeightsError, match=r"lacks 1 tensors, the first enc_norm\.bias"):
        load(str(saved))


def test_unexpected_tensor_is_named(saved: Path) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({"extra.weight": torch.zeros(2)}))
    with pytest.raises(WeightsError, match=r"unexpected.*extra\.weight"):
        load(str(saved))


@pytest.mark.parametrize("shape", [(15,), (16, 1), (1, 16), ()])
def test_misshapen_tensor_is_named(saved: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({"enc_norm.bias": torch.zeros(shape)}))
    with pytest.raises(WeightsError, match=r"enc_norm\.bias is .*not \(16,\)"):
        load(str(saved))


@pytest.mark.parametrize(
    "tensor",
    [torch.full((16,), torch.nan), torch.full((16,), torch.inf), torch.zeros(16, dtype=torch.long)],
)
def test_tensor_without_finite_numbers_is_named(saved: Path, tensor: torch.Tensor) -> None:
    edit_tensors(saved, lambda tensors: tensors.update({"enc_norm.bias": tensor}))
    with pytest.raises(WeightsError, match=r"enc_norm\.bias holds values"):
        load(str(saved))


def test_a_small_file_with_a_huge_config_takes_no_memory(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(saved, lambda v: v.update(enc_dim=4096, enc_depth=64, mlp_ratio=8))  # 80 GB

    devices = set()
    initialise = TwoViewModel.__init__

    def spy(self: TwoViewModel, config: ModelConfig) -> None:
        initialise(self, config)
        devices.update(p.device.type for p in self.parameters())

    monkeypatch.setattr(TwoViewModel, "__init__", spy)
    with pytest.raises(WeightsError, match="lacks"):
        load(str(saved))
    assert devices == {"meta"}


def test_damaged_files(saved: Path) -> None:
    whole = saved.read_bytes()
    for content in (b"", b"PK\x03\x04 a pickle", whole[:-100], whole + bytes(9), whole[:50]):
        saved.write_bytes(content)
        with pytest.raises(WeightsError, match="damaged"):
            load(str(saved))


def test_wrong_paths(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load(str(tmp_path / "net.pth"))
    with pytest.raises(WeightsError, match=r"net\.bin does not exist"):
        load(str(tmp_path / "net.bin"))
    (tmp_path / "net.bin").touch()
    with pytest.raises(WeightsError, match=r"no \.safetensors or \.pth file"):
        load(str(tmp_path / "net.bin"))
    with pytest.raises(WeightsError, match="does not exist"):
        load(str(tmp_path / "other.safetensors"))
    saved.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"net\.json does not exist"):
        load(str(saved))


def test_embedded_is_the_file_of_the_package() -> None:
    assert locate(EMBEDDED).parts[-3:] == ("recon3d", "data", "embedded.safetensors")


def test_missing_embedded_weights_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recon3d.weights.files", lambda _package: tmp_path)
    with pytest.raises(
        WeightsError, match=r"missing.*Install recon3d from its repository again"
    ) as fault:
        load(EMBEDDED)
    assert fault.value.exit_code == 7
    (tmp_path / "data").mkdir()
    save(TwoViewModel(TINY), tmp_path / "data" / "embedded.safetensors", half=True)
    assert load(EMBEDDED).config == TINY
    assert describe(EMBEDDED)["licence"] == "Apache-2.0"


def test_either_name_of_a_shared_dpt_tensor_will_do(tmp_path: Path) -> None:
    model = TwoViewModel(TINY_DPT)
    canonical = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    both = canonical | {alias: canonical[name] for alias, name in ALIASES}
    alias_only = {n: t for n, t in both.items() if n not in {name for _, name in ALIASES}}
    assert len(both) == len(canonical) + 8
    assert len(alias_only) == len(canonical)
    for tensors in (canonical, both, alias_only):
        assert fill_aliases(tensors).keys() == canonical.keys()
        other = TwoViewModel(TINY_DPT)
        load_tensors(other, tensors, "x")
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, canonical[name]), name


def test_aliases_that_disagree_are_a_fault() -> None:
    tensors = dict(TwoViewModel(TINY_DPT).state_dict())
    alias, name = ALIASES[5]
    tensors[alias] = tensors[name] + 1
    with pytest.raises(WeightsError, match="differ"):
        load_tensors(TwoViewModel(TINY_DPT), tensors, "x")


@pytest.mark.parametrize("index", ["x", "4", "-1", "0.0", ""])
def test_names_that_only_look_like_aliases_are_unexpected(index: str) -> None:
    tensors = dict(TwoViewModel(TINY_DPT).state_dict())
    tensors[f"downstream_head1.dpt.scratch.layer_rn.{index}.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="unexpected"):
        load_tensors(TwoViewModel(TINY_DPT), tensors, "x")


def test_describe_is_json_and_true(saved: Path) -> None:
    found = json.loads(json.dumps(describe(str(saved))))
    model = TwoViewModel(TINY)
    assert found["name"] == "test"
    assert found["path"] == str(saved)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["tensors"] == len(model.state_dict())
    assert found["bytes"] == saved.stat().st_size
    assert found["sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert found["licence"].startswith("unknown")
    assert config_from_dict(found["config"], "x") == TINY


def test_loading_does_not_load_the_compiler_of_torch():
    """It takes a second, and a network made on the meta device would load it."""
    code = (
        "import sys; from recon3d.weights import load; load('embedded');"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
