"""The peak memory of a rank, by term, for any batch and layout, from one step that was seen."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from essa_dist.planning.allocator import reserved_peak
from essa_dist.planning.fake import Seen
from essa_dist.planning.layouts import Layout
from essa_dist.planning.sets import nbytes
from essa_dist.planning.sizes import Floats, Load, Sizes
from essa_dist.planning.tracker import CASTS, HEADS, TEMPORARY, Block

STANDING = ("trunk", "trained tensors", "branches", "optimizer", "images")
"""Terms that are there all the time."""
ACTIVATIONS = "activations"
VALIDATION = "validation"
"""What predicting its images takes, which is no part of a step; in a step there is none of it."""


@dataclass(frozen=True)
class Peak:
    """Bytes of a rank."""

    terms: dict[str, float]
    """Of what is alive when the sum is largest."""
    fragmentation: float
    """What the allocator holds and can't use, when it holds most."""

    @property
    def allocated(self) -> float:
        """What ``torch.cuda.max_memory_allocated`` would say."""
        return sum(self.terms.values())

    @property
    def reserved(self) -> float:
        """What ``torch.cuda.max_memory_reserved`` would say."""
        return self.allocated + self.fragmentation


def term_of(block: Block) -> str:
    """What a storage is. What outlives the pass that made it was kept for the backward pass."""
    if block.term:
        return block.term
    if block.phase == "between":
        return VALIDATION
    if block.phase != "forward":
        return TEMPORARY
    if block.where == HEADS:
        return HEADS
    if block.left is not None and block.left == block.turn:
        return TEMPORARY
    return CASTS if block.cast else f"{ACTIVATIONS} {block.where}"


def _is_recomputed(block: Block) -> bool:
    """Whether a block that is computed again needs not keep this."""
    return block.inside > 0 and not block.is_output and term_of(block) != TEMPORARY


def is_offloaded(block: Block) -> bool:
    """Whether ``engine.offload`` keeps this on the host; what is small stays, and doesn't count."""
    return block.inside > 0 and term_of(block).startswith(ACTIVATIONS)


class Memory:
    """Of one run of :func:`~.fake.see_step`.

    ``accumulate`` micro-batches, and ``recompute`` (``backbone.checkpoint_activations``), may be others than the run's:
    then gradients are there from the first to the last, and of each block its output is kept, and one block whole.
    """

    def __init__(self, seen: Seen, accumulate: int, *, recompute: bool = False) -> None:
        self.seen, self.accumulate = seen, accumulate
        blocks = seen.tracker.blocks
        self.all_gradients = accumulate > seen.micro_batches == 1
        self.forgotten = np.array([recompute and _is_recomputed(block) for block in blocks])
        self.away = np.array([seen.offloads and is_offloaded(block) for block in blocks]) & ~self.forgotten
        self.inside = np.array([block.inside for block in blocks])
        self.terms = [term_of(block) for block in blocks]
        self.sizes = Sizes([block.size for block in blocks])
        events = np.array(seen.tracker.events).reshape(-1, 2)
        self.signs, self.numbers = events[:, 0].astype(np.float64), events[:, 1]
        self.born = np.array([block.born for block in blocks])
        self.died = np.array([len(events) if block.died is None else block.died for block in blocks])

    @cached_property
    def names(self) -> list[str]:
        """Terms, the standing ones first."""
        return list(dict.fromkeys([*STANDING, "gradients", *self.terms]))

    @cached_property
    def _standing(self) -> NDArray[np.bool_]:
        return np.array([term in STANDING for term in self.terms])

    @cached_property
    def _gradients(self) -> NDArray[np.bool_]:
        return np.array([term == "gradients" for term in self.terms])

    def _bytes(self, load: Load, layout: Layout) -> Floats:
        """Of each storage on a rank; standing ones are accounted for by the layout."""
        found = np.where(self._standing | self.forgotten | self.away, 0.0, self.sizes.at(load))
        if self.all_gradients:
            found = np.where(self._gradients, 0.0, found)
        return np.where(self._gradients, found * layout.gradient_share, found)

    def standing(self, load: Load, layout: Layout) -> dict[str, float]:
        """Bytes by term."""
        images = sum(
            size for size, term in zip(self.sizes.at(load), self.terms, strict=True) if term == "images"
        )
        found = layout.standing(self.seen.sets)
        found["images"] = float(images) * self.accumulate / self.seen.micro_batches
        if self.all_gradients:
            found["gradients"] = sum(map(nbytes, self.seen.sets.trained)) * layout.gradient_share
        for name, gone in (("computed again", self.forgotten), ("back from the host", self.away)):
            if gone.any():
                per_block = np.bincount(self.inside[gone], self.sizes.at(load)[gone])
                found[f"one block, {name}"] = float(per_block.max())
        return found

    def peak(self, load: Load, layout: Layout, *, simulate: bool = True) -> Peak:
        """``simulate``: CUDA's allocator too, tens of milliseconds."""
        sizes = self._bytes(load, layout)
        total = np.cumsum(self.signs * sizes[self.numbers])
        top = int(total.argmax())
        alive = (self.born <= top) & (self.died > top)
        terms = dict.fromkeys(self.names, 0.0) | self.standing(load, layout)
        for number in np.flatnonzero(alive & (sizes > 0)):
            terms[self.terms[number]] += float(sizes[number])
        fragmentation = 0.0
        if simulate:
            moving = self.seen.tracker.events
            held = reserved_peak(((sign, n) for sign, n in moving if sizes[n]), sizes)
            fragmentation = max(0.0, held - float(total[top]))
        return Peak({name: size for name, size in terms.items() if size}, fragmentation)

    def timeline(self, load: Load, layout: Layout) -> Iterator[tuple[str, Floats]]:
        """Bytes of each term after each event; the standing ones first."""
        sizes, terms = self._bytes(load, layout), np.array(self.terms)
        for name, size in self.standing(load, layout).items():
            yield name, np.full(len(self.signs), size)
        for name in self.names:
            own = np.where(terms == name, sizes, 0.0)
            if own.any():
                yield name, np.cumsum(self.signs * own[self.numbers])
