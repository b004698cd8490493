"""The report as one dict, which becomes JSON, or a page (``page``)."""

from collections.abc import Sequence
from typing import Any

from essa_dist.doctor.world.findings import Finding, grouped
from essa_dist.doctor.world.place import Place
from essa_dist.doctor.world.record import RankRecord
from essa_dist.doctor.world.trial import Trial
from essa_dist.doctor.world.words import ranks


def as_result(
    place: Place,
    records: Sequence[RankRecord],
    findings: Sequence[Finding],
    trial: Trial,
    *,
    failed: bool,
    seconds: float,
) -> dict[str, Any]:
    """The same keys whatever was found. ``exit_code`` is what the command ends with."""
    same, different = _versions(records)
    return {
        "ok": not failed,
        "exit_code": int(failed),
        "world_size": place.world_size,
        "nodes": n_nodes(records),
        "master": f"{place.address}:{place.port}" if place.world_size > 1 else None,
        "strategy": trial.strategy or None,
        "backend": trial.backend or None,
        "ranks": [_row(r) for r in records],
        "versions": same,
        "different": different,
        "all_reduce": [timing._asdict() for timing in trial.timings],
        "warnings": [f.text for f in findings if f.warns],
        "problems": [f.text for f in findings if not f.warns],
        "seconds": round(seconds, 2),
    }


def n_nodes(records: Sequence[RankRecord]) -> int:
    """Nodes as the launcher counts them: two of its kind on one host are two."""
    return len({(r.node, r.node_rank) for r in records})


def _row(r: RankRecord) -> dict[str, Any]:
    return {
        "rank": r.rank,
        "host": r.host,
        "node": r.node_rank,
        "local": r.local_rank,
        "address": r.address,
        "device": r.device.name if r.device.name == "cpu" else f"{r.device.name} {r.device.kind}",
        "memory GiB": r.device.memory_gib,
        "free GiB": r.device.free_gib,
    }


def _versions(records: Sequence[RankRecord]) -> tuple[dict[str, str | None], dict[str, list[dict[str, Any]]]]:
    """What all have, and for the rest who has what."""
    same: dict[str, str | None] = {}
    different: dict[str, list[dict[str, Any]]] = {}
    for name in dict.fromkeys(name for r in records for name in r.versions):
        held = grouped(records, lambda r, name=name: r.versions.get(name))  # type: ignore[misc]
        if len(held) == 1:
            (same[name],) = held
        else:
            different[name] = [{"value": value, "ranks": ranks(who)} for value, who in held.items()]
    return same, different
