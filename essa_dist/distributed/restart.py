"""A process group of its own for each time that torchrun starts the ranks anew."""

import os
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous


def join_anew(backend: str, timeout: timedelta | None) -> None:
    """Form the process group, after a restart by torchrun; else that is left to Accelerate.

    torchrun's agent keeps one store through all restarts (torch 2.13, ``DynamicRendezvousHandler``), and in it the
    addresses of ranks that are dead: whoever is quicker than the others would try to reach them until gloo gives up.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt in ("", "0") or "RANK" not in os.environ or dist.is_initialized():
        return
    store, rank, ranks = next(rendezvous("env://"))
    own = PrefixStore(f"start_{attempt}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=ranks, timeout=timeout)
