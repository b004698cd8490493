"""Stopping when a scheduler, a launcher or a user asks for it: nothing is lost, and the next start goes on from there.

Until training begins a signal ends the process at once, by Preempted: nothing would have to be saved. From then on it is
remembered, and all ranks stop together between two updates. No heavy import here: the command listens before it
imports anything that takes seconds.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType

from essa_dist.errors import Preempted
from essa_dist.parent import launched, orphaned, tell_of_parents_death

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""USR1 is what Slurm's ``--signal`` is mostly told to send; HUP comes when a terminal is closed."""
PATIENCE_S = 5.0
"""How long after a signal a batch that doesn't come is waited for: a scheduler kills within some 30 s."""
UNHEARD_S = 10.0
"""How long before its first update a process that is told to stop may not hear it: inside a library, as one that tries to
reach a machine that isn't there, Python's handlers don't run. Then it is ended from beside."""
AGAIN_S = 1.0
"""A second Ctrl-C within that is the same one, which came from the terminal and from a launcher."""


class NoBatch(Exception):
    """A signal came, and the batch that the loop waits for didn't."""


class StopSignals:
    """What has been received; see the module's text. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._interrupt: Callable[[], Exception] | None = self._before_training
        self._patience = 0.0
        self._at = 0.0
        self._process, self._parent = os.getpid(), os.getppid()
        self._news: SimpleQueue[bool] = (
            SimpleQueue()
        )  # a signal handler may write to it, whatever it interrupts
        self._thread = threading.Thread(target=self._insist, name="stop signals", daemon=True)
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    @property
    def received(self) -> str | None:
        """What stops the run, in words, if anything does."""
        if self._number is None:
            return None
        # Asked now: when the signal came, threads of a launcher that was killed may still have been dying.
        return "the death of its launcher" if self._orphaned() else signal.Signals(self._number).name

    def remember(self) -> None:
        """Training begins: from now on a signal waits until the loop asks for it."""
        self._interrupt = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting for a batch: raises NoBatch when that takes longer than PATIENCE_S after a signal."""
        self._interrupt, self._patience = NoBatch, PATIENCE_S
        try:
            yield
        finally:
            self._interrupt = None

    def _before_training(self) -> Exception:
        return Preempted(
            f"stopped by {self.received} before its first update, so there was nothing to save; go on with resume=true"
        )

    def _listen(self) -> None:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started by nohup
            self._before[number] = signal.signal(number, self._handle)
        self._thread.start()
        ears, mouth = os.pipe()
        os.set_blocking(mouth, False)
        self._mouth = mouth
        signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        threading.Thread(target=self._hear_below, args=(ears,), name="unheard signals", daemon=True).start()
        if launched():
            tell_of_parents_death(signal.SIGTERM)
            if self._orphaned():  # it died before the kernel knew of our wish
                os.kill(os.getpid(), signal.SIGTERM)

    def _stop_listening(self, *, deaf: bool) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self._mouth)  # ends who hears below
        self._news.put(False)
        self._thread.join()  # a signal of its own must not arrive later
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if deaf else handler)

    def _orphaned(self) -> bool:
        return launched() and (os.getppid() != self._parent or orphaned())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked worker that has not chosen its own handlers yet
        now = time.monotonic()
        if self._number is None:
            self._at, self._number = now, number
            self._news.put(True)
        elif number == signal.SIGINT and now - self._at > AGAIN_S:
            raise KeyboardInterrupt
        if self._interrupt is not None and now - self._at >= self._patience:
            raise self._interrupt()

    def _hear_below(self, ears: int) -> None:
        """In a thread: end a process that has nothing to save and whose main thread does not hear what it was sent."""
        with open(ears, "rb", buffering=0) as heard:
            while sent := heard.read(1):
                if sent[0] not in SIGNALS or self._interrupt != self._before_training:
                    continue
                time.sleep(UNHEARD_S)
                if self._number is None and self._interrupt == self._before_training:
                    self._number = sent[0]
                    log.error("%s", self._before_training())
                    os._exit(Preempted.exit_code)

    def _insist(self) -> None:
        """In a thread: say what was received, and repeat it to the main thread, whose handler knows what it waits for.

        Repeated, because a library may have swallowed the exception.
        """
        if not self._news.get():
            return
        if self._interrupt in (None, NoBatch) and not launched():  # else the ranks say it together
            log.warning("%s received: saving a checkpoint at the next step boundary", self.received)
        while True:
            with suppress(Empty):
                self._news.get(timeout=min(1.0, PATIENCE_S))
                return
            if self._interrupt is not None:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


_active: StopSignals | None = None
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what workers are sent is not for us


@contextmanager
def stop_signals(*, until_exit: bool = False) -> Iterator[StopSignals]:
    """Listen to SIGNALS, or go on with the one who already does: the command begins before ``adapt`` is called.

    Outside the main thread nothing can be caught: whoever runs us there handles its signals. ``until_exit``: a rank is
    deaf afterwards. Its launcher, which ends all ranks when one has ended, must not change its exit code.
    """
    global _active
    outer = _active
    signals = outer or StopSignals()
    caught = threading.current_thread() is threading.main_thread()
    if not caught:
        log.debug("signals are not caught outside the main thread")
    try:
        if outer is None and caught:
            _active = signals
            signals._listen()
        yield signals
    finally:
        signals.remember()  # the process is at its end, or it was told already
        if _active is not outer:
            signals._stop_listening(deaf=until_exit and launched())
            _active = outer
