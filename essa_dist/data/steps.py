"""The requests of a run: which samples each step needs on this rank, and which ones come soon."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from essa_dist.data.plan import SamplePlan
from essa_dist.data.rank_batches import Request


class Steps(Sampler[Request]):
    """One request per step of ``range``. Runs in the main process; workers never see the plan.

    ``mine``: the rank's part of a global batch; ``ahead``: how many steps later the same worker is asked again.
    """

    def __init__(self, plan: SamplePlan, global_batch: int, mine: slice, ahead: Sequence[int] = ()) -> None:
        self.plan, self.global_batch, self.mine, self.ahead = plan, global_batch, mine, ahead
        self.range = range(0)

    def __iter__(self) -> Iterator[Request]:
        for step in self.range:
            later = [step + n for n in self.ahead if step + n in self.range]
            yield Request(
                step,
                self._positions(step),
                self._indices(step),
                [index for after in later for index in self._indices(after)],
            )

    def __len__(self) -> int:
        return len(self.range)

    def _positions(self, step: int) -> range:
        return self.plan.positions(step, self.global_batch)[self.mine]

    def _indices(self, step: int) -> list[int]:
        return self.plan.at(self._positions(step))
