"""Requests with retries, on an event loop in a thread of its own. One for each process: it doesn't survive a fork."""

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from essa_dist.data.remote.config import CacheConfig
from essa_dist.data.remote.failures import Failure, judge
from essa_dist.data.remote.transport import Facts, Transport
from essa_dist.data.remote.urls import shown
from essa_dist.errors import EssaError

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds; doubled after each try
LONGEST_ASKED = 300.0
"""Seconds that a server's Retry-After is heeded."""
LOG_EVERY_S = 30.0
PART, PARTS = 8 * 2**20, 4
"""Bytes of one request for a whole file, and such requests at a time."""
T = TypeVar("T")


@dataclass
class Stats:
    """Counts of one process."""

    requests: int = 0
    retries: int = 0
    bytes: int = 0
    """Fetched."""
    hits: int = 0
    """Samples found in the local cache."""
    misses: int = 0
    """Samples fetched."""
    damaged: int = 0
    """Samples whose checksum was wrong, as fetched or as kept."""


class Fetcher:
    """Start coroutines from any thread; each request is bounded in number and time, and repeated where that may help."""

    def __init__(self, config: CacheConfig) -> None:
        self.config, self.stats = config, Stats()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._not_before = 0.0  # a server that asks for a pause means all requests
        self._logged_at = -LOG_EVERY_S
        self._transport = Transport(config.concurrency)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="essa-remote", daemon=True)
        thread.start()
        self._close = weakref.finalize(self, _close, os.getpid(), self._loop, thread, self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and the connections; also happens when the object is forgotten or the program exits."""
        self._close()

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run ``work`` on the loop; the future tells its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` and wait for it."""
        return self.start(work).result()

    async def get(self, url: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file. Raises DataError (MissingFile, where there is none) and UsageError."""
        data = await self._persist(url, lambda: self._transport.get(url, start, length))
        self.stats.bytes += length
        return data

    async def parts(self, url: str, size: int) -> AsyncIterator[bytes]:
        """A whole file of ``size`` bytes, in order, a few parts at a time. Raises as :meth:`get`."""
        starts = range(0, size, PART)
        for first in range(0, len(starts), PARTS):
            some = starts[first : first + PARTS]
            for part in await asyncio.gather(*(self.get(url, one, min(PART, size - one)) for one in some)):
                yield part

    async def facts(self, url: str) -> Facts:
        """Size and version of a file. Raises as :meth:`get`."""
        return await self._persist(url, lambda: self._transport.facts(url))

    async def list_folder(self, url: str) -> None:
        """See Transport. Raises as :meth:`get`."""
        await self._persist(url, lambda: self._transport.list_folder(url))

    async def _persist(self, url: str, request: Callable[[], Awaitable[T]]) -> T:
        for tried in range(1, self.config.retries + 2):
            await asyncio.sleep(self._not_before - time.monotonic())
            try:
                async with self._slots:
                    self.stats.requests += 1
                    return await asyncio.wait_for(request(), self.config.timeout)
            except EssaError:
                raise
            except Exception as error:  # each library has errors of its own
                failure = judge(error)
                if failure.kind != "passing" or tried > self.config.retries:
                    raise failure.error(url, tried) from None  # the cause may hold secrets
            self._note(url, failure)
            # Half of it by chance, so that processes that failed together don't come back together.
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tried - 1)) * random.uniform(0.5, 1.0)
            if failure.after is not None:
                self._not_before = max(self._not_before, time.monotonic() + min(failure.after, LONGEST_ASKED))
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    def _note(self, url: str, failure: Failure) -> None:
        self.stats.retries += 1
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning(
                "%s: %s; trying again (%d of %d requests so far)",
                shown(url),
                failure.reason,
                self.stats.retries,
                self.stats.requests,
            )


def _close(pid: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread, transport: Transport) -> None:
    if os.getpid() != pid:  # a fork has the objects, but neither the thread nor its connections
        return
    asyncio.run_coroutine_threadsafe(_finish(transport), loop)
    if threading.current_thread() is thread:  # the garbage collector came by there
        return
    thread.join(timeout=2)
    if not thread.is_alive():
        loop.close()


async def _finish(transport: Transport) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    with contextlib.suppress(Exception):  # nothing is lost with a connection that can't be closed
        await transport.close()
    asyncio.get_running_loop().stop()
