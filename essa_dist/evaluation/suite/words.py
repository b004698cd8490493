"""A suite's table in words: what is quoted of it, a line for each evaluation and a column for each model."""

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "linear_sgd": "linear probe (SGD)",
    "fewshot": "few-shot",
    "retrieval": "retrieval",
}
Row = Mapping[str, Any]


def setting_text(protocol: str, setting: Mapping[str, Any]) -> str:
    """The part of a setting that was asked for; what a protocol chose itself (a C, a learning rate) differs by model."""
    asked = {
        "knn": "k={k}, T={temperature:g}",
        "fewshot": "{shots} per class, {method}, {draws} draws",
    }
    return asked.get(protocol, "").format(**setting)


def quoted(table: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Row]]:
    """(evaluation, metric) to model to its quoted row, in the order of the table."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in table["rows"]:
        if row["quoted"]:
            found.setdefault((evaluation(row), row["metric"]), {})[row["model"]] = row
    return found


def evaluation(row: Row) -> str:
    """``blood, k-NN (k=20, T=0.07), 10 % of the labels``."""
    setting = f" ({row['setting']})" if row["setting"] else ""
    part = "" if row["fraction"] == 1 else f", {100 * row['fraction']:g} % of the labels"
    return f"{row['data']}, {NAMES.get(row['protocol'], row['protocol'])}{setting}{part}"


def value_text(row: Row) -> str:
    """``85.1 ± 0.4 [82.0, 88.0]``: mean, deviation over seeds, interval over test images; in %."""
    spread = f" ± {100 * row['std']:.1f}" if row["std"] is not None else ""
    interval = f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]" if row["low"] is not None else ""
    return f"{100 * row['value']:.1f}{spread}{interval}"


def difference_text(row: Row) -> str:
    """``+2.1 (p 0.03)``; empty for the baseline."""
    if row["difference"] is None:
        return ""
    return f"{100 * row['difference']:+.1f} (p {row['p']:.2g})"


def note(table: Mapping[str, Any]) -> str:
    """What the numbers are."""
    seeds = (
        f"mean ± standard deviation over seeds {', '.join(map(str, table['seeds']))}, "
        if len(table["seeds"]) > 1
        else ""
    )
    against = (
        f" and, against {table['baseline']}, the difference with p of the paired bootstrap, not corrected for the number "
        "of comparisons"
        if len(table["models"]) > 1
        else ""
    )
    return f"In %: {seeds}95 % interval over the choice of test images ({table['resamples']} resamples){against}."


def grid(table: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of text: evaluation, metric, then each model."""
    models = list(table["models"])
    rows = [
        (name, metric, *(_cell(of_model.get(model)) for model in models))
        for (name, metric), of_model in quoted(table).items()
    ]
    return ("evaluation", "metric", *models), rows


def _cell(row: Row | None) -> str:
    return "–" if row is None else " ".join(filter(None, (value_text(row), difference_text(row))))


def to_markdown(table: Mapping[str, Any]) -> str:
    head, rows = grid(table)
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {_joined(line)} |\n" for line in lines) + f"\n{note(table)}\n"


def _joined(cells: Sequence[str]) -> str:
    return " | ".join(cell.replace("|", "\\|") for cell in cells)
