"""The loader's worker processes: how many, how they start, and what is said when one dies."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing.util import get_temp_dir
from types import FrameType
from typing import Any, Generic, Literal, TypeVar

from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader

from essa_dist.errors import DataError, UsageError
from essa_dist.parent import tell_of_parents_death

Item = TypeVar("Item")

GRACE_S = 2.0
"""For workers to end by themselves."""
LONGEST_TMPDIR = 107 - len("/pymp-12345678/listener-12345678")
"""Characters; unix(7) has 107 for the whole name."""
LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Signals by which terminals, launchers and schedulers stop a whole process group."""


class Work(Generic[Item]):
    """What a DataLoader's workers make, until it is closed; one pass at a time."""

    def __init__(self, loader: DataLoader[Item]) -> None:
        self._loader = loader
        self._running: Iterator[Item] | None = None

    def items(self) -> Generator[Item, None, None]:
        """A pass from the start; ends one that is under way. DataError where a worker was killed."""
        self.close()
        _check_socket_paths()
        if self._loader.num_workers:
            get_temp_dir()  # one that this process removes: a worker that is killed leaves its sockets in it
        with _signals_held():
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


def count_workers(asked: int | Literal["auto"]) -> int:
    """How many there are to be; auto: the rank's share of the machine's CPU cores, 1 to 16."""
    if asked != "auto":
        return asked
    cores = len(os.sched_getaffinity(0))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return min(16, max(1, cores // ranks_here))


def begin_worker(_worker: int) -> None:
    """Runs first in every worker.

    Signals to stop reach the whole process group; only the main process may decide to stop. What was inherited is
    never collected here: objects of a library with threads, such as a DALI pipeline, would wait for threads that a
    fork does not have.
    """
    for number in LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:  # else the signal is somebody else's
            shutil.rmtree(get_temp_dir(), ignore_errors=True)
            os._exit(1)

    # A worker holds copies of the rank's sockets: as long as it lives, other ranks don't see that the rank has died.
    # torch's own workers look every 5 s.
    signal.signal(signal.SIGUSR2, leave)
    tell_of_parents_death(signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)
    gc.freeze()


def _check_socket_paths() -> None:
    """Batches come by sockets in the temporary folder; where their names get too long a worker would hang, unheard."""
    if len(folder := tempfile.gettempdir()) > LONGEST_TMPDIR:
        raise UsageError(
            f"TMPDIR={folder} is too long for the names of sockets: set TMPDIR to a path of at most {LONGEST_TMPDIR} "
            "characters, or data.workers=0"
        )


@contextmanager
def _signals_held() -> Iterator[None]:
    """Processes started within are deaf to LEFT_TO_PARENT from birth on; this one hears them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        for worker in items._workers:  # a signal may have cut the shutdown short
            worker.kill()


def as_it_is(item: Any) -> Any:
    """For DataLoader's ``collate_fn``: a request is a whole batch already."""
    return item
