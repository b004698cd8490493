"""The errors a user can meet, each with the exit code of the process that ends by it.

Message rule: what was given, what is allowed, how to mend it, in one line.
"""


class EssaError(Exception):
    """Ends the command with one line on stderr. Subclasses choose the exit code."""

    exit_code = 1


class UsageError(EssaError, ValueError):
    """The user asked for something impossible: a wrong key, value, path or combination."""

    exit_code = 2


class DataError(EssaError):
    """The data can't be read: a truncated shard, no images, more bad samples than the quota allows."""


class WeightsError(EssaError):
    """Weights can't be had or don't fit the architecture."""


class DivergedError(EssaError):
    """Training produced a value that is not finite; nothing was applied after it."""


class UntrainedError(EssaError):
    """The loss doesn't reach a tensor that is to be trained; nothing was updated."""


class OutOfMemory(EssaError):
    """A GPU's memory is too small for a step of the run."""


class Preempted(EssaError):
    """Stopped by a signal after a complete checkpoint was written; ``resume=true`` goes on from there."""

    exit_code = 75


_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "memoryerror",
)


def is_out_of_memory(text: str) -> bool:
    """Whether these are the words of an error for want of memory, of a device or of the host: torch's, Python's or the system's."""
    return any(words in text.lower() for words in _OUT_OF_MEMORY)
