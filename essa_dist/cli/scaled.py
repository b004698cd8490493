"""The result of ``essa scale`` for a reader."""

from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from essa_dist.scaling.config import PARTS


def scaled(result: Mapping[str, Any]) -> str:
    """The table of sizes, run and predicted, and the files; of a dry run the commands."""
    return "\n".join(result["commands"] if "commands" in result else _lines(result)) + "\n"


def _lines(r: Mapping[str, Any]) -> Iterator[str]:
    yield f"{r['model']} + {r['adapter']}, {r['precision']}, {r['crops']}; efficiency is {r['efficiency']}"
    names = [
        "batch",
        "img/s",
        "range",
        "s a step",
        "efficiency",
        "range",
        "sent MB",
        "peak GiB",
        "a million",
        "pred./meas.",
    ]
    predicted = [row for row in r["predicted"] if not row["run"]]
    rows = [*r["rows"], *predicted]
    yield from _table(names, [(row, _speed(row)) for row in rows])
    yield "where the time of a step goes, %"
    yield from _table(list(PARTS), [(row, _split(row)) for row in r["rows"] if "step_s" in row])
    for row in r["rows"]:
        yield from (
            f"{row['strategy']} {row['mode']} N={row['processes']} failed: {error}" for error in row["errors"]
        )
    yield f"medians of {r['settings']['rounds']} rounds; communication: what computing does not hide, waiting for others included"
    if any(row.get("load", 0) > r["machine"]["cores"] + row["processes"] for row in r["rows"]):
        yield "the machine was busy with other work, which costs more processes more: look at load in the JSON"
    if predicted:
        yield "~ predicted by the planner and measured nowhere; prices are an assumption unless price= is given"
    yield from (f"written: {file}" for file in r["files"])


def _table(names: list[str], rows: list[tuple[Mapping[str, Any], list[str]]]) -> Iterator[str]:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("strategy", "mode", "N", *names):
        table.add_column(name, justify="left" if name in ("strategy", "mode") else "right", no_wrap=True)
    for row, cells in rows:
        name = f"~{row['strategy']}, {row['device']}" if row.get("predicted") else row["strategy"]
        table.add_row(name, row["mode"], f"{row['processes']}", *cells)
    out = StringIO()
    Console(file=out, width=150).print(table)
    yield from (line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def _speed(row: Mapping[str, Any]) -> list[str]:
    if "step_s" not in row:
        return [f"{row['batch_size']}", "failed"]
    mark = "~" if row.get("predicted") else ""
    efficiency, spread = row["efficiency"], row.get("efficiency_range")
    cells = [
        f"{row['batch_size']}",
        f"{mark}{_short(row['img_per_s'])}",
        _range(row["img_per_s_range"]),
        f"{mark}{_short(row['step_s'])}",
        "-" if efficiency is None else f"{mark}{efficiency:.0%}",
        "" if spread is None else _range([100 * end for end in spread]),
    ]
    cost, ratio = row.get("cost_per_million"), row.get("predicted_over_measured")
    money = "-" if cost is None else f"{mark}{_short(cost)}"
    if mark:
        return [*cells, "", "" if row["fits"] else "won't fit", money, ""]
    held = [f"{row['sent_bytes'] / 1e6:.1f}", f"{row['peak_gib']:.2f}"]
    return [*cells, *held, money, "-" if ratio is None else f"{ratio:.2f}"]


def _split(row: Mapping[str, Any]) -> list[str]:
    return [f"{100 * row['split_s'][part] / row['step_s']:.1f}" for part in PARTS]


def _range(ends: list[float]) -> str:
    low, high = map(_short, ends)
    return "" if low == high else f"{low} - {high}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
