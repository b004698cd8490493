"""Calls that may never come back."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Late(Exception):
    """A call didn't come back in time; its thread is left behind."""


class Attempt(Generic[T]):
    """``call`` in a thread of its own, which may hang in native code, where no signal reaches it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._outcome: list[T] = []
        self._error: list[BaseException] = []
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._call())
        except BaseException as error:  # raised again in the thread that asks
            self._error.append(error)

    def done(self, seconds: float = 0) -> bool:
        """Whether it has ended, after waiting up to ``seconds`` for that."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def result(self, seconds: float = 0) -> T:
        """What the call returned; raises what it raised, or Late."""
        if not self.done(seconds):
            _leave_without_it()
            raise Late
        if self._error:
            raise self._error[0]
        return self._outcome[0]


def within(seconds: float, call: Callable[..., T], *arguments: Any) -> T:
    """``call(*arguments)``; raises Late after ``seconds``."""
    return Attempt(lambda: call(*arguments)).result(seconds)


_registered = False


def _leave_without_it() -> None:
    """A native thread that hangs, ended by the interpreter's own way out, aborts the process or hangs it too."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_leave)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
