"""Batches in turn: on CUDA rendered ahead by a thread of its own, elsewhere when asked for.

The thread launches on a stream of its own, so that neither the device nor the loop that trains
waits for the many small steps in which worlds and cameras are drawn.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from recon3d.batches import Batch, Source
from recon3d.train_config import LoopConfig

Plan = Callable[[int], tuple[int, int, float]]
"""Height, width and ease of the batch of a number."""

_DRAWN_AT_ONCE = 8
"""Of 48 scenes each: 9 ms of a processor a batch, against 49 one by one, in which Python has no
time for the steps of the training."""


def training_source(config: LoopConfig, device: torch.device, seed: int, rank: int = 0) -> Source:
    """Return a source for a supply: where it renders ahead, scenes are drawn ahead as well."""
    ahead = device.type == "cuda" and config.render_ahead > 0
    return Source(config, device, seed, rank, drawn_at_once=_DRAWN_AT_ONCE if ahead else 1)


class Supply:
    """The batches of a source, from the one it stands at; `ahead` is how many are begun early."""

    def __init__(self, source: Source, ahead: int) -> None:
        self.source, self.device = source, source.device
        self._asked = source.served
        self._coming: deque[Future[tuple[Batch, Any]]] = deque()
        self._ahead = ahead if self.device.type == "cuda" else 0
        self._thread: ThreadPoolExecutor | None = None
        if self._ahead > 0:
            self._thread = ThreadPoolExecutor(1, "rendering")
            # its kernels are few and short, and the thread waits for some of them: they go first
            self._stream = torch.cuda.Stream(self.device, priority=-1)

    def take(self, plan: Plan) -> Batch:
        """Return the next batch. `plan` is asked about it, or about batches that come later.

        Raises whatever rendering raised.
        """
        if self._thread is None:
            return self.source.batch(*plan(self.source.served))
        while len(self._coming) <= self._ahead:
            self._coming.append(self._thread.submit(self._render, *plan(self._asked)))
            self._asked += 1
        batch, rendered = self._coming.popleft().result()
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(rendered)
        for tensor in vars(batch).values():
            tensor.record_stream(stream)  # its memory is free once this stream is done with it
        return batch

    def _render(self, height: int, width: int, ease: float) -> tuple[Batch, Any]:
        """Return a batch and the event at which it is there."""
        with torch.cuda.stream(self._stream):
            batch = self.source.batch(height, width, ease)
            return batch, self._stream.record_event()

    def close(self) -> None:
        """Forget what is not taken and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


@contextlib.contextmanager
def supply_of(source: Source, ahead: int) -> Iterator[Supply]:
    """Supply the batches of a source for the length of the block."""
    supply = Supply(source, ahead)
    try:
        yield supply
    finally:
        supply.close()
