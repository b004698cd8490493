"""The result of an evaluation in a sentence, with a line for each of several settings; and of a suite as a table."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

HEADLINES = {"auroc": "mean AUROC", "balanced_accuracy": "balanced accuracy", "map": "mean average precision"}
"""What the interval of a result is of: the first of these that it has."""


def headline(result: Mapping[str, Any]) -> str:
    return next(metric for metric in HEADLINES if metric in result)


def evaluation(result: Mapping[str, Any]) -> str:
    metric = headline(result)
    low, high = result["interval"]
    accuracy = f", accuracy {percent(result['accuracy'])}" if metric == "balanced_accuracy" else ""
    k = f" (k={result['k']})" if result.get("k") is not None else ""
    what = f"{result['protocol']}{k} of {result['model']} at {result['image_size']} px"
    text = (
        f"{what}: {HEADLINES[metric]} {percent(result[metric])} "
        f"(95 % interval {percent(low)} to {percent(high)}){accuracy}; "
        f"{result['n_test']} images tested, {result['n_bank']} in the bank, {len(result['classes'])} classes\n"
    )
    return text + "".join(_line(one, metric) for one in result.get("grid", ()))


def _line(one: Mapping[str, Any], metric: str) -> str:
    low, high = one["interval"]
    setting = ", ".join(
        f"{name}={one[name]}" for name in ("k", "temperature", "shots", "method") if name in one
    )
    return f"  {setting}: {percent(one[metric])} (95 % interval {percent(low)} to {percent(high)})\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def suite(result: Mapping[str, Any]) -> str:
    """What is quoted of a suite, a line for each evaluation and model; then where everything is."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from essa_dist.evaluation.suite import words

    table = Table(box=SIMPLE_HEAD)
    for name in ("evaluation", "metric", "model", "%", f"against {result['baseline']}"):
        table.add_column(
            name, justify="right" if name == "%" else "left", no_wrap=name in ("%", "metric"), overflow="fold"
        )
    for (name, metric), of_model in words.quoted(result).items():
        for i, (model, row) in enumerate(of_model.items()):
            first = ("", "") if i else (name, metric)
            table.add_row(*first, model, words.value_text(row), words.difference_text(row))
    out = StringIO()
    Console(file=out, width=140).print(table)
    shown = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    new, cells = result["new_cells"], result["cells"]
    done = f"{new} of {cells} cells done now" + (", the others before" if new < cells else "")
    return f"{shown}\n{words.note(result)}\n{done}; {', '.join(result['files'])}\n"
