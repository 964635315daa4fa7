"""Published layouts read as they are; hostile and damaged files refused, with one clear line."""

import argparse
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from recon3d.checkpoint import read_checkpoint
from recon3d.config import CrocoConfig, HeadType, ModelConfig, PositionType
from recon3d.croco import CrocoModel
from recon3d.errors import WeightsError
from recon3d.model import TwoViewModel
from recon3d.published import parse_constructor
from recon3d.weights import load, save
from recon3d.weights_info import describe

LINEAR = ModelConfig(
    name="net",
    image_size=96,
    enc_dim=32,
    enc_depth=2,
    enc_heads=2,
    dec_dim=16,
    dec_depth=2,
    dec_heads=2,
)
DPT = replace(
    LINEAR,
    head=HeadType.DPT,
    dpt_layer_dims=(4, 6, 8, 10),
    dpt_feature_dim=8,
    dpt_last_dim=4,
)
CATMLP = replace(DPT, head=HeadType.CATMLP_DPT, descriptor_dim=5)
EVERY_HEAD = pytest.mark.parametrize("config", [LINEAR, DPT, CATMLP], ids=lambda c: str(c.head))


def options_of(config: ModelConfig) -> dict:
    """Return the keyword arguments that published files give for such a network."""
    options = dict(
        pos_embed="RoPE100",
        patch_embed_cls="ManyAR_PatchEmbed",
        img_size=(config.image_size, config.image_size),
        head_type=str(config.head),
        output_mode="pts3d",
        depth_mode=("exp", -float("inf"), float("inf")),
        conf_mode=("exp", 1, float("inf")),
        enc_embed_dim=config.enc_dim,
        enc_depth=config.enc_depth,
        enc_num_heads=config.enc_heads,
        dec_embed_dim=config.dec_dim,
        dec_depth=config.dec_depth,
        dec_num_heads=config.dec_heads,
    )
    if config.has_descriptors:
        options |= dict(
            output_mode=f"pts3d+desc{config.descriptor_dim}",
            two_confs=True,
            desc_conf_mode=("exp", 0, float("inf")),
        )
    return options


def constructor(config: ModelConfig, **changes: object) -> str:
    options = options_of(config) | changes
    name = "AsymmetricMASt3R" if config.has_descriptors else "AsymmetricCroCo3DStereo"
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def published(model: TwoViewModel, aliases: str = "both") -> dict[str, Tensor]:
    """Return the state dict with the second names of shared tensors added, or in their place."""
    out = {}
    for name, tensor in model.state_dict().items():
        head, found, rest = name.partition(".scratch.layer")
        if found and aliases != "none":
            out[f"{head}.scratch.layer_rn.{int(rest[0]) - 1}.weight"] = tensor
        if not found or aliases != "only":
            out[name] = tensor
    return out


def write_pth(path: Path, model: TwoViewModel, text: object, aliases: str = "both") -> Path:
    args = argparse.Namespace(model=text, batch_size=4, lr=1e-4)
    torch.save({"args": args, "model": published(model, aliases)}, path)
    return path


def write_hub(folder: Path, model: TwoViewModel, **changes: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(options_of(model.config) | changes))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def assert_same(found: TwoViewModel, model: TwoViewModel) -> None:
    state = found.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


@EVERY_HEAD
@pytest.mark.parametrize("aliases", ["both", "none", "only"])
def test_pth_is_read_as_it_is(tmp_path: Path, config: ModelConfig, aliases: str) -> None:
    model = TwoViewModel(config)
    found = load(str(write_pth(tmp_path / "net.pth", model, constructor(config), aliases)))
    assert found.config == config
    assert_same(found, model)


@EVERY_HEAD
def test_hub_folder_is_read_as_it_is(tmp_path: Path, config: ModelConfig) -> None:
    model = TwoViewModel(config)
    folder = write_hub(tmp_path / "net", model)
    assert "Infinity" in (folder / "config.json").read_text()
    for path in (folder, folder / "model.safetensors"):
        found = load(str(path))
        assert found.config == config
        assert_same(found, model)


@EVERY_HEAD
def test_shapes_alone_suffice_for_the_published_head_width(
    tmp_path: Path, config: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, enc_dim=128, dec_dim=64, dec_heads=1, patch_size=8, image_size=512)
    model = TwoViewModel(config)
    save_file(published(model, "none"), tmp_path / "net.safetensors")
    torch.save({"model": published(model)}, tmp_path / "net.pth")
    for path in (tmp_path / "net.safetensors", tmp_path / "net.pth"):
        found = load(str(path))
        assert found.config == config
        assert_same(found, model)
    assert "heads taken to be 64 channels wide" in caplog.text
    assert "training size taken to be 512 pixels" in caplog.text


def test_bare_state_dict_in_a_pth(tmp_path: Path) -> None:
    model = TwoViewModel(replace(LINEAR, enc_heads=1, dec_heads=1, image_size=512))
    torch.save(OrderedDict(model.state_dict()), tmp_path / "net.pth")
    assert_same(load(str(tmp_path / "net.pth")), model)


@pytest.mark.parametrize(
    "args",
    [
        None,
        {"model": constructor(LINEAR)},
        constructor(LINEAR),
        argparse.Namespace(),
        argparse.Namespace(model=None),
        argparse.Namespace(model=[constructor(LINEAR)]),
        argparse.Namespace(model=torch.zeros(2)),
    ],
    ids=lambda args: str(args)[:30],
)
def test_arguments_that_do_not_describe_the_network_are_a_fault(
    tmp_path: Path, args: object
) -> None:
    # to guess from the shapes would give a network of other attention heads
    torch.save({"args": args, "model": published(TwoViewModel(LINEAR))}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"its args hold no text 'model'"):
        load(str(tmp_path / "net.pth"))


def test_one_decoder_becomes_two(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="recon3d")
    model = TwoViewModel(LINEAR)
    model.dec_blocks2.load_state_dict(model.dec_blocks.state_dict())
    one = {n: t for n, t in model.state_dict().items() if not n.startswith("dec_blocks2.")}
    torch.save(
        {"args": argparse.Namespace(model=constructor(LINEAR)), "model": one}, tmp_path / "net.pth"
    )
    folder = write_hub(tmp_path / "hub", model)
    save_file(one, folder / "model.safetensors")
    for path in (tmp_path / "net.pth", folder):
        caplog.clear()
        assert_same(load(str(path)), model)
        assert [r.levelname for r in caplog.records] == ["INFO"]
        assert "one decoder" in caplog.text
    # some of the second decoder is no second decoder
    one["dec_blocks2.0.norm1.bias"] = torch.zeros(16)
    save_file(one, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lacks 47 tensors, the first dec_blocks2\.0"):
        load(str(folder))
    # what recon3d has saved is whole or damaged
    del one["dec_blocks2.0.norm1.bias"]
    save(model, tmp_path / "own.safetensors")
    save_file(one, tmp_path / "own.safetensors", metadata={"format": "recon3d"})
    with pytest.raises(WeightsError, match=r"lacks 48 tensors, the first dec_blocks2\.0"):
        load(str(tmp_path / "own.safetensors"))


def test_half_precision_checkpoints_become_fp32(tmp_path: Path) -> None:
    model = TwoViewModel(LINEAR).half()
    path = write_pth(tmp_path / "net.pth", model, constructor(LINEAR))
    found = load(str(path)).state_dict()
    for name, tensor in model.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.float())


def test_weights_do_not_depend_on_their_file(tmp_path: Path) -> None:
    model = TwoViewModel(LINEAR)
    path = write_pth(tmp_path / "net.pth", model, constructor(LINEAR))
    found = load(str(path))
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(found, model)


def test_describe_says_what_was_assumed(tmp_path: Path) -> None:
    model = TwoViewModel(replace(LINEAR, enc_heads=1, dec_heads=1))
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    facts = json.loads(json.dumps(describe(str(tmp_path / "net.safetensors"))))
    assert facts["licence"].startswith("unknown")
    assert len(facts["notes"]) == 3
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("position", list(PositionType))
def test_croco_checkpoints(tmp_path: Path, position: PositionType) -> None:
    sizes = dict(enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=16, dec_depth=2, dec_heads=4)
    config = CrocoConfig(
        name="net", image_size=64, position=position, imagenet_input=True, mask_ratio=0.8, **sizes
    )
    model = CrocoModel(config)
    kwargs = dict(
        img_size=64,
        patch_size=16,
        mask_ratio=0.8,
        enc_embed_dim=32,
        enc_depth=1,
        enc_num_heads=2,
        dec_embed_dim=16,
        dec_depth=2,
        dec_num_heads=4,
        mlp_ratio=4,
        norm_im2_in_dec=True,
        pos_embed="cosine" if position is PositionType.COSINE else "RoPE100",
    )
    path = tmp_path / "net.pth"
    torch.save({"model": model.state_dict(), "croco_kwargs": kwargs}, path)
    found = read_checkpoint(path)
    assert (found.kind, found.config) == ("croco", config)
    assert found.tensors.keys() == model.state_dict().keys()
    with pytest.raises(WeightsError, match=r"CroCo.* give no points"):
        load(str(path))
    for key, value in (
        ("enc_depth", 10**9),
        ("mask_ratio", 2.0),
        ("norm_im2_in_dec", False),
        ("norm_im2_in_dec", torch.ones(2)),
        ("img_size", [[64]]),
        ("img_size", [64, torch.ones(2)]),
        ("pos_embed", "RoPE100" * 1000),
        ("dec_depth", {}),
    ):
        torch.save({"model": model.state_dict(), "croco_kwargs": kwargs | {key: value}}, path)
        with pytest.raises(WeightsError, match=key):
            read_checkpoint(path)
    del kwargs["dec_num_heads"]
    torch.save({"model": model.state_dict(), "croco_kwargs": kwargs}, path)
    with pytest.raises(WeightsError, match="lack 'dec_num_heads'"):
        read_checkpoint(path)


# --- the constructor's text


def test_constructor_by_hand() -> None:
    text = "AsymmetricCroCo3DStereo(a='x', b=(1, -inf), c=[inf, -2.5], d=None, e=True)"
    infinity = float("inf")
    expected = dict(a="x", b=(1, -infinity), c=(infinity, -2.5), d=None, e=True)
    assert parse_constructor(text, "x") == expected


@pytest.mark.parametrize(
    "text",
    [
        "AsymmetricCroCo3DStereo(img_size=__import__('os').system('touch hacked'))",
        "AsymmetricCroCo3DStereo(img_size=eval('1'))",
        "AsymmetricCroCo3DStereo(img_size=(512, open('x')))",
        "AsymmetricCroCo3DStereo(img_size=[x for x in (1,)])",
        "AsymmetricCroCo3DStereo(img_size=512 .__class__)",
        "AsymmetricCroCo3DStereo(img_size=9**9**9)",
        "AsymmetricCroCo3DStereo(img_size=lambda: 1)",
        "AsymmetricCroCo3DStereo(img_size={1: 2})",
        "AsymmetricCroCo3DStereo(img_size=b'x')",
        "AsymmetricCroCo3DStereo(img_size=1j)",
        "AsymmetricCroCo3DStereo(img_size=nan)",
        "AsymmetricCroCo3DStereo(img_size=0x" + "f" * 5000 + ")",
        "AsymmetricCroCo3DStereo(img_size=-'x')",
        "AsymmetricCroCo3DStereo(img_size=f'{1}')",
        "AsymmetricCroCo3DStereo(512)",
        "AsymmetricCroCo3DStereo(**{'img_size': 512})",
        "AsymmetricCroCo3DStereo(*(512,))",
        "AsymmetricCroCo3DStereo(img_size=1, img_size=2)",
        "AsymmetricCroCo3DStereo(img_size=1); print(1)",
        "AsymmetricCroCo3DStereo",
        "os.system('touch hacked')",
        "system(command='touch hacked')",
        "(lambda **k: 1)(img_size=1)",
        "1",
        "",
        "x = 1",
        "\0",
        "(" * 500 + ")" * 500,
        "AsymmetricCroCo3DStereo(a=" + "-" * 5000 + "1)",
        "AsymmetricCroCo3DStereo(a=" + "1" * 9000 + ")",
    ],
)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_text_that_is_more_than_a_constructor_is_refused(tmp_path: Path, text: str) -> None:
    path = write_pth(tmp_path / "net.pth", TwoViewModel(LINEAR), text)
    with pytest.raises(WeightsError) as fault:
        load(str(path))
    assert "\n" not in str(fault.value)
    assert len(str(fault.value)) < 400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.pth"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth_mode", ("linear", -float("inf"), float("inf"))),
        ("conf_mode", ("exp", 0, float("inf"))),
        ("conf_mode", ("sigmoid", 0, 1)),
        ("pos_embed", "cosine"),
        ("pos_embed", "RoPE0"),
        ("pos_embed", "RoPE99999999"),
        ("output_mode", "pts3d+flow"),
        ("head_type", "mlp"),
        ("head_type", 3),
        ("img_size", (512, "512")),
        ("img_size", ()),
        ("img_size", 10**9),
        ("img_size", (512,) * 20),
        ("img_size", True),
        ("enc_embed_dim", 10**12),
        ("enc_depth", 10**9),
        ("enc_num_heads", 0),
        ("enc_num_heads", 7),
        ("dec_depth", -1),
        ("dec_embed_dim", "16"),
        ("mlp_ratio", 2.5),
        ("patch_size", 0),
        ("norm_im2_in_dec", False),
        ("norm_layer", "RMSNorm"),
    ],
)
def test_options_that_are_unknown_or_out_of_bounds_are_named(
    tmp_path: Path, key: str, value: object
) -> None:
    model = TwoViewModel(LINEAR)
    ours = {
        "img_size": "size",
        "enc_embed_dim": "enc_dim",
        "enc_num_heads": "enc_heads",
        "dec_embed_dim": "dec_dim",
        "head_type": "head",
    }
    for path in (
        write_pth(tmp_path / "net.pth", model, constructor(LINEAR, **{key: value})),
        write_hub(tmp_path / "hub", model, **{key: value}),
    ):
        with pytest.raises(WeightsError, match=ours.get(key, key)):
            load(str(path))


def test_descriptor_networks_need_both_confidences(tmp_path: Path) -> None:
    text = constructor(CATMLP, two_confs=False)
    path = write_pth(tmp_path / "net.pth", TwoViewModel(CATMLP), text)
    with pytest.raises(WeightsError, match="two_confs is False"):
        load(str(path))


# --- tensors


def edited(tmp_path: Path, change: Callable[[dict], object], config: ModelConfig = LINEAR) -> Path:
    tensors = published(TwoViewModel(config))
    change(tensors)
    path = tmp_path / "net.pth"
    args = argparse.Namespace(model=constructor(config))
    torch.save({"args": args, "model": tensors}, path)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("enc_blocks.1.mlp.fc1.bias"), r"lacks.*enc_blocks\.1\.mlp\.fc1\.bias"),
        (lambda t: t.pop("patch_embed.proj.weight"), r"lacks.*patch_embed\.proj\.weight"),
        (lambda t: t.pop("downstream_head2.proj.weight"), r"lacks.*downstream_head2\.proj"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected tensors, the first extra"),
        (lambda t: t.update({"enc_blocks.2.norm1.bias": torch.zeros(32)}), r"enc_blocks\.2\.norm1"),
        (lambda t: t.update({"dec_norm.bias": torch.zeros(17)}), r"dec_norm\.bias is \(17,\)"),
        (lambda t: t.update({"patch_embed.proj.weight": torch.zeros(32)}), "not of 4 axes"),
        (lambda t: t.update({"dec_norm.bias": torch.full((16,), torch.nan)}), "not finite"),
        (
            lambda t: t.update({"dec_norm.bias": torch.full((16,), 1e300, dtype=torch.float64)}),
            "not finite",
        ),
        (lambda t: t.update({"dec_norm.bias": torch.zeros(16).long()}), r"dec_norm\.bias holds"),
        (lambda t: t.update({"dec_norm.bias": "text"}), r"'dec_norm\.bias' is no tensor"),
        (lambda t: t.update({7: torch.zeros(1)}), "'7' is no tensor"),
        (lambda t: t.update({"dec_norm.bias": torch.zeros(1).expand(16)}), "data are 4 bytes"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_wrong_tensors_are_named(
    tmp_path: Path, change: Callable[[dict], object], says: str
) -> None:
    with pytest.raises(WeightsError, match=says):
        load(str(edited(tmp_path, change)))


def test_layers_of_the_text_that_the_file_lacks_are_named(tmp_path: Path) -> None:
    path = write_pth(tmp_path / "net.pth", TwoViewModel(LINEAR), constructor(LINEAR, enc_depth=3))
    with pytest.raises(WeightsError, match=r"lacks 12 tensors, the first enc_blocks\.2"):
        load(str(path))


def test_aliases_that_disagree_are_a_fault(tmp_path: Path) -> None:
    name = "downstream_head2.dpt.scratch.layer_rn.3.weight"
    path = edited(tmp_path, lambda t: t.update({name: t[name] + 1}), DPT)
    with pytest.raises(WeightsError, match=r"layer_rn\.3\.weight differ"):
        load(str(path))


def test_giant_dimensions_are_refused_before_any_memory_is_taken(tmp_path: Path) -> None:
    # a few bytes that claim to be a terabyte: by strides, by names of one storage, by the text
    giant = torch.zeros(1).expand(10**12, 3, 16, 16)
    with pytest.raises(WeightsError, match="but its data are 4 bytes"):
        load(str(edited(tmp_path, lambda t: t.update({"patch_embed.proj.weight": giant}))))
    wide = replace(LINEAR, enc_dim=1024, enc_depth=8, mlp_ratio=8)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in TwoViewModel(wide).state_dict().items()}
    storage = torch.zeros(max(shape.numel() for shape in shapes.values()), dtype=torch.uint8)
    tensors = {n: storage[: s.numel()].view(s) for n, s in shapes.items()}
    torch.save({"model": tensors}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="smaller than its tensors"):
        load(str(tmp_path / "net.pth"))


# --- the pickle and its archive


class Asks:
    """An object whose unpickling calls any function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("asks", "name"),
    [
        (Asks(eval, "open('hacked', 'w')"), "eval"),
        (Asks(bytearray, 10**13), "bytearray"),
        (Asks(torch.zeros, 10**9, 10**9), "getattr"),
        (Asks(torch.FloatTensor, 10**9), "torch.FloatTensor"),
        (Asks(Path, "x"), "pathlib"),
        ({1, 2}, "set"),
        (torch.zeros(3).to_sparse(), "_rebuild_sparse_tensor"),
    ],
)
@pytest.mark.parametrize("place", ["model", "args", "other"])
def test_pickles_that_ask_for_anything_else_are_refused(
    tmp_path: Path, asks: object, name: str, place: str
) -> None:
    path = tmp_path / "net.pth"
    content: dict = {"model": published(TwoViewModel(LINEAR))}
    content |= {"args": argparse.Namespace(model=constructor(LINEAR), extra=asks)}
    if place == "model":
        content["model"]["enc_norm.bias"] = asks
    elif place == "other":
        content = {"model": content["model"], "other": [asks]}
    elif place == "args":
        content["args"].model = asks
    torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"asks for .*{name}.*malicious") as fault:
        load(str(path))
    assert fault.value.exit_code == 7


def rewrite(path: Path, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again, its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        entries = [(e.filename, archive.read(e)) for e in archive.infolist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)


def test_protocols_that_hide_names_are_refused(tmp_path: Path) -> None:
    # protocol 4 puts the function's name on the stack, where a scan of the text could miss it
    path = write_pth(tmp_path / "net.pth", TwoViewModel(LINEAR), constructor(LINEAR))
    hidden = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R."
    rewrite(path, lambda _: hidden)
    with pytest.raises(WeightsError, match="asks for STACK_GLOBAL"):
        load(str(path))


def test_archives_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    model = TwoViewModel(LINEAR)

    def fresh() -> Path:
        return write_pth(path, model, constructor(LINEAR))

    rewrite(fresh(), lambda pickle: pickle, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed entries"):
        load(str(path))
    rewrite(fresh(), lambda pickle: pickle + bytes(17 * 2**20))
    with pytest.raises(WeightsError, match=r"data\.pkl of \d+ bytes"):
        load(str(path))
    with zipfile.ZipFile(fresh(), "a") as archive:
        archive.writestr("other/DATA.PKL", b"")
    with pytest.raises(WeightsError, match=r"2 files data\.pkl"):
        load(str(path))
    whole = fresh().read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:-200], whole[: len(whole) // 2], b"\x80\x02}q\0."):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="damaged"):
            load(str(path))


@pytest.mark.parametrize(
    "change",
    [
        # a storage larger than its record
        lambda pickle: pickle.replace(b"K\n", b"J\xff\xff\xff\x0f"),
        lambda _: b"\x80\x02.",
        lambda _: b"\x80\x02]}b.",  # sets attributes of a list
        lambda _: b"\x80\x02X\x01\0\0\0aQ.",  # a storage without a description
        lambda _: b"\x80\x02}\x8a\xffX",  # ends within a number
    ],
)
def test_what_torch_cannot_read_is_said_in_our_words(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "net.pth"
    torch.save({"model": {"a": torch.arange(10.0)}}, path)
    rewrite(path, change)
    with pytest.raises(WeightsError, match="is damaged") as fault:
        load(str(path))
    assert "torch.load" not in str(fault.value)
    assert "weights_only" not in str(fault.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"](" + b"}" * 1_000_001 + b"e", "more than 1000000 instructions"),
        (b"}\x8b\x10\x27\0\0" + b"\x7f" * 10_000 + b"K\0s", "number of 79999 bits"),
    ],
    ids=["many objects", "a giant number as a key"],
)
def test_pickles_that_cost_much_are_refused_before_torch_reads_them(
    tmp_path: Path, body: bytes, says: str
) -> None:
    path = tmp_path / "net.pth"
    torch.save({"model": {"a": torch.arange(10.0)}}, path)
    rewrite(path, lambda _: b"\x80\x02" + body + b".")
    with pytest.raises(WeightsError, match=says):
        load(str(path))


def test_as_many_tensors_as_a_training_keeps_are_read(tmp_path: Path) -> None:
    # three for each of the 1,009 of the largest published network
    many = {f"enc_blocks.{n}.attn.qkv.weight": torch.zeros(1) for n in range(4036)}
    torch.save({"model": many}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"lacks the tensor patch_embed\.proj\.weight"):
        load(str(tmp_path / "net.pth"))


@pytest.mark.parametrize("content", [[1, 2], {"model": [1]}, {"model": {}}, {"model": None}, {}])
def test_pth_without_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="holds no"):
        load(str(tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("config.json", None, "has no config.json"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", " " * 70_000, "larger than"),
        ("model.safetensors", "{}", "damaged"),
    ],
)
def test_bad_hub_folders(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    folder = write_hub(tmp_path / "net", TwoViewModel(LINEAR))
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    with pytest.raises(WeightsError, match=says):
        load(str(folder))


def test_our_own_file_keeps_its_strictness(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save(TwoViewModel(LINEAR), path)
    path.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match=r"net\.json does not exist"):
        load(str(path))
