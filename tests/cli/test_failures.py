"""Whatever ends the command has one line that says what to do."""

import errno
import os

import pytest

from essa_dist.cli.failures import failure
from essa_dist.errors import UsageError


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OutOfMemoryError("CUDA out of memory. Tried to\nallocate"),
            "out of memory; use a smaller batch_size",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory; use",
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "lower data.workers"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory; use"),
        (
            RuntimeError("DataLoader worker killed by signal: Bus error. insufficient shared memory"),
            "enlarge /dev/shm",
        ),
        (ValueError("I/O error: No space left on device (os error 28)"), "free some space"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system; write elsewhere"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files; raise the limit of open files"),
    ],
)
def test_what_the_machine_refuses_has_its_remedy(error: BaseException, words: str) -> None:
    found = failure(error)
    assert (len(found.lines), found.exit_code, found.is_ours) == (1, 1, False)
    assert words in found.lines[0]
    assert "\n" not in found.lines[0]


def test_an_error_of_the_system_without_a_remedy_is_not_dressed_up() -> None:
    found = failure(ConnectionError("no route\nto host"))
    assert (found.lines, found.is_ours) == (("ConnectionError: no route to host",), True)


def test_every_problem_of_the_settings_keeps_its_line() -> None:
    assert failure(UsageError("a\nb"))[:2] == (("a", "b"), 2)


def test_a_path_is_named_where_the_system_names_it() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        os.mkdir("/proc/none/none")
    assert failure(caught.value).lines[0].startswith("/proc/none/none: ")
