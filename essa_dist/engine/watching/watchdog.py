"""The watchdog: a run in which nothing moves ends, and says which rank is to blame and where it is.

Every rank's watchdog tells the others where its rank is, by a connection of its own: it works while every collective
hangs. Whoever finds that nobody has moved for too long says so, once, and every rank that can ends itself. Those that
can't, such as a stopped process, are left to the launcher, which ends what remains when a rank has failed.
"""

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.util import get_temp_dir
from pathlib import Path
from types import TracebackType
from typing import Self

from torch._C._distributed_c10d import Store

from essa_dist.engine.watching.exchange import Exchange, store_holder
from essa_dist.engine.watching.guard import GuardConfig
from essa_dist.engine.watching.heartbeat import Beat, Heard, Place, collectives_entered, line_of_code, verdict
from essa_dist.parent import leave_cause

log = logging.getLogger(__name__)

FOLDER = "hung"
"""In the run's folder: the stacks of every rank that ended itself."""
GRACE_S = 5.0
"""For stacks and words to be written: what hangs may be the disk, or whoever reads stderr."""


def collective_timeout(config: GuardConfig) -> timedelta | None:
    """What to give the process group: longer than the watchdog waits, as it has more to say; None: torch's own."""
    return timedelta(seconds=2 * max(config.timeout_s, config.start_timeout_s)) if config.timeout_s else None


class Watchdog:
    """Around a run, whose loop calls :meth:`at` wherever it gets to; with ``guard.timeout_s=0`` nothing is watched.

    Seconds are counted while the watchdog itself runs: a job that was suspended as a whole and goes on is not hung.
    """

    def __init__(
        self,
        config: GuardConfig,
        run: Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        store: Store | None = None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """``store``: ``exchange.own_connection()``; without one nothing is heard of other ranks.

        ``end`` is called with the exit code, in a thread.
        """
        self.config, self.run, self.rank = config, run, rank
        self.interval_s = min(1.0, config.timeout_s / 20)
        self.silence_s = config.timeout_s / 4
        self._end = end
        self._at: tuple[int, int, Place] = (0, 0, "starting")  # progress made, step from 1, place
        self._moves = 0  # progress beside the loop
        self._first: int | None = None
        self._stuck_s = 0.0
        self._ended = ""
        self._left = threading.Event()
        self._host, self._loop = socket.gethostname(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._exchange = store and Exchange(
            store,
            rank,
            world_size,
            interval_s=self.interval_s,
            beat=self.beat,
            curious=lambda: self._stuck_s > self.allowed_s / 2,
        )

    def at(self, place: Place, step: int | None = None) -> None:
        """The loop has got to ``place`` of ``step`` (from 1; None: the same as before). Every call is progress."""
        progress, before, _ = self._at
        now = before if step is None else step
        if self._first is None and now:
            self._first = now
        self._at = (progress + 1, now, place)

    def moved(self) -> None:
        """What the loop may wait for has got on, such as a checkpoint on its way to a slow disk; from one other thread."""
        self._moves += 1

    def __enter__(self) -> Self:
        self._loop = threading.get_ident()
        if self.config.timeout_s:
            self._thread.start()
            if self._exchange:
                self._exchange.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = "its work is done" if error is None else f"{type(error).__name__}: {error}"
        self._left.set()
        if self.config.timeout_s:
            self._thread.join(GRACE_S)
            if self._exchange:
                self._exchange.stop()

    @property
    def allowed_s(self) -> float:
        """Seconds without progress: the first step compiles, warms up and waits for servers."""
        first = self._first in (None, self._at[1])
        return max(self.config.timeout_s, self.config.start_timeout_s if first else 0.0)

    def beat(self, number: int = 0) -> Beat:
        """Where this rank is."""
        _, step, place = self._at
        return Beat(
            number=number,
            step=step,
            place=place,
            overdue=self._stuck_s >= self.allowed_s,
            entered=collectives_entered(),
            code=line_of_code(self._loop) if self._stuck_s > self.allowed_s / 4 else "",
            host=self._host,
            pid=os.getpid(),
            ended=self._ended,
        )

    def _watch(self) -> None:
        """Count seconds without progress, without a new beat and without an answer, until there is a verdict."""
        progress, rounds, unanswered_s, last = 0, 0, 0.0, time.monotonic()
        silent: dict[int, tuple[int, float]] = {}  # number of the newest beat, seconds since it came
        while not self._left.wait(self.interval_s):
            # Between two looks lies more only when this process itself did not run.
            passed_s = min(time.monotonic() - last, 2 * self.interval_s)
            last = time.monotonic()
            now = self._at[0] + self._moves
            self._stuck_s = self._stuck_s + passed_s if now == progress else 0.0
            progress = now
            heard = {self.rank: Heard(self.beat())}
            if exchange := self._exchange:
                unanswered_s = unanswered_s + passed_s if exchange.rounds == rounds else 0.0
                rounds = exchange.rounds
                for rank, beat in exchange.others.items():
                    number, seconds = silent.get(rank, (-1, 0.0))
                    silent[rank] = (beat.number, seconds + passed_s if beat.number == number else 0.0)
                others = {rank: exchange.others.get(rank) for rank in range(exchange.ranks)}
                heard = {r: Heard(beat, silent.get(r, (0, 0.0))[1]) for r, beat in others.items()} | heard
            if self._stuck_s < self.allowed_s:
                continue
            if unanswered_s >= self.silence_s:
                return self._finish(
                    f"{store_holder()} is frozen or its host is gone: the process group's store, which it holds, has "
                    f"not answered for {unanswered_s:.0f} s; this rank waits in {self.beat().where}"
                )
            if text := verdict(heard, silence_s=self.silence_s):
                return self._finish(text)
        return None

    def _finish(self, text: str) -> None:
        """End this process, and say why unless another rank does."""
        for work in (self._write_stacks, lambda: self._say(text)):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(GRACE_S)
        _end_workers()
        if self.rank == 0:
            time.sleep(3 * self.interval_s)  # it may be what holds the store, where others still have to read
        self._end(1)

    def _write_stacks(self) -> None:
        with contextlib.suppress(OSError):
            if self._first is None:  # the run may not have a folder yet
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                return
            (self.run / FOLDER).mkdir(exist_ok=True)
            with (self.run / FOLDER / f"rank_{self.rank:04d}.txt").open("w") as file:
                faulthandler.dump_traceback(file)

    def _say(self, text: str) -> None:
        if self._exchange and not self._exchange.claim():
            leave_cause("stopped, because nothing moved: another rank says why", is_first=False)
            return
        stacks = f"Stacks are in {self.run / FOLDER}; " if self._first is not None else ""
        setting = "start_timeout_s" if self.allowed_s > self.config.timeout_s else "timeout_s"
        words = (
            f"no progress for {self._stuck_s:.0f} s: {text}. {stacks}resume=true goes on from the last checkpoint; "
            f"if it may take so long, raise guard.{setting}"
        )
        leave_cause(words, is_first=True)
        log.error("%s", words)
        sys.stderr.flush()


def _end_workers() -> None:
    """They may be what hangs: none is waited for, or asked to tidy up."""
    if workers := multiprocessing.active_children():
        for worker in workers:
            worker.kill()
        shutil.rmtree(get_temp_dir(), ignore_errors=True)  # with their sockets
