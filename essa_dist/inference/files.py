"""Images as files: below a folder, or on a list."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from essa_dist.data.pixels import Bounds, picture
from essa_dist.data.shards import PackedImages
from essa_dist.errors import DataError, EssaError
from essa_dist.inference.interface import Facts, LeftOut, Picture
from essa_dist.packing.encode import find_bounds
from essa_dist.packing.frame import Frame
from essa_dist.packing.layouts.found import legible, make_key, stem
from essa_dist.packing.layouts.listing import SUFFIXES, read_lines, read_table
from essa_dist.packing.layouts.walk import images
from essa_dist.packing.readers import ReadConfig, read_frames
from essa_dist.packing.readers.values import NotWanted
from essa_dist.packing.samples import reason

File = tuple[str, Path]
"""How a file is called, and where it is."""


def walked(folder: Path) -> list[File]:
    """All images below a folder, by relative path. Raises DataError where there are none."""
    return [(path.as_posix(), folder / path) for path in images(folder).files]


def listed(path: Path) -> list[File]:
    """The images that a table or a text lists, from its folder; of any other file itself.

    Raises UsageError for a table without a column `path`, DataError for one without rows.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt":
        names = [line for _, line in read_lines(path)]
    elif suffix in SUFFIXES:
        names = read_table(path).column("path")
    else:
        return [(path.name, path)]
    if not names:
        raise DataError(f"{path} lists no images: write one path a line")
    return [(name, path.parent / name) for name in names]


class FileImages:
    """See :class:`~essa_dist.inference.interface.Images`; an item is a file, and is opened when it is its turn.

    Raises DataError where a file is listed twice.
    """

    classes: tuple[str, ...] = ()
    several = False
    packed: Sequence[PackedImages] = ()

    def __init__(
        self, files: Sequence[File], read: ReadConfig, window: tuple[float, float] | None = None
    ) -> None:
        self._keys, self._paths = [legible(key) for key, _ in files], [path for _, path in files]
        twice = next((key for key, count in Counter(self._keys).items() if count > 1), None)
        if twice is not None:
            raise DataError(
                f"{twice} is listed twice: results are told apart by their paths, so list it once"
            )
        self._read, self._window = read, window
        self._names = _names(self._keys)
        lines = (f"{key}\0{_size(path)}\n" for key, path in zip(self._keys, self._paths, strict=True))
        self.identity = hashlib.sha256("".join(lines).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._keys)

    def pictures(self, item: int) -> Iterator[Picture | LeftOut]:
        key, name, path = self._keys[item], self._names[item], self._paths[item]
        try:
            for frame in read_frames(path, self._read):
                pixels = picture(frame.pixels, _bounds(frame, self._window))
                if frame.part:
                    yield Picture(f"{key}#{frame.part}", f"{name}_{frame.part}", pixels)
                else:
                    yield Picture(key, name, pixels)
        except EssaError:  # a package or a setting is missing: that's not the file's fault
            raise
        except Exception as error:  # a broken file makes decoders raise almost anything
            yield LeftOut(key, reason(error, path), harmless=isinstance(error, NotWanted))

    def facts(self, item: int) -> Facts:
        return Facts()

    def find(self, item: int) -> tuple[int, int]:
        raise IndexError("files have no splits")


def _bounds(frame: Frame, window: tuple[float, float] | None) -> Bounds:
    """As ``PackedImages.bounds`` has them, from an index of 32-bit floats."""
    if window is None:
        low, high = (float(np.float32(bound)) for bound in find_bounds(frame, frame.pixels))
    else:
        slope, intercept = float(np.float32(frame.slope)), float(np.float32(frame.intercept))
        low, high = sorted((real - intercept) / slope for real in window)
    return Bounds(low, high)


def _names(keys: Sequence[str]) -> list[str]:
    """Paths that stay inside a folder, without suffix; with it where only that tells two files apart."""
    names = [make_key(key) for key in keys]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name}_{_suffix(key)}" for name, key in zip(names, keys, strict=True)
    ]


def _suffix(key: str) -> str:
    name = PurePosixPath(key).name
    return name[len(stem(name)) :].strip(".").replace(".", "_")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
