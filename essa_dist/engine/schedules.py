"""What changes over a run, as pure functions of the step: nothing to save, so nothing to restore wrongly.

Formulas as in DINOv2's CosineScheduler: a linear warm-up whose last step reaches the base value, then half a cosine.
"""

import math
import re
from typing import Annotated

from pydantic import AfterValidator, Field

from essa_dist.settings import Config


def _check_duration(value: int | str) -> int | str:
    if isinstance(value, str) and not re.fullmatch(r"\d+(\.\d+)?ep", value):
        raise ValueError("write a number of steps, or epochs as in 10ep")
    if isinstance(value, int) and value < 0:
        raise ValueError("must not be negative")
    return value


Duration = Annotated[int | str, AfterValidator(_check_duration)]
"""Steps (``300``) or epochs (``10ep``)."""


def in_steps(duration: int | str, steps_per_epoch: int) -> int:
    """``duration`` in steps, rounded; a part of an epoch is a step at least."""
    if isinstance(duration, int):
        return duration
    epochs = float(duration.removesuffix("ep"))
    return max(round(epochs * steps_per_epoch), math.ceil(min(epochs, 1.0)))


def cosine(step: int, total: int, start: float, end: float) -> float:
    """From ``start`` at step 0 along half a cosine to ``end`` at ``total``; ``end`` from there on."""
    if step >= total:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def linear(step: int, total: int, start: float, end: float) -> float:
    """From ``start`` at step 0 to ``end`` at step ``total - 1``; ``end`` from there on."""
    if step >= total - 1:
        return end
    return start + (end - start) * step / (total - 1)


def warmup_cosine(step: int, warmup: int, total: int, base: float, end: float) -> float:
    """Linear from 0 to ``base`` within ``warmup`` steps, then a cosine to ``end`` at ``total``."""
    if step < warmup:
        return linear(step, warmup, 0.0, base)
    return cosine(step - warmup, total - warmup, base, end)


class ScheduleConfig(Config):
    warmup: Duration = 0
    """Linear warm-up of the learning rates: updates, or epochs as in 10ep; so are all durations here."""
    head_warmup: Duration = 0
    """Train only the heads this long first: they start from scratch, and random heads wreck good features."""
    freeze_last_layer: Duration = 0
    """Keep the prototypes as initialised this long, as DINO does for an epoch."""
    ema_momentum: float = Field(0.994, ge=0, le=1)
    """The teacher's EMA momentum at the start ..."""
    ema_momentum_end: float = Field(1.0, ge=0, le=1)
    """... and at the end of its cosine."""
    teacher_temp_start: float = Field(0.04, gt=0)
    """Temperature of the teacher's targets at the start of its linear warm-up ..."""
    teacher_temp: float = Field(0.07, gt=0)
    """... and from its end on."""
    teacher_temp_warmup: Duration = 0
    """How long the teacher's temperature rises."""


_NEVER = {
    "warmup": "the learning rates don't reach their peak",
    "head_warmup": "the adapter is never trained",
    "freeze_last_layer": "the prototypes are never trained",
}


def outlasting(schedule: ScheduleConfig, total: int, steps_per_epoch: int) -> list[str]:
    """What begins only behind the last of ``total`` steps, and what follows from that, in words."""
    given = {f"schedule.{name}={getattr(schedule, name)}": name for name in _NEVER}
    return [
        f"{setting} takes the whole run of {total} steps: {_NEVER[name]}"
        for setting, name in given.items()
        if in_steps(getattr(schedule, name), steps_per_epoch) >= total + (name == "warmup")
    ]
