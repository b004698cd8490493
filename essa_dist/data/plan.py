"""The sample plan: which sample every step sees, on any number of ranks and workers.

There is one global stream of positions p = 0, 1, 2, ... Step s of global batch G sees positions sG .. sG + G - 1;
rank r of w sees the r-th of w equal, contiguous slices of them. Epoch = p // n, and inside an epoch the order is a
permutation that depends on (n, seed, epoch) alone. So a run goes on from any step by knowing the step.

The permutation is computed, not stored: "swap or not" (Hoang, Morris, Rogaway, CRYPTO 2012, figure 1), a cipher over
0 .. n - 1 for any n. Each round pairs x with K - x mod n and a bit of a hash of the pair says whether the two change
places. It costs no memory, whatever n, and can be run backwards, which tells when a sample will be seen.
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from essa_dist.errors import UsageError

ROUNDS = 128
"""Few enough to cost microseconds a sample, and 4 to 5 for each bit of a set of 100 million; by the paper's theorem 3
what deviates from a uniform permutation then is far below what can be seen in data."""


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
    """The order of ``n`` samples under ``seed``. Costs no memory that grows with ``n``; picklable."""

    def __init__(self, n: int, seed: int) -> None:
        if n < 2:
            raise UsageError(
                f"a data set of {n} sample(s) can't be shuffled into batches; at least 2 are needed"
            )
        self.n, self.seed = n, seed

    def positions(self, step: int, global_batch: int) -> range:
        """Stream positions of global step ``step``."""
        return range(step * global_batch, (step + 1) * global_batch)

    def indices(self, step: int, global_batch: int) -> list[int]:
        """The samples of global step ``step``, in order."""
        return self.at(self.positions(step, global_batch))

    def at(self, positions: range) -> list[int]:
        """The samples at ``positions`` of the stream (step 1), in order."""
        found: list[int] = []
        start = positions.start
        while start < positions.stop:
            epoch, place = divmod(start, self.n)
            stop = min(positions.stop, (epoch + 1) * self.n)
            found += self.samples(epoch, np.arange(place, place + stop - start)).tolist()
            start = stop
        return found

    def samples(self, epoch: int, places: ArrayLike) -> NDArray[np.int64]:
        """The samples at ``places`` (0 .. n - 1) of an epoch."""
        return self._swap_or_not(epoch, places, range(ROUNDS))

    def places(self, epoch: int, samples: ArrayLike) -> NDArray[np.int64]:
        """When ``samples`` are seen in an epoch: the inverse of :meth:`samples`."""
        return self._swap_or_not(epoch, samples, range(ROUNDS - 1, -1, -1))

    def _swap_or_not(self, epoch: int, values: ArrayLike, rounds: range) -> NDArray[np.int64]:
        x = np.asarray(values, dtype=np.int64)
        # Raw Philox output: only the raw stream of a bit generator is promised to stay the same in later numpys.
        keys = np.random.Philox(key=stable_seed("order", self.n, self.seed, epoch)).random_raw(2 * ROUNDS)
        for i in rounds:
            partner = (int(keys[2 * i]) % self.n) - x
            partner += np.where(partner < 0, self.n, 0)
            swap = _hash_bit(np.maximum(x, partner), keys[2 * i + 1])
            x = np.where(swap, partner, x)
        return x


def _hash_bit(values: NDArray[np.int64], key: np.uint64) -> NDArray[np.bool_]:
    """One bit for each value: the top one of SplitMix64's output (Steele, Lea, Flood, OOPSLA 2014)."""
    z = values.astype(np.uint64) ^ key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bit: NDArray[np.bool_] = (z ^ (z >> np.uint64(31))) >> np.uint64(63) == 1
    return bit
