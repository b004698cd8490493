"""The demo's result as a table: what adaptation did to each evaluation, and what it cost."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PROTOCOLS = {"knn": "k-NN", "linear": "linear probe"}
MB = 1e6


def before_after(summary: Mapping[str, Any]) -> str:
    """Balanced accuracies in percent with their 95 % intervals, then parameters, sizes and times, as text."""
    first = summary["rows"][0]["before"]
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Balanced accuracy, %, and 95 % interval; {first['n_test']} test images never adapted to",
        title_justify="left",
    )
    for name in ("evaluation", "before", "after", "points"):
        table.add_column(name, justify="left" if name == "evaluation" else "right", no_wrap=True)
    for row in summary["rows"]:
        before, after = row["before"], row["after"]
        crop = "" if row["crop"] == 1 else f", central {row['crop']:.0%}"
        gain = 100 * (after["balanced_accuracy"] - before["balanced_accuracy"])
        name = f"{PROTOCOLS[row['protocol']]}, {row['image_size']} px{crop}"
        table.add_row(name, _with_interval(before), _with_interval(after), f"{gain:+.1f}")
    out = StringIO()
    Console(file=out, width=100).print(table)
    facts = "".join(f"  {name:<22}{value}\n" for name, value in _facts(summary))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n" + facts


def _with_interval(result: Mapping[str, Any]) -> str:
    low, high = result["interval"]
    return f"{100 * result['balanced_accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _facts(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    share = s["trainable_parameters"] / s["trunk_parameters"]
    return [
        (
            "trained parameters",
            f"{s['trainable_parameters']:,} of {s['trunk_parameters']:,} ({share:.1%}), {s['adapter']}",
        ),
        ("and in the heads", f"{s['head_parameters']:,} (not exported)"),
        (
            "checkpoint",
            f"{s['checkpoint_bytes'] / MB:.1f} MB, to resume; exported model {s['export_bytes'] / MB:.1f} MB",
        ),
        (
            "time",
            f"{s['seconds']:.0f} s, {s['adapt_seconds']:.0f} s of them adaptation at {s['img_per_s']:.1f} img/s",
        ),
        ("on", f"{s['device']}, {s['threads']} threads"),
        ("report", str(s["report"])),
        ("model", str(s["export"])),
    ]
