"""Muon against the same steps of another implementation, and against the singular vectors."""

import pytest
import torch
from torch import nn

from recon3d import muon
from recon3d.muon import Muon, orthogonalised

SHAPES = ((6, 4), (4, 6), (6, 4), (5, 5), (6, 4))


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_steps_are_those_matrix_after_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "_type_on", lambda device: torch.bfloat16)  # as theirs everywhere
    ours, theirs = matrices(), matrices()
    start = [matrix.detach().clone() for matrix in ours]
    first = Muon(ours, lr=0.02, weight_decay=0.1)
    second = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for parameters, optimizer in ((ours, first), (theirs, second)):
            give_gradients(parameters, step)
            if step == 2:
                parameters[2].grad = None  # as of a part that took no part
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved = float((mine - before).detach().norm())
        assert float((mine - other).detach().norm()) < 0.01 * moved
    mine, other = (o.state[p[0]]["momentum_buffer"] for o, p in ((first, ours), (second, theirs)))
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_singular_vectors_stay_and_singular_values_become_alike(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "_type_on", lambda device: dtype)
    generator = torch.Generator().manual_seed(1)
    left, _ = torch.linalg.qr(torch.randn(3, shape[0], shape[0], generator=generator))
    right, _ = torch.linalg.qr(torch.randn(3, shape[1], shape[1], generator=generator))
    least = min(shape)
    left, right = left[..., :least], right[..., :least]
    values = torch.linspace(0.3, 3.0, least)
    found = left.mT @ orthogonalised(left * values @ right.mT) @ right
    kept = torch.diagonal(found, dim1=-2, dim2=-1)
    assert float(kept.min()) > 0.6
    assert float(kept.max()) < 1.3
    assert float((found - torch.diag_embed(kept)).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("device", "has", "dtype"),
    [
        ("cpu", "", torch.float32),
        ("cpu", "_is_avx512_bf16_supported", torch.bfloat16),
        ("cpu", "_is_amx_tile_supported", torch.bfloat16),
        ("cuda", "", torch.bfloat16),
    ],
)
def test_bf16_only_where_it_is_fast(
    device: str, has: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == has, raising=False)
    assert muon._type_on(torch.device(device)) is dtype
