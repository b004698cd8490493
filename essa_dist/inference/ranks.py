"""The processes that work on one folder: each takes the next part that nobody has taken yet.

A part is made the same way whoever makes it, so the result does not depend on their number.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore

from essa_dist.distributed.environment import make_accelerator
from essa_dist.distributed.first_cause import compare_by
from essa_dist.distributed.messages import Channel
from essa_dist.distributed.restart import join_anew
from essa_dist.engine.watching.exchange import own_connection
from essa_dist.errors import UsageError


class Ranks:
    """All processes of a launcher, or the only one. What is called here is called by all of them."""

    def __init__(self, device: str) -> None:
        """``device``: auto, cpu or cuda. Raises UsageError where there is no GPU that was asked for."""
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "device=cuda, but there is no GPU that torch can use: say device=auto, or ask essa doctor"
            )
        cpu = device == "cpu" or not torch.cuda.is_available()
        join_anew("gloo" if cpu else "nccl", None)
        self.device: torch.device = make_accelerator(cpu=cpu).device
        compare_by(own_connection())
        self._channel = Channel()
        self.count, self.is_first = self._channel.world, self._channel.rank == 0

    def first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives on rank 0, on every rank; or its error. The result must be of JSON's types."""
        return self._channel.together(work)

    def after_all(self, work: Callable[[], Any]) -> Any:
        """:meth:`first`, when every rank is here."""
        self._channel.gather("done")
        return self.first(work)

    def claim(self, parts: Sequence[int]) -> Iterator[int]:
        """Those of ``parts`` that are this rank's, the next one when it is asked for; ``parts`` are the same on all."""
        store, name = own_connection(), self.first(lambda: uuid.uuid4().hex)
        return iter(parts) if store is None else _claimed(parts, PrefixStore(f"essa/parts/{name}", store))


def _claimed(parts: Sequence[int], counter: PrefixStore) -> Iterator[int]:
    while (taken := counter.add("taken", 1)) <= len(parts):
        yield parts[taken - 1]
