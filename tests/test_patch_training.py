"""Training of the descriptor: true pairs, the loss by hand, and that a network learns."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recon3d.batches import Source
from recon3d.cli import main
from recon3d.patch_net import PatchNet, read_patch_net
from recon3d.patch_pairs import PatchPairs, pairs_of_photos, pairs_of_scenes
from recon3d.patch_training import Places, hardest_loss, others, right_share, train_descriptor
from recon3d.synth.families import KINDS
from recon3d.train_config import DescriptorConfig, LoopConfig

PHOTOS = sorted(Path("sample_data/room/images").glob("*.jpg"))


def likeness(pairs: PatchPairs, shift: int = 0) -> float:
    """Return the median correlation of partners, or of each with the partner of another."""
    flat = [p.flatten(1).double() for p in (pairs.first, pairs.second.roll(shift, 0))]
    normal = [(p - p.mean(1, keepdim=True)) / (p.std(1, keepdim=True) + 1e-6) for p in flat]
    return float((normal[0] * normal[1]).mean(1).median())


@pytest.fixture(scope="module")
def places() -> list[PatchPairs]:
    loop = replace(
        LoopConfig(),
        scenes_per_step=1,
        views_per_scene=2,
        n_procedural_textures=16,
        compile=False,
    )
    source = Source(loop, torch.device("cpu"), seed=3)
    batch = source.batch(192, 256, 0.3, kinds=torch.tensor([KINDS["room"]]))
    chance = np.random.default_rng(0)
    return [*pairs_of_scenes(batch, chance), pairs_of_photos(PHOTOS, chance)]


def test_partners_look_alike(places: list[PatchPairs]) -> None:
    assert len(places) == 2
    for place in places:
        assert len(place) > 50
        assert place.first.shape == place.second.shape == (len(place), 32, 32)
        assert likeness(place) > 0.75
        assert likeness(place, shift=1) < 0.5


def test_points_say_which_patches_are_of_one_place(places: list[PatchPairs]) -> None:
    """Patches of nearby points are more alike than others."""
    place = places[-1]
    near = torch.cdist(place.points, place.points) < 0.05
    near.fill_diagonal_(False)
    assert not others(torch.zeros(len(place), dtype=torch.int64), place.points)[near].any()
    assert others(torch.arange(len(place)), place.points)[near].all()  # of other places


def test_the_loss_by_hand() -> None:
    angles = torch.tensor([0.0, 60.0, 120.0]).deg2rad()
    first = torch.stack((angles.cos(), angles.sin()), dim=1)
    second = torch.stack(((angles + 0.2).cos(), (angles + 0.2).sin()), dim=1)
    other = ~torch.eye(3, dtype=torch.bool)
    own = 2 * math.sin(0.1)
    # the nearest wrong one is 60 degrees less 0.2 rad away, whether row or column
    nearest = 2 * math.sin((math.pi / 3 - 0.2) / 2)
    expected = 1 + own - nearest
    assert float(hardest_loss(first, second, other)) == pytest.approx(expected, abs=1e-5)
    # the second and the third may show the same: then the first two have only each other
    other[1, 2] = other[2, 1] = False
    last = 1 + own - 2 * math.sin((2 * math.pi / 3 - 0.2) / 2)
    assert float(hardest_loss(first, second, other)) == pytest.approx(
        (2 * expected + max(0.0, last)) / 3, abs=1e-5
    )


def loss_of(net: PatchNet, place: PatchPairs) -> torch.Tensor:
    other = others(torch.zeros(len(place), dtype=torch.int64), place.points)
    return hardest_loss(net(place.first), net(place.second), other)


@torch.no_grad()
def loss_on(net: PatchNet, place: PatchPairs) -> float:
    net.eval()
    loss = float(loss_of(net, place))
    net.train()
    return loss


def test_a_network_learns_to_tell_patches_apart(places: list[PatchPairs]) -> None:
    torch.manual_seed(0)
    net = PatchNet()
    aside = places[0][::4][:60]
    before = loss_on(net, aside)
    assert right_share(net, [aside]) > 1 / 60
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for step in range(24):
        loss = loss_of(net, places[step % 2][1::2][:96])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss_on(net, aside) < 0.9 * before


def test_what_is_drawn_for_a_step(places: list[PatchPairs]) -> None:
    """Partners stay partners, turned and mirrored alike, and know which others are no partners."""
    supply = Places(DescriptorConfig(compile=False))
    supply.known.extend(place[:20] for place in places)
    first, second, other = supply.draw()
    n = len(first)
    assert n == 24 * 16 + 8 * 4  # 8 times up to 64 of a place, which has 20; 16 times 16
    assert not other.diagonal().any()
    drawn = PatchPairs(first=first, second=second, points=torch.zeros(n, 3))
    assert likeness(drawn) > 0.75 > 0.5 > likeness(drawn, shift=1)


def test_a_short_training_leaves_weights(
    tmp_path: Path,
    places: list[PatchPairs],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Places, "make_more", lambda supply: supply.known.extend(places))
    path = tmp_path / "d.safetensors"
    told: list[tuple[str, int, int]] = []
    train_descriptor(path, DescriptorConfig(minutes=0.05), track=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"training"}
    assert told[-1][1] <= told[-1][2] == 3  # seconds
    patches = torch.randint(0, 256, (4, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert read_patch_net(path)(patches).shape == (4, 128)
    new = tmp_path / "e.safetensors"
    for arguments, code, message in (
        ([path], 2, "exists"),
        ([tmp_path / "d.bin"], 2, "must end in .safetensors"),
        ([new, "--textures", "nowhere"], 2, "does not exist"),
        ([new, "--init", PHOTOS[0]], 7, "cannot be read"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            main(["train-descriptor", "--minutes", "0.01", "-o", *map(str, arguments)])
        assert exit_info.value.code == code
        assert message in capsys.readouterr().err
    assert not new.exists()
