"""The report on a world for a reader."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def world_page(result: Mapping[str, Any]) -> str:
    """What ``essa doctor`` prints under a launcher: ranks, what is equal and what is not, speed, findings."""
    out = StringIO()
    console = Console(file=out, width=200, soft_wrap=True, highlight=False)
    console.print(Text(_headline(result)))
    if result["ranks"]:
        console.print(
            _table(
                ("rank", "host", "node", "local", "address", "device", "memory GiB", "free GiB"),
                result["ranks"],
            )
        )
    if result["all_reduce"]:
        console.print(Text("all-reduce, fp32, mean of one on the slowest rank"))
        console.print(
            _table(("size", "ms", "algorithm GB/s", "bus GB/s"), [_timing(t) for t in result["all_reduce"]])
        )
    same, differing = result["versions"], result["different"]
    if same:
        console.print(
            Text("equal on all ranks: " + ", ".join(f"{name} {value or '-'}" for name, value in same.items()))
        )
    if differing:
        rows = [
            {"what": name, "value": held["value"] or "missing", "ranks": held["ranks"]}
            for name, values in differing.items()
            for held in values
        ]
        console.print(_table(("what", "value", "ranks"), rows))
    for kind in ("warnings", "problems"):
        for line in result[kind]:
            console.print(Text(f"{kind.removesuffix('s')}: {line}"))
    console.print(Text(_verdict(result)))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _headline(result: Mapping[str, Any]) -> str:
    how = f": {result['strategy']} over {result['backend']}" if result["strategy"] else ""
    where = f", meeting at {result['master']}" if result["master"] else ""
    nodes = f" on {result['nodes']} node(s)" if result["nodes"] else ""
    return f"a world of {result['world_size']} rank(s){nodes}{how}{where}"


def _verdict(result: Mapping[str, Any]) -> str:
    n = len(result["problems"])
    return f"{f'{n} problem(s)' if n else 'no problem'} found in {result['seconds']:.1f} s"


def _timing(timing: Mapping[str, Any]) -> dict[str, str]:
    return {
        "size": _size(timing["bytes"]),
        "ms": f"{1000 * timing['seconds']:.3g}",
        "algorithm GB/s": f"{timing['algorithm']:.3g}",
        "bus GB/s": f"{timing['bus']:.3g}",
    }


def _size(n_bytes: int) -> str:
    units = ("B", "KiB", "MiB", "GiB")
    unit = min(max(n_bytes.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{n_bytes >> (10 * unit)} {units[unit]}"


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(Text("-" if row[name] is None else str(row[name])) for name in columns))
    return table
