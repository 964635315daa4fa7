"""The network without any weights: layout, sizes, positions, wiring, heads."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from recon3d.config import PRESETS, HeadType, ModelConfig
from recon3d.heads import HEADS, LinearHead, activate, activate_descriptors
from recon3d.lattice import Lattice
from recon3d.model import (
    CrossAttention,
    DecoderTokens,
    TwoViewModel,
    TwoViewOutput,
    _turned,
    _turned_in_place,
    rope_table,
    rotate,
)

TINY = ModelConfig(
    patch_size=16,
    enc_dim=16,
    enc_depth=2,
    enc_heads=2,
    dec_dim=24,
    dec_depth=4,
    dec_heads=3,
    dpt_layer_dims=(4, 6, 8, 10),
    dpt_feature_dim=8,
    dpt_last_dim=4,
)


def tiny(head: HeadType = HeadType.LINEAR) -> TwoViewModel:
    return TwoViewModel(replace(TINY, head=head)).eval()


def given(output: TwoViewOutput) -> list[torch.Tensor]:
    """Return the maps that the network gives, leaving out those it has no head for."""
    return [values for values in output if values is not None]


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (PRESETS["large"], 571_171_208, 1001),
        (replace(PRESETS["large"], head=HeadType.LINEAR), 532_342_784, 877),
        (replace(PRESETS["large"], head=HeadType.CATMLP_DPT), 688_638_856, 1009),
    ],
)
def test_large_preset_has_the_published_size(
    config: ModelConfig, parameters: int, tensors: int
) -> None:
    with torch.device("meta"):
        model = TwoViewModel(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mask_token", (1, 1, 768)),
        ("patch_embed.proj.weight", (1024, 3, 16, 16)),
        ("enc_blocks.23.attn.qkv.weight", (3072, 1024)),
        ("enc_blocks.0.mlp.fc2.weight", (1024, 4096)),
        ("enc_norm.bias", (1024,)),
        ("decoder_embed.weight", (768, 1024)),
        ("dec_blocks.11.norm_y.weight", (768,)),
        ("dec_blocks2.0.cross_attn.projk.bias", (768,)),
        ("downstream_head1.dpt.act_postprocess.0.1.weight", (96, 96, 4, 4)),
        ("downstream_head2.dpt.act_postprocess.3.1.weight", (768, 768, 3, 3)),
        ("downstream_head1.dpt.scratch.layer3_rn.weight", (256, 384, 3, 3)),
        ("downstream_head2.dpt.scratch.refinenet4.resConfUnit1.conv2.bias", (256,)),
        ("downstream_head1.dpt.head.4.weight", (4, 128, 1, 1)),
    ],
)
def test_names_and_shapes_are_the_published_layout(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = TwoViewModel(PRESETS["large"])
    assert tuple(model.state_dict()[name].shape) == shape


@pytest.mark.parametrize("head", list(HeadType))
def test_views_may_differ_in_shape_and_have_odd_grids(head: HeadType) -> None:
    model = tiny(head)
    with torch.no_grad():
        tokens_i, tokens_j = model.encode(images(2, 48, 80)), model.encode(images(2, 80, 32))
        out = model.decode(tokens_i, tokens_j, (3, 5), (5, 2))
    assert tokens_i.shape == (2, 15, 16)
    assert out.pointmap_i.shape == (2, 48, 80, 3)
    assert out.confidence_i.shape == (2, 48, 80)
    assert out.pointmap_j.shape == (2, 80, 32, 3)
    assert out.confidence_j.shape == (2, 80, 32)
    assert (out.confidence_i > 1).all()


def test_image_size_must_be_a_multiple_of_the_patch() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        tiny().encode(images(1, 32, 40))


@pytest.mark.parametrize("head", list(HeadType))
def test_pairs_of_a_batch_do_not_mix(head: HeadType) -> None:
    model = tiny(head)
    a, b = images(3, 32, 48), images(3, 32, 48)
    with torch.no_grad():
        together = model.decode(model.encode(a), model.encode(b), (2, 3), (2, 3))
        for k in range(3):
            one = model.decode(
                model.encode(a[k : k + 1]), model.encode(b[k : k + 1]), (2, 3), (2, 3)
            )
            for x, y in zip(given(together), given(one), strict=True):
                torch.testing.assert_close(x[k : k + 1], y, rtol=1e-4, atol=1e-5)


def test_swapping_the_views_and_the_two_branches_swaps_the_outputs() -> None:
    # i and j differ only in which decoder and head reads them: exchange both, nothing changes.
    model, mirrored = tiny(), tiny()
    state = model.state_dict()

    def other(name: str) -> str:
        for a, b in (("dec_blocks.", "dec_blocks2."), ("downstream_head1.", "downstream_head2.")):
            for old, new in ((a, b), (b, a)):
                if name.startswith(old):
                    return new + name.removeprefix(old)
        return name

    mirrored.load_state_dict({other(name): tensor for name, tensor in state.items()})
    tokens_i, tokens_j = model.encode(images(1, 32, 48)), model.encode(images(1, 48, 32))
    out = model.decode(tokens_i, tokens_j, (2, 3), (3, 2))
    back = mirrored.decode(tokens_j, tokens_i, (3, 2), (2, 3))
    torch.testing.assert_close(out.pointmap_i, back.pointmap_j)
    torch.testing.assert_close(out.confidence_j, back.confidence_i)
    same = model.decode(tokens_j, tokens_i, (3, 2), (2, 3))
    assert not torch.allclose(out.pointmap_i, same.pointmap_j)  # the branches are not tied


def test_each_output_depends_on_both_views() -> None:
    model = tiny()
    tokens_i, tokens_j = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
    changed = torch.randn(1, 6, 16)
    out = model.decode(tokens_i, tokens_j, (2, 3), (2, 3))
    other_j = model.decode(tokens_i, changed, (2, 3), (2, 3))
    other_i = model.decode(changed, tokens_j, (2, 3), (2, 3))
    assert (out.pointmap_i - other_j.pointmap_i).abs().max() > 1e-6
    assert (out.pointmap_j - other_i.pointmap_j).abs().max() > 1e-6


def test_both_decoders_read_the_layer_before() -> None:
    model = tiny()
    tokens_i, tokens_j = torch.randn(1, 6, 16), torch.randn(1, 6, 16)
    decoded = model.decode_tokens(tokens_i, tokens_j, (2, 3), (2, 3))
    rope = rope_table((2, 3), 8, 100.0, torch.device("cpu"), torch.float32)
    x_i, x_j = model.decoder_embed(tokens_i), model.decoder_embed(tokens_j)
    for layer in range(4):
        before_i, before_j = x_i, x_j
        x_i, _ = model.dec_blocks[layer](before_i, before_j, rope, rope, with_attention=False)
        x_j, _ = model.dec_blocks2[layer](before_j, before_i, rope, rope, with_attention=False)
        last = layer == 3
        expected_i = model.dec_norm(x_i) if last else x_i
        expected_j = model.dec_norm(x_j) if last else x_j
        torch.testing.assert_close(decoded.tokens_i[layer + 1], expected_i)
        torch.testing.assert_close(decoded.tokens_j[layer + 1], expected_j)
    assert decoded.tokens_i[0] is tokens_i
    assert len(decoded.tokens_j) == 5


def test_rotary_positions_against_a_loop() -> None:
    rows, columns, channels, base = 3, 4, 16, 100.0
    x = torch.randn(1, 1, rows * columns, channels, dtype=torch.float64)
    rope = rope_table((rows, columns), channels, base, torch.device("cpu"), torch.float64)
    expected = torch.empty_like(x)
    half, quarter = channels // 2, channels // 4
    for token in range(rows * columns):
        for axis, position in enumerate(divmod(token, columns)):  # row turns the first half
            for k in range(quarter):
                angle = position * base ** (-2 * k / half)
                a = x[0, 0, token, axis * half + k]
                b = x[0, 0, token, axis * half + quarter + k]
                turned = (
                    a * math.cos(angle) - b * math.sin(angle),
                    b * math.cos(angle) + a * math.sin(angle),
                )
                expected[0, 0, token, axis * half + k] = turned[0]
                expected[0, 0, token, axis * half + quarter + k] = turned[1]
    torch.testing.assert_close(rotate(x, rope), expected, rtol=0, atol=1e-6)


def test_what_turns_in_place_is_the_same_to_the_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        cos, sin = rope_table((3, 4), 16, 100.0, torch.device("cpu"), dtype)
        q, k, _ = torch.randn(2, 12, 3, 5, 16, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
        for x in (q, k):
            expected = _turned(x, cos, sin)
            assert torch.equal(_turned_in_place(x, cos, sin), expected)


def test_rotary_positions_turn_gradients_back() -> None:
    rope = rope_table((3, 4), 16, 100.0, torch.device("cpu"), torch.float64)
    x = torch.randn(2, 3, 12, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rope), x)
    turned = rotate(x.detach(), rope)
    torch.testing.assert_close(turned.norm(dim=-1), x.detach().norm(dim=-1))


@pytest.mark.parametrize("head", list(HeadType))
def test_heads_of_a_lattice_say_of_its_pixels_what_they_say_of_all(head: HeadType) -> None:
    model = tiny(head)
    for network_head in (model.downstream_head1, model.downstream_head2):
        for bias in (p for n, p in network_head.named_parameters() if n.endswith("bias")):
            torch.nn.init.normal_(bias, std=0.1)
    grids = (2, 3), (2, 2)
    with torch.no_grad():
        tokens = model.encode(images(2, 32, 48)), model.encode(images(2, 32, 32))
        decoded = model.decode_tokens(*tokens, *grids)
        every = model.heads(decoded, *grids)
        for lattice in (Lattice(2, 1, 0), Lattice(4, 2, 3)):
            some = model.heads(decoded, *grids, lattice=lattice)
            for few, all_of_them in zip(some, every, strict=True):
                assert (few is None) == (all_of_them is None)
                if few is not None:
                    torch.testing.assert_close(few, all_of_them[:, lattice.rows, lattice.columns])


def test_tokens_that_are_embedded_already_are_decoded_alike() -> None:
    model = tiny().eval()
    with torch.no_grad():
        one, two = model.encode(images(2, 32, 48)), model.encode(images(2, 32, 32))
        plain = model.decode_tokens(one, two, (2, 3), (2, 2))
        known = model.decoder_embed(one), model.decoder_embed(two)
        given = model.decode_tokens(one, two, (2, 3), (2, 2), embedded=known)
    assert torch.equal(plain.tokens_i[-1], given.tokens_i[-1])
    assert torch.equal(plain.tokens_j[-1], given.tokens_j[-1])


def test_rotary_products_depend_only_on_the_offset() -> None:
    rope = rope_table((4, 5), 16, 100.0, torch.device("cpu"), torch.float32)
    query, key = torch.randn(16), torch.randn(16)
    q, k = (rotate(v.expand(1, 1, 20, 16), rope)[0, 0] for v in (query, key))
    products = (q @ k.T).reshape(4, 5, 4, 5)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(products[3, 4, 0, 1], products[3, 3, 0, 0], rtol=1e-4, atol=1e-4)
    assert not torch.isclose(products[0, 0, 1, 2], products[0, 0, 2, 1], rtol=1e-3)


def test_tables_made_in_inference_mode_serve_training() -> None:
    model = tiny()
    with torch.inference_mode():
        model.encode(images(1, 96, 112))
    model.encode(images(1, 96, 112)).sum().backward()
    assert model.enc_blocks[0].attn.qkv.weight.grad is not None


def test_log_attention_is_what_forward_mixes_with() -> None:
    attention = CrossAttention(24, 3)
    query, memory = torch.randn(2, 6, 24), torch.randn(2, 4, 24)
    ropes = [rope_table(g, 8, 100.0, torch.device("cpu"), torch.float32) for g in ((2, 3), (2, 2))]
    out, log_weights = attention(query, memory, *ropes, 3)
    assert log_weights.shape == (2, 3, 6, 4)
    torch.testing.assert_close(log_weights.exp().sum(-1), torch.ones(2, 3, 6))
    values = attention.projv(memory).reshape(2, 4, 3, 8).transpose(1, 2)
    mixed = (log_weights.exp() @ values).transpose(1, 2).reshape(2, 6, 24)
    torch.testing.assert_close(attention.proj(mixed), out)
    torch.testing.assert_close(attention(query, memory, *ropes)[0], out)


def test_attention_is_returned_for_the_layers_asked_for_and_changes_nothing() -> None:
    model = tiny()
    tokens_i, tokens_j = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    plain = model.decode_tokens(tokens_i, tokens_j, (2, 3), (2, 2))
    watched = model.decode_tokens(tokens_i, tokens_j, (2, 3), (2, 2), frozenset({1, 3}))
    assert plain.attention == {}
    assert sorted(watched.attention) == [1, 3]
    i_over_j, j_over_i = watched.attention[3]
    assert i_over_j.shape == (2, 3, 6, 4)
    assert j_over_i.shape == (2, 3, 4, 6)
    for a, b in zip(plain.tokens_i, watched.tokens_i, strict=True):
        assert torch.equal(a, b)
    i_over_j.exp()[..., 0].sum().backward()
    assert model.dec_blocks[3].cross_attn.projq.weight.grad.abs().sum() > 0


def test_linear_head_is_channel_major() -> None:
    # One token whose 4 * 2 * 2 slots are 0 .. 15: x is slots 0-3 in reading order, y 4-7, ...
    head = LinearHead(replace(TINY, patch_size=2, dec_dim=16))
    with torch.no_grad():
        head.proj.weight.zero_()
        head.proj.bias.copy_(torch.arange(16.0))
    out = head([torch.zeros(1, 2, 16)], (1, 2))
    assert out.shape == (1, 4, 2, 4)
    assert out[0, 0].tolist() == [[0, 1, 0, 1], [2, 3, 2, 3]]
    assert out[0, 3].tolist() == [[12, 13, 12, 13], [14, 15, 14, 15]]


def test_linear_head_lays_tokens_out_row_by_row() -> None:
    head = LinearHead(replace(TINY, patch_size=2, dec_dim=16))
    with torch.no_grad():
        head.proj.weight.fill_(1 / 16)
        head.proj.bias.zero_()
    tokens = torch.arange(6.0)[None, :, None].expand(1, 6, 16)
    expected = torch.arange(6.0).reshape(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(head([tokens], (2, 3))[0, 2], expected)


def test_only_the_descriptor_head_gives_descriptors() -> None:
    for head in HeadType:
        model = TwoViewModel(replace(TINY, head=head, descriptor_dim=5)).eval()
        with torch.no_grad():
            tokens_i, tokens_j = model.encode(images(1, 48, 32)), model.encode(images(1, 32, 64))
            out = model.decode(tokens_i, tokens_j, (3, 2), (2, 4))
        if head is not HeadType.CATMLP_DPT:
            assert len(given(out)) == 4
            continue
        assert out.descriptors_i.shape == (1, 48, 32, 5)
        assert out.descriptors_j.shape == (1, 32, 64, 5)
        assert out.descriptor_confidence_i.shape == (1, 48, 32)
        for descriptors in (out.descriptors_i, out.descriptors_j):
            length = descriptors.norm(dim=-1)
            torch.testing.assert_close(length, torch.ones_like(length))
        assert (out.descriptor_confidence_j > 0).all()


def test_descriptor_head_against_a_loop() -> None:
    config = replace(TINY, patch_size=2, head=HeadType.CATMLP_DPT, descriptor_dim=3)
    head = HEADS[config.head](config)
    grid = (2, 3)
    features = [torch.randn(1, 6, d) for d in (16, 24, 24, 24, 24)]
    with torch.no_grad():
        raw = head(features, grid)
        mlp = head.head_local_features
        for row in range(4):
            for column in range(6):
                token = row // 2 * 3 + column // 2
                x = torch.cat((features[0][0, token], features[4][0, token]))
                y = mlp.fc2(F.gelu(mlp.fc1(x)))
                slot = row % 2 * 2 + column % 2
                expected = torch.stack([y[channel * 4 + slot] for channel in range(4)])
                torch.testing.assert_close(raw[0, 4:, row, column], expected)
        assert raw.shape == (1, 8, 4, 6)
        assert mlp.fc1.weight.shape == (4 * 40, 40)


def test_descriptor_activation_by_hand() -> None:
    raw = torch.tensor([3.0, -4.0, math.log(5.0)]).reshape(1, 3, 1, 1)
    descriptors, confidence = activate_descriptors(raw)
    torch.testing.assert_close(descriptors[0, 0, 0], torch.tensor([0.6, -0.8]))
    torch.testing.assert_close(confidence, torch.tensor([[[5.0]]]))
    assert not activate_descriptors(torch.zeros(1, 3, 1, 1))[0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [HeadType.DPT, HeadType.CATMLP_DPT])
def test_what_is_known_of_one_view_changes_nothing(head: HeadType, dtype: torch.dtype) -> None:
    model = tiny(head)
    tokens_i, tokens_j = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.inference_mode(), half:
        # one view at a time, as parts of a batch round otherwise
        skips = [
            [model.skip(side, one, (3, 2)) for one in tokens.split(1)]
            for side, tokens in enumerate((tokens_i, tokens_j))
        ]
        # the size and the type that recon3d.memory counts
        assert {(skip.dtype, *skip.shape) for side in skips for skip in side} == {
            (torch.float32, 1, TINY.dpt_feature_dim, 4 * 3, 4 * 2)
        }
        for k in range(2):
            i, j = tokens_i[k : k + 1], tokens_j[k : k + 1]
            plain = model.decode(i, j, (3, 2), (3, 2))
            known = model.decode(
                i, j, (3, 2), (3, 2), skips=(skips[0][k : k + 1], skips[1][k : k + 1])
            )
            for a, b in zip(given(plain), given(known), strict=True):
                assert torch.equal(a, b)
            wrong = model.decode(
                i, j, (3, 2), (3, 2), skips=(skips[1][k : k + 1], skips[0][k : k + 1])
            )
            assert not torch.equal(plain.pointmap_i, wrong.pointmap_i)
        plain = model.decode(tokens_i, tokens_j, (3, 2), (3, 2))
        known = model.decode(tokens_i, tokens_j, (3, 2), (3, 2), skips=(skips[0], skips[1]))
    for a, b in zip(given(plain), given(known), strict=True):
        torch.testing.assert_close(a, b)


def test_only_the_features_asked_for_are_kept() -> None:
    model = tiny()
    tokens_i, tokens_j = torch.randn(2, 6, 16), torch.randn(2, 4, 16)
    every = model.decode_tokens(tokens_i, tokens_j, (2, 3), (2, 2))
    some = model.decode_tokens(tokens_i, tokens_j, (2, 3), (2, 2), kept=(0, 2, 4))
    for side in ("tokens_i", "tokens_j"):
        for layer, (a, b) in enumerate(zip(getattr(every, side), getattr(some, side), strict=True)):
            assert torch.equal(a, b) if layer in (0, 2, 4) else b.numel() == 0


@pytest.mark.parametrize("head", list(HeadType))
def test_decoding_keeps_what_the_head_reads(
    head: HeadType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(head)
    seen: list[DecoderTokens] = []
    heads = model.heads

    def watched(decoded: DecoderTokens, *rest: object) -> TwoViewOutput:
        seen.append(decoded)
        return heads(decoded, *rest)

    monkeypatch.setattr(model, "heads", watched)
    model.decode(torch.randn(1, 6, 16), torch.randn(1, 4, 16), (2, 3), (2, 2))
    for features in (seen[0].tokens_i, seen[0].tokens_j):
        kept = [layer for layer, values in enumerate(features) if values.numel()]
        assert kept == ([0, 4] if head is HeadType.LINEAR else [0, 2, 3, 4])


@pytest.mark.parametrize(("depth", "hooks"), [(10, (0, 5, 7, 10)), (12, (0, 6, 9, 12))])
def test_dpt_reads_the_published_layers(depth: int, hooks: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = TwoViewModel(replace(TINY, head=HeadType.DPT, dec_depth=depth))
    assert model.downstream_head1.dpt.hooks == hooks


def test_activations_by_hand() -> None:
    raw = torch.zeros(1, 4, 1, 3)
    raw[0, :, 0, 0] = torch.tensor([0.0, 0.6, 0.8, 0.0])  # length 1
    raw[0, :, 0, 1] = torch.tensor([0.0, 0.0, -2.0, math.log(3.0)])
    points, confidence = activate(raw)
    e1 = math.e - 1
    torch.testing.assert_close(points[0, 0, 0], torch.tensor([0.0, 0.6 * e1, 0.8 * e1]))
    torch.testing.assert_close(points[0, 0, 1], torch.tensor([0.0, 0.0, 1 - math.e**2]))
    assert points[0, 0, 2].tolist() == [0, 0, 0]
    torch.testing.assert_close(confidence[0, 0], torch.tensor([2.0, 4.0, 2.0]))


def test_activations_have_finite_gradients_at_the_camera_centre() -> None:
    raw = torch.zeros(1, 4, 2, 2, requires_grad=True)
    points, confidence = activate(raw)
    (points.sum() + confidence.sum()).backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("head", list(HeadType))
def test_outputs_are_fp32_and_close_under_autocast(head: HeadType) -> None:
    model = tiny(head)
    a, b = images(1, 32, 48), images(1, 32, 48)
    with torch.no_grad():
        exact = model.decode(model.encode(a), model.encode(b), (2, 3), (2, 3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model.decode(model.encode(a), model.encode(b), (2, 3), (2, 3))
    for x, y in zip(given(exact), given(rough), strict=True):
        assert y.dtype == torch.float32
        assert (x - y).norm() < 0.05 * x.norm()


def test_initial_values() -> None:
    model = tiny()
    assert not model.mask_token.requires_grad
    fc1 = model.enc_blocks[0].mlp.fc1
    bound = math.sqrt(6 / (16 + 64))
    assert 0.9 * bound < fc1.weight.abs().max() <= bound
    assert not fc1.bias.any()
    patch = model.patch_embed.proj
    bound = math.sqrt(6 / (16 + 3 * 16 * 16))
    assert 0.9 * bound < patch.weight.abs().max() <= bound
    assert not patch.bias.any()
    out = model.decode(torch.randn(1, 6, 16), torch.randn(1, 6, 16), (2, 3), (2, 3))
    assert out.pointmap_i.abs().max() < 2
    assert (out.confidence_i - 2).abs().max() < 1


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = tiny()
    out = model.decode(
        model.encode(images(1, 32, 32)), model.encode(images(1, 32, 32)), (2, 2), (2, 2)
    )
    sum(x.sum() for x in given(out)).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_patches_are_the_linear_map_of_flattened_pixels() -> None:
    embed = tiny().patch_embed
    picture = images(1, 32, 48)
    patch = picture[0, :, 16:32, 32:48]  # row 1, column 2
    expected = F.linear(patch.flatten(), embed.proj.weight.flatten(1), embed.proj.bias)
    torch.testing.assert_close(embed(picture)[0, 1 * 3 + 2], expected, rtol=1e-4, atol=1e-5)
