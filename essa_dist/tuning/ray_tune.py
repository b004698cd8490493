"""The sweep as Ray Tune sees it."""

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.stopper import Stopper

from essa_dist.disk import write_whole
from essa_dist.settings import to_yaml
from essa_dist.tuning.config import PBT, TuneConfig
from essa_dist.tuning.record import read_trial, read_trials, write_trial
from essa_dist.tuning.runs import run_config, share
from essa_dist.tuning.schedule import PROGRESS, population, scheduler
from essa_dist.tuning.search import NUMBER, searcher
from essa_dist.tuning.trial import Shared, TrialJob
from essa_dist.tuning.worker import free_lost

NAME = "ray"
BASE = "base.yaml"
"""In the sweep's folder: the settings of a run without a draw."""
FAILED = ".failed"
"""Is in the sweep's folder when a trial has failed."""
ENOUGH = 3
"""Failures, without any result, that end a sweep."""
HEAD = {"node:__internal_head__": 0.001}
"""What a trial's driver takes: no CPU, since its ranks need all of them, but something, as Ray Tune wants."""


def make_tuner(
    config: TuneConfig, out: Path, at_a_time: int, env: dict[str, str], token: str, shared: str
) -> Any:
    """A new ``Tuner``, or the one in ``out`` where it had got."""
    # On other machines, and in a program's own cluster, processes start in other folders.
    absolute = {"base": str(Path(config.base).resolve()), "out": str(out.resolve())}
    absolute_config = config.model_copy(update=absolute)
    run, base = run_config(config, {}), out.resolve() / BASE
    write_whole(base, to_yaml(run))
    sharing = share(config, run, env) if shared else ()
    place = str(Path.cwd())
    common = Shared(
        absolute_config, env, token, place, shared, base=str(base), duration=run.duration, share=sharing
    )
    is_population = isinstance(config.scheduler, PBT)
    job = tune.with_resources(tune.with_parameters(TrialJob, shared=common), PlacementGroupFactory([HEAD]))
    storage = out.resolve()
    if config.resume and tune.Tuner.can_restore(str(storage / NAME)):
        return tune.Tuner.restore(
            str(storage / NAME), trainable=job, resume_unfinished=True, resume_errored=True
        )
    return tune.Tuner(
        job,
        param_space=population(config) if is_population else {},
        tune_config=tune.TuneConfig(
            search_alg=None if is_population else searcher(config),
            scheduler=scheduler(config),
            num_samples=1 if is_population else _samples(config),
            max_concurrent_trials=None if is_population else at_a_time,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=config.job.retries),
            callbacks=[Marks(str(storage))],
            stop=GiveUp(str(storage)),
            verbose=0,
        ),
    )


def _samples(config: TuneConfig) -> int:
    return -1 if config.search.kind == "grid" else config.search.trials


def trial_name(trial: Any) -> str:
    """``t0007``, by the number that came with its draw."""
    return f"t{int(trial.config[NUMBER]):04d}"


class GiveUp(Stopper):
    """Ends a sweep whose first trials have all failed: the others would too."""

    def __init__(self, out: str) -> None:
        self.out = out

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped by its results."""
        return False

    def stop_all(self) -> bool:
        """Whether so many have failed, and none has given a result."""
        if not (
            Path(self.out) / FAILED
        ).is_file():  # asked often; the trials are read only where one has failed
            return False
        trials = read_trials(Path(self.out))
        return sum(one.status == "failed" for one in trials) >= ENOUGH and not any(one.best for one in trials)


class Marks(Callback):
    """Writes into the trials' records what only Ray Tune knows: that the scheduler has stopped one, or that one is given up."""

    def __init__(self, out: str) -> None:
        self.out = out

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial is done, or stopped: it will not be gone on with."""
        percent = (trial.last_result or {}).get(PROGRESS, 0)
        self._mark(trial, "stopped", f"stopped by the scheduler at {percent:.0f} % of its run")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial failed for good."""
        (Path(self.out) / FAILED).touch()
        free_lost(Path(self.out) / "trials" / str(trial))
        self._mark(trial, "failed", "its driver was lost too often; see its folder")

    def _mark(self, trial: Any, status: Any, reason: str) -> None:
        folder = Path(self.out) / "trials" / str(trial)
        record = read_trial(folder)
        if record is not None and record.status in ("running", "interrupted", "waiting"):
            record.status, record.reason = status, reason
            write_trial(folder, record)
