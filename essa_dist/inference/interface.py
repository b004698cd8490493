"""What inference asks of a source of images. Each of its items, a sample or a file, gives pictures one after the other.

Shapes: pixels [3, H, W] uint8 RGB, shown through a window.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from essa_dist.data.shards import PackedImages


class Picture(NamedTuple):
    """One picture."""

    key: str
    """Of a packed sample its key; of a file its path, with ``#f0003`` or the like for one of several pictures."""
    name: str
    """A relative path without suffix, for files about it."""
    pixels: Tensor


class LeftOut(NamedTuple):
    """What gives no picture, and why."""

    key: str
    reason: str
    harmless: bool = False
    """Nothing is wrong with it: a DICOMDIR, a report, ... The quota doesn't count it."""


class Facts(NamedTuple):
    """What is known of an item beside its pixels."""

    split: str | None = None
    label: int | None = None
    """Index into the classes."""
    labels: tuple[int, ...] | None = None
    """0, 1 and -1 (not known) for each class, where there may be several."""
    patient: int | None = None
    """A number that tells nothing else."""


class Images(Protocol):
    """Items in a fixed order; may be asked by several threads at once, each item by one."""

    identity: str
    """Hash of what the items are: the same wherever they lie."""
    classes: tuple[str, ...]
    """What labels are indices into; empty: there are no labels."""
    several: bool
    """Whether an item may have several classes."""
    packed: Sequence[PackedImages]
    """The splits of a packed set; of files none."""

    def __len__(self) -> int: ...

    def pictures(self, item: int) -> Iterator[Picture | LeftOut]:
        """The pictures of an item; LeftOut where there is none, or where it breaks off.

        Raises DataError where a packed set is damaged, UsageError where a package for a format is missing.
        """
        ...

    def facts(self, item: int) -> Facts: ...

    def find(self, item: int) -> tuple[int, int]:
        """Number of an item's split in ``packed``, and of its sample there."""
        ...
