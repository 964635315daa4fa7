"""A training starts from every kind of weights, and from none that do not fit."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recon3d import croco_file, weights
from recon3d.checkpoint import read_checkpoint
from recon3d.config import PRESETS, CrocoConfig, HeadType, ModelConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.errors import WeightsError
from recon3d.grow import can_grow, grown
from recon3d.model import TwoViewModel
from recon3d.warm_start import sizes_of, start_from

FOLDER = Path(os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
needs_fixtures = pytest.mark.skipif(
    not (FOLDER / "croco_v2_tiny.pth").is_file(), reason=f"no fixtures in {FOLDER}"
)
SIZES = dict(enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=16, dec_depth=2, dec_heads=2)
NANO = ModelConfig(name="nano", **SIZES)


def croco_at(path: Path, **changed: object) -> str:
    torch.manual_seed(5)
    croco_file.save(CrocoModel(CrocoConfig(**SIZES | changed)), path)
    return str(path)


def test_start_from_completion_keeps_the_heads(tmp_path: Path) -> None:
    path = croco_at(tmp_path / "croco.safetensors")
    model = TwoViewModel(NANO)
    heads = {n: t.clone() for n, t in model.state_dict().items() if "head" in n}
    start_from(model, path)
    tensors = read_checkpoint(Path(path)).tensors
    for name, tensor in model.state_dict().items():
        source = heads if name in heads else tensors
        assert torch.equal(tensor, source[name.replace("dec_blocks2", "dec_blocks")]), name
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(model.state_dict()) - {"mask_token"}


def test_start_from_a_two_view_network_takes_all(tmp_path: Path) -> None:
    begun = TwoViewModel(NANO)
    weights.save(begun, tmp_path / "a.safetensors")
    model = TwoViewModel(replace(NANO, name="other"))
    start_from(model, str(tmp_path / "a.safetensors"))
    assert all(torch.equal(t, begun.state_dict()[n]) for n, t in model.state_dict().items())


LARGER = replace(
    NANO, enc_dim=96, enc_heads=6, enc_depth=4, dec_dim=32, dec_heads=4, dec_depth=3, name="larger"
)


def test_a_larger_network_computes_at_first_what_the_weights_do(tmp_path: Path) -> None:
    torch.manual_seed(1)
    small, large = TwoViewModel(replace(NANO, enc_depth=2)).eval(), TwoViewModel(LARGER).eval()
    for parameter in small.parameters():  # norms and biases as well
        parameter.data += 0.1 * torch.randn_like(parameter)
    weights.save(small, tmp_path / "a.safetensors", half=False)
    start_from(large, str(tmp_path / "a.safetensors"))
    images, grid = torch.rand(2, 3, 48, 64) * 2 - 1, (3, 4)
    with torch.no_grad():
        answers = []
        for model in (small, large):
            tokens = model.encode(images)
            answers.append(model.decode(tokens[:1], tokens[1:], grid, grid))
    for before, after in zip(*(answer[:4] for answer in answers), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    first, second, third = large.enc_blocks[0].mlp.fc1.weight.detach().chunk(3, dim=1)
    assert float((first - second).abs().median()) > 1e-3  # copies will learn different things
    expected = small.enc_blocks[0].mlp.fc1.weight.detach().repeat(3, 1)
    torch.testing.assert_close(first + second + third, expected)
    assert not large.enc_blocks[1].attn.proj.weight.any()
    assert not large.dec_blocks2[2].cross_attn.proj.bias.any()


@pytest.mark.parametrize(
    "other",
    [
        {"enc_dim": 48},  # one and a half times as wide
        {"enc_heads": 2},  # heads of other sizes turn otherwise with places
        {"enc_depth": 1},
        {"dec_depth": 1},
        {"patch_size": 8},
        {"mlp_ratio": 2},
        {"head": HeadType.DPT},
    ],
)
def test_a_network_that_is_not_larger_by_whole_numbers_does_not_grow(other: dict) -> None:
    small = replace(NANO, enc_depth=2)
    assert can_grow(small, LARGER)
    assert not can_grow(small, replace(LARGER, **other))
    with pytest.raises(ValueError, match="does not grow"):
        grown({}, small, replace(LARGER, **other), torch.Generator())


def test_the_small_preset_grows_from_the_packaged_weights() -> None:
    assert can_grow(sizes_of("embedded"), PRESETS["small"])
    assert sum(p.numel() for p in TwoViewModel(PRESETS["small"]).parameters()) < 27.5e6


def test_sizes_are_those_that_take_the_weights(tmp_path: Path) -> None:
    path = croco_at(tmp_path / "croco.safetensors")
    assert sizes_of(path) == replace(NANO, name="custom")
    start_from(TwoViewModel(sizes_of(path)), path)
    weights.save(TwoViewModel(NANO), tmp_path / "a.safetensors")
    assert sizes_of(str(tmp_path / "a.safetensors")) == NANO
    with pytest.raises(WeightsError, match="does not exist"):
        sizes_of(str(tmp_path / "none.safetensors"))


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    deeper, shallower = (
        croco_at(tmp_path / f"{depth}.safetensors", dec_depth=depth) for depth in (3, 1)
    )
    wider = croco_at(tmp_path / "wide.safetensors", enc_dim=64)
    for path, fault in (
        (deeper, r"unexpected tensors, the first dec_blocks\.2"),
        (shallower, r"lacks 48 tensors, the first dec_blocks\.1"),
        (wider, r"not \(16, 32\)"),
        (str(tmp_path / "none.safetensors"), "does not exist"),
    ):
        with pytest.raises(WeightsError, match=f"no start for the preset 'nano'.*{fault}"):
            start_from(TwoViewModel(NANO), path)


def test_positions_of_cosine_weights_are_learnt_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = croco_at(tmp_path / "v1.safetensors", position=PositionType.COSINE)
    model = TwoViewModel(NANO)
    start_from(model, path)
    blocks = read_checkpoint(Path(path)).tensors
    for name, tensor in model.dec_blocks.state_dict().items():
        assert torch.equal(tensor, blocks[f"dec_blocks.{name}"]), name
        assert torch.equal(tensor, model.dec_blocks2.state_dict()[name]), name
    (said,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert "learns positions anew" in said.getMessage()
    caplog.clear()
    start_from(model, croco_at(tmp_path / "v2.safetensors"))
    assert not caplog.records


@needs_fixtures
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_start_from_published_completion(version: str) -> None:
    sizes = dict(enc_dim=64, enc_depth=2, enc_heads=2, dec_dim=48, dec_depth=2, dec_heads=2)
    model = TwoViewModel(ModelConfig(**sizes))
    path = FOLDER / f"croco_{version}_tiny.pth"
    start_from(model, str(path))
    published = read_checkpoint(path).tensors
    for name, tensor in model.enc_blocks.state_dict().items():
        assert torch.equal(tensor, published[f"enc_blocks.{name}"]), name
