"""Names, addresses and interfaces, as the ranks will use them to find each other."""

import errno
import os
import socket
import time
from ipaddress import ip_address
from pathlib import Path

import psutil

from essa_dist.doctor.world.limited import Late, within
from essa_dist.doctor.world.place import Place
from essa_dist.errors import EssaError, UsageError

_LOOK_UP_S = 10.0
_PROBE_S = 5.0  # a host that is up answers or refuses at once; one that is down doesn't say so
_PAUSE_S = 0.2


class UnreachableError(EssaError):
    """The ranks' meeting place can't be reached from here."""


def resolve(name: str) -> str:
    """The address of a host. Raises UsageError where there is none."""
    try:
        found = within(_LOOK_UP_S, socket.getaddrinfo, name, None, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError, Late) as error:
        why = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else f"no answer in {_LOOK_UP_S:.0f} s"
        )
        raise UsageError(
            f"MASTER_ADDR={name} does not resolve on {socket.gethostname()} ({why}): "
            "give the first node's address, or mend DNS or /etc/hosts there"
        ) from error
    return str(found[0][4][0])


def check_port_is_free(port: int) -> None:
    """Raises UsageError where another program of this host listens on ``port``."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UsageError(
                f"MASTER_PORT={port} is in use on {socket.gethostname()}, where rank 0 has to listen: "
                f"choose another on every node, or end what holds it (ss -ltnp 'sport = :{port}')"
            ) from error


def reach(place: Place, address: str, deadline: float) -> None:
    """Return when something listens at the meeting place; it may start later than this process.

    ``deadline`` is a time of ``time.monotonic()``. Raises UnreachableError with the last answer.
    """
    while True:
        try:
            socket.create_connection((address, place.port), timeout=_PROBE_S).close()
            return
        except OSError as error:
            last = error
        if time.monotonic() + _PAUSE_S > deadline:
            raise UnreachableError(_unreachable(place, address, last)) from last
        time.sleep(_PAUSE_S)


def _unreachable(place: Place, address: str, error: OSError) -> str:
    there = f"MASTER_ADDR:MASTER_PORT = {place.address}:{place.port}"
    who = f"rank {place.rank} on {socket.gethostname()}"
    if place.rank == 0 and not place.hosted:
        return (
            f"{who} keeps the store, but {there} does not lead to it: MASTER_ADDR has to be an address of rank 0's host, "
            f"such as {', '.join(_outward()) or 'localhost'}"
        )
    if is_loopback(address):
        return (
            f"{who}: nobody listens at {there}, which is this host itself: where there are several nodes, give the "
            "first one's address that the others can reach"
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            f"{who}: {there} refuses: nothing listens there. Is MASTER_ADDR the node of rank 0, is its launcher running, "
            "and is the port the same on all nodes?"
        )
    if isinstance(error, TimeoutError):
        return (
            f"{who}: {there} does not answer: the host is down, or a firewall drops the port; "
            f"try from here: nc -vz {place.address} {place.port}"
        )
    return f"{who}: {there} can't be reached ({error.strerror or error}): check network and route: ip route get {address}"


def is_loopback(address: str | None) -> bool:
    return address is not None and ip_address(address.partition("%")[0]).is_loopback


def interfaces() -> dict[str, list[str]]:
    """Names and addresses of this host's interfaces."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [a.address.partition("%")[0] for a in addresses if a.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }


def _outward() -> list[str]:
    """Addresses of this host that others may know it by."""
    own = [ip_address(a) for addresses in interfaces().values() for a in addresses]
    return [str(address) for address in own if not (address.is_loopback or address.is_link_local)]


def own_address(towards: str) -> str | None:
    """The address that packets to ``towards`` leave from; nothing is sent."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def gloo_address(known: dict[str, list[str]]) -> str | None:
    """The address that gloo will offer to the other ranks; None where it can't have one.

    That of GLOO_SOCKET_IFNAME, else what the host's own name resolves to, else the loopback (torch's
    ``ProcessGroupGloo::createDefaultDevice``).
    """
    name = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    if name:
        return next(iter(known.get(name, [])), None)
    own = [address for addresses in known.values() for address in addresses]
    try:
        found = within(_LOOK_UP_S, socket.gethostbyname, socket.gethostname())
    except (OSError, UnicodeError, Late):
        return "127.0.0.1"
    return found if found in own or is_loopback(found) else "127.0.0.1"


def network_host() -> str:
    """The same for processes that share a kernel and its network, whatever their host calls itself."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/net').stat().st_ino}"
    except OSError:
        return socket.gethostname()
