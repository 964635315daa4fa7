"""Batches rendered ahead come in order, are waited for by the stream that uses them, or fail."""

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from recon3d.supply import supply_of


class Cuda:
    """What the supply calls of torch.cuda, written down."""

    def __init__(self) -> None:
        self.said: list[tuple[str, object]] = []
        self.mine = SimpleNamespace(wait_event=lambda event: self.said.append(("wait", event)))

    def stream_of(self, device: torch.device, priority: int) -> SimpleNamespace:
        assert priority < 0
        numbers = iter(range(100))
        return SimpleNamespace(record_event=lambda: f"event {next(numbers)}")


class Made:
    """A batch: of its parts only the images count as a tensor."""

    def __init__(self, *, images: SimpleNamespace, number: int, shape: tuple) -> None:
        self.images = images
        self.images.number, self.images.shape = number, shape


class Numbers:
    """A source whose batches are their numbers; number 9 fails."""

    def __init__(self, cuda: Cuda, kind: str) -> None:
        self.cuda, self.device, self.served = cuda, torch.device(kind), 5
        self.threads: set[int] = set()
        self.begun: list[int] = []

    def batch(self, height: int, width: int, ease: float) -> SimpleNamespace:
        number, self.served = self.served, self.served + 1
        self.threads.add(threading.get_ident())
        self.begun.append(number)
        if number == 9:
            raise RuntimeError("no light")
        kept = SimpleNamespace(record_stream=lambda stream: self.cuda.said.append(("keep", stream)))
        return Made(images=kept, number=number, shape=(height, width, ease))


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
        first = supply.take(plan)
        assert (first.images.number, first.images.shape) == (5, (5, 10, 0.5))
        # the stream that trains waits for the rendering, and then holds on to the memory
        assert cuda.said == [("wait", "event 0"), ("keep", cuda.mine)]
        assert [supply.take(plan).images.number for _ in range(3)] == [6, 7, 8]
        with pytest.raises(RuntimeError, match="no light"):
            supply.take(plan)
    assert threading.get_ident() not in source.threads
    assert len(source.threads) == 1
    assert source.begun[-1] > 9  # two were begun when the fifth was asked for


@pytest.mark.parametrize(("kind", "ahead"), [("cpu", 2), ("cuda", 0)])
def test_at_once_where_nothing_goes_on_meanwhile(cuda: Cuda, kind: str, ahead: int) -> None:
    source = Numbers(cuda, kind)
    with supply_of(source, ahead) as supply:
        assert [supply.take(plan).images.shape for _ in range(2)] == [(5, 10, 0.5), (6, 12, 0.5)]
    assert source.begun == [5, 6]
    assert source.threads == {threading.get_ident()}
