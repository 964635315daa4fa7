"""Files of cross-view completion: they round-trip, and every fault is named."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recon3d import croco_file, weights
from recon3d.checkpoint import CROCO_KEY, read_checkpoint
from recon3d.config import CrocoConfig, ModelConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.errors import UsageError, WeightsError
from recon3d.model import TwoViewModel
from recon3d.weights_info import convert, describe

FOLDER = Path(os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
NANO = CrocoConfig(
    image_size=64, enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=16, dec_depth=1, dec_heads=2
)


def checked(path: Path) -> tuple[CrocoConfig, dict[str, torch.Tensor]]:
    return croco_file.checked_tensors(read_checkpoint(path))


def written(path: Path, **changed: object) -> Path:
    """Write a file whose config says something else than its tensors, or nonsense."""
    metadata = {CROCO_KEY: json.dumps(asdict(NANO) | changed)}
    save_file(CrocoModel(NANO).state_dict(), path, metadata=metadata)
    return path


@pytest.mark.parametrize("position", list(PositionType))
def test_round_trip(tmp_path: Path, position: PositionType) -> None:
    config = CrocoConfig(**asdict(NANO) | {"position": position, "name": "mine"})
    model = CrocoModel(config)
    croco_file.save(model, tmp_path / "a.safetensors")
    found, tensors = checked(tmp_path / "a.safetensors")
    assert found == config
    assert all(torch.equal(tensors[n], t) for n, t in model.state_dict().items())
    croco_file.save(model, tmp_path / "half.safetensors", half=True)
    tensors = checked(tmp_path / "half.safetensors")[1]
    assert tensors["enc_norm.weight"].dtype == torch.float16


def test_other_files_are_no_croco_files(tmp_path: Path) -> None:
    weights.save(TwoViewModel(ModelConfig(enc_depth=1, dec_depth=1)), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="no weights of cross-view completion"):
        checked(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"enc_depth": 2}, r"lacks enc_blocks\.1"),
        ({"dec_dim": 24}, r"is \(.*\), not \(.*\)"),
        ({"enc_dim": 10**9}, "enc_dim is 1000000000"),
        ({"enc_heads": 5}, "no multiple of 4 x enc_heads 5"),
        ({"rope_base": "100"}, "rope_base"),
        ({"position": "learned"}, "position is 'learned'"),
        ({"position": "cosine"}, "lacks dec_pos_embed"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"mask_ratio": True}, "mask_ratio is True"),
        ({"imagenet_input": "yes"}, "imagenet_input"),
        ({"surprise": 1}, "has not the keys"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, changed: dict[str, object], fault: str
) -> None:
    with pytest.raises(WeightsError, match=fault):
        checked(written(tmp_path / "a.safetensors", **changed))


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    tensors = CrocoModel(NANO).state_dict()
    metadata = {CROCO_KEY: json.dumps(asdict(NANO))}
    path = tmp_path / "a.safetensors"
    save_file(tensors | {"extra": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(WeightsError, match="unexpected tensor extra"):
        checked(path)
    save_file(tensors | {"mask_token": torch.full((1, 1, 16), torch.nan)}, path, metadata=metadata)
    with pytest.raises(WeightsError, match="mask_token holds values that are not finite"):
        checked(path)
    save_file(tensors, path, metadata={CROCO_KEY: "{"})
    with pytest.raises(WeightsError, match="not valid JSON"):
        checked(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="damaged"):
        checked(path)


@pytest.mark.parametrize("position", list(PositionType))
def test_description_and_conversion(tmp_path: Path, position: PositionType) -> None:
    config = CrocoConfig(**asdict(NANO) | {"position": position, "name": "mine"})
    model = CrocoModel(config)
    croco_file.save(model, tmp_path / "a.safetensors", metadata={"licence": "CC0"})
    facts = json.loads(json.dumps(describe(str(tmp_path / "a.safetensors"))))
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert (facts["name"], facts["licence"]) == ("mine", "CC0")
    assert "CroCo" in facts["gives"]
    assert facts["config"] == asdict(config)
    target = tmp_path / "b.safetensors"
    assert convert(str(tmp_path / "a.safetensors"), target, half=True) == (target,)
    assert describe(str(target))["licence"] == "CC0"
    sizes, tensors = checked(target)
    assert sizes == config
    assert all(torch.equal(tensors[n], t.half()) for n, t in model.state_dict().items())
    with pytest.raises(UsageError, match="exists"):
        convert(str(tmp_path / "a.safetensors"), target)


@pytest.mark.parametrize(("name", "position"), [("v1", "cosine"), ("v2", "rope")])
def test_published_checkpoints_are_described_and_converted(
    tmp_path: Path, name: str, position: str
) -> None:
    source = FOLDER / f"croco_{name}_tiny.pth"
    if not source.is_file():
        pytest.skip(f"no fixtures in {FOLDER}")
    facts = describe(str(source))
    assert (facts["config"]["position"], facts["name"]) == (position, source.stem)
    target = tmp_path / "c.safetensors"
    convert(str(source), target)
    sizes, tensors = checked(target)
    assert sizes.imagenet_input
    assert all(torch.equal(tensors[n], t) for n, t in read_checkpoint(source).tensors.items())
