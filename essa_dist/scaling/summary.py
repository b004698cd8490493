"""From what jobs measured to the rows of the table: medians over rounds with their spread, efficiencies, cost.

Efficiency, against the smallest size n of processes: weak ``t_n / t_N`` at the same batch a process, strong
``n t_n / (N t_N)`` at the same batch of all. Each round gives one, from jobs that ran one after another.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from essa_dist.scaling.config import PARTS, ScaleConfig
from essa_dist.scaling.jobs import Job, batch_of
from essa_dist.scaling.prediction import Point

Results = Mapping[Job, Mapping[str, Any]]


def rows(config: ScaleConfig, batch_size: int, results: Results) -> list[dict[str, Any]]:
    """One for each strategy, mode and size, in this order."""
    found = []
    for strategy in config.strategy:
        for mode in config.modes:
            base = _rounds(config, results, strategy, min(config.sizes), mode, batch_size)
            for size in sorted(config.sizes):
                rounds = _rounds(config, results, strategy, size, mode, batch_size)
                batch = batch_of(mode, batch_size, size)
                head = {"strategy": strategy, "mode": mode, "processes": size, "batch_size": batch}
                found.append(head | _measured(rounds, base, batch, size, min(config.sizes), mode))
    return found


def _rounds(
    config: ScaleConfig, results: Results, strategy: str, size: int, mode: str, batch_size: int
) -> list[Mapping[str, Any]]:
    """What the job gave in each round; empty where it was not run."""
    batch = batch_of(mode, batch_size, size)
    return [results.get(Job(strategy, size, batch, round_), {}) for round_ in range(config.rounds)]


def _measured(
    rounds: Sequence[Mapping[str, Any]],
    base: Sequence[Mapping[str, Any]],
    batch: int,
    size: int,
    least: int,
    mode: str,
) -> dict[str, Any]:
    done = [one for one in rounds if "step_s" in one]
    errors = list(dict.fromkeys(str(one["error"]) for one in rounds if "error" in one))
    if not done:
        return {"errors": errors}
    seconds = [one["step_s"] for one in done]
    gain = size / least if mode == "strong" else 1.0
    efficiencies = [
        first["step_s"] / (gain * one["step_s"])
        for first, one in zip(base, rounds, strict=True)
        if "step_s" in first and "step_s" in one
    ]
    middle = statistics.median(seconds)
    split = {part: statistics.median(one["split_s"].get(part, 0.0) for one in done) for part in PARTS}
    whole = sum(split.values())  # medians needn't add up to the median
    return {
        "rounds": len(done),
        "errors": errors,
        "step_s": middle,
        "step_s_range": [min(seconds), max(seconds)],
        "img_per_s": batch / middle,
        "img_per_s_range": [batch / max(seconds), batch / min(seconds)],
        "efficiency": statistics.median(efficiencies) if efficiencies else None,
        "efficiency_range": [min(efficiencies), max(efficiencies)] if efficiencies else None,
        "split_s": {part: middle * s / whole for part, s in split.items()},
        "sent_bytes": max(one["sent_bytes"] for one in done),
        "peak_gib": max(one["peak_gib"] for one in done),
        "device": done[0]["device"],
        "threads": done[0]["threads"],
        "load": max(one["load"] for one in done),
    }


def judged(rows: Iterable[dict[str, Any]], points: Sequence[Point], price: float | None) -> None:
    """Enter cost, and predicted over measured seconds where the planner was asked about what was run."""
    own = {(p.strategy, p.mode, p.processes): p for p in points if p.calibrated}
    for row in rows:
        if "step_s" not in row:
            continue
        if price is not None:
            row["cost_per_million"] = cost(row["img_per_s"], row["processes"], price)
        if point := own.get((row["strategy"], row["mode"], row["processes"])):
            row["predicted_s"] = list(point.seconds)
            row["predicted_over_measured"] = point.middle / row["step_s"]


def predicted(points: Sequence[Point], config: ScaleConfig) -> list[dict[str, Any]]:
    """Rows of all that the planner was asked about; ``run``: what was measured too, on the same device."""
    least, found = min(config.sizes), []
    first = {(p.strategy, p.mode, p.device): p.middle for p in points if p.processes == least}
    for p in points:
        gain = p.processes / least if p.mode == "strong" else 1.0
        slow, fast = p.seconds
        found.append(
            {
                "predicted": True,
                "run": p.calibrated and p.processes in config.sizes,
                "calibrated": p.calibrated,
                "strategy": p.strategy,
                "mode": p.mode,
                "processes": p.processes,
                "batch_size": p.batch_size,
                "device": p.device,
                "fits": p.fits,
                "step_s": p.middle,
                "step_s_range": [fast, slow],
                "img_per_s": p.batch_size / p.middle,
                "img_per_s_range": [p.batch_size / slow, p.batch_size / fast],
                "efficiency": first[p.strategy, p.mode, p.device] / (gain * p.middle),
                "cost_per_million": cost(p.batch_size / p.middle, p.processes, p.price),
            }
        )
    return found


def cost(img_per_s: float, devices: int, price: float) -> float:
    """Of a million images, at ``price`` of one device and hour."""
    return 1e6 / img_per_s / 3600 * devices * price
