"""Watching a run: signals, numbers that are not finite, collapse."""

import logging
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from pydantic import Field

from essa_dist.settings import Config

log = logging.getLogger(__name__)


class GuardConfig(Config):
    rankme_floor: float = Field(0.05, ge=0, le=1)
    """Warn when the features' effective rank falls under this share of the largest possible one."""
    entropy_floor: float = Field(0.05, ge=0, le=1)
    """Warn when all images go to few prototypes: entropy of the mean target under this share of ln K."""
    uniform_share: float = Field(0.99, gt=0, le=1)
    """Warn when the teacher says nothing: mean entropy of its targets over this share of ln K."""
    patience: int = Field(50, ge=0)
    """Steps before the first warning, and between repetitions of the same one."""


PATIENCE_S = 5.0
"""How long after a signal a batch that doesn't come is waited for: a scheduler kills within some 30 s."""


class NoBatch(Exception):
    """A signal came, and the batch that the loop waits for didn't."""


class StopSignals:
    """Remembers SIGINT and SIGTERM until the loop reaches a step boundary; a second SIGINT stops at once.

    Where the loop waits for a batch (:meth:`waiting`), as it may for minutes when a server is down, it gets NoBatch.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._waiting = False
        self._left = threading.Event()
        self._before: dict[int, signal.Handlers | None] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._remember)  # type: ignore[assignment]
            except ValueError:  # not in the main thread: whoever runs us there handles its signals
                log.debug("signals are not caught outside the main thread")
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            if self._waiting:
                self._waiting = False
                raise NoBatch
            return
        threading.Thread(target=self._insist, name="stop", daemon=True).start()
        self.received = signal.Signals(number).name
        log.warning("%s received: saving a checkpoint at the next step boundary", self.received)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for a batch: raises NoBatch when that takes too long after a signal."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _insist(self) -> None:
        """Repeat the signal to this process, whose handler knows what it is waiting for."""
        pause = PATIENCE_S
        while not self._left.wait(pause):
            if self._waiting:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            pause = 1.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)


class CollapseWatch:
    """Warns, with the number, when features or targets collapse; it never stops a run."""

    def __init__(self, config: GuardConfig, *, prototypes: int) -> None:
        self.config = config
        self.log_prototypes = math.log(prototypes)
        self._last: dict[str, int] = {}

    def check(
        self, step: int, *, rankme: float, max_rank: int, prototype_entropy: float, teacher_entropy: float
    ) -> None:
        """Look at one step's diagnostics (``objectives.diagnostics``; entropies in nats)."""
        c = self.config
        if rankme < c.rankme_floor * max_rank:
            self._warn(step, "features", f"effective rank of the features is {rankme:.1f} of {max_rank}")
        if prototype_entropy < c.entropy_floor * self.log_prototypes:
            share = prototype_entropy / self.log_prototypes
            self._warn(
                step, "prototypes", f"targets use few prototypes: their entropy is {share:.1%} of ln K"
            )
        if teacher_entropy > c.uniform_share * self.log_prototypes:
            share = teacher_entropy / self.log_prototypes
            self._warn(
                step, "uniform", f"teacher targets are nearly uniform: their entropy is {share:.1%} of ln K"
            )

    def _warn(self, step: int, kind: str, what: str) -> None:
        if step - self._last.get(kind, 0) < self.config.patience:
            return
        self._last[kind] = step
        log.warning(
            "collapse? step %d: %s; lower optim.lr, raise schedule.ema_momentum or the batch size, "
            "or lower schedule.teacher_temp if they are uniform",
            step,
            what,
        )
