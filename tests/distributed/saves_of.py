"""Saves twice over a real gloo group, and may be killed in the second one. Started by tests, one process a rank.

usage: python -m tests.distributed.saves_of RUN rename|sending|receiving|never
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from essa_dist.distributed.collectives import leave, rank, world_size
from essa_dist.distributed.messages import Channel
from essa_dist.engine.saving import checkpoint
from essa_dist.engine.saving.saver import Saver
from tests.engine.fakes import FakeStrategy, tensors


def die(*args: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Dying(Channel):
    """Kills its process in the fifth message of that kind, once ``armed``."""

    armed = ""
    left = 5

    def send(self, x: Any, to: int) -> None:
        self._count("sending")
        super().send(x, to)

    def receive(self, x: Any, source: int) -> None:
        self._count("receiving")
        super().receive(x, source)

    def _count(self, what: str) -> None:
        if self.armed == what:
            self.left -= 1
            if not self.left:
                die()


def main(run: Path, how: str) -> None:
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    channel = Dying()
    strategy: Any = FakeStrategy(tensors(seed=1), "numbers", rank(), world_size())
    with Saver(run, strategy, channel, keep=2) as saver:
        state = {"trunk_sha256": "abc", "weights_source": "random"}
        saver.save(2, state | {"step": 2})
        saver.wait()
        strategy.wholes = tensors(seed=2)
        channel.armed = how
        if how == "rename":
            checkpoint.Path.rename = die  # type: ignore[assignment, method-assign]
        saver.save(4, state | {"step": 4})
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
