"""How the ranks' heartbeats reach each other: by the store through which the process group was formed."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from essa_dist.engine.watching.heartbeat import Beat

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long the store is waited for."""
CLAIM_S = 2.0
"""The same in a process that is about to end."""


def own_connection() -> Store | None:
    """To the store of the process group, for one thread alone; None where there is no group."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return _clone(dist.distributed_c10d._get_default_store())


def store_holder() -> str:
    """Which process has the store, and where it listens."""
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    return f"{'the launcher' if by_launcher else 'rank 0'} ({where})"


class Exchange:
    """Sends this rank's beats and reads the others', in a thread of its own: a store on a dead host never answers."""

    def __init__(
        self,
        store: Store,
        rank: int,
        ranks: int,
        *,
        interval_s: float,
        beat: Callable[[int], Beat],
        curious: Callable[[], bool],
    ) -> None:
        """``beat`` makes the beat of a number; others are read as long as ``curious``, for it costs ranks**2."""
        self.store, self.rank, self.ranks, self.interval_s = store, rank, ranks, interval_s
        self.others: dict[int, Beat] = {}
        """The newest of every rank that was heard of."""
        self.rounds = 0
        """Times that the store has answered, or did not have to."""
        self._beat, self._curious = beat, curious
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send a last beat and end."""
        self._left.set()
        self._thread.join(ANSWER_S)

    def claim(self) -> bool:
        """Whether this rank is the one to say the verdict; True also where the store doesn't answer."""
        answers: list[int] = []

        def ask() -> None:
            answers.append(self.store.add("essa/verdict", 1))

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(CLAIM_S)
        return answers in ([], [1])

    def _run(self) -> None:
        number = 0
        while not self._left.wait(self.interval_s):
            number += 1
            try:
                self._round(number)
                self.rounds += 1
            except RuntimeError as error:  # of all kinds that torch's stores raise
                log.debug("heartbeat: %s", error)
                self._reconnect()
        with contextlib.suppress(RuntimeError):
            self._send(number + 1)

    def _round(self, number: int) -> None:
        self._send(number)
        if not self._curious():
            return
        known = [r for r in range(self.ranks) if r in self.others or self.store.check([_key(r)])]
        beats = map(Beat.from_json, self.store.multi_get([_key(r) for r in known]))
        self.others = dict(zip(known, beats, strict=True))

    def _send(self, number: int) -> None:
        self.store.set(_key(self.rank), self._beat(number).to_json())

    def _reconnect(self) -> None:
        """A late answer to an old question would be taken for that to the next."""
        try:
            self.store = _clone(self.store)
        except RuntimeError as error:
            log.debug("heartbeat: %s", error)


def _clone(store: Store) -> Store:
    own: Store = store.clone()  # type: ignore[attr-defined]  # missing in torch's annotations
    own.set_timeout(timedelta(seconds=ANSWER_S))
    return own


def _key(rank: int) -> str:
    return f"essa/beat/{rank}"
