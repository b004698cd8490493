"""From the ranks' records to what is wrong with one run in this world: pure functions, one line a finding."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from essa_dist.doctor.world.findings import Finding, grouped
from essa_dist.doctor.world.record import RankRecord
from essa_dist.doctor.world.run import RunFacts
from essa_dist.doctor.world.words import ranks

PLACES = ("out", "data.train", "backbone.weights", "data.cache.")
"""Keys that name places, which hosts may call by other names; what lies there is compared instead."""
_SHOWN = 5


def judge_run(records: Sequence[RankRecord]) -> list[Finding]:
    """Everything that the records show of the run whose settings were given; nothing where none were."""
    facts = {r.rank: r.run for r in records if r.run is not None}
    if not facts:
        return []
    having = [r for r in records if r.rank in facts]
    parts = (failures, configs, contents, batch, out)
    return [finding for part in parts for finding in part(having, facts)]


def failures(records: Sequence[RankRecord], facts: Mapping[int, RunFacts]) -> Iterator[Finding]:
    """What some rank could not read."""
    lines = dict.fromkeys(line for f in facts.values() for line in f.failures)
    for line in lines:
        who = [rank for rank, f in facts.items() if line in f.failures]
        hosts = dict.fromkeys(r.host for r in records if r.rank in who)
        yield Finding(f"{ranks(who)} on {', '.join(hosts)}: {line}")


def configs(records: Sequence[RankRecord], facts: Mapping[int, RunFacts]) -> Iterator[Finding]:
    """Settings that are not the same everywhere. Ranks that failed to read them have said so."""
    read = [r for r in records if facts[r.rank].settings]
    different = []
    for key in dict.fromkeys(key for r in read for key in facts[r.rank].settings):
        held = grouped(read, lambda r, key=key: facts[r.rank].settings.get(key))  # type: ignore[misc]
        if len(held) > 1:
            told = ", ".join(
                f"{'not set' if value is None else value} on {ranks(who)}" for value, who in held.items()
            )
            different.append((key, told))
    for key, told in different[:_SHOWN]:
        if key.startswith(PLACES):
            yield Finding(f"config: {key} is {told}; fine where it is the same folder", warns=True)
        else:
            yield Finding(f"config: {key} is {told}; start all nodes with the same words and the same file")
    if len(different) > _SHOWN:
        rest = ", ".join(key for key, _ in different[_SHOWN : 2 * _SHOWN])
        yield Finding(f"config: {len(different) - _SHOWN} more keys differ, such as {rest}")


def contents(records: Sequence[RankRecord], facts: Mapping[int, RunFacts]) -> Iterator[Finding]:
    """Pretrained weights and training data that are not the same everywhere."""
    for name, remedy in (
        ("trunk", "copy one file to all hosts and name it in backbone.weights"),
        ("data", "copy one packed set to all hosts, or use a shared folder"),
    ):
        looked = [r for r in records if getattr(facts[r.rank], name)]
        held = grouped(looked, lambda r, name=name: getattr(facts[r.rank], name))  # type: ignore[misc]
        if len(held) > 1:
            what = {"trunk": "pretrained weights differ", "data": "training data differ"}[name]
            told = ", ".join(f"{digest[:12]} on {ranks(who)}" for digest, who in held.items())
            yield Finding(f"{what}: hash {told}; {remedy}")


def batch(records: Sequence[RankRecord], facts: Mapping[int, RunFacts]) -> Iterator[Finding]:
    """A batch that the ranks can't share evenly."""
    world = records[0].world_size
    for batch_size, accumulate in dict.fromkeys((f.batch_size, f.accumulate) for f in facts.values()):
        share = world * accumulate
        if batch_size is not None and batch_size % share:
            near = max(1, round(batch_size / share)) * share
            yield Finding(
                f"batch_size={batch_size} can't be shared evenly by {world} ranks"
                f"{f' in accumulate={accumulate} parts' if accumulate > 1 else ''}: the nearest that can is {near}"
            )


def out(records: Sequence[RankRecord], facts: Mapping[int, RunFacts]) -> Iterator[Finding]:
    """A run folder that is another one on other hosts: only rank 0 writes there, and only it reads to resume."""
    blind = [rank for rank, f in facts.items() if f.sees_out is False]
    if blind:
        hosts = dict.fromkeys(r.host for r in records if r.rank in blind)
        yield Finding(
            f"out is another folder for {ranks(blind)} on {', '.join(hosts)} than for rank 0: use a shared folder, "
            "or resume with rank 0 on the same host",
            warns=True,
        )


def launch_file(world_size: int, nodes: int, asked: Mapping[str, Any], name: str) -> Iterator[Finding]:
    """The numbers of an Accelerate config (or of its launcher's own words) against the world that came of it."""
    for key, what, is_now in (
        ("num_processes", "processes", world_size),
        ("num_machines", "nodes", nodes),
    ):
        said = asked.get(key)
        if said is not None and int(said) != is_now:
            yield Finding(
                f"{name} says {key}: {said}, and {is_now} {what} came: give {key} to the launcher of every node, and no "
                "--cpu, with which Accelerate starts a single process",
                stops=True,
            )
