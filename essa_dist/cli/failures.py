"""What went wrong, as lines for the user and an exit code."""

import errno
from typing import NamedTuple

from essa_dist.errors import EssaError, is_out_of_memory

INTERRUPTED = 130  # as a shell reports SIGINT

_REMEDIES = {
    errno.ENOSPC: "free some space or write elsewhere with out=DIR",
    errno.EDQUOT: "free some of the quota or write elsewhere with out=DIR",
    errno.EACCES: "change its permissions or choose another path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EROFS: "write elsewhere with out=DIR",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is a file",
    errno.EISDIR: "give a file, not a folder",
    errno.EEXIST: "choose another path or remove it",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or use fewer workers",
    errno.EIO: "check the disk or the network file system",
}
_SMALLER = "use a smaller batch_size, fewer or smaller crops, or fewer data workers"


class Failure(NamedTuple):
    lines: tuple[str, ...]
    exit_code: int
    is_ours: bool = False
    """Nobody foresaw it: a traceback helps."""


def failure(error: BaseException) -> Failure:
    """The lines and the exit code for an exception that ends the command."""
    if isinstance(error, EssaError):
        return Failure(tuple(str(error).splitlines()), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure(("interrupted",), INTERRUPTED)
    if (memory := _out_of_memory(error)) is not None:
        return Failure((memory,), 1)
    if (system := _system(error)) is not None:
        return Failure((system,), 1)
    return Failure((f"{type(error).__name__}: {_one_line(error)}",), 1, is_ours=True)


def _out_of_memory(error: BaseException) -> str | None:
    text = _one_line(error)
    if "shared memory" in text and isinstance(error, RuntimeError):
        return f"a data worker ran out of shared memory; enlarge /dev/shm (--shm-size=8g) or use fewer workers ({text})"
    if "DataLoader worker" in text and isinstance(error, RuntimeError):
        # torch's handler of dead children raises wherever the main process happens to be.
        return f"a data worker was killed, most often for want of memory: lower data.workers, then resume=true ({text})"
    on_device = type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be imported here
    if (
        on_device
        or isinstance(error, MemoryError)
        or (isinstance(error, (RuntimeError, OSError)) and is_out_of_memory(text))
    ):
        return f"out of memory; {_SMALLER} ({text or type(error).__name__})"
    return None


def _system(error: BaseException) -> str | None:
    """A refusal of the operating system, also one that a library wraps in an exception of its own."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {_REMEDIES[error.errno]}"
    if "No space left on device" in str(error):
        return f"{_one_line(error)}; {_REMEDIES[errno.ENOSPC]}"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
