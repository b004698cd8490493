"""Several adapters over one model: their evaluations under each other, the bare model first."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from essa_dist.cli.evaluation import HEADLINES, headline


def side_by_side(result: Mapping[str, Any]) -> str:
    """Headlines in percent with their 95 % intervals, and the points gained over the bare model, as text."""
    rows = result["rows"]
    base = rows[0]
    metric = headline(base)
    k = f" (k={base['k']})" if base.get("k") is not None else ""
    title = (
        f"{base['protocol']}{k} of {result['model']} at {base['image_size']} px; accuracies in %, with 95 % interval; "
        f"{base['n_test']} images tested, {base['n_bank']} in the bank, {len(base['classes'])} classes"
    )
    table = Table(box=SIMPLE_HEAD)
    for name in ("adapter", "parameters", HEADLINES[metric], "points", "accuracy"):
        table.add_column(name, justify="left" if name == "adapter" else "right", no_wrap=True)
    for row in rows:
        low, high = row["interval"]
        gain = 100 * (row[metric] - base[metric])
        table.add_row(
            row["adapter"] or "none",
            f"{row['trained_parameters']:,}",
            f"{100 * row[metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{gain:+.1f}" if row["adapter"] else "",
            f"{100 * row['accuracy']:.1f}" if metric == "balanced_accuracy" else "",
        )
    out = StringIO()
    Console(file=out, width=max(100, 70 + max(len(str(row["adapter"])) for row in rows))).print(table)
    return title + "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
