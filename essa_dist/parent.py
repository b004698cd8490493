"""This process and the one that started it: learning of its death, which else would go unnoticed, and telling it why we end.

A launcher that is killed with ``kill -9`` can't end its ranks, nor a rank its data workers. On Linux the kernel can tell
them: prctl(2), PR_SET_PDEATHSIG. Elsewhere the functions here do nothing.
"""

import ctypes
import json
import os
import sys
import time
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_LAUNCHERS = ("RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
"""What torchrun and most others, torchrun alone, and ``accelerate launch`` of one process set."""


def launched() -> bool:
    """Whether a launcher started this process, so that it has no business of its own without it."""
    return any(name in os.environ for name in _LAUNCHERS)


def tell_of_parents_death(number: int) -> None:
    """Have the kernel send this process signal ``number`` when the thread that started it has ended.

    A parent that lives on after that thread is taken for dead by the kernel: look at ``os.getppid()`` where that matters.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def orphaned() -> bool:
    """Whether init has taken over this process from a launcher; one that is init itself, as in a container, is Python."""
    if sys.platform != "linux" or os.getppid() != 1:
        return False
    try:
        return "python" not in os.path.basename(os.readlink("/proc/1/exe"))
    except OSError:  # another user's: no launcher of ours
        return True


def leave_cause(text: str, *, is_first: bool) -> None:
    """Leave why this rank ends where torchrun and ``accelerate launch`` look for it: they show it as the last thing they say.

    They take the failure with the earliest time, in whole seconds, for the root cause: ``is_first`` makes it this one.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    seconds = int(time.time()) + (0 if is_first else 2)
    message = {"message": text, "extraInfo": {"timestamp": str(seconds)}}
    with (
        suppress(OSError),
        open(file, "w", encoding="utf-8") as stream,
    ):  # it is the launcher's; stderr has it all
        json.dump({"message": message}, stream)
