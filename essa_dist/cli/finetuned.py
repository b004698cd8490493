"""The result of supervised adaptation for a reader: what was trained, and how it did on the test images."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PER_CLASS = ("n", "sensitivity", "specificity", "auroc", "auprc", "f1", "dice", "iou", "hd95")
"""Columns of the table of classes, where a task has them."""
CLASSES_SHOWN = 40


def finetuned(result: Mapping[str, Any]) -> str:
    """Metrics with their 95 % intervals, then a row for each class, then what it cost."""
    out = StringIO()
    console = Console(file=out, width=110)
    test = result.get("test")
    if test:
        table = _table(f"{test['n']} test images", "metric", "value", "95 % interval")
        for name, value in test["values"].items():
            bounds = test["intervals"].get(name)
            table.add_row(name, f"{value:.4f}", f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else "")
        console.print(table)
        _classes(console, test["per_class"])
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n" if test else ""
    return text + "".join(f"{name:<24}{value}\n" for name, value in _facts(result))


def _table(title: str, *columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _classes(console: Console, classes: Mapping[str, Mapping[str, float]]) -> None:
    measured = [name for name in PER_CLASS if any(name in values for values in classes.values())]
    if not measured:
        return
    table = _table("by class", "class", *measured)
    for name, values in list(classes.items())[:CLASSES_SHOWN]:
        table.add_row(name, *(_number(values.get(key), whole=key == "n") for key in measured))
    console.print(table)
    if len(classes) > CLASSES_SHOWN:
        console.print(f"and {len(classes) - CLASSES_SHOWN} more: see evaluation/test.json")


def _number(value: float | None, *, whole: bool) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if whole else f"{value:.4f}"


def _facts(r: Mapping[str, Any]) -> list[tuple[str, str]]:
    share = r["trainable_parameters"] / r["trunk_parameters"]
    best = r.get("val", {}).get(r["target_metric"])
    facts = [
        ("task", r["task"]),
        ("chosen by", f"{r['target_metric']} on validation" if "val" in r else "the last checkpoint"),
        ("best", f"{best:.4f} after step {r['best_step']}" if best is not None else f"step {r['best_step']}"),
        (
            "trained parameters",
            f"{r['trainable_parameters']:,} of {r['trunk_parameters']:,} ({share:.2%}), and {r['head_parameters']:,} "
            "in the head",
        ),
        ("steps", f"{r['step']:,}, {r['img_per_s'] or '-'} img/s, {r['seconds']:.0f} s"),
        ("checkpoint", f"{r['checkpoint']}, {r['checkpoint_bytes'] / 1e6:.1f} MB"),
    ]
    if "predictions" in r:
        facts.append(("predictions", r["predictions"]))
    return facts
