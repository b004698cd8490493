"""What the guards are told of all samples: columns, so that a million of them fit in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


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
