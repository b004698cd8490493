"""The words and numbers of the page: the result in one sentence, and tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from essa_dist.report.bars import percent
from essa_dist.report.confusion import recall_change, row_shares
from essa_dist.report.record import Pair, Record, Result
from essa_dist.report.section import Table

HEADLINE_SIZE = 224  # pixels; the size at which results of different runs are compared


def headline(pairs: Sequence[Pair]) -> list[Pair]:
    """One pair per protocol: the whole image at 224 px where that was evaluated, else the first one."""
    best: dict[str, Pair] = {}
    for pair in pairs:
        usual = pair.after.get("image_size") == HEADLINE_SIZE and (pair.after.get("crop") or 1.0) == 1.0
        if usual or pair.protocol not in best:
            best[pair.protocol] = pair
    return list(best.values())


def sentence(record: Record) -> str:
    """The result in one sentence, with the change in points whichever way it went."""
    steps = record.summary.get("steps") or (record.metrics[-1]["step"] if record.metrics else None)
    when = (
        f"After {steps} steps of self-supervised adaptation" if steps else "After self-supervised adaptation"
    )
    pairs = headline(record.pairs)
    if not pairs:
        return f"{when}: no comparison with the frozen model has been made yet."
    return (
        f"{when}, balanced accuracy on held-out images went " + "; ".join(_move(pair) for pair in pairs) + "."
    )


def _move(pair: Pair) -> str:
    before, after = percent(pair.before), percent(pair.after)
    doubt = " (the 95 % intervals overlap)" if _overlap(pair) else ""
    return f"from {before:.1f} % to {after:.1f} % by {pair.title} ({after - before:+.1f} points){doubt}"


def _overlap(pair: Pair) -> bool:
    a, b = pair.before.get("interval"), pair.after.get("interval")
    return bool(a and b and max(a[0], b[0]) <= min(a[1], b[1]))


def results_table(pairs: Sequence[Pair]) -> Table:
    rows = [
        (
            pair.title,
            with_interval(pair.before),
            with_interval(pair.after),
            _change(pair),
            _counts(pair.after),
        )
        for pair in pairs
    ]
    return Table(
        "Balanced accuracy before and after adaptation, with 95 % bootstrap intervals",
        ("evaluation", "before", "after", "change", "images (bank / test)"),
        tuple(rows),
    )


def with_interval(result: Result) -> str:
    interval = result.get("interval")
    value = f"{percent(result):.1f} %"
    return f"{value} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else value


def _change(pair: Pair) -> str:
    return f"{percent(pair.after) - percent(pair.before):+.1f} points"


def _counts(result: Result) -> str:
    return f"{result.get('n_bank', '?')} / {result.get('n_test', '?')}"


def recall_table(pair: Pair) -> Table:
    """Per-class recall, as text for those who can't see the picture."""
    before, after, change = row_shares(pair.before), row_shares(pair.after), recall_change(pair)
    rows = [
        (str(name), f"{100 * before[i, i]:.1f} %", f"{100 * after[i, i]:.1f} %", f"{change[i]:+.1f}")
        for i, name in enumerate(pair.after["classes"])
    ]
    return Table(
        f"Recall per class, {pair.title}", ("class", "before", "after", "change (points)"), tuple(rows)
    )


def megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "model": ("model", str),
    "adapter": ("adapter", str),
    "trainable_parameters": ("trained parameters of the trunk", "{:,}".format),
    "trunk_parameters": ("parameters of the trunk", "{:,}".format),
    "head_parameters": ("parameters of the heads (not exported)", "{:,}".format),
    "steps": ("steps", str),
    "batch_size": ("images per step", str),
    "seed": ("seed", str),
    "seconds": ("time", duration),
    "adapt_seconds": ("of it, adaptation", duration),
    "img_per_s": ("throughput (images / s)", "{:.1f}".format),
    "checkpoint_bytes": ("checkpoint", megabytes),
    "export_bytes": ("exported model", megabytes),
    "device": ("device", str),
    "threads": ("CPU threads", str),
    "commit": ("commit", str),
    "date": ("date", str),
}


def facts_table(summary: Mapping[str, Any]) -> Table:
    rows = [
        (name, _fact(show, summary[key]))
        for key, (name, show) in FACTS.items()
        if summary.get(key) is not None
    ]
    return Table("The run", ("fact", "value"), tuple(rows))


def _fact(show: Callable[[Any], str], value: Any) -> str:
    try:
        return show(value)
    except (TypeError, ValueError):  # a summary edited by hand: its text is still worth showing
        return str(value)


def versions_table(summary: Mapping[str, Any]) -> Table:
    versions = summary.get("versions") or {}
    return Table("Versions", ("package", "version"), tuple((str(k), str(v)) for k, v in versions.items()))
