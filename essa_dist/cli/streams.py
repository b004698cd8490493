"""Who writes where: results on stdout, everything else on stderr."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO


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
