"""Sources to samples in several processes: results in order, memory bounded, a crash of a decoder survived.

Processes, because decoders written in Python hold the interpreter lock. They are started as programs of their own, not
forked (threads of torch or Arrow don't survive that) and not by multiprocessing (which would run the user's script
again in each).
"""

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

from essa_dist.errors import DataError, EssaError
from essa_dist.packing.samples import Made, Recipe, Refused, make_samples, quiet
from essa_dist.packing.source import Source

Item = Made | Refused

AHEAD = 16
"""Sources for each worker that may be finished before their turn."""
BUFFER = 256 * 2**20
"""Bytes of finished samples that wait for their turn; the source whose turn it is may always go on."""
MESSAGE = 2**20
"""Bytes of samples that a worker collects before it sends them: a volume of many slices must not fill its memory."""
QUEUED = 2
"""Sources sent to a worker at once, so that it never waits for the next one."""

_HEADER = struct.Struct("<q?")  # number of the source; whether it is done
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


def in_process(sources: Sequence[Source], how: Recipe, start: int = 0) -> Iterator[tuple[int, Item]]:
    """Number and samples of the sources from ``start`` on, in order, made by this process."""
    with quiet():
        for number in range(start, len(sources)):
            for item in make_samples(sources[number], how):
                yield number, item


class _Worker(NamedTuple):
    process: "subprocess.Popen[bytes]"
    connection: "Connection[Any, Any]"
    assigned: deque[int]
    """Sources sent to it, in order; it is at the first."""


class Workers:
    """``count`` processes, and what they have finished. A context manager; ``run`` may be called once."""

    def __init__(self, count: int, how: Recipe) -> None:
        self._count, self._how = count, how
        self._workers: list[_Worker] = []
        self._arrived: dict[int, deque[bytes]] = defaultdict(deque)  # pickled lists of items, in order
        self._done: set[int] = set()
        self._buffered = 0
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        """Of all workers: what decoders written in C say of broken files is not for the screen."""

    def __enter__(self) -> Self:
        self._workers = [self._start() for _ in range(self._count)]
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()  # it holds nothing that could be lost
        for worker in self._workers:
            worker.process.wait()
        self._stderr.close()

    def run(self, sources: Sequence[Source], start: int = 0) -> Iterator[tuple[int, Item]]:
        """As :func:`in_process`. A file at which a decoder crashes gives what came before, and a reason.

        Raises DataError where a worker ended in another way.
        """
        head, todo = start, deque(range(start, len(sources)))
        while head < len(sources):
            while self._arrived[head]:
                message = self._arrived[head].popleft()
                self._buffered -= len(message)
                for item in pickle.loads(message):
                    yield head, item
            if head in self._done:
                self._done.remove(head)
                del self._arrived[head]
                head += 1
                continue
            self._feed(sources, todo, head + AHEAD * self._count)
            self._collect(sources, todo, head)

    def _feed(self, sources: Sequence[Source], todo: deque[int], stop: int) -> None:
        """Keep every worker busy with sources before ``stop``."""
        for _ in range(QUEUED):
            for worker in self._workers:
                if todo and todo[0] < stop and len(worker.assigned) < QUEUED:
                    number = todo.popleft()
                    worker.assigned.append(number)
                    with suppress(OSError):  # it has died, as its end of the connection will tell
                        worker.connection.send((number, sources[number]))

    def _collect(self, sources: Sequence[Source], todo: deque[int], head: int) -> None:
        """Wait for messages and keep them; where too many wait already, from the worker at ``head`` alone."""
        full = self._buffered > BUFFER
        listened = [
            worker for worker in self._workers if worker.assigned and (not full or head in worker.assigned)
        ]
        by_connection = {worker.connection: worker for worker in listened}
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                self._keep(worker, worker.connection.recv_bytes())
            except (EOFError, OSError):
                self._bury(worker, sources, todo)

    def _keep(self, worker: _Worker, message: bytes) -> None:
        number, done = _HEADER.unpack_from(message)
        payload = message[_HEADER.size :]
        if number < 0:
            raise pickle.loads(payload)
        self._arrived[number].append(payload)
        self._buffered += len(payload)
        if done:
            self._done.add(number)
            worker.assigned.remove(number)

    def _bury(self, worker: _Worker, sources: Sequence[Source], todo: deque[int]) -> None:
        """Leave out the file at which a decoder crashed, and go on with a fresh worker."""
        worker.connection.close()
        code = worker.process.wait()
        culprit = worker.assigned.popleft()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if -code not in _CRASHES:
            why = "out of memory? lower `workers`" if -code == signal.SIGKILL else self._last_words()
            raise DataError(
                f"a worker process ended ({name}) while it read {sources[culprit].path}: {why}; "
                "the same command goes on after the last finished shard"
            )
        payload = pickle.dumps([Refused("", f"its decoder crashed ({name})")])
        self._arrived[culprit].append(payload)
        self._buffered += len(payload)
        self._done.add(culprit)
        todo.extendleft(reversed(worker.assigned))
        self._workers[self._workers.index(worker)] = self._start()

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        program = f"from essa_dist.packing.workers import serve; serve({theirs.fileno()}, {os.getpid()})"
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # A session of its own: Ctrl-C is for the main process, which ends its workers.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=self._stderr,
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        theirs.close()
        connection: Connection[Any, Any] = Connection(ours.detach())
        connection.send(self._how)
        return _Worker(process, connection, deque())


def serve(descriptor: int, parent: int) -> None:
    """A worker process: make the samples of each source that arrives, until the main process has gone."""
    connection: Connection[Any, Any] = Connection(descriptor)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    try:
        how: Recipe = connection.recv()
        with quiet():
            while True:
                number, source = connection.recv()
                _answer(connection, number, source, how)
    except EssaError as error:
        connection.send_bytes(_HEADER.pack(-1, True) + pickle.dumps(error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _end_with_parent(parent: int) -> None:
    """A decoder that hangs doesn't see that the connection was closed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _answer(connection: "Connection[Any, Any]", number: int, source: Source, how: Recipe) -> None:
    items: list[Item] = []
    size = 0
    for item in make_samples(source, how):
        items.append(item)
        size += len(item.encoded.image) if isinstance(item, Made) else 0
        if size >= MESSAGE:
            connection.send_bytes(_HEADER.pack(number, False) + pickle.dumps(items))
            items, size = [], 0
    connection.send_bytes(_HEADER.pack(number, True) + pickle.dumps(items))
