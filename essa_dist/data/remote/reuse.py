"""When a machine needs its samples again: what the local cache wants to know of the sample plan."""

from collections.abc import Sequence

import numpy as np

from essa_dist.data.plan import SamplePlan
from essa_dist.data.remote.samples import UNKNOWN
from essa_dist.data.storage import Uses

EPOCHS = 8
"""How far the plan is looked through, at about a millisecond an epoch and batch; what comes later counts as unknown."""


def next_uses(
    plan: SamplePlan, positions: Sequence[int], samples: Sequence[int], *, global_batch: int, here: range
) -> Uses:
    """The uses of ``samples``, which are read for ``positions`` of the stream.

    ``here``: the places in a global batch that belong to ranks of this machine (all of them, where there is but one).
    """
    wanted = np.asarray(samples, dtype=np.int64)
    epochs = np.asarray(positions, dtype=np.int64) // plan.n
    again = np.full(len(wanted), UNKNOWN, dtype=np.int64)
    for ahead in range(1, EPOCHS + 1):
        for epoch in np.unique(epochs[again == UNKNOWN]) + ahead:
            open_ = np.flatnonzero((again == UNKNOWN) & (epochs + ahead == epoch))
            found = int(epoch) * plan.n + plan.places(int(epoch), wanted[open_])
            place = found % global_batch
            ours = (place >= here.start) & (place < here.stop)
            again[open_[ours]] = found[ours]
        if not (again == UNKNOWN).any():
            break
    return Uses(int(min(positions)), again.tolist())
