"""From the ranks' records to what is wrong with the world: pure functions, one line a finding."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from essa_dist.doctor.world import network
from essa_dist.doctor.world.record import RankRecord
from essa_dist.doctor.world.words import ranks

SKEW_S = 5.0
SHM_GIB = 0.25  # for the data workers of one rank
OPEN_FILES = 1024
FREE = 0.9  # of a GPU's memory; contexts of this and neighbouring processes take some 0.5 GiB
STRICT = ("torch", "NCCL", "CUDA")
"""Where these differ, collectives may hang instead of failing."""

K = TypeVar("K")


class Finding(NamedTuple):
    text: str
    """What is wrong, and how to mend it, in one line."""
    warns: bool = False
    """A run may go on with it."""
    stops: bool = False
    """Collectives are not worth trying."""


def judge(records: Sequence[RankRecord]) -> list[Finding]:
    """Everything that the records of a whole world show, run apart."""
    parts = (shape, gpus, versions, environment, interfaces, limits, clocks)
    return [finding for part in parts for finding in part(records)]


def grouped(records: Iterable[RankRecord], key: Callable[[RankRecord], K]) -> dict[K, list[int]]:
    """Ranks by what ``key`` gives."""
    found: dict[K, list[int]] = defaultdict(list)
    for record in records:
        found[key(record)].append(record.rank)
    return dict(found)


def shape(records: Sequence[RankRecord]) -> Iterator[Finding]:
    """Numbers of processes: over all, and on each node."""
    sizes = grouped(records, lambda r: r.world_size)
    if len(sizes) > 1:
        told = ", ".join(f"{size} on {ranks(who)}" for size, who in sizes.items())
        yield Finding(
            f"WORLD_SIZE is {told}: give all launchers the same number of nodes and processes", stops=True
        )
    nodes = grouped(records, lambda r: r.node)
    if len({len(who) for who in nodes.values()}) > 1:
        told = ", ".join(f"{len(who)} on {_host(records, who[0])}" for who in nodes.values())
        yield Finding(f"unequal numbers of ranks on the nodes: {told}; start as many on each")


def gpus(records: Sequence[RankRecord]) -> Iterator[Finding]:
    """Ranks that share a GPU, compute on different kinds of devices, or meet others' memory on theirs."""
    on_gpu = [r for r in records if r.device.on_host]
    if on_gpu and len(on_gpu) < len(records):
        rest = [r.rank for r in records if not r.device.on_host]
        yield Finding(
            f"{ranks(rest)} on the CPU, {ranks([r.rank for r in on_gpu])} on GPUs: mend driver, CUDA_VISIBLE_DEVICES or the "
            "build of torch there, or say device=cpu for all",
            stops=True,
        )
    for (node, _), who in grouped(on_gpu, lambda r: (r.node, r.device.identity)).items():
        if len(who) > 1:
            first = next(r for r in on_gpu if r.rank == who[0])
            here = sum(r.node == node for r in records)
            yield Finding(
                f"{ranks(who)} share {first.device.name} of {first.host}, where {here} ranks see {first.device.on_host} "
                f"GPU(s): start one process for each GPU, and give each its own in CUDA_VISIBLE_DEVICES",
                stops=True,
            )
    kinds = grouped(on_gpu, lambda r: f"{r.device.kind} {r.device.memory_gib:.0f} GiB")
    if len(kinds) > 1:
        told = ", ".join(f"{kind} on {ranks(who)}" for kind, who in kinds.items())
        yield Finding(f"unequal GPUs: {told}; the slowest and the smallest decide for all", warns=True)
    for r in on_gpu:
        if r.device.free_gib < FREE * r.device.memory_gib:
            yield Finding(
                f"rank {r.rank}: {r.device.name} of {r.host} has {r.device.free_gib} of {r.device.memory_gib} GiB free: "
                "another program is on it (nvidia-smi names it)",
                warns=True,
            )


def versions(records: Sequence[RankRecord]) -> Iterator[Finding]:
    """Software that is not the same everywhere."""
    for name in dict.fromkeys(name for r in records for name in r.versions):
        held = grouped(records, lambda r, name=name: r.versions.get(name))  # type: ignore[misc]
        if len(held) > 1:
            told = ", ".join(f"{version or 'missing'} on {ranks(who)}" for version, who in held.items())
            remedy = (
                "install the same driver on all hosts"
                if name == "driver"
                else "install the same everywhere: pip install -c constraints.txt -e ."
            )
            yield Finding(f"{name} differs: {told}; {remedy}", stops=name in STRICT)


def environment(records: Sequence[RankRecord]) -> Iterator[Finding]:
    """What the launcher and the user exported, other than interfaces, which hosts may call by other names."""
    for name in sorted({name for r in records for name in r.environment}):
        held = grouped(records, lambda r, name=name: r.environment.get(name))  # type: ignore[misc]
        if len(held) > 1 and not name.endswith("_SOCKET_IFNAME"):
            told = ", ".join(f"{value or 'not set'} on {ranks(who)}" for value, who in held.items())
            yield Finding(
                f"{name} differs: {told}; export the same on all nodes, launch with the same config file"
            )


def interfaces(records: Sequence[RankRecord]) -> Iterator[Finding]:
    """Addresses by which ranks of several hosts could not reach each other."""
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        for (name, host, here), who in grouped(records, lambda r, v=variable: _absent(r, v)).items():  # type: ignore[misc]
            if name:
                yield Finding(
                    f"{ranks(who)}: {variable}={name} is no interface of {host}, which has {', '.join(here)}",
                    stops=True,
                )
    if len({r.node for r in records}) == 1:
        return
    alone = [r for r in records if network.is_loopback(r.gloo_address)]
    for (address, interface), who in grouped(alone, lambda r: (r.gloo_address, r.interface)).items():
        name = interface or "INTERFACE"
        yield Finding(
            f"{ranks(who)}: gloo would offer {address}, the loopback of {_host(records, who[0])}, to the other hosts: "
            f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name} there",
            stops=True,
        )


def _absent(r: RankRecord, variable: str) -> tuple[str, str, tuple[str, ...]]:
    """The interface that ``variable`` names and the host lacks (empty: none), the host, and the interfaces it has."""
    named = [name for name in r.environment.get(variable, "").split(",") if name]
    if variable.startswith("NCCL"):  # takes prefixes, =exact names and ^exclusions; gloo takes names only
        lacking = [n for n in named if n[0] not in "^=" and not any(i.startswith(n) for i in r.interfaces)]
    else:
        lacking = [name for name in named if name not in r.interfaces]
    return (lacking[0], r.host, tuple(r.interfaces)) if lacking else ("", "", ())


def limits(records: Sequence[RankRecord]) -> Iterator[Finding]:
    """Shared memory and open files, host by host."""
    for who in grouped(records, lambda r: r.node).values():
        first = next(r for r in records if r.rank == who[0])
        if first.shm_gib < (needed := SHM_GIB * len(who)):
            yield Finding(
                f"{first.host}: /dev/shm has {first.shm_gib} GiB for {len(who)} rank(s), whose data workers need {needed:g}: "
                "start the container with --shm-size=8g, or set data.workers=0"
            )
        if 0 <= first.open_files < OPEN_FILES:
            yield Finding(
                f"{first.host}: {first.open_files} open files a process are allowed: ulimit -n 65536"
            )


def clocks(records: Sequence[RankRecord]) -> Iterator[Finding]:
    """Clocks that disagree; all were read at one moment, give or take the store's delay."""
    early, late = min(records, key=lambda r: r.clock), max(records, key=lambda r: r.clock)
    if (skew := late.clock - early.clock) > SKEW_S:
        yield Finding(
            f"clocks differ by {skew:.0f} s: {early.host} (rank {early.rank}) is behind {late.host} (rank {late.rank}): "
            "start chrony or ntpd on both"
        )


def _host(records: Sequence[RankRecord], rank: int) -> str:
    return next(r.host for r in records if r.rank == rank)
