"""The looks that a run has taken at its features, read from its metrics.jsonl while it is written."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from essa_dist.tuning.record import Objective


def looks_of(metrics: Path, goals: Sequence[Objective]) -> list[dict[str, Any]]:
    """Rows that have the first of ``goals``, each with what was last known of the others."""
    found, last = [], dict[str, Any]()
    for line in metrics.read_text().splitlines() if metrics.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:  # it is being written
            break
        last |= {goal.name: row[goal.name] for goal in goals if goal.name in row}
        if goals[0].name in row and row["step"] > 0:
            found.append(row | last)
    return found


def metrics_of(metrics: Path) -> list[str]:
    """The names of all numbers in a finished file, sorted."""
    rows = map(json.loads, metrics.read_text().splitlines()) if metrics.is_file() else ()
    return sorted({name for row in rows for name in row})


def number(of_row: float | None) -> float:
    """A metric as a number: null, as one that is not finite was written, is NaN."""
    return math.nan if of_row is None else float(of_row)


def progress(row: dict[str, Any], duration: Any) -> float:
    """How much of its run a row of metrics.jsonl has behind it, in percent; ``duration`` in steps, or as ``10ep``."""
    if isinstance(duration, int):
        return 100 * float(row["step"]) / duration
    return 100 * float(row["epoch"]) / float(duration.removesuffix("ep"))


def best_look(curve: list[dict[str, float]], goal: Objective) -> dict[str, float]:
    """The look with the best first objective; empty: there is none."""
    best: dict[str, float] = {}
    for look in curve:
        value = look.get(goal.name, math.nan)
        if not math.isnan(value) and (not best or goal.better(value, best[goal.name])):
            best = {name: number for name, number in look.items() if name != "seconds"}
    return best
