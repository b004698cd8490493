"""What is known of a sweep and of its trials, as it lies on the disk: one JSON file a trial, written whole."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from essa_dist.disk import write_whole
from essa_dist.tuning.space import Draw

TRIALS = "trials"
TRIAL = "trial.json"

Status = Literal[
    "waiting", "running", "done", "stopped", "diverged", "out_of_memory", "failed", "interrupted"
]
"""stopped: by the scheduler, which had seen enough; interrupted: to be gone on with by resume=true."""
MEMORY, TIME = "peak_memory_gib", "step_s"
"""What a run's metrics call a process's largest memory and the seconds of a step: objectives to be made small."""
ENDED: tuple[Status, ...] = ("done", "stopped", "diverged", "out_of_memory", "failed")


@dataclass(frozen=True)
class Objective:
    """A number of a run's metrics that the sweep makes large or small."""

    name: str
    mode: Literal["max", "min"]

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is better than ``b``."""
        return a > b if self.mode == "max" else a < b


@dataclass
class Trial:
    """One trial so far."""

    name: str
    params: Draw
    folder: str
    """Its folder, below the sweep's."""
    status: Status = "waiting"
    reason: str = ""
    """Why it ended, where it isn't done: one line."""
    step: int = 0
    total_steps: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    """One entry a look: `step`, `seconds` (of training, since its start) and every objective that was measured by then."""
    best: dict[str, float] = field(default_factory=dict)
    """Of each objective the value at the look with the best first objective; `step` of that look."""
    seconds: float = 0.0
    """Wall time of its jobs, with their start."""
    starts: int = 0
    """How often its job was started: more than once after something was killed, or by PBT."""
    parents: list[str] = field(default_factory=list)
    """PBT: `t0003@120` for each exploit, the trial and the step whose weights it took."""


@dataclass(frozen=True)
class Sweep:
    """Everything the report needs."""

    name: str
    objectives: tuple[Objective, ...]
    """The first decides."""
    parameters: tuple[str, ...]
    """Settings that were varied, in the order of the space."""
    log: tuple[str, ...]
    """Those of them drawn by their logarithm."""
    trials: tuple[Trial, ...]
    base: str = ""
    """The configuration that was varied, as the user named it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Settings of the sweep and figures of the machine worth showing: workers, scheduler, search, hours ..."""

    def scored(self) -> list[Trial]:
        """Trials that have a value of the first objective, best first."""
        name, sign = self.objectives[0].name, -1 if self.objectives[0].mode == "max" else 1
        with_score = [t for t in self.trials if math.isfinite(t.best.get(name, math.nan))]
        return sorted(with_score, key=lambda t: (sign * t.best[name], t.name))

    def best(self) -> Trial | None:
        """The trial with the best first objective, of those that ended well; None: there is none."""
        return next(
            (t for t in self.scored() if t.status in ("done", "stopped", "running", "interrupted")), None
        )


def write_trial(folder: Path, trial: Trial) -> None:
    """Write ``folder/trial.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TRIAL, json.dumps(asdict(trial), indent=1) + "\n")


def read_trial(folder: Path) -> Trial | None:
    """The trial that lies in ``folder``; None: there is none."""
    file = folder / TRIAL
    return Trial(**json.loads(file.read_text())) if file.is_file() else None


def read_trials(out: Path) -> tuple[Trial, ...]:
    """All trials of the sweep in ``out``, in the order of their names."""
    found = (read_trial(folder) for folder in sorted((out / TRIALS).glob("t*")))
    return tuple(trial for trial in found if trial is not None)
