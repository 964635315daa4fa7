import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon3d.config import PRESETS, HeadType, ModelConfig, Precision, PredictConfig
from recon3d.errors import ResourceError, UsageError
from recon3d.model import TwoViewModel, TwoViewOutput
from recon3d.predict import (
    _Runner,
    encode_views,
    predict_encoded,
    predict_pairs,
    resolve_device,
    resolve_precision,
)
from recon3d.retrieval import pooled_similarity
from recon3d.types import PairPrediction, View

FP32 = PredictConfig(device="cpu", precision=Precision.FP32)
COMPLETE = [(i, j) for i in range(5) for j in range(i + 1, 5)]
LANDSCAPE, PORTRAIT = (32, 48), (48, 32)


@pytest.fixture
def model() -> TwoViewModel:
    torch.manual_seed(0)
    return TwoViewModel(PRESETS["tiny"])


@pytest.fixture
def views() -> tuple[View, ...]:
    """Three landscapes and two portraits, mixed."""
    generator = torch.Generator().manual_seed(1)
    sizes = (LANDSCAPE, PORTRAIT, LANDSCAPE, PORTRAIT, LANDSCAPE)
    return tuple(
        View(
            name=f"{index}.jpg",
            sha256=str(index) * 64,
            image=torch.rand(3, *size, generator=generator) * 2 - 1,
            photo2view=torch.eye(3),
            photo_width=size[1],
            photo_height=size[0],
            focal_px=None,
        )
        for index, size in enumerate(sizes)
    )


def config(**changes: object) -> PredictConfig:
    return PredictConfig(**({"device": "cpu", "precision": Precision.FP32} | changes))


def maps(prediction: PairPrediction) -> tuple[Tensor, ...]:
    return (
        prediction.pointmap_i_in_i,
        prediction.confidence_i,
        prediction.pointmap_j_in_i,
        prediction.confidence_j,
    )


def by_pair(predictions: list[PairPrediction]) -> dict[tuple[int, int], tuple[Tensor, ...]]:
    found = {(each.i, each.j): maps(each) for each in predictions}
    assert len(found) == len(predictions)
    return found


def wrap(
    monkeypatch: pytest.MonkeyPatch,
    model: TwoViewModel,
    name: str,
    before: Callable[[Tensor], None],
    after: Callable[[object], object] = lambda result: result,
) -> None:
    """Call `before` with the first argument of a method of the model, `after` with its result."""
    method = getattr(model, name)

    def wrapped(batch: Tensor, *rest: object, **options: object) -> object:
        before(batch)
        return after(method(batch, *rest, **options))

    monkeypatch.setattr(model, name, wrapped)


def test_every_view_is_encoded_exactly_once(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch
):
    seen: list[Tensor] = []
    wrap(monkeypatch, model, "encode", seen.extend)
    predictions = list(predict_pairs(model, views, COMPLETE, FP32))
    assert len(predictions) == 20
    assert len(seen) == 5
    for view in views:
        assert sum(torch.equal(view.image, image) for image in seen) == 1


def test_a_view_without_a_pair_is_not_encoded(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch
):
    seen: list[Tensor] = []
    wrap(monkeypatch, model, "encode", seen.extend)
    assert len(list(predict_pairs(model, views, [(1, 4)], FP32))) == 2
    assert len(seen) == 2
    assert list(predict_pairs(model, views, [], FP32)) == []


def test_results_equal_the_network_run_pair_by_pair(model: TwoViewModel, views: tuple[View, ...]):
    found = by_pair(list(predict_pairs(model, views, COMPLETE, config(batch_size=3))))
    assert set(found) == {(i, j) for i in range(5) for j in range(5) if i != j}
    for (i, j), predicted in found.items():
        grids = [(views[k].image.shape[1] // 16, views[k].image.shape[2] // 16) for k in (i, j)]
        with torch.no_grad():
            tokens = [model.encode(views[k].image[None]) for k in (i, j)]
            output = model.decode(*tokens, *grids)
        maps = [values for values in output if values is not None]
        for half, full in zip(predicted, maps, strict=True):
            assert half.dtype == torch.float16
            assert half.device.type == "cpu"
            torch.testing.assert_close(half.float(), full[0], rtol=2e-3, atol=1e-4)


def test_descriptors_are_passed_on_where_the_network_gives_them(views: tuple[View, ...]):
    sizes = ModelConfig(enc_dim=32, enc_depth=1, enc_heads=1, dec_dim=32, dec_depth=2, dec_heads=1)
    small = replace(sizes, head=HeadType.CATMLP_DPT, descriptor_dim=4, dpt_layer_dims=(4, 4, 4, 4))
    network = TwoViewModel(replace(small, dpt_feature_dim=8, dpt_last_dim=4)).eval()
    for predicted in predict_pairs(network, views, [(0, 1)], FP32):
        i, j = predicted.i, predicted.j
        grids = [(views[k].image.shape[1] // 16, views[k].image.shape[2] // 16) for k in (i, j)]
        with torch.no_grad():
            tokens = [network.encode(views[k].image[None]) for k in (i, j)]
            output = network.decode(*tokens, *grids)
        for name in ("descriptors", "descriptor_confidence"):
            for side in ("i", "j"):
                half = getattr(predicted, f"{name}_{side}")
                assert half.dtype == torch.float16
                full = getattr(output, f"{name}_{side}")[0]
                torch.testing.assert_close(half.float(), full, rtol=2e-3, atol=1e-3)
    plain = TwoViewModel(sizes).eval()
    assert next(predict_pairs(plain, views, [(0, 1)], FP32)).descriptors_i is None


def test_what_a_head_makes_of_one_view_is_made_once(views: tuple[View, ...]):
    small = ModelConfig(enc_dim=32, enc_depth=1, enc_heads=1, dec_dim=32, dec_depth=2, dec_heads=1)
    small = replace(small, head=HeadType.DPT, dpt_layer_dims=(4, 4, 4, 4))
    network = TwoViewModel(replace(small, dpt_feature_dim=8, dpt_last_dim=4)).eval()
    made: list[Tensor] = []
    for head in (network.downstream_head1, network.downstream_head2):
        head.dpt.act_postprocess[0].register_forward_hook(lambda _, given, out: made.extend(out))
    found = by_pair(list(predict_pairs(network, views, COMPLETE, config(batch_size=8))))
    assert len(made) == 10  # of 5 views for 2 heads, not of 40 for 20 ordered pairs
    # a pair by itself makes all it needs
    for i, j in COMPLETE:
        alone = by_pair(list(predict_pairs(network, views, [(i, j)], FP32)))
        for pair in ((i, j), (j, i)):
            for a, b in zip(found[pair], alone[pair], strict=True):
                torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4)


def test_batched_equals_one_by_one(model: TwoViewModel, views: tuple[View, ...]):
    batched = list(predict_pairs(model, views, COMPLETE, config(batch_size=8)))
    single = list(predict_pairs(model, views, COMPLETE, config(batch_size=1)))
    for first, second in zip(batched, single, strict=True):
        assert (first.i, first.j) == (second.i, second.j)
        for a, b in zip(maps(first), maps(second), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4)


def test_results_come_by_shape_bucket_in_the_order_of_the_pairs(
    model: TwoViewModel, views: tuple[View, ...]
):
    pairs = [(4, 0), (0, 1), (3, 1), (0, 2)]
    order = [(each.i, each.j) for each in predict_pairs(model, views, pairs, FP32)]
    both_landscape = [(4, 0), (0, 4), (0, 2), (2, 0)]
    assert order == [*both_landscape, (0, 1), (1, 0), (3, 1), (1, 3)]


def test_results_are_streamed_and_nothing_leaks_into_the_consumer(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []
    wrap(monkeypatch, model, "decode", lambda batch: calls.append(len(batch)))
    stream = predict_pairs(
        model, views, [(0, 2), (0, 4), (2, 4)], config(batch_size=2, precision=Precision.BF16)
    )
    assert calls == []
    first = next(stream)
    assert calls == [2]
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    # the aligner may differentiate with what it gets
    weight = torch.ones((), dtype=torch.float16, requires_grad=True)
    (weight * first.pointmap_i_in_i).sum().backward()
    assert weight.grad is not None
    assert len(list(stream)) == 5
    assert calls == [2, 2, 2]


def test_bf16_is_close_to_fp32(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch
):
    exact = by_pair(list(predict_pairs(model, views, COMPLETE, FP32)))
    types = set()
    wrap(monkeypatch, model, "decode", lambda tokens: types.add(tokens.dtype))
    half = by_pair(list(predict_pairs(model, views, COMPLETE, config(precision=Precision.BF16))))
    assert types == {torch.bfloat16}
    for pair, expected in exact.items():
        for a, b in zip(half[pair], expected, strict=True):
            error = (a.float() - b.float()).norm() / b.float().norm()
            assert 0 < error < 0.05


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_the_batch_is_halved_until_it_fits(
    model: TwoViewModel,
    views: tuple[View, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    fault: BaseException,
):
    expected = by_pair(list(predict_pairs(model, views, COMPLETE, config(batch_size=1))))
    sizes: list[int] = []

    def only_one_fits(batch: Tensor) -> None:
        sizes.append(len(batch))
        if len(batch) > 1:
            raise fault

    wrap(monkeypatch, model, method, only_one_fits)
    found = by_pair(list(predict_pairs(model, views, COMPLETE, config(batch_size=6))))
    # six pairs, three landscapes: 3 -> 1, 6 -> 3 -> 1, and from then on one at a time
    tried = [size for size in sizes if size > 1]
    assert tried == ([3] if method == "encode" else [6, 3])
    assert sizes.count(1) == (5 if method == "encode" else 20)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(tried)
    assert set(found) == set(expected)
    for pair, tensors in found.items():
        for a, b in zip(tensors, expected[pair], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_a_single_pair_that_does_not_fit_is_a_resource_error(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch, method: str
):
    def full(batch: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    wrap(monkeypatch, model, method, full)
    with pytest.raises(
        ResourceError, match=r"does not fit .* memory of cpu\. Use a smaller --size"
    ):
        list(predict_pairs(model, views, COMPLETE, FP32))
    assert ResourceError.exit_code == 6


def test_a_network_that_does_not_fit_is_a_resource_error(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch
):
    def full(device: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "to", full)
    with pytest.raises(ResourceError, match="the network does not fit"):
        predict_pairs(model, views, COMPLETE, FP32)


def test_any_other_fault_of_the_network_passes(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch
):
    def fault(batch: Tensor) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    wrap(monkeypatch, model, "decode", fault)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(predict_pairs(model, views, COMPLETE, FP32))


def test_values_beyond_fp16_are_cut_off_and_non_finite_ones_kept_with_one_warning(
    model: TwoViewModel,
    views: tuple[View, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def spoil(output: object) -> object:
        assert isinstance(output, TwoViewOutput)
        points = output.pointmap_i.clone()
        points[:, 0, 0] = torch.tensor([1e6, -1e6, torch.nan])
        points[:, 0, 1] = torch.tensor([torch.inf, -torch.inf, 2.0])
        return output._replace(pointmap_i=points)

    wrap(monkeypatch, model, "decode", lambda _: None, spoil)
    with caplog.at_level(logging.WARNING, logger="recon3d.predict"):
        predictions = list(predict_pairs(model, views, COMPLETE, config(batch_size=1)))
    assert len(predictions) == 20
    expected = torch.tensor([[65504, -65504, torch.nan], [torch.inf, -torch.inf, 2.0]])
    for prediction in predictions:
        found = prediction.pointmap_i_in_i[0, :2].float()
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert prediction.pointmap_i_in_i[1:].isfinite().all()
    assert [record.message for record in caplog.records] == [
        "the network gave values that are not finite; they are ignored"
    ]


def test_progress_counts_views_and_ordered_pairs(model: TwoViewModel, views: tuple[View, ...]):
    told: list[tuple[str, int, int]] = []
    pairs = [(0, 1), (0, 2)]
    stream = predict_pairs(
        model, views, pairs, config(batch_size=2), track=lambda *step: told.append(step)
    )
    assert len(list(stream)) == 4
    assert told == [
        ("encode", 2, 3),
        ("encode", 3, 3),
        ("pairs", 1, 4),
        ("pairs", 2, 4),
        ("pairs", 4, 4),
    ]


@pytest.mark.parametrize("pairs", [[(0, 0)], [(0, 5)], [(-1, 0)], [(0, 1), (1, 0)]])
def test_what_is_no_pair_is_refused_at_once(
    model: TwoViewModel, views: tuple[View, ...], pairs: list[tuple[int, int]]
):
    with pytest.raises(ValueError, match="pair"):
        predict_pairs(model, views, pairs, FP32)


def test_a_batch_of_nothing_is_refused(model: TwoViewModel, views: tuple[View, ...]):
    with pytest.raises(UsageError, match="batch size 0 must be at least 1"):
        predict_pairs(model, views, COMPLETE, config(batch_size=0))


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(False, False, "cpu"), (False, True, "mps"), (True, True, "cuda"), (True, False, "cuda")],
)
def test_auto_takes_the_best_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
):
    tried: list[torch.device] = []
    zeros = torch.zeros

    def on_any_device(size: int, *, device: torch.device) -> Tensor:
        tried.append(device)
        return zeros(size)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "zeros", on_any_device)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert tried == [torch.device(expected), torch.device("cuda", 1)]


@pytest.mark.parametrize("name", ["gpu:0", "", "cuda:x", "meta", "xla", "cpu cuda"])
def test_an_unknown_device_is_a_usage_error(name: str):
    with pytest.raises(UsageError, match=r"is unknown\. Use auto, cpu, cuda, cuda:1 or mps\.$"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "mps:7"])
def test_an_unusable_device_is_a_usage_error_of_one_line(name: str):
    with pytest.raises(UsageError, match=f"the device '{name}' cannot be used: ") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Use --device auto or cpu.")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
        (None, None, torch.float32),  # a torch that cannot tell
    ],
)
def test_auto_precision_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, amx: bool | None, avx512: bool | None, expected: torch.dtype
):
    for name, value in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", avx512)):
        if value is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    assert resolve_precision(Precision.AUTO, torch.device("cpu")) == expected


def test_named_precisions():
    cpu = torch.device("cpu")
    assert resolve_precision(Precision.FP32, cpu) == torch.float32
    assert resolve_precision(Precision.BF16, cpu) == torch.bfloat16
    assert resolve_precision(Precision.FP16, torch.device("cuda")) == torch.float16
    assert resolve_precision(Precision.AUTO, torch.device("mps")) == torch.float16
    with pytest.raises(UsageError, match="fp16 does not work on the CPU"):
        resolve_precision(Precision.FP16, cpu)


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_cpu(model: TwoViewModel, views: tuple[View, ...]):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = by_pair(list(predict_pairs(model, views, COMPLETE, FP32)))
    found = by_pair(list(predict_pairs(model, views, COMPLETE, config(device="cuda"))))
    for pair, tensors in found.items():
        for a, b in zip(tensors, expected[pair], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_encoding_then_predicting_is_the_same_as_both_at_once(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch
):
    told: list[tuple[str, int, int]] = []
    at_once = by_pair(list(predict_pairs(model, views, [(0, 1), (2, 4)], FP32)))
    encoded = encode_views(model, views, FP32, track=lambda *step: told.append(step))
    assert told == [("encode", 3, 5), ("encode", 5, 5)]
    assert list(encoded.tokens) == [0, 1, 2, 3, 4]
    assert encoded.grids == ((2, 3), (3, 2), (2, 3), (3, 2), (2, 3))
    # between the two, the tokens say which photos look alike
    similarity = pooled_similarity(list(encoded.tokens.values()))
    assert similarity.shape == (5, 5)

    def no_second_time(batch: Tensor) -> None:
        raise AssertionError("encoded again")

    wrap(monkeypatch, model, "encode", no_second_time)
    in_turn = by_pair(list(predict_encoded(model, encoded, [(0, 1), (2, 4)], FP32)))
    assert in_turn.keys() == at_once.keys()
    for pair, tensors in in_turn.items():
        for a, b in zip(tensors, at_once[pair], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4)


def test_tokens_may_come_from_elsewhere_in_another_type(
    model: TwoViewModel, views: tuple[View, ...]
):
    encoded = encode_views(model, views, config(precision=Precision.BF16, tokens_on_host=True))
    assert {tokens.dtype for tokens in encoded.tokens.values()} == {torch.bfloat16}
    assert {tokens.device.type for tokens in encoded.tokens.values()} == {"cpu"}
    exact = by_pair(list(predict_pairs(model, views, [(0, 1)], FP32)))
    found = by_pair(list(predict_encoded(model, encoded, [(0, 1)], FP32)))
    for pair, tensors in found.items():
        for a, b in zip(tensors, exact[pair], strict=True):
            assert (a.float() - b.float()).norm() < 0.05 * b.float().norm()


def test_a_pair_of_a_view_that_is_not_encoded_is_refused(
    model: TwoViewModel, views: tuple[View, ...]
):
    encoded = encode_views(model, views[:2], FP32)
    with pytest.raises(ValueError, match=r"\(0, 2\) is no pair of the 2 views"):
        predict_encoded(model, encoded, [(0, 2)], FP32)


@pytest.mark.parametrize("overlaps", [False, True])
def test_on_a_device_that_works_by_itself_the_next_batch_is_under_way(
    model: TwoViewModel, views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch, overlaps: bool
):
    """Only the order is tested here; the copies need a GPU."""
    events: list[str] = []
    wrap(monkeypatch, model, "decode", lambda batch: events.append("decode"))
    runner = _Runner(model, [(2, 3)] * 5, config(batch_size=2))
    encoded = runner.encode(views, range(5), lambda *step: None)

    if overlaps:
        runner.overlaps = True
        waits = lambda device: lambda: events.append("wait")  # noqa: E731
        monkeypatch.setattr("recon3d.predict._end_of_queue", waits)
    for _ in runner.predict(encoded, [(0, 2), (0, 4), (2, 4)], lambda *step: None):
        events.append("use")
    use = ["use", "use"]
    if overlaps:
        assert events == ["decode", "decode", "wait", *use, "decode", "wait", *use, "wait", *use]
    else:
        assert events == ["decode", *use] * 3


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_fp32_is_exact_where_it_is_asked_for_and_fast_elsewhere(
    precision: Precision, model: TwoViewModel, views: tuple[View, ...]
):
    """What CUDA may round to TF32; torch's own default rounds convolutions in either case."""
    seen = []

    def look(*_: object) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    model.patch_embed.register_forward_hook(look)
    model.downstream_head1.register_forward_hook(look)
    list(predict_pairs(model, views, [(0, 1)], config(precision=precision)))
    rounds = precision is not Precision.FP32
    assert set(seen) == {(rounds, rounds)}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
