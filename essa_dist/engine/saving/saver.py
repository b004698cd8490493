"""Saving beside training: a thread of each rank copies its part to the CPU, before the next update may change it.

Then it sends the copies to rank 0, whose thread writes whole tensors as they come, so that no rank ever holds more than
its own part and one message. Training waits only where the copy is not made when the next update is due, which is a
forward and a backward pass after the save began; buffers, which a forward pass may change, are copied at once.
"""

import copy
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from essa_dist.distributed.messages import Channel
from essa_dist.distributed.strategies.interface import Strategy
from essa_dist.engine.saving import checkpoint
from essa_dist.engine.saving.staging import BLOCK, Copying, Piece, Plan, Staging, plan
from essa_dist.engine.saving.storage import warn_if_slow
from essa_dist.engine.saving.tensorfile import DTYPES
from essa_dist.runfolder import checkpoint_folder

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long a run that ends by an error waits for the save that is under way."""
LONG_S = 1.0
"""A wait for the save before that is worth a warning."""


@dataclass
class Saved:
    """What one save took."""

    folder: Path
    bytes: int = 0
    pause_s: float = 0.0
    """Seconds that training stood still, on this rank: for the copy, or for the save before where that still ran."""
    seconds: float = 0.0
    """From when it was asked for until the checkpoint was complete."""


class Saver:
    """Writes the checkpoints of a run, one at a time. All ranks make it together and call it alike.

    An error of the background, on whatever rank, is raised on every rank by the next :meth:`save` or :meth:`wait`;
    ``failed`` says at once that there is one. Raised are OSError with the path, and RuntimeError.
    """

    def __init__(
        self,
        run: Path,
        strategy: Strategy,
        channel: Channel,
        *,
        keep: int,
        expected_s: float = 0.0,
        moved: Callable[[], object] = lambda: None,
    ) -> None:
        """``expected_s``: how long a save will take (:func:`essa_dist.engine.saving.storage.preflight`); ``moved`` is
        called in the background with every piece that is written, on rank 0.
        """
        self._moved = moved
        self.run, self.strategy, self.channel, self.keep = run, strategy, channel, keep
        self.done: list[Saved] = []
        """The saves that have ended well."""
        self._staging = Staging(
            pinned=torch.cuda.is_available() and strategy.accelerator.device.type == "cuda"
        )
        self._error: BaseException | None = None
        self._copied = threading.Event()
        self._saving: Saved | None = None
        need = bytes_of_this_rank(strategy)
        self._thread = self._start(lambda: self._staging.warm(need))
        self._expected_s, self._made = expected_s, time.perf_counter()

    @property
    def failed(self) -> bool:
        """Whether the save in the background has failed; :meth:`wait` raises why, on all ranks."""
        return self._error is not None

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread.is_alive()

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint of ``step``; raises what became of the one before.

        Until :meth:`copied` nothing but buffers may change.
        """
        self._begin(checkpoint_folder(self.run, step), state, prune=True)

    def save_apart(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write a checkpoint that is none of the run's, such as one for a post-mortem, and wait until it is there."""
        self._begin(folder, state, prune=False)
        self.wait()

    def copied(self) -> None:
        """Wait until everything is copied that the next update changes; to be called before each."""
        if self._saving is not None:
            begin = time.perf_counter()
            self._copied.wait()
            self._saving.pause_s += time.perf_counter() - begin
            self._saving = None

    def wait(self) -> None:
        """Until nothing is being written; raises what went wrong."""
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.wait()
            return
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive() or self._error is not None:
            why = self._error or "it took too long"
            log.warning("the checkpoint that was being written is not complete: %s", why)

    def _begin(self, folder: Path, state: Mapping[str, Any], *, prune: bool) -> None:
        saved, begin = Saved(folder), time.perf_counter()
        if not self.done:  # from the first one on it is known how far apart they are
            warn_if_slow(self._expected_s, begin - self._made)
            self._expected_s = 0.0
        self.wait()
        if (waited := time.perf_counter() - begin) > LONG_S and self.done:
            log.warning(
                "training waited %.1f s for the checkpoint before, which took %.1f s for %.2f GB: raise "
                "checkpoint.every, or write to a faster disk",
                waited,
                self.done[-1].seconds,
                self.done[-1].bytes / 1e9,
            )
        state = copy.deepcopy(dict(state))
        reserved = self._staging.reserve(self.strategy.parts())
        copying = Copying(self.strategy.accelerator.device)
        copying.run(one for one in reserved if _is_buffer(one[0]))
        self._copied.clear()
        self._saving = saved
        saved.pause_s = time.perf_counter() - begin

        def work() -> None:
            try:
                copying.run(one for one in reserved if not _is_buffer(one[0]))
            finally:
                self._copied.set()
            pieces = [piece for piece, _ in reserved]
            reserved.clear()
            saved.bytes = self._write(pieces, folder, state, prune=prune)
            saved.seconds = time.perf_counter() - begin
            self.done.append(saved)
            log.debug("%s: %d bytes in %.2f s", folder, saved.bytes, saved.seconds)

        self._thread = self._start(work)

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        thread = threading.Thread(target=run, name="save", daemon=True)  # a process that must end can
        thread.start()
        return thread

    def _write(self, pieces: list[Piece], folder: Path, state: Mapping[str, Any], *, prune: bool) -> int:
        """In the background of every rank: give to rank 0, which writes. The number of bytes."""
        channel = self.channel
        described = channel.gather([piece.describe() for piece in pieces])
        shapes, trained = self.strategy.shapes(), self.strategy.objective.branches.students
        made: list[Plan] = []
        channel.together(lambda: made.append(plan(described, shapes, trained)))
        if channel.rank > 0:
            for piece in pieces:
                channel.send(piece.values, 0)

        def write() -> int:
            stream = self._stream(pieces, made[0])
            try:
                if not prune:
                    folder.parent.mkdir(exist_ok=True)
                checkpoint.sweep(self.run)
                n_bytes = checkpoint.write(
                    folder, made[0].tensors, lambda file: islice(stream, len(made[0].order[file])), state
                )
            finally:
                deque(stream, maxlen=0)  # after an error too, for the other ranks go on sending
            if prune:
                checkpoint.prune(self.run, self.keep)
            return n_bytes

        return channel.together(write)

    def _stream(self, pieces: list[Piece], plan: Plan) -> Iterator[Tensor]:
        """On rank 0 all pieces as they lie in the files; each holds until the next one."""
        channel = self.channel
        message = torch.empty(BLOCK, dtype=torch.uint8) if channel.world > 1 else torch.empty(0)
        for place in chain.from_iterable(plan.order.values()):
            self._moved()
            if place.rank == 0:
                yield pieces[place.number].values
            else:
                dtype = DTYPES[place.dtype]
                received = message[: place.numel * dtype.itemsize].view(dtype)
                channel.receive(received, place.rank)
                yield received


def _is_buffer(piece: Piece) -> bool:
    return piece.name.startswith("buffers/")


def bytes_of_this_rank(strategy: Strategy) -> int:
    """What this rank gives to a checkpoint when all of its tensors were stepped; padding comes on top."""
    sizes: Counter[str] = Counter()
    for part in strategy.parts():
        sizes[part.name.partition("/")[0]] += part.values.nbytes + 16
    return sizes.total() - sizes["optimizer"] + max(sizes["optimizer"], 2 * sizes["student"])
