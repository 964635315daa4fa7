"""Batches rendered ahead come in order, are waited for by the stream that uses them, or fail."""

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import Tensor

from fake_device import fake_device
from recon3d.batches import Batch, Source
from recon3d.supply import supply_of, training_source
from recon3d.train_config import LoopConfig


class Cuda:
    """What the supply calls of torch.cuda, written down."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []
        self.mine = SimpleNamespace(wait_event=lambda event: self.said.append(("wait", event)))

    def stream_of(self, device: torch.device, priority: int) -> SimpleNamespace:
        assert priority < 0
        numbers = iter(range(100))
        return SimpleNamespace(record_event=lambda: f"event {next(numbers)}")


class Kept(Tensor):
    """Writes down which stream its memory is kept for."""

    said: list[tuple[str, object]]

    def record_stream(self, stream: object) -> None:
        self.said.append(("keep", stream))


class Numbers(Source):
    """A source whose images hold the number of the batch and its ease; number 9 fails."""

    def __init__(self, cuda: Cuda, kind: str) -> None:
        self.cuda, self.device, self.served = cuda, torch.device(kind), 5
        self.threads: set[int] = set()
        self.begun: list[int] = []
        self.seven = threading.Event()

    def batch(self, height: int, width: int, ease: float = 1.0) -> Batch:
        number, self.served = self.served, self.served + 1
        self.threads.add(threading.get_ident())
        self.begun.append(number)
        if number == 7:
            self.seven.set()
        if number == 9:
            raise RuntimeError("no light")

        def kept(*shape: int) -> Kept:
            tensor = torch.full(shape, number + ease).as_subclass(Kept)
            tensor.said = self.cuda.said
            return tensor

        return Batch(
            images=kept(1, 1, 3, height, width),
            depth=kept(1, 1, height, width),
            points_in_cam=kept(1, 1, height, width, 3),
            cam2world=kept(1, 1, 4, 4),
            intrinsics=kept(1, 1, 3, 3),
        )


def told(batch: Batch) -> tuple[float, tuple[int, ...]]:
    """Return number and ease together, and the shape."""
    return float(batch.images.flatten()[0]), tuple(batch.images.shape[-2:])


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    here = Cuda()
    with mock.patch.multiple(
        torch.cuda,
        Stream=here.stream_of,
        stream=lambda stream: contextlib.nullcontext(),
        current_stream=lambda device: here.mine,
    ):
        yield here


def plan(number: int) -> tuple[int, int, float]:
    return number, 2 * number, 0.5


def test_in_turn_and_ahead(cuda: Cuda) -> None:
    source = Numbers(cuda, "cuda")
    with supply_of(source, 2) as supply:
        assert told(supply.take(plan)) == (5.5, (5, 10))
        assert source.seven.wait(30)  # begun, though nobody has taken the sixth
        # the stream that trains waits for the rendering, and then holds on to the memory
        assert cuda.said == [("wait", "event 0"), *[("keep", cuda.mine)] * 5]
        assert [told(supply.take(plan))[0] for _ in range(3)] == [6.5, 7.5, 8.5]
        with pytest.raises(RuntimeError, match="no light"):
            supply.take(plan)
    assert threading.get_ident() not in source.threads
    assert len(source.threads) == 1
    assert source.begun[:5] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(("kind", "ahead"), [("cpu", 2), ("cuda", 0)])
def test_at_once_where_nothing_goes_on_meanwhile(cuda: Cuda, kind: str, ahead: int) -> None:
    source = Numbers(cuda, kind)
    with supply_of(source, ahead) as supply:
        assert [told(supply.take(plan)) for _ in range(2)] == [(5.5, (5, 10)), (6.5, (6, 12))]
    assert source.begun == [5, 6]
    assert source.threads == {threading.get_ident()}


@pytest.mark.parametrize(
    ("kind", "ahead", "drawn"), [("cuda", 2, 8), ("cuda", 0, 1), ("cpu", 2, 1)]
)
def test_scenes_are_drawn_together_where_batches_are_rendered_ahead(
    kind: str, ahead: int, drawn: int
) -> None:
    with fake_device():
        source = training_source(LoopConfig(render_ahead=ahead), torch.device(kind), seed=1)
        assert source.drawn_at_once == drawn
