"""Two nodes on one machine: two network namespaces, joined by a cable of their own, with nothing else to talk to."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ADDRESSES = ("10.77.0.1", "10.77.0.2")


class NotPossible(Exception):
    """This machine lets us make no network namespaces."""


class Nodes:
    def __init__(self) -> None:
        self.names = [f"essa-{os.getpid()}-{i}" for i in range(2)]
        self.cables = [f"essa{os.getpid() % 10**8}v{i}" for i in range(2)]

    def on(self, node: int, command: list[str]) -> list[str]:
        """``command`` on one of the nodes."""
        return ["ip", "netns", "exec", self.names[node], *command]

    def env(self, node: int) -> dict[str, str]:
        """As on a cluster of nodes with several networks: gloo is told which one to use."""
        return {"GLOO_SOCKET_IFNAME": self.cables[node]}


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Raises NotPossible with the reason."""
    nodes = Nodes()
    if shutil.which("ip") is None:
        raise NotPossible("there is no ip command (iproute2)")
    try:
        for name in nodes.names:
            _ip("netns", "add", name)
        a, b = nodes.names
        _ip("link", "add", nodes.cables[0], "netns", a, "type", "veth", "peer", nodes.cables[1], "netns", b)
        for name, cable, address in zip(nodes.names, nodes.cables, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            for device in ("lo", cable):
                _ip("-n", name, "link", "set", device, "up")
        yield nodes
    finally:
        for name in nodes.names:
            with suppress(NotPossible):  # it was not made
                _ip("netns", "del", name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise NotPossible(f"ip {' '.join(words)}: {done.stderr.strip()} (root's rights are needed)")
