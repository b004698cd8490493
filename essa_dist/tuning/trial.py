"""A trial of a sweep: a Ray Train job, told to Ray Tune look by look.

Ray Tune calls :class:`TrialJob`, an actor that needs no CPU of the cluster; the ranks' CPUs and GPUs are one placement
group, of Ray Train. (A trial that held a CPU while its ranks wait for theirs could wait for ever: ray-project/ray#47439.)
All that is known of a trial lies in its folder: ``trial.json``, the run, the logs of its ranks.
Nothing here imports torch: each trial has a process of this, which would start seconds later.
"""

import json
import math
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from essa_dist import runfolder
from essa_dist.disk import write_whole
from essa_dist.tuning.config import PBT, TuneConfig
from essa_dist.tuning.generation import Pointer, begin_from, pin
from essa_dist.tuning.looks import best_look, looks_of, metrics_of, number, progress
from essa_dist.tuning.record import MEMORY, TIME, Trial, read_trial, write_trial
from essa_dist.tuning.schedule import PROGRESS, drawn
from essa_dist.tuning.space import Draw, words
from essa_dist.tuning.worker import GRACE_S, SAVE, STOP, VERDICT, RankJob, free_lost, verdict

LOOK_S = 0.5
"""How often the run's metrics are read."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common."""

    config: TuneConfig
    env: dict[str, str]
    """What a launcher would add to the environment of a rank."""
    token: str
    """In the environment of all processes of the sweep."""
    cwd: str
    shared: str
    """Folder of each machine for what its trials share; empty: nothing."""
    base: str
    """File of the run's settings without a draw."""
    duration: Any
    """Of such a run."""
    share: tuple[str, ...] = ()
    """Settings of the run that take the folder ``shared``."""
    command: tuple[str, ...] = ("-m", "essa_dist")
    """What Python runs as a rank."""

    def of(self, trial: str) -> str:
        """The token of a trial's processes."""
        return f"{self.token}/{trial}"

    def words(self, drawn: Draw, run: Path) -> list[str]:
        """Of a rank that tries ``drawn`` in the folder ``run``."""
        own = [*words(drawn), f"out={run}", "resume=true"]
        return [
            *self.command,
            self.config.verb,
            self.base,
            *own,
            *(f"{name}={self.shared}" for name in self.share),
        ]


class TrialJob(tune.Trainable):
    """One trial; Ray makes, asks and stops it."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:
        """Take up the trial where it is: at its start, or behind a process that was lost."""
        self.shared, self.goals = shared, shared.config.goals()
        self.folder = Path(shared.config.out).resolve() / "trials" / self.trial_name
        params = drawn(shared.config, config)
        known = read_trial(self.folder)
        self.trial = known or Trial(self.trial_name, params, str(self.folder))
        self.changed = self.trial.params != params
        """An exploit has given it other settings than it had."""
        if self.changed and not isinstance(shared.config.scheduler, PBT):
            # Ray, killed, had not yet written that it has drawn this trial, and has drawn anew.
            shutil.rmtree(self.folder)
            self.trial = Trial(self.trial_name, params, str(self.folder))
        self.trial.params = params
        self.job: threading.Thread | None = None
        self.error: BaseException | None = None
        self.begun = time.monotonic()
        self.before_s = self.trial.seconds
        self.told = 0
        """Step of the last look that Ray was told of."""

    def step(self) -> dict[str, Any]:
        """The next look of the run, or the last one once more with ``done``, when the run has ended."""
        if self.trial.status == "done":  # Ray didn't get to hear it
            return self._result() | {"done": True}
        if self.job is None:
            self._give_up_again()
            self._start()
        assert self.job is not None
        while True:
            alive = self.job.is_alive()  # asked before the rows: what it wrote last is read
            for row in looks_of(self._metrics(), self.goals):
                if int(row["step"]) > self.told:
                    heard = self._heard(row)
                    if self.percent < 100:  # the last look comes with the end: nothing is to be decided by it
                        return heard
            if not alive:
                return self._ended()
            time.sleep(LOOK_S)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For an exploit: where this trial's newest weights are, kept from being deleted."""
        if not isinstance(self.shared.config.scheduler, PBT):  # Ray asks at the end of any trial
            return
        pointer = pin(self.trial.name, self.folder, self._run())
        if pointer is not None:
            (Path(checkpoint_dir) / "pointer.json").write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Begin from another trial's weights; from those this trial has begun with already, go on instead."""
        file = Path(str(checkpoint)) / "pointer.json"
        if not file.is_file():
            return
        pointer: Pointer = json.loads(file.read_text())
        donor, _, step = (self.trial.parents or ["@-1"])[-1].partition("@")
        again = donor == pointer["trial"] and int(step) >= pointer["step"] and not self.changed
        if pointer["trial"] == self.trial.name or again:
            return
        self.trial.parents.append("")  # makes the next run's folder
        taken = begin_from(pointer, self._run(), self._settings())
        self.trial.parents[-1] = f"{pointer['trial']}@{taken}"
        self.trial.step = self.told = taken
        self.trial.curve = [one for one in self.trial.curve if one["step"] <= taken]
        self._write("running")

    def cleanup(self) -> None:
        """Ray stops the trial: end its ranks, and wait until they have."""
        if self.job is None:
            return
        record = read_trial(self.folder)
        goes_on = (
            record is not None and record.status == "running"
        )  # else the scheduler has stopped it for good
        write_whole(self.folder / STOP, SAVE if goes_on else "")
        self.job.join(2 * GRACE_S)
        if goes_on:
            self._write("interrupted")

    def _run(self) -> Path:
        """The run's folder: one more after each exploit."""
        folder: Path = self.folder / f"run{len(self.trial.parents) or ''}"
        return folder

    def _metrics(self) -> Path:
        return self._run() / runfolder.METRICS

    def _give_up_again(self) -> None:
        """Ray tries whatever failed once more; what would fail again needs resume=true, and so a word from the user."""
        found = verdict(self.folder)
        if found.get("status") == "failed" and found.get("token") == self.shared.of(self.trial.name):
            raise RuntimeError(found["reason"])

    def _start(self) -> None:
        for name in (STOP, VERDICT):
            (self.folder / name).unlink(missing_ok=True)
        free_lost(self.folder)
        self.trial.starts += 1
        self._write("running")
        if self.changed and isinstance(self.shared.config.scheduler, PBT):
            self._adopt()
        job = RankJob(
            words=self.shared.words(self.trial.params, self._run()),
            folder=str(self.folder),
            token=self.shared.of(self.trial.name),
            env=self.shared.env,
            cwd=self.shared.cwd,
        )
        self.job = threading.Thread(target=self._fit, args=(job,), daemon=True)
        self.job.start()

    def _adopt(self) -> None:
        """Make the run one of this draw: Ray, restored, knows less of it than its folder."""
        file = self._run() / runfolder.CONFIG
        if file.is_file():
            write_whole(file, self._settings())

    def _settings(self) -> str:
        """All settings of the run, as YAML."""
        from essa_dist.tuning.runs import run_yaml  # imports torch, which only a population pays for

        return run_yaml(self.shared.config, self.trial.params, str(self._run()))

    def _fit(self, job: RankJob) -> None:
        from essa_dist.tuning.placing import fit  # imports torch

        try:
            fit(job, self.shared.config)
        except Exception as error:
            self.error = error

    def _heard(self, row: dict[str, Any]) -> dict[str, Any]:
        t, self.told = self.trial, int(row["step"])
        now = self.before_s + time.monotonic() - self.begun
        look = {"step": float(row["step"]), "seconds": round(now, 1)}
        wanted = (*(goal.name for goal in self.goals), MEMORY, TIME)  # what it costs is asked of every sweep
        look |= {name: number(row[name]) for name in wanted if name in row}
        old = next((one for one in t.curve if one["step"] == look["step"]), look)
        if old | {"seconds": look["seconds"]} == look:  # it was told before a process was lost
            look = old
        rest = [one for one in t.curve if one["step"] != look["step"]]
        t.curve = sorted([*rest, look], key=lambda one: one["step"])
        t.step, self.percent = int(row["step"]), progress(row, self._duration())
        t.total_steps = round(t.step * 100 / self.percent)
        t.best = best_look(t.curve, self.goals[0])
        self._write("running")
        return self._result(look)

    def _duration(self) -> Any:
        return self.trial.params.get("duration", self.shared.duration)

    def _ended(self) -> dict[str, Any]:
        """The last result of a job that is over; raises what Ray is to try once more, or to hold for failed."""
        if self.error is not None:
            self._write("failed", short(self.error))
            raise self.error
        found = verdict(self.folder)
        if found.get("status") == "failed":
            self._write("failed", found["reason"])
            raise RuntimeError(found["reason"])
        if not found and not self.trial.curve:
            reason = f"the run has no {self.goals[0].name} in its metrics; it has {', '.join(metrics_of(self._metrics()))}"
            self._write("failed", reason)
            raise RuntimeError(reason)
        self._write(found.get("status", "done"), found.get("reason", ""))
        return self._result() | {"done": True}

    def _result(self, look: dict[str, float] | None = None) -> dict[str, Any]:
        """What Ray decides by, of one look or the last; nothing is better than a run that has diverged."""
        t = self.trial
        lost = t.status in ("diverged", "out_of_memory")
        last = {} if lost or not t.curve else look or t.curve[-1]
        values = {goal.name: last.get(goal.name, math.nan) for goal in self.goals}
        return values | {"step": t.step, PROGRESS: 100 * t.step / max(1, t.total_steps), "status": t.status}

    def _write(self, status: Any, reason: str = "") -> None:
        self.trial.status, self.trial.reason = status, reason
        self.trial.seconds = round(self.before_s + time.monotonic() - self.begun, 1)
        write_trial(self.folder, self.trial)


def short(error: BaseException) -> str:
    """The first cause of an error of Ray's, in one line."""
    workers = getattr(error, "worker_failures", None)
    if workers:
        error = next(iter(workers.values()))
    error = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
