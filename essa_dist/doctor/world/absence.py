"""Ranks that did not come, or came and fell silent."""

import json
import os
import socket
from collections.abc import Collection, Mapping

from essa_dist.doctor.world.findings import Finding
from essa_dist.doctor.world.network import is_loopback, resolve
from essa_dist.doctor.world.place import Place
from essa_dist.doctor.world.words import ranks


def hello() -> str:
    """What a rank says when it comes."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid()})


def absent(
    missing: Collection[int],
    hellos: Mapping[int, str],
    place: Place,
    seconds: float,
    *,
    twice: Mapping[int, str],
) -> Finding:
    """Names the ranks that never came, and where they would run. ``twice``: a second hello under one rank."""
    here = f"here: {_hosts(hellos)}"
    if twice:
        told = "; ".join(
            f"{ranks([rank])} came from {_host(hellos[rank])} and again from {_host(again)}"
            for rank, again in twice.items()
        )
        return Finding(
            f"two processes have one RANK: {told}; {ranks(missing)} never came: let the launcher set RANK"
        )
    late = f"{ranks(missing)} of {place.world_size}{_nodes(missing, place)} did not come in {seconds:.0f} s; {here}"
    if is_loopback(resolve(place.address)) and place.local_world_size != place.world_size:
        return Finding(
            f"{late}. MASTER_ADDR={place.address} leads every host to itself: give the first node's address that the "
            "others can reach, on all nodes"
        )
    return Finding(
        f"{late}. Is their launcher running, what did it say, does it have this MASTER_ADDR:MASTER_PORT "
        f"({place.address}:{place.port}), does a firewall let it through, and is WORLD_SIZE={place.world_size} right?"
    )


def silent(
    missing: Collection[int], hellos: Mapping[int, str], stages: Mapping[int, str], seconds: float
) -> Finding:
    """Names the ranks that came but did not answer, with the last thing that each began."""
    told = "; ".join(
        f"{ranks([rank])} on {_host(hellos[rank])} at {stages.get(rank, 'the start')}"
        for rank in sorted(missing)
    )
    return Finding(
        f"no answer in {seconds:.0f} s from {told}: look there for a hanging file system or network, or a process that died"
    )


def _hosts(hellos: Mapping[int, str]) -> str:
    by_host: dict[str, list[int]] = {}
    for rank, text in hellos.items():
        by_host.setdefault(_host(text), []).append(rank)
    return ", ".join(f"{ranks(who)} on {host}" for host, who in by_host.items())


def _host(hello_text: str) -> str:
    return str(json.loads(hello_text)["host"])


def _nodes(missing: Collection[int], place: Place) -> str:
    """`` (all of nodes 1, 2)``, where launchers say how many ranks a node has."""
    per_node = place.local_world_size
    if not per_node or place.world_size % per_node:
        return ""
    whole = [
        node
        for node in range(place.world_size // per_node)
        if set(range(node * per_node, (node + 1) * per_node)) <= set(missing)
    ]
    if not whole:
        return ""
    return f" (all of node{'s' if len(whole) > 1 else ''} {', '.join(map(str, whole))})"
