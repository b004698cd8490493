"""What the guards are told of all samples: columns, so that a million of them fit in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from essa_dist.packing.splits import side


@dataclass(frozen=True)
class Table:
    """Parallel columns over the samples of a set, in the order of storage."""

    key: Sequence[str]
    splits: tuple[str, ...]
    """Names of the splits, in the order of the set."""
    split: NDArray[np.integer]
    """Position in ``splits``."""
    patient: NDArray[np.integer]
    """A number for each patient; NONE (-1): not known."""
    file: NDArray[np.integer]
    """A number for each source file: frames, slices and tiles of one are alike by nature, and no duplicates."""
    fingerprint: NDArray[np.void]
    """Rows of type ``FINGERPRINT``; may be mapped from a file."""
    flags: Mapping[str, NDArray[np.integer]] = field(default_factory=dict)
    """Kind of privacy finding -> rows of the samples that have it, ascending."""

    def __len__(self) -> int:
        return len(self.split)

    @property
    def side(self) -> NDArray[np.int64]:
        """A number for what the split of each sample is for: the same for all that are for training."""
        return side_numbers(self.splits)[np.asarray(self.split, np.int64)]


def side_numbers(splits: Sequence[str]) -> NDArray[np.int64]:
    """For each split the position of the first that is for the same; see :func:`essa_dist.packing.splits.side`."""
    sides = [side(split) for split in splits]
    return np.array([sides.index(one) for one in sides], np.int64)
