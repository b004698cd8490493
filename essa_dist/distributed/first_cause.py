"""Which rank failed first: the others fail because of it, and need not say so.

The ranks' common store, which brought them together, keeps the first cause that is written into it.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

_KEY = "essa/first_cause"
_PATIENCE_S = 5.0
"""With a store whose host may be gone."""
_LOOK_AROUND_S = 2.0
"""How long the other survivors of a killed rank have to say that they live."""
_SIGNS = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL communicator was aborted",
    "NCCL error",
    "ncclRemoteError",
)


@dataclass(frozen=True)
class Cause:
    """Why a run ended."""

    rank: int
    exit_code: int
    text: str
    broken: bool
    """It is a collective that another rank's end broke, and that rank left no cause of its own: it was killed."""


_store: Store | None = None


def compare_by(store: Store | None) -> None:
    """Compare causes by this connection to the process group's store, which nothing else may use.

    To be made when the group is: nobody can connect to a host that is gone, and trying takes long.
    """
    global _store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store may outlive them
    _store = store and PrefixStore(f"{_KEY}/{attempt}", store)


def is_broken_collective(error: BaseException) -> bool:
    """Whether ``error`` says that another rank went away, and nothing of this one."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def first_cause(text: str, exit_code: int, *, broken: bool) -> Cause | None:
    """The cause that some rank gave first, perhaps this one now. None where there is no store, or it is gone."""
    if _store is None or not _is_there(_store):
        return None
    cause = Cause(dist.get_rank(), exit_code, text, broken)
    try:
        _store.set(f"survivor_{cause.rank}", "")
        return Cause(**json.loads(_store.compare_set("cause", "", json.dumps(asdict(cause)))))
    except (RuntimeError, ValueError):  # its host is gone
        return None


def _is_there(store: Store) -> bool:
    """Asked by a connection that says nothing: the store's own would complain on stderr at length."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, TCPStore):
        return True
    try:
        socket.create_connection((store.host, store.port), timeout=_PATIENCE_S).close()
    except OSError:
        return False
    return True


def missing_ranks() -> list[int]:
    """The ranks that don't ask for the first cause, though a collective broke: those that were killed.

    Waits for _LOOK_AROUND_S at most, and not at all where all but one have asked.
    """
    if _store is None:
        return []
    world, end = dist.get_world_size(), time.monotonic() + _LOOK_AROUND_S
    while True:
        try:
            missing = [rank for rank in range(world) if not _store.check([f"survivor_{rank}"])]
        except RuntimeError:  # the store's host has gone meanwhile
            return []
        if len(missing) < 2 or time.monotonic() > end:
            return missing
        time.sleep(0.05)
