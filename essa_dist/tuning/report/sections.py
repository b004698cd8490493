"""The sections of a sweep's page: tables and pictures, or what there is too little of to show them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from essa_dist.report.section import Details, Missing, Picture, Section, Table
from essa_dist.tuning.record import MEMORY, TIME, Sweep, Trial
from essa_dist.tuning.report.costs import draw_costs, rank_name
from essa_dist.tuning.report.curves import draw_curves, has_curves
from essa_dist.tuning.report.front import front
from essa_dist.tuning.report.importance import draw_importance, importance
from essa_dist.tuning.report.lineage import MOST, ancestry, draw_lineage
from essa_dist.tuning.report.parallel import draw_parallel
from essa_dist.tuning.report.values import (
    BADLY,
    counts,
    measured,
    number,
    ranked,
    recorded,
    settings,
    short_names,
    value_of,
    varied,
)

SHOWN, FOLDED = 10, 500
"""Rows of the table of the best trials, and of the longer ones, which say how many more there are."""
DRAWN = 16
"""Parameters of the parallel coordinates: with more, the first ones."""


def sections(sweep: Sweep, out: Path) -> list[Section]:
    """All sections; pictures are written into ``out``."""
    return [
        _best(sweep),
        _parallel(sweep, out),
        _cost(sweep, out),
        _curves(sweep, out),
        _importance(sweep, out),
        *([_lineage(sweep, out)] if any(trial.parents for trial in sweep.trials) else []),
        *([_ended_badly(sweep)] if any(trial.status in BADLY for trial in sweep.trials) else []),
        _setup(sweep),
    ]


def trial_table(sweep: Sweep, trials: Sequence[Trial], caption: str, limit: int = FOLDED) -> Table:
    """A row for each trial: objectives, then every parameter."""
    words = short_names(sweep.parameters)
    objectives = recorded(sweep)
    rows = [
        (
            trial.name,
            trial.status.replace("_", " "),
            *(number(value_of(trial, name)) for name in objectives),
            *(number(trial.params.get(name)) for name in sweep.parameters),
            f"{trial.step}/{trial.total_steps}",
        )
        for trial in trials[:limit]
    ]
    more = f" (and {len(trials) - limit} more in trials.csv)" if len(trials) > limit else ""
    head = ("trial", "status", *objectives, *(words[name] for name in sweep.parameters), "step")
    return Table(caption + more, head, tuple(rows))


def _best(sweep: Sweep) -> Section:
    good = ranked(sweep)
    everything = (trial_table(sweep, sweep.trials, "All trials"),) if sweep.trials else ()
    if not good:
        return Section("Best trials", missing=(Missing("a trial with a score."),), folded=everything)
    table = trial_table(
        sweep, good[:SHOWN], f"The best {min(SHOWN, len(good))} of {len(good)} trials with a score"
    )
    text = f"Best by {sweep.objectives[0].name}; all values are those of the look at which it was best."
    return Section("Best trials", text=text, tables=(table,), folded=everything)


def _parallel(sweep: Sweep, out: Path) -> Section:
    title, names = "Settings and score", varied(sweep, sweep.trials)
    if not ranked(sweep) or not names:
        return Section(title, missing=(Missing("trials with a score that differ in a parameter."),))
    left_out = (
        f" Of {len(names)} varied parameters the first {DRAWN} are drawn." if len(names) > DRAWN else ""
    )
    caption = (
        "A line is a trial, the darker the better; the thick one is the best. Dashed: no score. At none a trial hasn't the "
        "parameter. Lines are fanned out where an axis has words." + left_out
    )
    path = out / "parallel.png"
    draw_parallel(sweep, names[:DRAWN], path)
    return Section(title, pictures=(Picture(path, f"Parallel coordinates of {', '.join(names)}.", caption),))


def _cost(sweep: Sweep, out: Path) -> Section:
    title, objectives, good = "Score, rank and cost", measured(sweep), ranked(sweep)
    if not good or not (rank_name(sweep) or objectives[1:]):
        what = f"trials with a score and a varied parameter with numbers, or with {MEMORY} or {TIME}."
        return Section(title, missing=(Missing(what),))
    best = front(sweep)
    names = ", ".join(one.name for one in objectives)
    text = f"On the Pareto front: no other trial is at least as good in each of {names}, and better in one."
    if len(objectives) == 1:
        text = f"Only {names} was measured, so the best trials are the Pareto front."
    path = out / "cost.png"
    draw_costs(sweep, path)
    caption = "A mark is a trial. Ringed: on the Pareto front over all objectives, so a ring may lie inside a single plot."
    alt = f"Score against rank and costs. On the Pareto front: {', '.join(trial.name for trial in best)}."
    table = trial_table(sweep, best, f"The Pareto front: {len(best)} of {len(good)} trials")
    return Section(title, text=text, pictures=(Picture(path, alt, caption),), tables=(table,))


def _curves(sweep: Sweep, out: Path) -> Section:
    if not has_curves(sweep):
        return Section("Learning curves", missing=(Missing("looks at a trial while it trained."),))
    path = out / "curves.png"
    draw_curves(sweep, path)
    caption = (
        "A line is a trial, the darker the better its best score; the thick one is the best. A bar at its end: stopped early. "
        "A cross: it diverged, ran out of memory or failed."
    )
    alt = f"{sweep.objectives[0].name} of every trial against step and time."
    return Section("Learning curves", pictures=(Picture(path, alt, caption),))


def _importance(sweep: Sweep, out: Path) -> Section:
    title, found = "Importance of the parameters", importance(sweep)
    if isinstance(found, str):
        return Section(title, text=f"Not shown: {found}")
    path = out / "importance.png"
    draw_importance(found, path)
    caption = (
        f"What a random forest over {found.trials} trials loses when the values of one parameter are shuffled among them, with "
        "the standard deviation over shuffles. A trial without a parameter counts with its median, so that lacking it is "
        "credited to the parameter that it depends on. Trials that were stopped early count with the score they had."
    )
    text = f"The forest explains {100 * max(0.0, found.explained):.0f} % of the variance of trials that it hasn't seen."
    if found.explained <= 0:
        text += " That is no better than their mean: read nothing into the order."
    shares = zip(found.names, found.shares, strict=True)
    alt = "Importance: " + ", ".join(f"{name} {share:.2f}" for name, share in shares) + "."
    return Section(title, text=text, pictures=(Picture(path, alt, caption),))


def _lineage(sweep: Sweep, out: Path) -> Section:
    words: Callable[[list[str]], str] = ", then ".join
    rows = tuple((trial.name, words(trial.parents)) for trial in sweep.trials if trial.parents)
    table = Table("Whose weights a trial went on with, trial@step", ("trial", "took over"), rows)
    text, good = "", ranked(sweep)
    if good:
        path_of = " from ".join(f"{name}@{step}" for name, step in ancestry(sweep, good[0]))
        text = f"The best trial, {good[0].name}, has its weights " + (
            f"from {path_of}." if path_of else "from itself alone."
        )
    if len(sweep.trials) > MOST:
        return Section("Lineage", text=text, folded=(table,))
    path = out / "lineage.png"
    draw_lineage(sweep, path)
    caption = "A line is a trial up to its step; an arrow an exploit, from the giver to the taker. Thick: how the best came about."
    return Section(
        "Lineage", text=text, pictures=(Picture(path, f"Exploits. {text}", caption),), folded=(table,)
    )


def _ended_badly(sweep: Sweep) -> Section:
    bad = [trial for trial in sweep.trials if trial.status in BADLY]
    rows = tuple(
        (
            trial.name,
            trial.status.replace("_", " "),
            trial.reason or "–",
            f"{trial.step}/{trial.total_steps}",
            settings(trial, sweep.parameters),
        )
        for trial in bad[:FOLDED]
    )
    more = f" (and {len(bad) - FOLDED} more in trials.csv)" if len(bad) > FOLDED else ""
    table = Table(f"{counts(bad)}{more}", ("trial", "status", "reason", "step", "settings"), rows)
    return Section("Failed, diverged, out of memory, interrupted", tables=(table,))


def _setup(sweep: Sweep) -> Section:
    facts = {
        "varied configuration": sweep.base or "–",
        "objectives": ", ".join(f"{one.name} ({one.mode})" for one in sweep.objectives),
        "parameters": ", ".join(f"{n} (log)" if n in sweep.log else n for n in sweep.parameters),
        "trials": counts(sweep.trials) or "none",
        "time of all trials": f"{sum(trial.seconds for trial in sweep.trials) / 3600:.2f} h",
        **{name.replace("_", " "): number(value) for name, value in sweep.facts.items()},
    }
    folders = "\n".join(f"{trial.name}  {trial.folder}" for trial in sweep.trials)
    table = Table("The sweep", ("fact", "value"), tuple((key, str(value)) for key, value in facts.items()))
    return Section(
        "The sweep", tables=(table,), details=(Details("Folders of the trials", folders),) if folders else ()
    )
