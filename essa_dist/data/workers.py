"""The loader's worker processes: how many, how they start, and what is said when one dies."""

import atexit
import gc
import os
import signal
import threading
from collections.abc import Generator, Iterator
from typing import Any, Generic, TypeVar

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader

from essa_dist.errors import DataError

Item = TypeVar("Item")

GRACE_S = 2.0
"""For workers to end by themselves."""


class Work(Generic[Item]):
    """What a DataLoader's workers make, until it is closed; one pass at a time."""

    def __init__(self, loader: DataLoader[Item]) -> None:
        self._loader = loader
        self._running: Iterator[Item] | None = None

    def items(self) -> Generator[Item, None, None]:
        """A pass from the start; ends one that is under way. DataError where a worker was killed."""
        self.close()
        running = self._running = iter(self._loader)
        # Before multiprocessing's own hook, which would wait for the workers for ever.
        atexit.register(self.close)
        try:
            yield from explain_deaths(running)
        finally:
            if self._running is running:  # else another pass was asked for since
                self.close()

    def close(self) -> None:
        """End the workers. Happens by itself when :meth:`items` ends, is closed or the program exits."""
        atexit.unregister(self.close)
        running, self._running = self._running, None
        end_workers(running)


def auto_workers() -> int:
    """The rank's share of the machine's CPU cores, 1 to 16."""
    cores = len(os.sched_getaffinity(0))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return min(16, max(1, cores // ranks_here))


def begin_worker(_worker: int) -> None:
    """Runs first in every worker.

    Ctrl-C and SIGTERM reach the whole process group; only the main process may decide to stop. What was inherited is
    never collected here: objects of a library with threads, such as a DALI pipeline, would wait for threads that a
    fork does not have.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()


def explain_deaths(items: Iterator[Item]) -> Iterator[Item]:
    """``items``; DataError instead of torch's report where a worker was killed."""
    try:
        yield from items
    except (RuntimeError, OSError, EOFError) as error:  # the last two: its end of a pipe is gone
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a data worker was killed, most often for want of memory or of shared memory (/dev/shm): "
            "lower data.workers or data.prefetch, or give the container more"
        ) from error


def end_workers(items: Any) -> None:
    """End the processes behind a DataLoader's iterator, if there are any; within GRACE_S and a little.

    Not by dropping the iterator: a kept traceback may hold it, and the workers don't heed SIGTERM. One that waits for
    a server or a disk that doesn't answer is killed: torch would wait for 5 s for each, and leave it behind.
    """
    shutdown = getattr(items, "_shutdown_workers", None)
    if shutdown is None:
        return
    if items._worker_pids_set:  # else torch's handler of dead children would raise
        _remove_worker_pids(id(items))
        items._worker_pids_set = False
    killer = threading.Timer(GRACE_S, lambda: [worker.kill() for worker in items._workers])
    killer.start()
    try:
        shutdown()
    finally:
        killer.cancel()


def as_it_is(item: Any) -> Any:
    """For DataLoader's ``collate_fn``: a request is a whole batch already."""
    return item
