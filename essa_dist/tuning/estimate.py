"""What a sweep will cost, before it starts."""

from typing import Any

from essa_dist.data.shards import open_packed
from essa_dist.engine.config import JobConfig
from essa_dist.errors import EssaError
from essa_dist.reproduce.cells import Sizes
from essa_dist.reproduce.estimate import work_of
from essa_dist.tuning.config import ASHA, TuneConfig
from essa_dist.tuning.runs import preview, run_config, trials_of

START_S = 20.0
"""Of a trial: Ray's processes and the rank's own start. Measured on a busy CPU; see benchmarks/tune_overhead.py."""
ASKED = 32
"""Draws whose cost is averaged."""


def estimate(config: TuneConfig, concurrent: int | None = None) -> dict[str, Any]:
    """Trials, hours of workers and of the clock, and the price, at ``config.tflops`` a worker.

    The passes through the trunk are counted (see ``reproduce/estimate.py``), at a speed that is assumed; ``concurrent``
    trials run at a time. Stopped trials are counted by the rungs that they reach.
    """
    trials, share = trials_of(config), expected_share(config)
    costs = [_tflop(run_config(config, drawn)) for drawn in preview(config, min(ASKED, trials))]
    workers = config.job.workers
    seconds = START_S + share * sum(costs) / len(costs) / config.tflops / workers
    hours = trials * workers * seconds / 3600
    found: dict[str, Any] = {
        "trials": trials,
        "workers": workers,
        "minutes_a_trial": round(seconds / 60, 1),
        "share_of_a_run": round(share, 2),
        "worker_hours": round(hours, 2),
        "tflops": config.tflops,
    }
    if concurrent:
        found |= {"concurrent": concurrent, "hours": round(hours / workers / concurrent, 2)}
    if config.price:
        found["price"] = round(hours * config.price, 2)
    return found


def expected_share(config: TuneConfig) -> float:
    """The part of its run that a trial makes on average, where 1 / reduction of them passes each rung."""
    chosen = config.scheduler
    if not isinstance(chosen, ASHA):
        return 1.0
    share, going, rung = 0.0, 1.0, 0.0
    at = chosen.grace
    while at < 1:
        share += going * (at - rung)
        going, rung, at = going / chosen.reduction, at, at * chosen.reduction
    return share + going * (1 - rung)


def _tflop(config: JobConfig) -> float:
    """Of a whole run. Raises UsageError or DataError for data that can't be read."""
    train: str = config.data.train  # type: ignore[attr-defined]
    try:
        images = len(open_packed(train, prefer=("train",)))
    except EssaError:
        if isinstance(config.duration, str):
            raise
        images = config.batch_size  # a stream, whose length doesn't matter where steps are counted
    return work_of(config, Sizes(images, 0, 0), images).tflop
