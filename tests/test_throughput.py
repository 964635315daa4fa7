"""Counted operations are those torch counts, and utilisation is of a plausible peak."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recon3d import throughput
from recon3d.config import CrocoConfig, ModelConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.lattice import EVERY_PIXEL, Lattice
from recon3d.model import TwoViewModel

SIZES = dict(enc_dim=32, enc_depth=3, enc_heads=2, dec_dim=48, dec_depth=2, dec_heads=2)


def counted(run) -> int:
    counter = FlopCounterMode(display=False)
    # the counter does not know the fused attention of processors
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        run()
    return counter.get_total_flops()


def test_two_view_network_needs_what_torch_counts() -> None:
    config = ModelConfig(**SIZES)
    model = TwoViewModel(config)
    images = torch.rand(5, 3, 64, 96)
    i, j = torch.tensor([0, 0, 3, 4]), torch.tensor([1, 2, 1, 0])

    def run(lattice: Lattice) -> None:
        tokens = model.encode(images)
        known = model.decoder_embed(tokens)
        grids = (4, 6), (4, 6)
        decoded = model.decode_tokens(tokens[i], tokens[j], *grids, embedded=(known[i], known[j]))
        model.heads(decoded, *grids, lattice=lattice)

    assert throughput.two_view_flops(config, 5, 4, 24) == counted(lambda: run(EVERY_PIXEL))
    every_fourth = throughput.two_view_flops(config, 5, 4, 24, 4)
    assert every_fourth == counted(lambda: run(Lattice(4, 1, 2)))


def test_completion_network_needs_what_torch_counts() -> None:
    config = CrocoConfig(**SIZES, position=PositionType.ROPE)
    model = CrocoModel(config)
    images, hidden = torch.rand(4, 3, 64, 96), torch.ones(4, 24, dtype=torch.bool)
    hidden[:, :3] = False
    found = throughput.completion_flops(config, 4, 4, 24, 3)
    assert found == counted(lambda: model(images, images, hidden))


def test_attention_by_hand() -> None:
    # 2 channels, 3 queries, 5 keys: q and output 2x2x2x3 each, k and v 2x2x2x5 each, both
    # products 2x3x5x2
    assert throughput.attention_flops(2, 3, 5) == 2 * 24 + 2 * 40 + 2 * 60


def test_peak_is_measured_where_no_data_sheet_tells() -> None:
    peak = throughput.peak_of(torch.device("cpu"), torch.float32)
    assert peak.source.startswith("measured")
    assert 1e8 < peak.flops_per_s < 1e15


@pytest.mark.parametrize(
    ("name", "tflops", "source"),
    [
        ("NVIDIA H200", 989.0, "H200"),
        ("NVIDIA H100 PCIe", 756.0, "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", 989.0, "H100"),
        ("NVIDIA L40S", 362.0, "L40S"),
        ("NVIDIA L4", 121.0, "L4"),
    ],
)
def test_peak_of_known_devices(
    monkeypatch: pytest.MonkeyPatch, name: str, tflops: float, source: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = throughput.peak_of(torch.device("cuda"), torch.bfloat16)
    assert peak == (tflops * 1e12, f"data sheet of {source}")


def test_fp32_and_unknown_devices_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "measured_flops", lambda device, dtype, side: 7.0)
    for name, dtype in (("NVIDIA H200", torch.float32), ("Other", torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert throughput.peak_of(torch.device("cuda"), dtype).flops_per_s == 7.0
