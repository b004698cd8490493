"""Updates that are left out because a number was not finite: how many a run may have, and the record of them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from essa_dist.engine.recording.metrics import Rows
from essa_dist.engine.watching.guard import GuardConfig

FILE = "skipped.jsonl"


class SkipBudget:
    """Decides, from what all ranks know alike, whether a run may leave out one more update."""

    def __init__(self, budget: int, in_a_row: int, *, used: int = 0) -> None:
        """``used``: updates left out before this start of the run."""
        self.budget, self.in_a_row, self.used = budget, in_a_row, used
        self.row = 0
        self.first: str | None = None
        self._last = -1

    def spend(self, step: int, cause: str) -> bool:
        """Whether the update of ``step``, not finite because of ``cause``, may be left out; if so it is counted."""
        self.row = self.row + 1 if step == self._last + 1 else 1
        self._last = step
        if self.used >= self.budget or self.row >= self.in_a_row:
            return False
        self.used += 1
        self.first = self.first or f"step {step}: {cause}"
        return True

    def left(self) -> str:
        """``1 of guard.skip_budget=5``."""
        return f"{self.used} of guard.skip_budget={self.budget}"

    def why(self) -> str:
        """What was spent, and the first cause; nothing where no update was left out."""
        if not self.used:
            return ""
        limit = (
            f"guard.skip_in_a_row={self.in_a_row}"
            if self.row >= self.in_a_row
            else f"guard.skip_budget={self.budget}"
        )
        first = f", the first at {self.first}" if self.first else ""
        return f" That is more than {limit} allows: {self.used} updates were left out before{first}."


class SkipRecord:
    """``skipped.jsonl``: a line ``{"step": 7, "ranks": {"1": {"keys": [...], "values": {...}}}}`` for each such update.

    Only one process may be ``enabled``. What a resumed run does again is dropped, and without such an update there is
    no file.
    """

    def __init__(self, run: Path, *, start_step: int, enabled: bool) -> None:
        self.path, self.start_step, self.enabled = run / FILE, start_step, enabled
        self._rows = self._open() if enabled and self.path.is_file() else None

    def write(self, step: int, ranks: Mapping[str, Any]) -> None:
        """``ranks``: from ``suspects.blame``."""
        if self.enabled:
            self._rows = self._rows or self._open()
            self._rows.add({"step": step, "ranks": ranks})

    def _open(self) -> Rows:
        return Rows(self.path, start_step=self.start_step)


def budget(config: GuardConfig, state: Mapping[str, Any]) -> SkipBudget:
    """That of a run, begun (an empty ``state``) or resumed from the ``state`` of a checkpoint."""
    return SkipBudget(config.skip_budget, config.skip_in_a_row, used=int(state.get("skipped", 0)))


def cause(report: Mapping[str, float]) -> str:
    """The numbers that are not finite: ``total nan, koleo inf``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in report.items() if not math.isfinite(value))
