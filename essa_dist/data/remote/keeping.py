"""The folders of the local cache: one for each packed set, those in use held, others giving way."""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from essa_dist.data.remote.samples import SampleCache
from essa_dist.data.remote.slots import Slots
from essa_dist.errors import UsageError

logger = logging.getLogger(__name__)

SETS = "packed"
"""The folder of the sets, under that of the cache."""


class Hold:
    """Says, as long as it lives, that a set's folder is in use. A process that ends, however, lets go."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "in_use", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_SH)
        os.utime(self._file)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among all processes of the machine."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def set_folder(root: Path, manifest: bytes, index_version: str) -> tuple[Path, Hold]:
    """The folder of a set, made and held. Its name says its contents, so another address of the same set shares it."""
    name = hashlib.sha256(manifest + index_version.encode()).hexdigest()[:24]
    try:
        (root / SETS).mkdir(parents=True, exist_ok=True)
        with locked(root / SETS / ".lock"):
            folder = root / SETS / name
            folder.mkdir(exist_ok=True)
            return folder, Hold(folder)
    except OSError as error:
        raise UsageError(
            f"{root}: {error.strerror}; name a folder for local copies that can be written: data.cache.folder=..."
        ) from error


def make_room(folder: Path, wanted: int, bound: int) -> None:
    """Remove sets that nobody uses, the one that was opened longest ago first, until ``wanted`` bytes more fit."""
    with locked(folder.parent / ".lock"):
        others = [other for other in folder.parent.iterdir() if other.is_dir() and other != folder]
        taken = {other: disk_usage(other) for other in others}
        for other in sorted(others, key=lambda one: _opened(one)):
            if sum(taken.values()) + wanted <= bound:
                return
            if _idle(other):
                logger.info("%s: removed, to make room for another set", other)
                shutil.rmtree(other, ignore_errors=True)
                del taken[other]


def disk_usage(folder: Path) -> int:
    """Bytes of disk, holes of sparse files not counted."""
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def open_cache(folder: Path, slots: Slots, bound: int) -> SampleCache | None:
    """The samples of a set; None where none are to be kept, or the disk has no room."""
    if bound == 0:
        return None
    try:
        return SampleCache(folder, slots, bound)
    except OSError as error:
        logger.warning("%s: %s; samples are fetched each time", folder, error.strerror)
        return None


def _opened(folder: Path) -> float:
    try:
        return (folder / "in_use").stat().st_mtime
    except OSError:
        return 0.0


def _idle(folder: Path) -> bool:
    try:
        with open(folder / "in_use", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # left by a process that was killed while making it
    return True
