"""The images of a packed set, one split after the other."""

import copy
import hashlib
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from essa_dist.data.index import NONE
from essa_dist.data.manifest import UNLABELLED, read_manifest
from essa_dist.data.remote import CacheConfig
from essa_dist.data.remote.urls import is_url
from essa_dist.data.shards import PackedImages, UndecodableImage, open_packed, place_of
from essa_dist.inference.interface import Facts, LeftOut, Picture

USUAL = ("train", "val", "test", UNLABELLED)


def open_splits(ref: str, window: tuple[float, float] | None, cache: CacheConfig | None) -> "PackedSource":
    """The split that ``ref`` names, or all splits of the set. Raises what ``open_packed`` does."""
    place = place_of(ref)
    if place != ref.removeprefix("file://"):
        return PackedSource([open_packed(ref, window=window, cache=cache)])
    if is_url(place):  # its manifest is known once it is open
        splits = open_packed(place, prefer=USUAL, cache=cache).manifest.splits
    else:
        splits = read_manifest(Path(place)).splits
    opened = [open_packed(f"{place}:{split}", window=window, cache=cache) for split in splits]
    return PackedSource(opened)


class PackedSource:
    """See :class:`~essa_dist.inference.interface.Images`; an item is a sample."""

    def __init__(self, splits: Sequence[PackedImages]) -> None:
        self.packed = splits
        self._starts = [0, *accumulate(map(len, splits))]
        self._own = threading.local()  # each thread reads by file descriptors of its own
        manifest = splits[0].manifest
        self.classes = manifest.classes
        self.several = manifest.label_kind == "multi"
        parts = [
            manifest.index_sha256,
            *(shard.sha256 for shard in manifest.shards),
            *(one.split for one in splits),
        ]
        self.identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def __len__(self) -> int:
        return self._starts[-1]

    def pictures(self, item: int) -> Iterator[Picture | LeftOut]:
        split, i = self.find(item)
        if not hasattr(self._own, "splits"):
            self._own.splits = [copy.copy(one) for one in self.packed]
        key = self.packed[split].keys[i]
        try:
            yield Picture(key, key, self._own.splits[split].decode(i))
        except UndecodableImage as error:
            yield LeftOut(key, str(error))

    def facts(self, item: int) -> Facts:
        split, i = self.find(item)
        images = self.packed[split]
        label, patient = int(images.index.label[i]), int(images.index.patient[i])
        return Facts(
            split=images.split,
            label=None if label == NONE else label,
            labels=None if images.label_matrix is None else tuple(images.label_matrix[i].tolist()),
            patient=None if patient == NONE else patient,
        )

    def find(self, item: int) -> tuple[int, int]:
        split = bisect_right(self._starts, item) - 1
        return split, item - self._starts[split]
