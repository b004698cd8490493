"""One pack at a time into one folder."""

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


def partial_folder(out: Path) -> Path:
    """Where a pack into ``out`` works."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder of a pack into ``out``; UsageError where another process holds it.

    On the way out it is removed unless it holds finished shards.
    """
    folder = partial_folder(out)
    file = _lock(folder, out)
    try:
        yield
    finally:
        if not any((folder / "journal").glob("[0-9]*/record.json")):
            shutil.rmtree(folder, ignore_errors=True)
        file.close()


def _lock(folder: Path, out: Path) -> IO[str]:
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
            raise UsageError(
                f"another pack into {out} is running: wait for it, or choose another `out`"
            ) from None
        except OSError:
            logger.warning("%s: this file system has no locks: run one pack into it at a time", folder)
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
