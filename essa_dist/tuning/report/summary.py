"""What a sweep says at its end: as values for a program, and as text for a reader."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from essa_dist.tuning.record import Sweep
from essa_dist.tuning.report.values import BADLY, counts, number, ranked, recorded, short_names, value_of

SHOWN = 5
_NAMED = 6  # trials of one reason


def summary(sweep: Sweep, files: Sequence[Path | str] = ()) -> dict[str, Any]:
    """``best`` trials with their settings and objectives, ``counts`` by status, ``ended_badly`` (reason: trials), ``files``."""
    reasons = defaultdict(list)
    for trial in sweep.trials:
        if trial.status in BADLY:
            reasons[f"{trial.status.replace('_', ' ')}: {trial.reason or 'no reason known'}"].append(
                trial.name
            )
    best = [
        {
            "trial": trial.name,
            "status": trial.status,
            "step": int(trial.best.get("step", trial.step)),
            "objectives": {name: value_of(trial, name) for name in recorded(sweep) if name in trial.best},
            "params": dict(trial.params),
            "folder": trial.folder,
        }
        for trial in ranked(sweep)[:SHOWN]
    ]
    return {
        "sweep": sweep.name,
        "trials": len(sweep.trials),
        "counts": counts(sweep.trials),
        "objectives": [f"{one.name} ({one.mode})" for one in sweep.objectives],
        "parameters": list(sweep.parameters),
        "best": best,
        "ended_badly": dict(reasons),
        "files": [str(file) for file in files],
    }


def summary_text(sweep: Sweep, files: Sequence[Path | str] = ()) -> str:
    """What ``essa tune`` prints at its end."""
    return to_text(summary(sweep, files))


def to_text(found: Mapping[str, Any]) -> str:
    """A :func:`summary` for a reader: the best trials as a table, why others ended badly, files."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"{found['trials']} trials: {found['counts'] or 'none was started'}"
    if found["best"]:
        yield from _table(found)
    else:
        yield "no trial has a score"
    for reason, names in found["ended_badly"].items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{', '.join(names[:_NAMED])}{more}: {reason}"
    if found["files"]:
        yield f"written: {', '.join(found['files'])}"


def _table(found: Mapping[str, Any]) -> Iterator[str]:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    objectives = list(dict.fromkeys(name for row in found["best"] for name in row["objectives"]))
    words = short_names(found["parameters"])
    table = Table(box=SIMPLE_HEAD, title=f"the best by {found['objectives'][0]}", title_justify="left")
    for name in ("trial", "status", *objectives, "at step", *words.values()):
        table.add_column(name, no_wrap=True)
    for row in found["best"]:
        table.add_row(
            row["trial"],
            row["status"],
            *(number(row["objectives"].get(name)) for name in objectives),
            str(row["step"]),
            *(number(row["params"].get(name)) for name in words),
        )
    out = StringIO()
    # As wide as it must be: a terminal wraps what a log and a pipe should have whole.
    Console(file=out, width=10_000).print(table)
    yield from (line.rstrip() for line in out.getvalue().splitlines())
