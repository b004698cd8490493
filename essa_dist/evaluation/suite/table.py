"""The table of a suite: a row for each metric of each model, with its spread, its interval and the baseline beside it."""

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from essa_dist.disk import write_whole
from essa_dist.evaluation.metrics.bootstrap import Statistic, intervals
from essa_dist.evaluation.metrics.paired import Difference, over_seeds, paired_bootstrap
from essa_dist.evaluation.readings import mean_of
from essa_dist.evaluation.suite.cells import Cell, Done, Group, in_groups
from essa_dist.evaluation.suite.config import SuiteConfig
from essa_dist.evaluation.suite.words import setting_text, to_markdown

log = logging.getLogger(__name__)

TABLE = "table.json"
COLUMNS = (
    "data", "fraction", "protocol", "setting", "quoted", "metric", "model", "value", "std", "n_seeds", "low", "high",
    "difference", "difference_low", "difference_high", "p", "p_seeds", "n_bank", "n_test",
)  # fmt: skip


def table_of(config: SuiteConfig, done: Sequence[tuple[Cell, Done]]) -> dict[str, Any]:
    """``models``, ``baseline``, ``seeds``, ``resamples``, and ``rows``, each a mapping with ``COLUMNS``.

    ``value`` and ``std`` are over seeds (None for one). ``low`` and ``high`` are the 95 % interval of the value over
    the choice of test images, of whole patients where they are known; ``difference`` is to the baseline on the same
    images, with its interval and p of the paired bootstrap; ``p_seeds`` is of the paired t-test where both have the
    same seeds. p is not corrected for the number of comparisons. ``quoted`` marks each protocol's first setting and
    headline metric: what is drawn, and printed.
    """
    groups = in_groups(done)
    rows = []
    for group, found in groups.items():
        base = groups[group._replace(model=config.reference)]
        for place in range(len(next(iter(found.values())).readings)):
            rows += _rows(config, group, found, base, place)
    for name, data in config.data.items():
        measured = {row["metric"]: None for row in rows if row["data"] == name}
        if data.metric is not None and data.metric not in measured:
            log.warning(
                "data.%s.metric=%s is measured by none of the protocols; they measure %s",
                name,
                data.metric,
                ", ".join(measured),
            )
    order = {name: i for i, name in enumerate(config.models)}
    place_of = {(r["data"], r["fraction"], r["protocol"]): i for i, r in reversed(list(enumerate(rows)))}
    rows.sort(
        key=lambda r: (place_of[r["data"], r["fraction"], r["protocol"]], not r["quoted"], order[r["model"]])
    )
    return {
        "models": dict(config.models),
        "baseline": config.reference,
        "seeds": list(config.seeds),
        "resamples": config.resamples,
        "rows": rows,
    }


def _rows(
    config: SuiteConfig, group: Group, found: Mapping[int, Done], base: Mapping[int, Done], place: int
) -> list[dict[str, Any]]:
    """Every metric of one reading of a model, over its seeds."""
    one = next(iter(found.values()))
    n, reading = one.facts["n_test"], one.readings[place]
    patients = None if one.patients is None else one.patients.numpy()
    mine, other = _statistics(found, place), _statistics(base, place)
    whole = np.ones((n, 1))
    by_seed = {seed: {m: float(v[0]) for m, v in one(whole).items()} for seed, one in mine.items()}
    bounds = intervals(mean_of(list(mine.values())), n, resamples=config.resamples, groups=patients)
    against: dict[str, Difference] = {}
    if group.model != config.reference:
        against = paired_bootstrap(
            mean_of(list(mine.values())),
            mean_of(list(other.values())),
            n,
            resamples=config.resamples,
            patients=patients,
        )
    base_by_seed = {seed: {m: float(v[0]) for m, v in one(whole).items()} for seed, one in other.items()}
    wanted = config.data[group.data].metric
    metrics = list(next(iter(by_seed.values())))
    headline = wanted if wanted in metrics else reading.headline
    common = {
        "data": group.data,
        "fraction": group.fraction,
        "protocol": group.protocol,
        "setting": setting_text(group.protocol, reading.setting),
        "model": group.model,
        "n_seeds": len(mine),
        "n_bank": one.facts["n_bank"],
        "n_test": n,
    }
    rows = []
    for metric in metrics:
        values = np.array([seed[metric] for seed in by_seed.values()])
        if np.isnan(values).any():
            continue  # these images can't give it
        low, high = bounds.get(metric, (None, None))
        gap = against.get(metric)
        is_over_seeds = gap is not None and len(mine) > 1 and set(mine) == set(other)
        row = common | {
            "metric": metric,
            "quoted": place == 0 and metric == headline,
            "value": float(values.mean()),
            "std": float(values.std(ddof=1)) if len(values) > 1 else None,
            "low": low,
            "high": high,
            "difference": gap and gap.difference,
            "difference_low": gap and gap.low,
            "difference_high": gap and gap.high,
            "p": gap and gap.p,
            "p_seeds": over_seeds(list(values), [base_by_seed[seed][metric] for seed in by_seed]).t_p
            if is_over_seeds
            else None,
        }
        rows.append({name: row[name] for name in COLUMNS})
    return rows


def _statistics(found: Mapping[int, Done], place: int) -> dict[int, Statistic]:
    return {seed: done.readings[place].statistic() for seed, done in found.items()}


def write_table(
    table: Mapping[str, Any],
    out: Path,
    *,
    columns: Sequence[str] = COLUMNS,
    page: Callable[[Mapping[str, Any]], str] | None = None,
) -> list[Path]:
    """table.json, table.csv (``columns`` of each row) and table.md (``page``: what is quoted), each whole or not at all."""
    lines = StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table["rows"])
    texts = {
        TABLE: json.dumps(table, indent=1) + "\n",
        "table.csv": lines.getvalue(),
        "table.md": (page or to_markdown)(table),
    }
    for name, text in texts.items():
        write_whole(out / name, text)
    return [out / name for name in texts]
