"""One update of the student, then one EMA move of its teacher."""

from collections.abc import Callable

import torch
from torch import Tensor

from essa_dist.data.batch import TrainingBatch
from essa_dist.distributed.collectives import all_reduce_sum, world_size
from essa_dist.distributed.strategies import Strategy
from essa_dist.engine.first_gradients import check_gradients
from essa_dist.engine.loss_scale import LossScale
from essa_dist.engine.optim import held_back, set_values
from essa_dist.engine.watching.heartbeat import Place
from essa_dist.objectives import StepValues


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm is not finite; neither student nor teacher was changed by the step.

    ``report`` holds means over ranks, ``own`` this rank's numbers. Raised on all ranks in the same step.
    """

    def __init__(self, report: dict[str, float], own: dict[str, float]) -> None:
        super().__init__(", ".join(f"{name} {value:.4g}" for name, value in report.items()))
        self.report, self.own = report, own


def train_step(
    strategy: Strategy,
    batch: TrainingBatch,  # normalised, on the device
    values: StepValues,
    *,
    accumulate: int,
    loss_scale: LossScale,
    diagnose: bool,
    at: Callable[[Place], object] = lambda place: None,
) -> dict[str, float]:
    """Split ``batch`` into ``accumulate`` micro-batches, update once, return the mean losses over all ranks.

    The update is that of the whole batch; what terms that compare images cost is told in ``objectives.accumulation``.
    ``at`` is told where the step is. Raises NotFiniteError before the update when a loss or the gradient norm is not finite on any rank.
    """
    at("forward and backward")
    branches = strategy.objective.branches
    set_values(strategy.optimizer, values)
    branches.held = held_back(branches.students, values)
    report: dict[str, Tensor] = {}
    parts = strategy.objective.micro_batches(strategy.model, batch, accumulate, values)
    for i, (micro, options) in enumerate(parts, start=1):
        with strategy.micro_batch(last=i == accumulate):
            losses = strategy.model(micro, diagnose=diagnose, **options)
            strategy.backward(losses["total"] / accumulate, scale=loss_scale.scale)
        for name, value in losses.items():
            report[name] = report.get(name, 0.0) + value.detach().float() / accumulate
    numbers, own = _over_ranks(report)
    if not _finite(numbers):
        strategy.discard()
        strategy.objective.settle(applied=False)
        raise NotFiniteError(numbers, own)
    check_gradients(branches)
    at("update")
    norm, applied = strategy.update(scale=loss_scale.scale, held=branches.held)
    strategy.objective.settle(applied=applied)
    numbers["grad_norm"] = norm.item()
    # With a loss scale, an overflowing gradient is routine: the update is left out, and the next scale is half of it.
    if not (applied or loss_scale.enabled):
        raise NotFiniteError(numbers, own)
    loss_scale.update(applied=applied)
    if applied:
        strategy.update_teacher(values.ema_momentum)
    return numbers


def _over_ranks(report: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Means over ranks, and this rank's own numbers, in one device sync."""
    own = torch.stack(list(report.values()))
    mean = all_reduce_sum(own.clone()) / world_size()
    means, owns = torch.stack([mean, own]).tolist()
    return dict(zip(report, means, strict=True)), dict(zip(report, owns, strict=True))


def _finite(numbers: dict[str, float]) -> bool:
    return all(abs(value) < float("inf") for value in numbers.values())
