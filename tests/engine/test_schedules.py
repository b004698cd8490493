"""Schedules equal DINOv2's precomputed arrays, step for step."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from essa_dist.engine.optim import OptimConfig, step_values
from essa_dist.engine.schedules import Duration, ScheduleConfig, in_steps, outlasting

TOTAL, PER_EPOCH = 57, 10


def dinov2_array(base: float, final: float, total: int, warmup: int = 0, start: float = 0.0) -> np.ndarray:
    """The slow oracle: the whole schedule written out, as the official CosineScheduler does."""
    ramp = np.linspace(start, base, warmup)
    steps = np.arange(total - warmup)
    return np.concatenate([ramp, final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))])


def values(optim: OptimConfig, schedule: ScheduleConfig) -> list:
    return [
        step_values(s, total=TOTAL, steps_per_epoch=PER_EPOCH, optim=optim, schedule=schedule)
        for s in range(TOTAL)
    ]


def test_every_schedule_is_dinov2s() -> None:
    optim = OptimConfig(lr=1e-3, head_lr=2e-3, min_lr=1e-6, weight_decay=1e-5, weight_decay_end=1e-4)
    schedule = ScheduleConfig(
        warmup="1ep", ema_momentum=0.99, teacher_temp_start=0.04, teacher_temp=0.07, teacher_temp_warmup=20
    )
    points = values(optim, schedule)
    np.testing.assert_allclose([p.lr for p in points], dinov2_array(1e-3, 1e-6, TOTAL, 10))
    np.testing.assert_allclose([p.head_lr for p in points], dinov2_array(2e-3, 1e-6, TOTAL, 10))
    np.testing.assert_allclose([p.weight_decay for p in points], dinov2_array(1e-5, 1e-4, TOTAL))
    np.testing.assert_allclose([p.ema_momentum for p in points], dinov2_array(0.99, 1.0, TOTAL))
    temps = np.concatenate([np.linspace(0.04, 0.07, 20), np.full(TOTAL - 20, 0.07)])
    np.testing.assert_allclose([p.teacher_temp for p in points], temps)


def test_freezing_ends_at_its_step() -> None:
    points = values(OptimConfig(), ScheduleConfig(head_warmup=3, freeze_last_layer="0.5ep"))
    assert [p.adapter_frozen for p in points].index(False) == 3
    assert [p.last_layer_frozen for p in points].index(False) == 5


def test_heads_follow_the_adapter_unless_told_otherwise() -> None:
    point = values(OptimConfig(lr=0.5, weight_decay=0.1), ScheduleConfig())[7]
    assert (point.head_lr, point.head_weight_decay) == (point.lr, point.weight_decay)
    assert values(OptimConfig(head_weight_decay=0.04), ScheduleConfig())[7].head_weight_decay == 0.04


@pytest.mark.parametrize(
    ("duration", "steps"), [(7, 7), ("2ep", 20), ("0.25ep", 2), ("0.01ep", 1), ("0ep", 0)]
)
def test_durations_are_steps_or_epochs(duration: int | str, steps: int) -> None:
    assert in_steps(TypeAdapter(Duration).validate_python(duration), PER_EPOCH) == steps


@pytest.mark.parametrize("wrong", ["10 epochs", "ep", "-1ep", -1])
def test_other_durations_are_refused(wrong: int | str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Duration).validate_python(wrong)


def test_what_a_run_is_too_short_for_is_said() -> None:
    schedule = ScheduleConfig(warmup=6, head_warmup="0.5ep", freeze_last_layer=4)
    assert outlasting(schedule, 7, PER_EPOCH) == []
    assert outlasting(schedule, 6, PER_EPOCH) == []
    assert outlasting(schedule, 5, PER_EPOCH) == [
        "schedule.warmup=6 takes the whole run of 5 steps: the learning rates don't reach their peak",
        "schedule.head_warmup=0.5ep takes the whole run of 5 steps: the adapter is never trained",
    ]
