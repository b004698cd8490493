"""The next batch reaches the device while the present step computes."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import fields
from queue import Empty, Full, Queue
from typing import Any, NamedTuple, TypeVar

import torch

from essa_dist.data.batch import TrainingBatch

B = TypeVar("B", bound=TrainingBatch)

POLL_S = 0.1
"""How soon the background thread notices that its reader has gone."""
GIVE_UP_S = 5.0
"""How long its reader, when it goes, waits for a thread that waits for workers: theirs may be a server that is down."""


class _Ready(NamedTuple):
    batch: Any
    copied: torch.cuda.Event | None


class _Ended(NamedTuple):
    error: BaseException | None


def prefetch(
    batches: Generator[B, None, None],
    move: Callable[[B], B],
    device: torch.device,
    *,
    threaded: bool | None = None,
) -> Generator[B, None, None]:
    """``move(batch)`` of each batch, one batch ahead of the reader.

    ``threaded`` (None: on CUDA): a thread waits for the workers and copies on a stream of its own, so neither the wait
    nor the copy stands in the way of a step that is being computed. On a CPU a thread would only take cores from it.
    Closing the generator closes ``batches``; an error of theirs is raised in the order of the batches.
    """
    if not (device.type == "cuda" if threaded is None else threaded):
        with closing(batches):
            for batch in batches:
                yield move(batch)
        return
    ready: Queue[_Ready | _Ended] = Queue(maxsize=1)
    stop = threading.Event()
    worker = threading.Thread(
        target=_work, args=(batches, move, device, ready, stop), name="prefetch", daemon=True
    )
    worker.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _Ended):
                if item.error is not None:
                    raise item.error
                return
            if item.copied is not None:
                _hand_over(item.batch, item.copied)
            yield item.batch
    finally:
        stop.set()
        end = time.monotonic() + GIVE_UP_S
        while (
            worker.is_alive() and time.monotonic() < end
        ):  # it may be about to put a batch that nobody will take
            _drain(ready)
            worker.join(POLL_S)


def _work(
    batches: Generator[B, None, None],
    move: Callable[[B], B],
    device: torch.device,
    ready: "Queue[_Ready | _Ended]",
    stop: threading.Event,
) -> None:
    error: BaseException | None = None
    try:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with closing(batches), torch.cuda.stream(stream):  # None: does nothing
            for batch in batches:
                moved = move(batch)
                copied = None if stream is None else stream.record_event()
                if not _put(ready, _Ready(moved, copied), stop):
                    return
    except BaseException as caught:  # KeyboardInterrupt too: the reader decides what an error means
        error = caught
    _put(ready, _Ended(error), stop)


def _put(ready: "Queue[_Ready | _Ended]", item: _Ready | _Ended, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=POLL_S)
            return True
        except Full:
            continue
    return False


def _drain(ready: "Queue[_Ready | _Ended]") -> None:
    with suppress(Empty):
        ready.get_nowait()


def _hand_over(batch: Any, copied: torch.cuda.Event) -> None:
    """The reader's stream waits for the copy, and its memory isn't given to another tensor before that stream is done."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor) and value.is_cuda:
            value.record_stream(current)
