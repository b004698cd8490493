"""One update of the student, then one EMA move of its teacher."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from essa_dist.adapters.branches import Branches
from essa_dist.data.batch import Batch
from essa_dist.engine.optim import OptimConfig, drop_frozen_gradients, set_values
from essa_dist.engine.schedules import StepValues


class NotFiniteError(ArithmeticError):
    """A loss or gradient norm is not finite; neither student nor teacher was changed by the step."""

    def __init__(self, report: dict[str, float]) -> None:
        super().__init__(", ".join(f"{name} {value:.4g}" for name, value in report.items()))
        self.report = report


def train_step(
    model: nn.Module,  # the objective, perhaps wrapped by Accelerate
    branches: Branches,
    optimizer: torch.optim.Optimizer,
    batch: Batch,  # normalised, on the device
    values: StepValues,
    accelerator: Accelerator,
    *,
    config: OptimConfig,
    accumulate: int,
    scaler: torch.amp.GradScaler,
    diagnose: bool,
) -> dict[str, float]:
    """Split ``batch`` into ``accumulate`` micro-batches, update once, return this process's mean losses.

    Sinkhorn and KoLeo compare the samples of one micro-batch, so to them two micro-batches of 64 are not
    one batch of 128: accumulate to fit in memory, not to imitate a larger batch.
    Raises NotFiniteError before the update when a loss or the gradient norm is not finite.
    """
    set_values(optimizer, values)
    optimizer.zero_grad(set_to_none=True)
    report: dict[str, Tensor] = {}
    for last, micro in _micro_batches(batch, accumulate):
        with nullcontext() if last else accelerator.no_sync(model):  # ranks talk once per update
            losses = model(micro, teacher_temp=values.teacher_temp, diagnose=diagnose)
            scaler.scale(losses["total"] / accumulate).backward()
        for name, value in losses.items():
            report[name] = report.get(name, 0.0) + value.detach().float() / accumulate
    scaler.unscale_(optimizer)
    drop_frozen_gradients(branches.students, values)
    report["grad_norm"] = _clip(branches.students, config)
    numbers = dict(zip(report, torch.stack(list(report.values())).tolist(), strict=True))  # one device sync
    finite = all(abs(value) < float("inf") for value in numbers.values())
    # With a loss scale, an overflowing gradient is routine: the scaler skips the update and halves the scale.
    if not (finite or (scaler.is_enabled() and abs(numbers["total"]) < float("inf"))):
        raise NotFiniteError(numbers)
    scaler.step(optimizer)
    scaler.update()
    branches.update_teacher(values.ema_momentum)
    return numbers


def _micro_batches(batch: Batch, accumulate: int) -> Iterator[tuple[bool, Batch]]:
    size = batch.global_crops.shape[1] // accumulate
    for i in range(accumulate):
        part = slice(i * size, (i + 1) * size)
        yield (
            i == accumulate - 1,
            replace(
                batch,
                global_crops=batch.global_crops[:, part],
                local_crops=batch.local_crops[:, part],
                masks=batch.masks[:, part],
                keys=batch.keys[part],
            ),
        )


def _clip(students: dict[str, nn.Parameter], config: OptimConfig) -> Tensor:
    """Clip in place; the largest norm found before clipping."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in students.items():
        if parameter.grad is not None:
            parts.setdefault(name.split(".")[0] if config.clip_over == "module" else "model", []).append(
                parameter
            )
    return torch.stack([nn.utils.clip_grad_norm_(p, config.clip) for p in parts.values()]).max()
