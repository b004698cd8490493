"""All trials as CSV, one row each."""

import csv
import io
from pathlib import Path

from essa_dist.disk import write_whole
from essa_dist.tuning.record import Sweep
from essa_dist.tuning.report.values import recorded

FILE = "trials.csv"


def write_csv(sweep: Sweep, path: Path) -> None:
    """Write ``path``: settings and objectives in full precision, empty where a trial has none."""
    more = dict.fromkeys(name for trial in sweep.trials for name in trial.params)
    settings = list(dict.fromkeys([*sweep.parameters, *more]))
    objectives = recorded(sweep)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    head = ["best_step", "step", "total_steps", "seconds", "starts", "parents", "folder"]
    table.writerow(["name", "status", "reason", *settings, *objectives, *head])
    for trial in sweep.trials:
        table.writerow(
            [trial.name, trial.status, trial.reason]
            + [trial.params.get(name, "") for name in settings]
            + [trial.best.get(name, "") for name in (*objectives, "step")]
            + [
                trial.step,
                trial.total_steps,
                trial.seconds,
                trial.starts,
                " ".join(trial.parents),
                trial.folder,
            ]
        )
    write_whole(path, text.getvalue())
