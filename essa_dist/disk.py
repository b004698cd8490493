"""Making sure that a file is on the disk, and how fast that is."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FIRST, _MOST = 1 << 20, 32 << 20
"""Bytes that a probe writes: a first file, and at most as many in a second one."""
_SECONDS = 0.3
"""What the second file of a probe may take, by the speed of the first."""


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and not only in the kernel's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to: what is there at the end takes the place of ``path``; after an error it is removed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file, and the folders it is in, so that there is all of it or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_speed(folder: Path) -> float:
    """Bytes a second, measured: a file is written, flushed, renamed, flushed again and deleted, in less than a second.

    Raises OSError, with the path, where any of it fails; nothing is left behind.
    """
    first = _probe(folder, _FIRST)
    size = int(min(_MOST, max(_FIRST, first * _SECONDS)))
    return max(first, _probe(folder, size)) if size > _FIRST else first


def _probe(folder: Path, size: int) -> float:
    name = f".probe.{os.getpid()}"
    written, renamed = folder / f"{name}.writing", folder / name
    block = os.urandom(_FIRST)  # a file system may compress zeros
    begin = time.perf_counter()
    try:
        with written.open("wb") as file:
            for _ in range(size // _FIRST):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written.rename(renamed)
        flush(folder)
        return size // _FIRST * _FIRST / (time.perf_counter() - begin)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    finally:
        written.unlink(missing_ok=True)
        renamed.unlink(missing_ok=True)
