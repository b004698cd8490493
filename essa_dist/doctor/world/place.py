"""Which process of how many the launcher made this one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from essa_dist.errors import UsageError

_SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "GROUP_RANK": "SLURM_NODEID",
}
"""What ``srun`` alone tells its tasks. The step's variables: a batch script itself has those of the whole job."""


@dataclass(frozen=True)
class Place:
    rank: int
    world_size: int
    local_rank: int | None
    """Among the processes of its node; None where the launcher doesn't say."""
    local_world_size: int | None
    node_rank: int | None
    address: str
    """MASTER_ADDR: where the ranks find each other."""
    port: int
    hosted: bool
    """The launcher's agent keeps the store at ``address``; otherwise rank 0 has to."""
    attempt: int = 0
    """How often the launcher has started the ranks anew."""

    def node_of(self, rank: int) -> int | None:
        """The node of another rank, where launchers give ranks node by node; None where that is not known."""
        return rank // self.local_world_size if self.local_world_size else None

    def environment(self) -> dict[str, str]:
        """What ``env://`` and Accelerate look for."""
        told = {"RANK": self.rank, "WORLD_SIZE": self.world_size, "LOCAL_RANK": self.local_rank}
        master = {"MASTER_ADDR": self.address, "MASTER_PORT": self.port} if self.address else {}
        return {name: str(value) for name, value in (told | master).items() if value is not None}


def find_place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """What torchrun, ``accelerate launch``, ``srun`` or a hand has set; None without a launcher.

    Raises UsageError where it is incomplete or contradicts itself.
    """
    told = dict(environ)
    if "RANK" not in told and int(told.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in told:
        told |= {name: told[slurm] for name, slurm in _SLURM.items() if slurm in told}
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in told  # it starts one process without naming any rank
    if "RANK" not in told and "WORLD_SIZE" not in told:
        return Place(0, 1, 0, 1, 0, "", 0, hosted=False) if by_accelerate else None
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name not in told:
            raise UsageError(
                f"{other} is set and {name} is not: start through torchrun or accelerate launch, set both by hand, or unset both"
            )
    place = Place(
        rank=_number(told, "RANK") or 0,
        world_size=_number(told, "WORLD_SIZE") or 1,
        local_rank=_number(told, "LOCAL_RANK"),
        local_world_size=_number(told, "LOCAL_WORLD_SIZE"),
        node_rank=_number(told, "GROUP_RANK"),
        address=told.get("MASTER_ADDR", ""),
        port=_number(told, "MASTER_PORT") or 0,
        hosted=told.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=_number(told, "TORCHELASTIC_RESTART_COUNT") or 0,
    )
    _check(place)
    return place


def _check(place: Place) -> None:
    if place.rank >= place.world_size:
        raise UsageError(
            f"RANK={place.rank} with WORLD_SIZE={place.world_size}: ranks are 0 to {place.world_size - 1}; "
            "WORLD_SIZE counts the processes of all nodes together"
        )
    local, n_local = place.local_rank, place.local_world_size
    if local is not None and n_local is not None and local >= n_local:
        raise UsageError(
            f"LOCAL_RANK={local} with LOCAL_WORLD_SIZE={n_local}: local ranks are 0 to {n_local - 1}"
        )
    if place.world_size > 1 and not (place.address and 0 < place.port < 1 << 16):
        raise UsageError(
            f"MASTER_ADDR={place.address or '(not set)'} MASTER_PORT={place.port or '(not set)'}: export the name of the "
            "first node and a free port (1 to 65535) on every node, or start through torchrun"
        )


def _number(told: Mapping[str, str], name: str) -> int | None:
    text = told.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"{name}={text!r} is not a number: the launcher has to set it for each process")
    return int(text)
