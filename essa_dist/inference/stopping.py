"""Stopping by a signal: at once, since finished parts are safe and nothing else is worth saving."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from essa_dist.engine.watching.signals import AGAIN_S, SIGNALS
from essa_dist.errors import Preempted
from essa_dist.parent import launched, tell_of_parents_death


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, a signal to stop raises Preempted; a second Ctrl-C, more than a second later, KeyboardInterrupt.

    Outside the main thread nothing is caught: whoever runs us there handles its signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            name = signal.Signals(number).name
            raise Preempted(f"stopped by {name}; the finished parts are kept, go on with resume=true")
        if number == signal.SIGINT and time.monotonic() - first[0] > AGAIN_S:
            raise KeyboardInterrupt

    heard = [
        n for n in SIGNALS if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)
    ]  # nohup
    before = {number: signal.signal(number, stop) for number in heard}
    if launched():
        tell_of_parents_death(signal.SIGTERM)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
