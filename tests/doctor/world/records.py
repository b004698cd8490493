"""Hand-made records of a sound world: two hosts with two GPUs each."""

from typing import Any

from essa_dist.doctor.world.record import Device, RankRecord
from essa_dist.doctor.world.run import RunFacts

H100 = {"kind": "H100", "memory_gib": 79.6, "free_gib": 79.1, "on_host": 2}


def record(rank: int, device: Device | None = None, **changes: Any) -> RankRecord:
    """A rank of a sound world of two hosts with two GPUs each."""
    node, local = divmod(rank, 2)
    fields: dict[str, Any] = {
        "rank": rank,
        "world_size": 4,
        "local_rank": local,
        "node_rank": node,
        "host": f"host{node}",
        "node": f"boot{node}",
        "address": f"10.0.0.{node}",
        "interface": "eth3",
        "interfaces": {"lo": ["127.0.0.1"], "eth3": [f"10.0.0.{node}"]},
        "gloo_address": f"10.0.0.{node}",
        "clock": 1000.0 + 0.1 * rank,
        "device": device or gpu(node, local),
        "versions": {"torch": "2.13.0", "timm": "1.0.31", "driver": "580.1"},
        "environment": {"NCCL_DEBUG": "WARN"},
        "shm_gib": 8.0,
        "open_files": 65536,
    }
    return RankRecord(**fields | changes)


def gpu(node: int, local: int, **changes: Any) -> Device:
    return Device(**{"name": f"cuda:{local}", "identity": f"gpu{node}{local}"} | H100 | changes)


def world(**changes: dict[int, Any]) -> list[RankRecord]:
    """Four records; ``field={rank: value}`` changes one rank's."""
    return [record(r, **{name: held[r] for name, held in changes.items() if r in held}) for r in range(4)]


def facts(**changes: Any) -> RunFacts:
    sound: dict[str, Any] = {
        "settings": {"seed": "1", "batch_size": "8", "data.train": "PACKED"},
        "batch_size": 8,
        "trunk": "a1" * 32,
        "data": "b2" * 32,
        "sees_out": True,
    }
    return RunFacts(**sound | changes)


def with_run(changed: dict[int, RunFacts] | None = None) -> list[RankRecord]:
    return world(run={r: facts() for r in range(4)} | (changed or {}))
