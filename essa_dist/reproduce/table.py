"""The table of a comparison: a row for each group of cells that differ by their seed only, and the papers' claims."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from essa_dist.reproduce.cells import Cell
from essa_dist.reproduce.claims import FACTS, claim_words, judge_claim, judge_figure
from essa_dist.reproduce.plan import Plan, read_result

COLUMNS = (
    *FACTS, "metric", "value", "std", "n_seeds", "low", "high", "seeds", "n_test", "trained_parameters", "img_per_s",
    "memory_gib", "seconds",
)  # fmt: skip
SSA_COLUMNS = (
    "data",
    "model",
    "adapter",
    "n_seeds",
    "trained_parameters",
    "img_per_s",
    "memory_gib",
    "seconds",
)


def table_of(plan: Plan, whole: Sequence[Cell]) -> dict[str, Any]:
    """``rows`` of supervised groups (``COLUMNS``), ``cells`` their runs one by one, ``ssa`` what self-supervision cost,
    ``claims`` and ``figures``.

    ``value`` and ``std`` are of the target metric on the test images, as shares, over the seeds that are finished; ``low``
    and ``high`` the means of these runs' 95 % intervals over test images. ``whole``: all cells of the grid, which say how
    many comparisons a claim speaks of.
    """
    found = [(one, read_result(one.result, one.identity)) for one in plan.cells]
    done = [(one.cell, result) for one, result in found if result is not None]
    groups = _groups(done, "finetune").items()
    rows = [row for facts, of in groups if (row := _row(facts, of)) is not None]
    cells = _values(done)
    every = [
        dict(zip(FACTS, facts, strict=True)) for facts in _groups(((one, {}) for one in whole), "finetune")
    ]
    return {
        "grid": plan.config.grid,
        "seeds": list(plan.seeds),
        "rows": rows,
        "cells": cells,
        "ssa": [
            {name: value for name, value in (_costs(facts, of)).items() if name in SSA_COLUMNS}
            for facts, of in _groups(done, "adapt").items()
        ],
        "claims": [judge_claim(claim, rows, every, cells) for claim in plan.grid.claims],
        "figures": [judge_figure(figure, rows) for figure in plan.grid.figures],
    }


Group = dict[tuple[Any, ...], list[dict[str, Any]]]


def _groups(cells: Iterable[tuple[Cell, dict[str, Any]]], verb: str) -> Group:
    found: Group = {}
    for one, result in cells:
        if one.verb == verb:
            facts = {"data": one.data.name, **one.facts}
            key = tuple(facts.get(name) for name in FACTS)
            found.setdefault(key, []).append(result | {"seed": facts["seed"]})
    return found


def _values(done: Sequence[tuple[Cell, dict[str, Any]]]) -> list[dict[str, Any]]:
    """``value`` and facts of each supervised run that was judged.

    ``unit``: runs of one data set and seed share labels and self-supervised runs, and where a self-supervised run is the
    start of several seeds, all runs of a data set do.
    """
    runs = [(one, result["result"]) for one, result in done if one.verb == "finetune"]
    seeds: dict[str, set[int]] = {}
    for one, _ in runs:
        seeds.setdefault(one.start, set()).add(one.facts["seed"])
    shared = any(len(of) > 1 for start, of in seeds.items() if start)
    found = []
    for one, result in runs:
        value = ((result.get("test") or {}).get("values") or {}).get(result.get("target_metric"))
        if value is not None:
            facts = {"data": one.data.name} | {name: one.facts.get(name) for name in FACTS[1:]}
            seed = one.facts["seed"]
            unit = one.data.name if shared else f"{one.data.name}/s{seed}"
            metric = result["target_metric"]
            found.append(facts | {"seed": seed, "unit": unit, "metric": metric, "value": value})
    return found


def _row(facts: tuple[Any, ...], of: list[dict[str, Any]]) -> dict[str, Any] | None:
    tests = [one["result"].get("test") for one in of]
    if not all(tests):  # a set without test images
        return None
    metric = of[0]["result"]["target_metric"]
    values = [test["values"][metric] for test in tests]
    if any(value is None for value in values):
        return None
    bounds = [test["intervals"].get(metric) for test in tests]
    row = _costs(facts, of) | {
        "metric": metric,
        "value": mean(values),
        "std": stdev(values) if len(values) > 1 else None,
        "low": mean(b[0] for b in bounds) if all(bounds) else None,
        "high": mean(b[1] for b in bounds) if all(bounds) else None,
        "seeds": " ".join(str(one["seed"]) for one in of),
        "n_test": tests[0]["n"],
    }
    return {name: row[name] for name in COLUMNS}


def _costs(facts: tuple[Any, ...], of: list[dict[str, Any]]) -> dict[str, Any]:
    def middle(name: str) -> float | None:
        values = [one["result"].get(name) for one in of]
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    return dict(zip(FACTS, facts, strict=True)) | {
        "n_seeds": len(of),
        "trained_parameters": of[0]["result"].get("trainable_parameters"),
        "img_per_s": middle("img_per_s"),
        "memory_gib": middle("memory_gib"),
        "seconds": mean(one["seconds"] for one in of),
    }


def by_adapter(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and a line for each data set, fraction, model and start with a column for each adapter."""
    adapters = list(dict.fromkeys(row["adapter"] for row in table["rows"]))
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in table["rows"]:
        key = (row["data"], row["metric"], f"{100 * row['fraction']:g} %", row["model"], row["start"])
        lines.setdefault(key, {})[row["adapter"]] = value_text(row)
    names = ["data", "metric", "labels", "model", "start", *adapters]
    return names, [[*key, *(of.get(adapter, "-") for adapter in adapters)] for key, of in lines.items()]


def value_text(row: Mapping[str, Any]) -> str:
    """``85.1 ± 0.4 [82.0, 88.0]``: mean, deviation over seeds, interval over test images; in %."""
    spread = f" ± {100 * row['std']:.1f}" if row["std"] is not None else ""
    interval = f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row["low"] is not None else ""
    return f"{100 * row['value']:.1f}{spread}{interval}"


def note(table: Mapping[str, Any]) -> str:
    """What the numbers are."""
    seeds = ", ".join(map(str, table["seeds"]))
    return (
        f"In %: the mean over the finished of seeds {seeds}, ± the standard deviation over them where there are several, "
        "and the 95 % interval over the choice of test images, the mean of the runs' own. Start: the adapter of "
        "self-supervised adaptation, or base for none. Columns: the adapter of supervised adaptation. Of a claim: in how many "
        "of these groups it is so, and whether the mean difference of cells that match in data set, labels, adapters and seed "
        "is more than chance. A unit is a data set and seed, or a data set where seeds share a self-supervised run, for cells "
        "of one unit share their luck; p is of a sign-flip test of units, at least 2 / 2^units, and not corrected for the number of claims."
    )


def claims_text(table: Mapping[str, Any]) -> list[str]:
    """A line for each claim and figure."""
    lines = [f"{one['claim']} ({one['source']}): {claim_words(one)}" for one in table["claims"]]
    for one in table["figures"]:
        spread = "" if one["std"] is None else f" ± {one['std']:.1f}"
        here = "not run" if one["here"] is None else f"here {one['here']:.1f}{spread}"
        lines.append(f"{one['figure']} ({one['source']}): {here}")
    return lines


def to_markdown(table: Mapping[str, Any]) -> str:
    """The values, the claims, and what self-supervised adaptation cost."""
    names, lines = by_adapter(table)
    parts = [f"# essa reproduce {table['grid']}", note(table)]
    if lines:
        parts.append(_grid(names, lines))
    parts += ["## The papers' claims", "\n".join(f"- {line}" for line in claims_text(table))]
    if table["ssa"]:
        costs = [[_cell(row[name]) for name in SSA_COLUMNS] for row in table["ssa"]]
        parts += ["## What self-supervised adaptation cost", _grid(list(SSA_COLUMNS), costs)]
    return "\n\n".join(parts) + "\n"


def _grid(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [names, ["---"] * len(names), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value or "-")
