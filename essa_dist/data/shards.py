"""Read a packed data set: WebDataset tars beside a manifest and an index of byte offsets.

The index turns a tar into random access: one ``pread`` per image, whatever the order of the sample plan.
"""

import io
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from essa_dist.data.index import Index, Keys, read_index
from essa_dist.data.manifest import INDEX_FILE, Manifest, Shard, read_manifest
from essa_dist.errors import DataError, UsageError

logger = logging.getLogger(__name__)

OPEN_TARS = 128
"""File descriptors held at once: sets of thousands of shards must fit the usual limit of 1024."""


class UndecodableImage(DataError):
    """One stored image is broken, though its tar can be read. The message begins with ``shard:key``."""


class PackedImages:
    """The images of one split. Cheap to pickle and safe to fork: file descriptors are opened where they are used."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, index: Index) -> None:
        self.folder, self.manifest, self.split = folder, manifest, split
        self.classes: tuple[str, ...] = manifest.classes
        self.keys = Keys(index.key)
        self.labels: NDArray[np.int64] | None = index.label if bool((index.label >= 0).all()) else None
        """Class of each sample; None where any sample has none."""
        self._index = index
        self._tars: OrderedDict[int, int] = OrderedDict()  # shard number -> file descriptor, oldest first

    def __len__(self) -> int:
        return len(self._index.offset)

    def read(self, i: int) -> bytes:
        """The encoded image of sample ``i``. Raises DataError where its tar is missing or too short."""
        number, offset, length = (
            int(column[i]) for column in (self._index.shard, self._index.offset, self._index.length)
        )
        try:
            found = os.pread(self._tar(number), length, offset)
        except OSError as error:
            raise DataError(f"{self.where(i)} can't be read: {error.strerror}; check the disk") from error
        if len(found) != length:
            check_shard(self.folder, self.manifest.shards[number])
            raise DataError(
                f"{self.where(i)}: expected {length} bytes, found {len(found)}: pack the data again"
            )
        return found

    def decode(self, i: int) -> Tensor:
        """Sample ``i`` as uint8 RGB [3, H, W], a view of interleaved pixels (the layout that resizes fastest).

        Raises DataError where the tar can't be read, UndecodableImage where the image can't be decoded.
        """
        encoded = self.read(i)
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                pixels = np.array(image.convert("RGB"))
        except Exception as error:  # a broken file makes Pillow raise almost anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UndecodableImage(f"{self.where(i)}: {reason}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def where(self, i: int) -> str:
        """``shard:key`` of sample ``i``, for messages."""
        return f"{self.manifest.shards[int(self._index.shard[i])].file}:{self.keys[i]}"

    def _tar(self, number: int) -> int:
        if number in self._tars:
            self._tars.move_to_end(number)
            return self._tars[number]
        shard = self.manifest.shards[number]
        try:
            descriptor = os.open(self.folder / shard.file, os.O_RDONLY)
        except OSError as error:
            raise DataError(_damaged(self.folder, shard, error.strerror or "unreadable")) from error
        if len(self._tars) >= OPEN_TARS:
            os.close(self._tars.popitem(last=False)[1])
        self._tars[number] = descriptor
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tars": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_tars", {}).values():
            os.close(descriptor)


def open_packed(ref: str, prefer: Sequence[str] = ()) -> PackedImages:
    """Open ``DIR`` or ``DIR:split``.

    A set of several splits given without one takes the first of ``prefer`` that it has.
    Raises UsageError for a wrong reference, DataError for a missing or truncated shard.
    """
    if not ref:
        raise UsageError(
            "no data set given: name a packed one, e.g. data.train=PACKED (make it: essa pack IMAGES out=PACKED)"
        )
    folder, split = _parse(ref)
    manifest = read_manifest(folder)
    split = _choose_split(ref, split, manifest.splits, prefer)
    for shard in manifest.shards:
        if shard.split == split:
            check_shard(folder, shard)
    index = read_index(folder)
    expected = sum(shard.count for shard in manifest.shards)
    if len(index.offset) != expected:
        raise DataError(
            f"{folder / INDEX_FILE} lists {len(index.offset)} samples, the manifest {expected}: pack the data again"
        )
    of_split = np.array([shard.split == split for shard in manifest.shards])
    return PackedImages(folder, manifest, split, index.take(np.flatnonzero(of_split[index.shard])))


def check_shard(folder: Path, shard: Shard) -> None:
    """DataError unless the tar has the size that the manifest gives."""
    try:
        found = (folder / shard.file).stat().st_size
    except OSError as error:
        raise DataError(_damaged(folder, shard, "no such file")) from error
    if found != shard.bytes:
        raise DataError(_damaged(folder, shard, f"found {found} bytes"))


def _damaged(folder: Path, shard: Shard, found: str) -> str:
    return (
        f"shard {folder / shard.file} is damaged: expected {shard.bytes} bytes, {found}; "
        "copy it again or pack the data again"
    )


def _parse(ref: str) -> tuple[Path, str | None]:
    if Path(ref).is_dir():  # a folder whose own name holds a colon
        return Path(ref), None
    folder, colon, split = ref.rpartition(":")
    return (Path(folder), split) if colon and folder else (Path(ref), None)


def _choose_split(ref: str, split: str | None, splits: Sequence[str], prefer: Sequence[str]) -> str:
    listed = ", ".join(splits)
    if split is not None:
        if split not in splits:
            raise UsageError(f"{ref}: no split {split!r}; this data set has: {listed}")
        return split
    if len(splits) == 1:
        return splits[0]
    for name in prefer:
        if name in splits:
            logger.info("%s: split %r (of %s)", ref, name, listed)
            return name
    raise UsageError(f"{ref} has several splits, name one as {ref}:SPLIT; it has: {listed}")
