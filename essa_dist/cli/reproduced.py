"""A plan or a filled table of ``essa reproduce`` for a reader."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from essa_dist.reproduce.table import by_adapter, claims_text, note

NEEDS = {"data": "needs its data set", "weights": "needs its weights"}


def reproduced(result: Mapping[str, Any]) -> str:
    """The plan of a dry run, or the table, the claims and what is left."""
    lines = _plan(result["plan"]) if "table" not in result else _results(result)
    return "\n".join(lines) + "\n"


def _plan(plan: Mapping[str, Any]) -> Iterator[str]:
    for cell in plan["cells"]:
        status = NEEDS.get(cell["status"], cell["status"])
        yield f"# {cell['name']}: {status}; {cell['steps']:,} updates, {cell['images']:,} images, about {_time(cell['seconds'])}"
        yield cell["command"]
    yield ""
    for name, command in plan["sets"].items():
        yield f"data set {name}: {f'missing; {command}' if command else 'packed'}"
    for name in plan["weights"]:
        yield f"weights {name}: missing; weights.{name}=FILE"
    basis = (
        f"measured on {plan['measured_on']} finished cells"
        if plan["measured_on"]
        else f"assumed for one {plan['device']}, not measured: tflops= says otherwise"
    )
    counts = ", ".join(f"{count} {NEEDS.get(name, name)}" for name, count in plan["counts"].items())
    yield f"{len(plan['cells'])} cells: {counts}"
    yield f"estimate of what is not done: {plan['hours_left']:.1f} {plan['device']} hours, at {plan['tflops']:.3g} TFLOP/s, {basis}"


def _results(result: Mapping[str, Any]) -> Iterator[str]:
    table = result["table"]
    names, rows = by_adapter(table)
    if rows:
        shown = Table(box=SIMPLE_HEAD)
        for name in names:
            shown.add_column(name, no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        out = StringIO()
        Console(file=out, width=max(100, 60 + 26 * len(names))).print(shown)
        yield from (line.rstrip() for line in out.getvalue().splitlines())
    yield note(table)
    yield ""
    yield from claims_text(table)
    reasons = defaultdict(list)
    for name, reason in result["failed"].items():
        reasons[reason].append(name)
    for reason, cells in reasons.items():
        yield f"failed: {', '.join(cells[:4])}{f' and {len(cells) - 4} more' if len(cells) > 4 else ''}: {reason}"
    for need in dict.fromkeys(result["left"].values()):
        cells = [name for name, what in result["left"].items() if what == need]
        yield f"not run, {NEEDS[need]}: {len(cells)} cells; --dry-run says how"
    yield f"written: {', '.join(result['files'])}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
