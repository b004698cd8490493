"""What the parts of the report ask of a sweep: order, names, numbers as words."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from essa_dist.tuning.record import MEMORY, TIME, Objective, Status, Sweep, Trial
from essa_dist.tuning.space import Value

WELL: tuple[Status, ...] = ("done", "stopped", "running", "interrupted")
"""Trials that stand for their settings; the scores of the others are those of a run that broke."""
BADLY: tuple[Status, ...] = ("failed", "out_of_memory", "diverged", "interrupted")


def value_of(trial: Trial, name: str) -> float:
    """An objective at the trial's best look; NaN where it wasn't measured."""
    return float(trial.best.get(name, math.nan))


def ranked(sweep: Sweep) -> list[Trial]:
    """Trials that didn't break and have a finite first objective, best first."""
    name = sweep.objectives[0].name
    fine = [t for t in sweep.trials if t.status in WELL and math.isfinite(value_of(t, name))]
    return replace(sweep, trials=tuple(fine)).scored()


def measured(sweep: Sweep) -> list[Objective]:
    """The objectives, and memory and time where any trial has them, that some ranked trial has a finite value of."""
    names = {objective.name for objective in sweep.objectives}
    costs = [Objective(name, "min") for name in (MEMORY, TIME) if name not in names]
    return [
        one
        for one in (*sweep.objectives, *costs)
        if any(math.isfinite(value_of(trial, one.name)) for trial in ranked(sweep))
    ]


def recorded(sweep: Sweep) -> list[str]:
    """Names of the objectives, measured or not, and of memory and time where measured."""
    return list(dict.fromkeys(one.name for one in (*sweep.objectives, *measured(sweep))))


def varied(sweep: Sweep, trials: Sequence[Trial]) -> list[str]:
    """Parameters that differ between ``trials``; to lack one is a difference too."""
    return [name for name in sweep.parameters if len({str(t.params.get(name)) for t in trials}) > 1]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """``adapter.kind`` as adapter and ``optim.lr`` as lr, as long as no two become the same."""
    short = {name: name.removesuffix(".kind").removesuffix(".enabled").rpartition(".")[2] for name in names}
    count = Counter(short.values())
    return {name: word if count[word] == 1 else name for name, word in short.items()}


def is_number(value: Value | None) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value: Value | None) -> str:
    """A value in few characters, as ``0.0003`` and ``lora``; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def middle(text: str, limit: int) -> str:
    """``text`` cut in its middle to ``limit`` characters: long names of one family often differ at their end."""
    tail = limit // 2 - 1
    return text if len(text) <= limit else f"{text[: limit - tail - 1]}…{text[-tail:]}"


def settings(trial: Trial, names: Sequence[str]) -> str:
    """``adapter=lora rank=8 lr=0.0003``: those of ``names`` that the trial has."""
    words = short_names(names)
    return " ".join(f"{words[name]}={number(trial.params[name])}" for name in names if name in trial.params)


def counts(trials: Sequence[Trial]) -> str:
    """``12 done, 3 stopped, 1 out of memory``."""
    count = Counter(trial.status for trial in trials)
    return ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in count.most_common())
