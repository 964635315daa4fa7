"""Cross-view completion: the published numbers, its masks and target, and the start it gives.

The parity cases lie in the folder named by RECON3D_FIXTURES; without one they are skipped.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from recon3d import croco
from recon3d.config import CrocoConfig, ModelConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.model import TwoViewModel

FOLDER = Path(os.environ.get("RECON3D_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))
needs_fixtures = pytest.mark.skipif(
    not (FOLDER / "croco_v2_tiny.pth").is_file(), reason=f"no parity fixtures in {FOLDER}"
)
TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-2
SIZES = dict(enc_dim=64, enc_depth=2, enc_heads=2, dec_dim=48, dec_depth=2, dec_heads=2)
PUBLISHED = {
    "croco_v1_tiny": CrocoConfig(
        image_size=96, position=PositionType.COSINE, imagenet_input=True, **SIZES
    ),
    "croco_v2_tiny": CrocoConfig(
        image_size=96, position=PositionType.ROPE, imagenet_input=True, **SIZES
    ),
}
BOTH = pytest.mark.parametrize("position", list(PositionType))


def nano(position: PositionType = PositionType.ROPE) -> CrocoConfig:
    sizes = dict(enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=16, dec_depth=2, dec_heads=2)
    return CrocoConfig(image_size=64, position=position, **sizes)


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours.float().numpy() - theirs) / np.linalg.norm(theirs))


def hide(n_images: int, n_tokens: int, ratio: float = 0.9) -> Tensor:
    return croco.random_hidden(n_images, n_tokens, ratio, torch.Generator().manual_seed(0))


@needs_fixtures
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_stage_matches_the_published_system(name: str, bf16: bool) -> None:
    published = torch.load(FOLDER / f"{name}.pth", weights_only=True)["model"]  # noqa: TID251
    model = CrocoModel(PUBLISHED[name]).eval()
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in published.items()
    }
    model.load_state_dict(published)
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    image_i, image_j, hidden = (torch.from_numpy(arrays[k]) for k in ("img1", "img2", "mask"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        visible, tokens_j = model.encode(image_i, hidden), model.encode(image_j)
        predicted = model(image_i, image_j, hidden)
        found = {
            "enc1_visible": visible,
            "enc2": tokens_j,
            "dec": model.decode(visible, tokens_j, hidden, (6, 6), (6, 6)),
            "out": predicted,
            "target": croco.patchify(image_i, 16),
            "unpatchified": croco.unpatchify(predicted, (6, 6), 16),
            "loss_normpix": croco.completion_loss(predicted, image_i, hidden, 16),
            "loss_plain": croco.completion_loss(predicted, image_i, hidden, 16, normalised=False),
        }
    errors = {key: relative_error(value, arrays[key]) for key, value in found.items()}
    assert max(errors.values()) <= (BF16_TOLERANCE if bf16 else TOLERANCE), errors
    assert not bf16 or max(errors.values()) > 1e-4, "bf16 was not used"


@needs_fixtures
def test_cosine_tables_are_those_of_the_published_file() -> None:
    published = torch.load(FOLDER / "croco_v1_tiny.pth", weights_only=True)  # noqa: TID251
    for name, dim in (("enc_pos_embed", 64), ("dec_pos_embed", 48)):
        torch.testing.assert_close(croco.cosine_table((6, 6), dim), published["model"][name])


def test_cosine_table_by_hand() -> None:
    table = croco.cosine_table((2, 3), 8)  # token 5 is row 1, column 2; frequencies 1 and 1/100
    s, c = np.sin, np.cos
    expected = [s(2), s(0.02), c(2), c(0.02), s(1), s(0.01), c(1), c(0.01)]
    torch.testing.assert_close(table[5], torch.tensor(expected, dtype=torch.float32))


def test_embeddings_are_interpolated_to_other_grids() -> None:
    table = croco.cosine_table((14, 14), 64)
    assert croco.resized(table, (14, 14)) is table
    # Channel by channel, as an image: rows of the table are rows of patches.
    wide = croco.resized(table, (14, 28)).T.unflatten(-1, (14, 28))
    images = table.T.unflatten(-1, (14, 14))[None]
    slow = F.interpolate(images, (14, 28), mode="bicubic", align_corners=False)[0]
    torch.testing.assert_close(wide, slow)
    # The columns' sines of low frequency are resampled, the rows' stay.
    torch.testing.assert_close(wide[32:, :, 5], images[0, 32:, :, 2])
    low = wide[8, 3]
    assert bool((low.diff() > 0).all())


@BOTH
def test_any_size_and_unequal_views(position: PositionType) -> None:
    model = CrocoModel(nano(position))
    image_i, image_j = torch.rand(2, 3, 48, 80), torch.rand(2, 3, 32, 64)
    out = model(image_i, image_j, hide(2, 15, 0.8))
    assert out.shape == (2, 15, 768)
    assert bool(out.isfinite().all())
    with pytest.raises(ValueError, match="multiple of 16"):
        model.encode(torch.rand(1, 3, 40, 64))


@BOTH
def test_hidden_pixels_are_not_seen_and_all_else_is(position: PositionType) -> None:
    model = CrocoModel(nano(position)).eval()
    image_i, image_j = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    hidden = hide(1, 16, 0.75)

    def change(which: int) -> Tensor:
        pixels = torch.zeros(1, 16, 768)
        pixels[0, which] = 1
        return croco.unpatchify(pixels, (4, 4), 16)

    seen, unseen = int((~hidden[0]).nonzero()[0]), int(hidden[0].nonzero()[0])
    with torch.no_grad():
        base = model(image_i, image_j, hidden)
        assert torch.equal(model(image_i + change(unseen), image_j, hidden), base)
        assert not torch.allclose(model(image_i + change(seen), image_j, hidden), base)
        assert not torch.allclose(model(image_i, image_j + change(unseen), hidden), base)


@BOTH
def test_where_a_visible_patch_lies_matters(position: PositionType) -> None:
    # The same visible content at another place gives other tokens: positions follow the mask.
    model = CrocoModel(nano(position)).eval()
    tile = torch.rand(1, 3, 16, 16).repeat(1, 1, 4, 4)
    one, two = torch.ones(1, 16, dtype=torch.bool), torch.ones(1, 16, dtype=torch.bool)
    one[0, [0, 1]] = False
    two[0, [0, 6]] = False
    with torch.no_grad():
        a, b = model(tile, tile, one), model(tile, tile, two)
    assert not torch.allclose(a, b)


def test_encoding_without_a_mask_is_that_of_an_empty_mask() -> None:
    model = CrocoModel(nano()).eval()
    images, nothing = torch.rand(2, 3, 32, 48), torch.zeros(2, 6, dtype=torch.bool)
    torch.testing.assert_close(model.encode(images), model.encode(images, nothing))


def test_mask_hides_the_share_asked_for_at_random_places() -> None:
    hidden = hide(500, 36)
    assert bool((hidden.sum(1) == 32).all())  # as published: 0.9 of 36, rounded down
    assert float((hidden.float().mean(0) - 32 / 36).abs().max()) < 0.08
    with pytest.raises(ValueError, match="hides 0 of 4"):
        hide(1, 4, 0.2)
    with pytest.raises(ValueError, match="hides 4 of 4"):
        hide(1, 4, 1.0)


def test_patches_by_hand_and_back() -> None:
    images = torch.rand(2, 3, 4, 6)
    values = croco.patchify(images, 2)
    assert values.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            patch = images[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            by_hand = [float(patch[c, y, x]) for y in (0, 1) for x in (0, 1) for c in (0, 1, 2)]
            assert values[0, 3 * row + column].tolist() == by_hand
    assert torch.equal(croco.unpatchify(values, (2, 3), 2), images)


def test_loss_counts_hidden_patches_only_and_ignores_brightness() -> None:
    images, hidden = torch.rand(2, 3, 64, 64), hide(2, 16, 0.75)
    target = croco.patchify(images, 16)
    perfect = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    wrong_where_seen = torch.where(hidden[..., None], perfect, 9.0)
    assert float(croco.completion_loss(wrong_where_seen, images, hidden, 16)) < 1e-6
    brighter = croco.completion_loss(wrong_where_seen, 0.5 * images + 0.3, hidden, 16)
    assert float(brighter) < 1e-5
    blank = croco.completion_loss(torch.zeros_like(perfect), images, hidden, 16)
    assert float(blank) == pytest.approx(767 / 768, abs=1e-3)


def test_start_of_a_two_view_network() -> None:
    config = nano()
    model = CrocoModel(config).eval()
    start = croco.to_two_view(model.state_dict(), config)
    sizes = {n: getattr(config, n) for n in ("enc_dim", "enc_depth", "enc_heads", "image_size")}
    sizes |= {n: getattr(config, n) for n in ("dec_dim", "dec_depth", "dec_heads")}
    two_view = TwoViewModel(ModelConfig(**sizes)).eval()
    missing, unexpected = two_view.load_state_dict(start, strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} == {"downstream_head1", "downstream_head2"}
    for name, tensor in two_view.dec_blocks.state_dict().items():
        assert torch.equal(two_view.dec_blocks2.state_dict()[name], tensor)
    images = torch.rand(1, 3, 32, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(two_view.encode(images), model.encode(images))


def test_start_takes_up_the_normalisation_of_images() -> None:
    config = replace(nano(), imagenet_input=True)
    model = CrocoModel(config)
    torch.nn.init.normal_(model.patch_embed.proj.bias)
    start = croco.to_two_view(model.state_dict(), config)
    images = torch.rand(2, 3, 32, 48)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (croco.IMAGENET_MEAN, croco.IMAGENET_STD))
    theirs = model.patch_embed.proj((images - mean) / std)
    ours = F.conv2d(
        2 * images - 1,
        start["patch_embed.proj.weight"],
        start["patch_embed.proj.bias"],
        stride=config.patch_size,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_start_from_cosine_weights_leaves_their_positions_out() -> None:
    torch.manual_seed(5)
    old = CrocoModel(nano(PositionType.COSINE)).state_dict()
    torch.manual_seed(5)
    new = CrocoModel(nano()).state_dict()  # the same but for the tables
    start = croco.to_two_view(old, nano(PositionType.COSINE))
    expected = croco.to_two_view(new, nano())
    assert start.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in start.items())
