"""The store where ranks meet: who is here, who is missing, and what each has to say.

Nothing here waits longer than its deadline, which is why torch's own rendezvous (10 to 30 minutes) comes last.
"""

import json
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore
from torch.distributed import DistError

from essa_dist.doctor.world.limited import Late, within
from essa_dist.doctor.world.network import UnreachableError, check_port_is_free, reach, resolve
from essa_dist.doctor.world.place import Place

_PAUSE_S = 0.1  # between two looks at one key
_HANDSHAKE_S = 10.0
_PROBE_S = 3.0  # for rank 0 to reach itself


@dataclass(frozen=True)
class Roll:
    """Which ranks had come when the first of them stopped waiting; the same on every rank."""

    missing: tuple[int, ...]
    speaker: int
    """The rank that tells: the lowest that came."""


class Meeting:
    """Rounds, in each of which every rank says one text. Each method can raise UnreachableError."""

    def __init__(self, store: Store, place: Place, *, seconds: float) -> None:
        """``seconds``: how long a round waits for those who don't come."""
        self.store = PrefixStore(f"essa-doctor/{place.attempt}", store)
        self.place, self.seconds = place, seconds

    def say(self, key: str, text: str) -> None:
        try:
            self.store.set(key, text)
        except DistError as error:
            raise self._lost() from error

    def count(self, key: str) -> int:
        """One more under ``key``; how many there are now."""
        try:
            return int(self.store.add(key, 1))
        except DistError as error:
            raise self._lost() from error

    def stage(self, text: str) -> None:
        """What this rank does now, for those who may come to miss it."""
        self.say(f"stage/{self.place.rank}", text)

    def knows(self, *keys: str) -> bool:
        try:
            return bool(self.store.check(list(keys)))
        except DistError as error:
            raise self._lost() from error

    def hear(self, key: str, seconds: float) -> str | None:
        """What was said under ``key``; None when nothing is, ``seconds`` later."""
        end = time.monotonic() + seconds
        while not self.knows(key):
            if time.monotonic() > end:
                return None
            time.sleep(_PAUSE_S)
        return self.store.get(key).decode()

    def round(self, name: str, text: str) -> Roll:
        """Say ``text``, and wait until every rank has said its own."""
        world = self.place.world_size
        self.say(f"{name}/{self.place.rank}", text)
        try:
            if self.count(f"{name}/count") < world:
                verdict = self.hear(f"{name}/roll", self.seconds)
                if verdict is not None:
                    return _roll(verdict)
            missing = [rank for rank in range(world) if not self.knows(f"{name}/{rank}")]
            speaker = min(set(range(world)) - set(missing))
            # Clocks and starts differ: the first verdict holds for everybody, also for one that comes late.
            own = json.dumps({"missing": missing, "speaker": speaker})
            return _roll(self.store.compare_set(f"{name}/roll", "", own).decode())
        except DistError as error:
            raise self._lost() from error

    def said(self, name: str, ranks: Collection[int]) -> dict[int, str]:
        """The texts of a round by rank; of a rank that said nothing, none."""
        return {rank: text for rank in ranks if (text := self.hear(f"{name}/{rank}", 0)) is not None}

    def _lost(self) -> UnreachableError:
        p = self.place
        return UnreachableError(
            f"rank {p.rank} on {socket.gethostname()}: lost the store at {p.address}:{p.port}: the process that keeps it "
            f"({'the launcher of the first node' if p.hosted else 'rank 0'}) has ended; look at what it said"
        )


def _roll(verdict: str) -> Roll:
    told = json.loads(verdict)
    return Roll(tuple(told["missing"]), told["speaker"])


def meet(place: Place, *, seconds: float) -> Meeting:
    """Open the store, within ``seconds``. Raises UsageError or UnreachableError with the way out."""
    if place.world_size == 1:
        return Meeting(HashStore(), place, seconds=seconds)
    deadline = time.monotonic() + seconds
    address = resolve(place.address)
    hosts = place.rank == 0 and not place.hosted
    if hosts:
        check_port_is_free(place.port)
        store = _open(place, "localhost", seconds, hosts=True)
        reach(place, address, time.monotonic() + _PROBE_S)
        return Meeting(store, place, seconds=seconds)
    reach(place, address, deadline)
    try:
        store = within(max(_HANDSHAKE_S, deadline - time.monotonic()), _open, place, place.address, seconds)
    except (Late, DistError) as error:
        raise UnreachableError(
            f"rank {place.rank} on {socket.gethostname()}: MASTER_ADDR:MASTER_PORT = {place.address}:{place.port} answers, "
            "but not as torch's store: another program has the port, or another release of torch runs there; choose "
            "another MASTER_PORT"
        ) from error
    return Meeting(store, place, seconds=seconds)


def _open(place: Place, address: str, seconds: float, *, hosts: bool = False) -> TCPStore:
    # As torch opens its own afterwards: on rank 0 both are then one server, on all addresses of the host.
    return TCPStore(
        address,
        place.port,
        None,
        hosts,
        timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )
