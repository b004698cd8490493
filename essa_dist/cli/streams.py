"""Who writes where: results on stdout, everything else on stderr."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class _Lasting:
    """A text stream that goes on without its reader: a log that nobody reads any more is no reason to lose a run.

    Ctrl-C ends the ``tee`` behind a run too, and before the run has saved; a terminal goes, a disk with logs is full.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard streams that are there, even where the command was started without them, and a stderr that can't fail."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # closed by whoever started us: else some file would get its number
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
    with redirect_stderr(_Lasting(sys.stderr)):
        yield


@contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """Give the real stdout as a stream of its own; whatever else writes to stdout meanwhile lands on stderr.

    By descriptor, so that C code and child processes are caught too.
    """
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(real), "w", encoding="utf-8") as stream, redirect_stdout(sys.stderr):
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def rank() -> int:
    """This process's place among those of a launcher; 0 without one."""
    return _number("RANK")


def world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return _number("WORLD_SIZE", default=1)


def is_first_on_node() -> bool:
    """Whether no other process of this machine has what this one has to say about settings and files."""
    return _number("LOCAL_RANK", default=rank()) == 0


def _number(name: str, default: int = 0) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def set_up_logging(*, debug: bool) -> None:
    """One handler on stderr: this project's INFO on rank 0 and WARNING on the others, of all else WARNING only."""
    handler = _Stderr()
    handler.setFormatter(_Short())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    own = logging.DEBUG if debug else logging.INFO
    logging.getLogger("essa_dist").setLevel(own if rank() == 0 else logging.WARNING)
    logging.captureWarnings(capture=True)


class _Stderr(logging.Handler):
    """Looks stderr up at every record: a live progress line replaces it, and then prints above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")
        sys.stderr.flush()


class _Short(logging.Formatter):
    """``12:03:04 text``, with the level where it is not INFO and the rank where it is not 0."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        who = f"[rank {rank()}] " if rank() else ""
        text = f"{self.formatTime(record, '%H:%M:%S')} {who}{level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
