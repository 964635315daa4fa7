"""Pretraining: it learns, uses the other view, resumes exactly, and starts a training."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recon3d import batches, config, croco, croco_file, pretrain, warm_start
from recon3d.checkpoint import read_checkpoint
from recon3d.config import ModelConfig
from recon3d.croco import CrocoModel
from recon3d.errors import UsageError
from recon3d.model import TwoViewModel
from recon3d.train_config import PretrainConfig

TINY = ModelConfig(
    name="nano", enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=32, dec_depth=2, dec_heads=2
)
QUICK = PretrainConfig(
    preset="nano",
    minutes=math.inf,  # what of it is spent must not show in the share of the budget
    pairs=12,
    n_procedural_textures=9,
    probe_batches=1,
    probe_size=64,
    device="cpu",
    precision=config.Precision.FP32,
    compile=False,
    smooth_edges=False,
    scenes_per_step=2,
    views_per_scene=2,
    stages=((1.0, 64),),
    warmup_steps=1,
    log_every_steps=1,
)


@pytest.fixture(autouse=True)
def nano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.PRESETS, "nano", TINY)


def model_of() -> CrocoModel:
    torch.manual_seed(0)
    return CrocoModel(pretrain.croco_config(TINY, QUICK))


def batch_of(height: int = 48, width: int = 64) -> batches.Batch:
    return batches.Source(QUICK, torch.device("cpu"), seed=1).batch(height, width)


def loss_on(model: CrocoModel, batch: batches.Batch, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    return pretrain.completion_loss_of(
        model, batch, *batches.ordered_pairs(batch), dtype, generator
    )


def test_network_of_a_preset_has_its_sizes() -> None:
    found = pretrain.croco_config(TINY, QUICK)
    assert (found.enc_dim, found.dec_depth, found.dec_heads) == (32, 2, 2)
    assert (found.name, found.image_size, found.mask_ratio) == ("nano", 64, 0.9)
    assert not found.imagenet_input


def test_loss_is_that_of_one_pair_at_a_time() -> None:
    model, batch = model_of(), batch_of()
    i, j = batches.ordered_pairs(batch)
    images = batch.images.flatten(0, 1)
    hidden = croco.random_hidden(len(i), 12, 0.9, torch.Generator().manual_seed(0))
    slow = [
        croco.completion_loss(
            model(images[a : a + 1], images[b : b + 1], hidden[k : k + 1]),
            images[a : a + 1],
            hidden[k : k + 1],
            16,
        )
        for k, (a, b) in enumerate(zip(i.tolist(), j.tolist(), strict=True))
    ]
    torch.testing.assert_close(loss_on(model, batch), torch.stack(slow).mean())


def test_loss_falls_below_that_of_a_blank_guess() -> None:
    model, batch = model_of(), batch_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = loss_on(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
    assert losses[-1] < 0.9
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


def test_loss_in_bf16_is_near_that_in_fp32() -> None:
    model, batch = model_of(), batch_of()
    full, half = (loss_on(model, batch, dtype) for dtype in (torch.float32, torch.bfloat16))
    half.backward()
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=0.02)


def test_probe_tells_who_uses_the_other_view() -> None:
    batch = batch_of()

    class Blind(CrocoModel):
        def decode(self, visible_i, tokens_j, hidden, grid_i, grid_j):
            return super().decode(visible_i, torch.zeros_like(tokens_j), hidden, grid_i, grid_j)

    class Cheat(CrocoModel):
        """Completes well if and only if the other view is of the same scene."""

        def decode(self, visible_i, tokens_j, hidden, grid_i, grid_j):
            same_scene = torch.equal(tokens_j, self.expected)
            features = super().decode(visible_i, tokens_j, hidden, grid_i, grid_j)
            return features if same_scene else features + 9

    sizes = pretrain.croco_config(TINY, QUICK)
    blind = pretrain.probe(Blind(sizes), [batch], torch.float32)
    assert blind["probe_ratio"] == pytest.approx(1)
    cheat = Cheat(sizes)
    _, j = batches.ordered_pairs(batch)
    with torch.no_grad():
        cheat.expected = cheat.encode(batch.images.flatten(0, 1))[j]
    assert pretrain.probe(cheat, [batch], torch.float32)["probe_ratio"] < 0.7


class PowerCutError(Exception):
    """Ends a run at any moment."""


def test_run_logs_saves_and_resumes_as_if_never_interrupted(tmp_path: Path) -> None:
    often = replace(QUICK, save_every_s=0.0)
    pretrain.pretrain(tmp_path / "whole", often)
    lines = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    first, *steps, last = (json.loads(line) for line in lines)
    assert first["precision"] == "float32"
    assert [record["pairs"] for record in steps] == [4, 8, 12]
    assert all(0 < record["loss"] < 3 and 0 < record["mfu"] < 1.5 for record in steps)
    assert last["probe_ratio"] == pytest.approx(1, abs=0.2)

    def cut(stage: str, done: int, total: int) -> None:
        if done >= 500:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        pretrain.pretrain(tmp_path / "cut", often, track=cut)
    pretrain.pretrain(tmp_path / "cut", replace(often, resume=True))
    whole, cut_one = (load_file(tmp_path / n / "state.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut_one.keys()
    assert all(torch.equal(whole[name], cut_one[name]) for name in whole)

    path = tmp_path / "whole" / "croco.safetensors"
    sizes, tensors = croco_file.checked_tensors(read_checkpoint(path))
    assert sizes == pretrain.croco_config(TINY, QUICK)
    torch.testing.assert_close(
        tensors["mask_token"].float(), whole["average.mask_token"], atol=1e-3, rtol=1e-3
    )
    network = TwoViewModel(TINY)
    warm_start.start_from(network, str(path))
    torch.testing.assert_close(
        network.dec_blocks2[0].mlp.fc1.weight, tensors["dec_blocks.0.mlp.fc1.weight"].float()
    )


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'huge' is unknown"):
        pretrain.pretrain(tmp_path, replace(QUICK, preset="huge"))
    with pytest.raises(UsageError, match="does not exist"):
        pretrain.pretrain(tmp_path, replace(QUICK, resume=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        pretrain.pretrain(tmp_path / "file" / "out", QUICK)
