"""Files of cross-view completion: they round-trip, and every fault is named."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recon3d import croco_file
from recon3d.config import CrocoConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.errors import WeightsError

NANO = CrocoConfig(
    image_size=64, enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=16, dec_depth=1, dec_heads=2
)


def written(path: Path, **changed: object) -> Path:
    """Write a file whose config says something else than its tensors, or nonsense."""
    metadata = {croco_file.KEY: json.dumps(asdict(NANO) | changed)}
    save_file(CrocoModel(NANO).state_dict(), path, metadata=metadata)
    return path


@pytest.mark.parametrize("position", list(PositionType))
def test_round_trip(tmp_path: Path, position: PositionType) -> None:
    config = CrocoConfig(**asdict(NANO) | {"position": position, "name": "mine"})
    model = CrocoModel(config)
    croco_file.save(model, tmp_path / "a.safetensors")
    assert croco_file.is_croco_file(tmp_path / "a.safetensors")
    found, tensors = croco_file.read(tmp_path / "a.safetensors")
    assert found == config
    assert all(torch.equal(tensors[n], t) for n, t in model.state_dict().items())
    croco_file.save(model, tmp_path / "half.safetensors", half=True)
    tensors = croco_file.read(tmp_path / "half.safetensors")[1]
    assert tensors["enc_norm.weight"].dtype == torch.float16


def test_other_files_are_no_croco_files(tmp_path: Path) -> None:
    assert not croco_file.is_croco_file(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert not croco_file.is_croco_file(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert not croco_file.is_croco_file(tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="no weights of cross-view completion"):
        croco_file.read(tmp_path / "plain.safetensors")


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
        croco_file.read(written(tmp_path / "a.safetensors", **changed))


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    tensors = CrocoModel(NANO).state_dict()
    metadata = {croco_file.KEY: json.dumps(asdict(NANO))}
    path = tmp_path / "a.safetensors"
    save_file(tensors | {"extra": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(WeightsError, match="unexpected tensor extra"):
        croco_file.read(path)
    save_file(tensors | {"mask_token": torch.full((1, 1, 16), torch.nan)}, path, metadata=metadata)
    with pytest.raises(WeightsError, match="mask_token holds values that are not finite"):
        croco_file.read(path)
    save_file(tensors, path, metadata={croco_file.KEY: "{"})
    with pytest.raises(WeightsError, match="not valid JSON"):
        croco_file.read(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="damaged"):
        croco_file.read(path)
