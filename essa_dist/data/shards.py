"""Read a packed data set: WebDataset tars beside a manifest and an index of byte offsets.

The index turns a tar into random access: one read per image, whatever the order of the sample plan.
"""

import copy
import logging
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from essa_dist.data.decoded import DecodedImages, open_decoded
from essa_dist.data.index import NONE, Index, read_index
from essa_dist.data.manifest import INDEX_FILE, UNLABELLED, Manifest, read_manifest
from essa_dist.data.pixels import Bounds, Stored, picture, read_stored
from essa_dist.data.remote import CacheConfig, RemoteShards, open_indexed, open_remote
from essa_dist.data.remote.urls import is_url, shown, split_ref
from essa_dist.data.storage import LocalShards, Range, Storage, Uses, check_shard
from essa_dist.errors import DataError, UsageError

logger = logging.getLogger(__name__)

Made = TypeVar("Made")


class UndecodableImage(DataError):
    """One stored image is broken, though its tar can be read. The message begins with ``shard:key``."""


class PackedImages:
    """The images of one split. Cheap to pickle (another process maps the index again) and safe to fork."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        index: Index,
        storage: Storage,
        window: tuple[float, float] | None = None,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.folder, self.manifest, self.split, self.storage = folder, manifest, split, storage
        self.index = index
        """Of this split's samples."""
        self.window = window
        """Real values (Hounsfield units, ...) shown black and white; None: each sample's own, from its header."""
        self.decoded = decoded
        """Where decoded images are shared with other processes, see :meth:`keep_decoded`."""
        self.classes: tuple[str, ...] = manifest.classes
        self.keys: Sequence[str] = index.key
        self.label_matrix: NDArray[np.int8] | None = index.labels
        """[n, classes] of 0, 1 and -1 (not known), where a sample may have several classes."""

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """Class of each sample; None where any sample has none, or may have several. 8 bytes a sample, once asked for."""
        complete = self.manifest.label_kind == "single" and not self.manifest.counts[self.split].get(
            UNLABELLED
        )
        return self.index.label.astype(np.int64) if complete else None

    @cached_property
    def patients(self) -> NDArray[np.int32] | None:
        """Number of each sample's patient, the same in every split; None where any is not known."""
        return self.index.patient if len(self) and int(self.index.patient.min()) >= 0 else None

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> bytes:
        """The encoded image of sample ``i``. Raises DataError where its tar is missing or too short."""
        return self.read_many([i])[0]

    def read_many(self, samples: Sequence[int], uses: Uses | None = None) -> list[bytes]:
        """The encoded images of several samples at once, which is faster from remote storage.

        ``uses`` tell the local cache of remote storage what to keep.
        """
        return self.storage.read([self._range(i) for i in samples], uses)

    def read_undecoded(self, samples: Sequence[int], uses: Uses | None = None) -> list[bytes | None]:
        """As :meth:`read_many`, but None for those that :meth:`decode` has decoded already, and needn't be told."""
        missing = self._undecoded(samples)
        left = uses and Uses(uses.now, [uses.again[n] for n in missing])
        found = dict(zip(missing, self.read_many([samples[n] for n in missing], left), strict=True))
        return [found.get(n) for n in range(len(samples))]

    def ahead(self, samples: Sequence[int]) -> None:
        """Announce what will be read next, in that order, for :meth:`read_undecoded`; returns at once."""
        self.storage.ahead([self._range(samples[n]) for n in self._undecoded(samples)])

    def keep_decoded(self, folder: str, gib: float) -> "PackedImages":
        """Share decoded images with the other processes of this machine, by files in ``folder`` that take up to ``gib`` GiB.

        ``folder`` empty: nothing is shared. Returns these images; the pixels stay the same.
        """
        self.decoded = open_decoded(Path(folder).expanduser(), self.index, gib) if folder else None
        return self

    def decode(self, i: int, encoded: bytes | None = None, bounds: Bounds | None = None) -> Tensor:
        """Sample ``i`` as uint8 RGB [3, H, W], a view of interleaved pixels (the layout that resizes fastest).

        ``encoded``: its bytes, where they were read before; ``bounds``: other than :meth:`bounds` gives.
        Raises DataError where the tar can't be read, UndecodableImage where the image can't be decoded.
        """
        shown = bounds or self.bounds(i)
        if encoded is None and self.decoded and (kept := self.decoded.get(self.index, i)) is not None:
            return picture(kept, shown)
        data = self.read(i) if encoded is None else encoded
        return self._guarded(i, data, lambda: picture(self._stored(i, data), shown))

    def bounds(self, i: int) -> Bounds:
        """The stored values of sample ``i`` that are shown black and white."""
        if self.window is None:
            return Bounds(float(self.index.low[i]), float(self.index.high[i]))
        slope, intercept = float(self.index.slope[i]), float(self.index.intercept[i])
        low, high = sorted((real - intercept) / slope for real in self.window)
        return Bounds(low, high)

    def mask(self, i: int) -> Tensor | None:
        """The segmentation mask of sample ``i``, uint8 [H, W] of indices into ``manifest.mask_classes``; None: none."""
        offset = int(self.index.mask_offset[i])
        if offset == NONE:
            return None
        wanted = Range(int(self.index.shard[i]), offset, int(self.index.mask_length[i]))
        size = int(self.index.height[i]), int(self.index.width[i])
        (data,) = self.storage.read([wanted])
        pixels = self._guarded(i, None, lambda: read_stored(data, bits=8, size=size))
        return torch.from_numpy(np.ascontiguousarray(pixels[:, :, 0]))

    def where(self, i: int) -> str:
        """``shard:key`` of sample ``i``, for messages."""
        return f"{self.manifest.shards[int(self.index.shard[i])].file}:{self.keys[i]}"

    def _stored(self, i: int, data: bytes) -> Stored:
        size = int(self.index.height[i]), int(self.index.width[i])
        pixels = read_stored(data, bits=int(self.index.bits[i]), size=size)
        if self.decoded:
            self.decoded.put(self.index, i, pixels)
        return pixels

    def _undecoded(self, samples: Sequence[int]) -> list[int]:
        """The places in ``samples`` of those whose pixels aren't kept."""
        return [n for n, i in enumerate(samples) if not (self.decoded and self.decoded.has(self.index, i))]

    def _range(self, i: int) -> Range:
        return Range(int(self.index.shard[i]), int(self.index.offset[i]), int(self.index.length[i]))

    def _guarded(self, i: int, data: bytes | None, work: Callable[[], Made]) -> Made:
        """``work()``; UndecodableImage where the bytes aren't those that were packed, or can't be decoded."""
        if data is not None and zlib.crc32(data) != int(self.index.crc32[i]):
            raise UndecodableImage(f"{self.where(i)}: its bytes have changed since it was packed (checksum)")
        try:
            return work()
        except Exception as error:  # a broken file makes decoders raise almost anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UndecodableImage(f"{self.where(i)}: {reason}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        # The storage is copied for ``copy.copy``: each thread has descriptors of its own.
        return _reopen, (self.folder, self.split, copy.copy(self.storage), self.window, self.decoded)


def open_packed(
    ref: str,
    prefer: Sequence[str] = (),
    window: tuple[float, float] | None = None,
    cache: CacheConfig | None = None,
) -> PackedImages:
    """Open ``DIR`` or ``DIR:split``, where DIR is a folder or an address (``s3://bucket/packed``).

    A set of several splits given without one takes the first of ``prefer`` that it has. ``window``: see
    :class:`PackedImages`; ``cache``: how remote data are fetched and kept. Raises UsageError for a wrong reference,
    DataError for a missing or truncated shard.
    """
    if not ref:
        raise UsageError(
            "no data set given: name a packed one, e.g. data.train=PACKED (make it: essa pack IMAGES out=PACKED)"
        )
    ref = ref.removeprefix("file://")
    if is_url(ref):
        url, split = split_ref(ref)
        storage = open_remote(url, cache)
        return _open_remote(url, split, prefer, storage, window)
    folder, split = _parse(ref)
    manifest = read_manifest(folder)
    if any(is_url(shard.file) for shard in manifest.shards):  # foreign tars, indexed in their place
        return _open_remote(str(folder), split, prefer, open_indexed(folder, cache), window)
    split = _choose_split(ref, split, manifest.splits, prefer)
    for shard in manifest.shards:
        if shard.split == split:
            check_shard(folder, shard)
    return _open(folder, manifest, split, LocalShards(folder, manifest.shards), window)


def place_of(ref: str) -> str:
    """The folder or address of a reference, without its split: another split of the same set is opened by it."""
    ref = ref.removeprefix("file://")
    return split_ref(ref)[0] if is_url(ref) else str(_parse(ref)[0])


def _open_remote(
    where: str,
    split: str | None,
    prefer: Sequence[str],
    storage: RemoteShards,
    window: tuple[float, float] | None,
) -> PackedImages:
    manifest = read_manifest(storage.folder)
    split = _choose_split(shown(where), split, manifest.splits, prefer)
    storage.check(split)
    return _open(storage.folder, manifest, split, storage, window)


def _open(
    folder: Path,
    manifest: Manifest,
    split: str,
    storage: Storage,
    window: tuple[float, float] | None,
    decoded: DecodedImages | None = None,
) -> PackedImages:
    index = read_index(folder)
    counts = [shard.count for shard in manifest.shards]
    if len(index) != sum(counts):
        raise DataError(
            f"{folder / INDEX_FILE} lists {len(index)} samples, the manifest {sum(counts)}: pack the data again"
        )
    of_split = [number for number, shard in enumerate(manifest.shards) if shard.split == split]
    start, stop = sum(counts[: of_split[0]]), sum(counts[: of_split[-1] + 1])
    return PackedImages(folder, manifest, split, index.rows(start, stop), storage, window, decoded)


def _reopen(
    folder: Path,
    split: str,
    storage: Storage,
    window: tuple[float, float] | None,
    decoded: DecodedImages | None,
) -> PackedImages:
    return _open(folder, read_manifest(folder), split, storage, window, decoded)


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
