"""What each strategy keeps on a rank and sends in a step, from the exact sets of tensors.

The sources are this package's own strategies (``distributed.strategies``) and what was measured of them on two ranks
(``benchmarks/results/traffic.json``).
"""

from dataclasses import dataclass

from essa_dist.planning.fake import Seen
from essa_dist.planning.sets import ParameterSets, nbytes

LAYOUTS = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
BUFFERS = "buckets and gathered tensors"
BUCKET = 50_000_000 * 4
"""Bytes of a bucket of ZeRO, at most; ``strategies.zero.BUCKET`` numbers."""
GATHERED = 1_000_000_000
"""Numbers that ZeRO-3 leaves gathered between passes: DeepSpeed's default of stage3_max_live_parameters."""


@dataclass(frozen=True)
class Layout:
    """A strategy on a number of ranks."""

    name: str
    ranks: int
    shard_frozen: bool = False
    """fsdp2: frozen tensors too."""

    @property
    def gradient_share(self) -> float:
        """The share of the gradients that a rank keeps."""
        return 1 / self.ranks if self.name in ("zero2", "zero3", "fsdp2") else 1.0

    def standing(self, sets: ParameterSets) -> dict[str, float]:
        """Bytes of a rank by term that are there throughout a step."""
        n, name = self.ranks, self.name
        frozen, trained, teacher, moments = (
            float(sum(map(nbytes, group)))
            for group in (sets.frozen, sets.trained, sets.teacher, sets.moments)
        )
        buffers = 0.0
        if name == "ddp" and n > 1:
            buffers = trained  # gradients once more, in the buckets that are sent
        elif name in ("zero1", "zero2"):
            buffers = trained / n + min(trained, BUCKET) * (
                2 if n > 1 else 1
            )  # flat masters; two buckets overlap
            moments /= n
        elif name == "zero3":
            whole = frozen + trained + teacher
            numbers = sum(t.numel() for t in (*sets.frozen, *sets.trained, *sets.teacher))
            buffers = trained / n + min(trained, BUCKET)
            buffers += whole * (1 - 1 / n) * min(1.0, GATHERED / max(1, numbers))
            frozen, trained, teacher, moments = (x / n for x in (frozen, trained, teacher, moments))
        elif name == "fsdp2":
            # The unit that runs and the one that is fetched, with both branches, and the gradients of one to be sent.
            sizes = sorted(2 * u.trained + u.frozen * self.shard_frozen for u in sets.units)
            buffers = sum(sizes[-2:]) + max(u.trained for u in sets.units) if n > 1 else 0.0
            trained, teacher, moments = (x / n for x in (trained, teacher, moments))
            frozen = frozen / n if self.shard_frozen else frozen
        return {
            "trunk": frozen,
            "trained tensors": trained,
            "branches": teacher,
            "optimizer": moments,
            BUFFERS: buffers,
        }

    def sent(self, seen: Seen, accumulate: int, *, gloo: bool = False) -> float:
        """Bytes that a rank sends in an update, by ring algorithms; ``gloo`` makes an all-reduce of a reduce-scatter."""
        sets, n = seen.sets, self.ranks
        if n == 1:
            return 0.0
        share, scatter = (n - 1) / n, 2 if gloo else 1
        trained, teacher = sum(map(nbytes, sets.trained)), sum(map(nbytes, sets.teacher))
        frozen = sum(nbytes(t) for t in sets.frozen)
        if self.name == "ddp":
            return 2 * share * trained
        if self.name == "zero1":
            return share * (scatter + 1) * trained
        if self.name == "zero2":
            return share * (scatter * accumulate + 1) * trained
        if self.name == "zero3":  # each tensor is gathered once while it may stay
            return share * accumulate * (scatter * trained + trained + teacher + frozen)
        total = 0.0
        for unit in sets.units:
            without, with_ = seen.passes.get(unit.name, seen.passes["trunk"])
            gathered = 2 * unit.trained + unit.frozen * self.shard_frozen
            total += (without + 2 * with_) * gathered + scatter * unit.trained
        return share * accumulate * total
