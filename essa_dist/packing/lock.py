"""One job at a time in one folder."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from essa_dist.errors import UsageError

logger = logging.getLogger(__name__)

REPLACED = "replaced"
"""In the folder, for a moment: the set that makes way."""


def partial_folder(out: Path) -> Path:
    """Where a pack into ``out`` works."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder of a pack into ``out``; UsageError where another process holds it.

    On the way out it is removed unless it holds finished shards.
    """
    folder = partial_folder(out)
    file = lock(folder, f"another pack into {out} is running: wait for it, or choose another `out`")
    try:
        if (folder / REPLACED).exists() and not out.exists():  # killed between the two renames
            (folder / REPLACED).rename(out)
        yield
    finally:
        if not any((folder / "journal").glob("[0-9]*/record.json")):
            shutil.rmtree(folder, ignore_errors=True)
        file.close()


def clean_up(out: Path) -> None:
    """Remove what is left beside ``out`` of a pack that was killed when its set was in place already."""
    folder = partial_folder(out)
    if out.exists() and folder.is_dir() and not (folder / "set").exists():
        try:
            file = lock(folder, "")
        except (UsageError, OSError):  # a pack that begins, or another user's
            return
        if out.exists() and not (folder / "set").exists():
            shutil.rmtree(folder, ignore_errors=True)
        file.close()


def lock(folder: Path, busy: str) -> IO[str]:
    """Make ``folder`` and hold its file ``lock`` until that is closed; UsageError, saying ``busy``, where it is held."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "lock"
        try:
            file = path.open("w")
        except FileNotFoundError:
            continue  # removed by a pack that ended this moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UsageError(busy) from None
        except OSError:
            logger.warning("%s: this file system has no locks: start one job at a time in it", folder)
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
