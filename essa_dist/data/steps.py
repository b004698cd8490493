"""The requests of a run: which samples each step needs on this rank, and which ones come soon."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache

from torch.utils.data import Sampler

from essa_dist.data.plan import SamplePlan, rank_slice
from essa_dist.data.rank_batches import Request
from essa_dist.data.remote import next_uses
from essa_dist.data.storage import LocalShards, Storage, Uses


class Steps(Sampler[Request]):
    """One request per step of ``range``. Runs in the main process; workers never see the plan.

    ``mine``: the rank's part of a global batch; ``ahead``: how many steps later the same worker is asked again;
    ``here``: the part of this machine's ranks, where its cache wants to know of later uses.
    """

    def __init__(
        self,
        plan: SamplePlan,
        global_batch: int,
        mine: slice,
        *,
        ahead: Sequence[int] = (),
        here: range | None = None,
    ) -> None:
        self.plan, self.global_batch, self.mine = plan, global_batch, mine
        self.ahead, self.here = ahead, here
        self.range = range(0)
        # What is announced now is asked for soon: each step is planned once.
        self._indices = lru_cache(maxsize=max(ahead, default=0) + 1)(self._planned)

    def __iter__(self) -> Iterator[Request]:
        for step in self.range:
            later = [step + n for n in self.ahead if step + n in self.range]
            positions, indices = self._positions(step), self._indices(step)
            yield Request(
                step,
                positions,
                indices,
                ahead=[index for after in later for index in self._indices(after)],
                uses=self._uses(positions, indices),
            )

    def __len__(self) -> int:
        return len(self.range)

    def _uses(self, positions: range, indices: list[int]) -> Uses | None:
        if self.here is None:
            return None
        return next_uses(self.plan, positions, indices, global_batch=self.global_batch, here=self.here)

    def _positions(self, step: int) -> range:
        return self.plan.positions(step, self.global_batch)[self.mine]

    def _planned(self, step: int) -> list[int]:
        return self.plan.at(self._positions(step))


def plan_steps(
    plan: SamplePlan,
    storage: Storage,
    global_batch: int,
    *,
    rank: int,
    world_size: int,
    workers: int,
    read_ahead: int,
) -> Steps:
    """The steps of one rank whose ``workers`` are told of the ``read_ahead`` batches after the present one."""
    return Steps(
        plan,
        global_batch,
        rank_slice(global_batch, rank, world_size),
        # Requests go round the workers: a worker's next one is as many steps on as there are workers.
        ahead=[max(1, workers) * (n + 1) for n in range(read_ahead)],
        here=None if isinstance(storage, LocalShards) else machine_slice(global_batch, rank, world_size),
    )


def machine_slice(global_batch: int, rank: int, world_size: int) -> range:
    """The places in a global batch that belong to the ranks of this machine, as torchrun numbers them."""
    first = rank - int(os.environ.get("LOCAL_RANK", "0"))
    last = first + int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
    return range(global_batch)[
        rank_slice(global_batch, first, world_size).start : rank_slice(global_batch, last, world_size).stop
    ]
