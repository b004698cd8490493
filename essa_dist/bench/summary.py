"""The rounds of a comparison as one row for each of what was compared, and the rows as a table."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from essa_dist.bench.clock import spread
from essa_dist.bench.tables import markdown

CONSTANT = (
    "model", "adapter", "strategy", "processes", "batch_size", "precision", "trained_trunk", "trained_share",
    "trained_heads", "adapter_bytes", "checkpoint_bytes", "largest_batch", "tflop_per_image", "engine",
    "kernels",
)  # fmt: skip
"""What is told once, by the first turn that was measured."""


def summary(turns: Mapping[str, Sequence[dict[str, Any]]], peak_tflops: float) -> dict[str, Any]:
    """A row for each name, a table, and what failed."""
    base = next(iter(turns))
    rows = [
        _row(name, done, peak_tflops) | _ratios(turns[base], done)
        for name, done in turns.items()
        if any("error" not in turn for turn in done)
    ]
    failed = {
        name: next(turn["error"] for turn in done if "error" in turn)
        for name, done in turns.items()
        if any("error" in turn for turn in done)
    }
    return {"ratio_to": base, "rows": rows, "failed": failed, "table": [*_table(rows), *_failures(failed)]}


def _row(name: str, turns: Sequence[dict[str, Any]], peak_tflops: float) -> dict[str, Any]:
    done = [turn for turn in turns if "error" not in turn]
    first = done[0]
    rates = spread([turn["img_per_s"] for turn in done])
    row = {
        "name": name,
        **{key: first[key] for key in CONSTANT if key in first},
        "img_per_s": rates["median"],
        "img_per_s_spread": rates,
        "step_s": spread([second for turn in done for second in turn["steps_s"]]),
        "phases_s": {
            phase: statistics.median(turn["phases_s"][phase] for turn in done) for phase in first["phases_s"]
        },
        "peak_gib": statistics.median(turn["peak_gib"] for turn in done),
    }
    if "reserved_gib" in first:
        row["reserved_gib"] = statistics.median(turn["reserved_gib"] for turn in done)
    if "tflop_per_image" in row:
        row["tflops"] = row["tflop_per_image"] * row["img_per_s"] / row["processes"]
        row["mfu"] = row["tflops"] / peak_tflops
    return row


def _ratios(base: Sequence[dict[str, Any]], turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of throughput and peak memory, in the rounds in which both were measured."""
    pairs = [(a, b) for a, b in zip(base, turns, strict=False) if "error" not in a and "error" not in b]
    if not pairs:
        return {}
    return {
        "throughput_ratio": spread([b["img_per_s"] / a["img_per_s"] for a, b in pairs]),
        "memory_ratio": statistics.median(b["peak_gib"] / a["peak_gib"] for a, b in pairs),
    }


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["nothing could be measured"]
    optional = {
        "largest_batch": ("largest batch", lambda row: f"{row['largest_batch']:,}"),
        "adapter_bytes": ("adapter file", lambda row: f"{row['adapter_bytes'] / 1e6:.2f} MB"),
        "checkpoint_bytes": ("checkpoint", lambda row: f"{row['checkpoint_bytes'] / 1e6:.0f} MB"),
        "tflop_per_image": ("TFLOP/img", lambda row: f"{row['tflop_per_image']:.3g}"),
        "mfu": ("of peak", lambda row: f"{row['mfu']:.0%}"),
    }
    shown = [columns for key, columns in optional.items() if any(key in row for row in rows)]
    header = ["", "trained", "of trunk", "img/s", "min - max", "ratio", "peak GiB", "ratio"]
    return markdown(
        [*header, *(name for name, _ in shown)],
        [[*_cells(row), *(_or_none(cell, row) for _, cell in shown)] for row in rows],
    )


def _or_none(cell: Any, row: dict[str, Any]) -> str:
    try:
        return str(cell(row))
    except KeyError:
        return "-"


def _cells(row: dict[str, Any]) -> Iterator[str]:
    rates, ratio = row["img_per_s_spread"], row.get("throughput_ratio")
    yield row["name"]
    yield f"{row['trained_trunk']:,}"
    yield f"{row['trained_share']:.2%}"
    yield f"{row['img_per_s']:.2f}"
    yield f"{rates['min']:.2f} - {rates['max']:.2f}"
    yield f"{ratio['median']:.2f}" if ratio else "-"
    yield f"{row['peak_gib']:.2f}"
    yield f"{row['memory_ratio']:.2f}" if ratio else "-"


def _failures(failed: Mapping[str, str]) -> list[str]:
    return [f"{name} failed: {error}" for name, error in failed.items()]
