"""A plan for a reader: one screen."""

from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

GIB = 2**30
SMALL = 0.005
"""GiB below which a term is not shown."""


def planned(result: Mapping[str, Any]) -> str:
    """What is trained, the devices, the layouts by term, and what dominates."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    r = result
    task = f"{r['task']}, " if "task" in r else ""
    yield (
        f"{r['model']} + {r['adapter']}: {task}{_count(r['trained_trunk'])} of the trunk and {_count(r['trained_heads'])} of the heads "
        f"trained, {_count(r['frozen'])} frozen; {r['precision']}, {r['crops']}, batch {r['batch_size']}"
        + (f" in {r['accumulate']} micro-batches" if r["accumulate"] > 1 else "")
    )
    yield f"{r['tflop_per_image']:.3g} TFLOP an image; a checkpoint takes {r['checkpoint_bytes'] / 1e6:,.0f} MB"
    yield from _devices(r)
    if r["layouts"]:
        yield from _layouts(r["layouts"])
    said: dict[str, list[str]] = {}
    for row in r["rows"]:
        if row["problem"] or not row["fits"]:
            words = row["problem"] or f"does not fit; ways out: {'; or '.join(row['ways_out'])}"
            said.setdefault(words, []).append(f"{row['ranks']} x {row['device']}")
    yield from (f"{', '.join(names)}: {words}" for words, names in said.items())
    largest = r["rows"][0]["terms"].get(r["dominates"], 0.0)
    if r["dominates"]:
        yield f"what dominates: {r['dominates']}, {largest / GIB:.2f} GiB"
    if r["steps"] is None:
        yield "hours and cost: say how many images there are (images=100000) or the duration in updates"
    if "task" in r:
        yield "hours are of training alone: predicting the validation images comes on top"
    yield "speeds are a prediction (40 to 75 % of the roofline) and prices an assumption: price=... sets yours"
    if r["picture"]:
        yield f"written: {r['picture']}"


def _devices(r: Mapping[str, Any]) -> Iterator[str]:
    talk = any(row.get("sent_bytes") for row in r["rows"])
    names = ["devices", "layout", "needs GiB", "of GiB", "largest batch", "img/s"]
    names += ["sent MB", "ms"] if talk else []
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in (*names, "hours", "cost"):
        table.add_column(name, justify="left" if name in ("devices", "layout") else "right", no_wrap=True)
    for row in r["rows"]:
        name = f"{row['ranks']} x {row['device']}"
        if row["problem"]:
            table.add_row(name, "-")
            continue
        cells = [
            row["layout"],
            f"{row['needs_bytes'] / GIB:.1f}" + ("" if row["fits"] else " !"),
            f"{row['memory_bytes'] / GIB:.1f}",
            f"{row['largest_batch']:,}",
            _range(row["img_per_s"]),
        ]
        sent = [f"{row['sent_bytes'] / 1e6:,.0f}", f"{1e3 * row['sending_s']:.1f}"]
        table.add_row(name, *cells, *(sent if talk else []), _range(row["hours"]), _range(row["cost"]))
    yield from _shown(table)


def _layouts(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    possible = [row for row in rows if not row["problem"]]
    if not possible:
        yield f"{rows[0]['ranks']} ranks: {rows[0]['problem']}"
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"GiB of a rank, {rows[0]['ranks']} x {rows[0]['device']}", no_wrap=True)
    for row in possible:
        table.add_column(row["layout"], justify="right", no_wrap=True)
    terms = dict.fromkeys(term for row in possible for term in row["terms"])
    for term in terms:
        sizes = [row["terms"].get(term, 0.0) / GIB for row in possible]
        if max(sizes) >= SMALL:
            table.add_row(term, *(f"{size:.2f}" if size >= SMALL else "" for size in sizes))
    table.add_section()
    table.add_row("sum", *(f"{row['needs_bytes'] / GIB:.2f}" for row in possible))
    table.add_row("sent in a step, MB", *(f"{row['sent_bytes'] / 1e6:,.0f}" for row in possible))
    yield from _shown(table)


def _shown(table: Table) -> Iterator[str]:
    out = StringIO()
    Console(file=out, width=130).print(table)
    yield from (line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def _range(values: list[float] | None) -> str:
    if values is None:
        return "?"
    low, high = (_short(value) for value in values)
    return low if low == high else f"{low} - {high}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.3g}"


def _count(numbers: int) -> str:
    return f"{numbers / 1e6:.1f} M" if numbers >= 1e5 else f"{numbers:,}"
