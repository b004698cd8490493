"""Where each sample of a packed data set lies: ``index.npz``."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from essa_dist.data.manifest import INDEX_FILE
from essa_dist.errors import DataError


class Index(NamedTuple):
    """Where each sample lies: parallel arrays over the samples of all splits, in the order of the shards."""

    shard: NDArray[np.int32]  # position in manifest.shards
    offset: NDArray[np.int64]  # of the image's first byte in the tar
    length: NDArray[np.int64]  # bytes
    label: NDArray[np.int64]  # index into manifest.classes, -1 = none
    key: NDArray[np.bytes_]  # UTF-8

    def write(self, folder: Path) -> None:
        np.savez_compressed(folder / INDEX_FILE, **self._asdict())

    def take(self, rows: NDArray[np.int64]) -> "Index":
        return Index(self.shard[rows], self.offset[rows], self.length[rows], self.label[rows], self.key[rows])


def read_index(folder: Path) -> Index:
    """Read ``folder/index.npz``; DataError where it is missing or damaged."""
    try:
        with np.load(folder / INDEX_FILE, allow_pickle=False) as columns:
            return Index(*(columns[name] for name in Index._fields))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{folder / INDEX_FILE} can't be read ({error}): pack the data again") from error


class Keys(Sequence[str]):
    """Sample keys, decoded when asked for: a set of millions opens without making millions of strings."""

    def __init__(self, encoded: NDArray[np.bytes_]) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "Keys": ...
    def __getitem__(self, i: int | slice) -> "str | Keys":
        if isinstance(i, slice):
            return Keys(self._encoded[i])
        return bytes(self._encoded[i]).decode("utf-8")
