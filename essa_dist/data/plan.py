"""The sample plan: which sample every step sees, on any number of ranks and workers.

There is one global stream of positions p = 0, 1, 2, ... Step s of global batch G sees positions sG .. sG + G - 1;
rank r of w sees the r-th of w equal, contiguous slices of them. Epoch = p // n, and inside an epoch the order is a
permutation that depends on (n, seed, epoch) alone. So a run goes on from any step by knowing the step.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from essa_dist.errors import UsageError


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed that is the same in every process, on every machine and in every version of Python."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def sample_seed(seed: int, position: int) -> int:
    """Seed of the augmentations of the sample at ``position`` of the stream."""
    return stable_seed("augment", seed, position)


def rank_slice(global_batch: int, rank: int, world_size: int) -> slice:
    """The part of a global batch that belongs to ``rank``.

    Raises UsageError unless the global batch divides evenly.
    """
    if global_batch % world_size:
        nearest = max(1, round(global_batch / world_size)) * world_size
        raise UsageError(
            f"global batch {global_batch} can't be shared evenly by {world_size} ranks; the nearest that can is {nearest}"
        )
    per_rank = global_batch // world_size
    return slice(rank * per_rank, (rank + 1) * per_rank)


class SamplePlan:
    """The order of ``n`` samples under ``seed``.

    Cost: one sort of n integers per epoch, 8n bytes for each of the two epochs that a batch may touch.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 2:
            raise UsageError(
                f"a data set of {n} sample(s) can't be shuffled into batches; at least 2 are needed"
            )
        self.n, self.seed = n, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def positions(self, step: int, global_batch: int) -> range:
        """Stream positions of global step ``step``."""
        return range(step * global_batch, (step + 1) * global_batch)

    def index(self, position: int) -> int:
        """The sample at ``position`` of the stream."""
        epoch, place = divmod(position, self.n)
        return int(self._order(epoch)[place])

    def indices(self, step: int, global_batch: int) -> list[int]:
        """The samples of global step ``step``, in order."""
        return [self.index(position) for position in self.positions(step, global_batch)]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        # Sorting raw Philox output, not Generator.permutation: only the raw stream of a bit generator is
        # promised to stay the same in later versions of numpy.
        draws = np.random.Philox(key=stable_seed("order", self.n, self.seed, epoch)).random_raw(self.n)
        return np.argsort(draws, kind="stable").astype(np.int64)
