"""What a sweep shows while it runs: a live table on a terminal, elsewhere a plain line for each look and change."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from essa_dist.progress import duration
from essa_dist.tuning.record import ENDED, MEMORY, TIME, Objective, Sweep, Trial
from essa_dist.tuning.report.values import BADLY, counts, number, ranked, settings, value_of, varied

logger = logging.getLogger(__name__)

_SHORT = {MEMORY: "GiB", TIME: "s/step"}
_AROUND = 4  # lines of the terminal for the header, the names of columns, what is left out, and the cursor
_STYLES = {"running": "cyan", "done": "green", "stopped": "dim", "waiting": "dim"}  # all others: red


class Live:
    """A context manager around a sweep of ``total`` trials, told of all its trials by :meth:`update`.

    Nothing runs in the background: what is shown is as fresh as the last call.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        parameters: Sequence[str],
        total: int,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.objectives, self.parameters, self.total = tuple(objectives), tuple(parameters), total
        self._clock, self._began = clock, clock()
        self._console = Console(file=stream if stream is not None else sys.stderr)
        self._live: RichLive | None = None
        self._share_before: float | None = None
        self._said: dict[
            str, tuple[str, int, int]
        ] = {}  # status, looks and starts that a plain line has told

    def __enter__(self) -> Self:
        self._began = self._clock()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = RichLive(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, trials: Sequence[Trial]) -> None:
        """Show ``trials``, all that there are so far."""
        sweep = Sweep("", self.objectives, self.parameters, (), tuple(trials))
        if self._share_before is None:
            self._share_before = self._share(trials)
            self._tell_before(sweep)
        self._tell(sweep)
        if self._live is not None:
            self._live.update(self._table(sweep), refresh=True)

    def header(self, trials: Sequence[Trial]) -> str:
        """``7/24 trials ended: 5 done, 2 stopped; 4 running; 12m05s, about 31m left``."""
        ended = [trial for trial in trials if trial.status in ENDED]
        others = counts([trial for trial in trials if trial.status not in ENDED])
        elapsed, share = self._clock() - self._began, self._share(trials)
        words = [
            f"{len(ended)}/{self.total} trials ended" + (f": {counts(ended)}" if ended else ""),
            *([others] if others else []),
            duration(elapsed),
        ]
        gained = share - (self._share_before or 0.0)
        if gained > 0 and share < 1:
            words[-1] += f", about {duration(elapsed * (1 - share) / gained)} left"
        return "; ".join(words)

    def _share(self, trials: Sequence[Trial]) -> float:
        """How much of the sweep's steps are done or needn't be, 0..1."""
        done = sum(
            1.0 if t.status in ENDED else t.step / t.total_steps if t.total_steps else 0.0 for t in trials
        )
        return min(1.0, done / max(self.total, len(trials), 1))

    def _table(self, sweep: Sweep) -> Group:
        """At most the terminal's height: running trials, then the best of the others; of the rest their number."""
        good = ranked(sweep)
        best = good[0].name if good else ""
        running = [trial for trial in sweep.trials if trial.status == "running"]
        known = {trial.name for trial in running}
        rows = [*running, *(trial for trial in good if trial.name not in known)]
        shown = rows[: max(1, self._console.size.height - _AROUND)]
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("trial", "status", "step", *(_SHORT.get(one.name, one.name) for one in self.objectives)):
            table.add_column(name, no_wrap=True, justify="left" if name in ("trial", "status") else "right")
        table.add_column("settings", no_wrap=True, overflow="ellipsis")
        names = varied(sweep, sweep.trials) or self.parameters
        for trial in shown:
            marked = trial.name == best
            table.add_row(
                f"{trial.name} *" if marked else trial.name,
                Text(trial.status.replace("_", " "), style=_STYLES.get(trial.status, "red")),
                f"{trial.step}/{trial.total_steps}",
                *(number(self._shown(trial, one)) for one in self.objectives),
                Text(settings(trial, names)),
                style="bold" if marked else None,
            )
        told = {trial.name for trial in shown}
        rest = [trial for trial in sweep.trials if trial.name not in told]
        last = Text(
            f"not shown: {counts(rest)}" if rest else "", style="dim", no_wrap=True, overflow="ellipsis"
        )
        return Group(Text(self.header(sweep.trials), no_wrap=True, overflow="ellipsis"), table, last)

    def _shown(self, trial: Trial, objective: Objective) -> float:
        """The best score so far; of what a step costs the newest value."""
        if objective == self.objectives[0]:
            return value_of(trial, objective.name)
        looks = [look[objective.name] for look in trial.curve if objective.name in look]
        return float(looks[-1]) if looks else value_of(trial, objective.name)

    def _tell_before(self, sweep: Sweep) -> None:
        """One line for all trials that a resumed sweep finds ended."""
        before = [trial for trial in sweep.trials if trial.status in ENDED]
        self._said = {trial.name: _state(trial) for trial in before}
        if before:
            logger.info("trials that ended before: %s", counts(before))

    def _tell(self, sweep: Sweep) -> None:
        """A line for each trial that was started, looked at or ended since the last call, and the header if one ended.

        Beside a live table only those that ended badly: it has no room for their reasons.
        """
        best, ended = ranked(sweep)[:1], False
        for trial in sweep.trials:
            now, was = _state(trial), self._said.get(trial.name)
            self._said[trial.name] = now
            if now == was or trial.status == "waiting":
                continue
            ended |= trial.status in ENDED
            bad = trial.status in BADLY
            if bad or self._live is None:
                line = self._line(trial, best=best == [trial], first=was is None or was[2] != now[2])
                logger.log(logging.WARNING if bad else logging.INFO, "%s", line)
        if ended and self._live is None:
            logger.info("%s", self.header(sweep.trials))

    def _line(self, trial: Trial, *, best: bool, first: bool) -> str:
        """``t0003  running 40/120  canary_knn 0.8123, best so far  1.2 GiB  0.31 s/step``; its settings when it starts."""
        words = [trial.name, f"{trial.status.replace('_', ' ')} {trial.step}/{trial.total_steps}"]
        for one in self.objectives:
            if (value := self._shown(trial, one)) == value:  # not NaN
                words.append(
                    f"{number(value)} {_SHORT[one.name]}"
                    if one.name in _SHORT
                    else f"{one.name} {number(value)}"
                )
                words[-1] += ", best so far" if best and one == self.objectives[0] else ""
        words += [settings(trial, self.parameters)] if first and trial.params else []
        words += [trial.reason] if trial.reason else []
        return "  ".join(words)


def _state(trial: Trial) -> tuple[str, int, int]:
    return trial.status, len(trial.curve), trial.starts
