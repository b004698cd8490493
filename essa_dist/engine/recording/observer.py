"""Everything that watches a run from beside the loop: metrics, trackers, the ranks' clocks, canary and profiler."""

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist

from essa_dist import runfolder
from essa_dist.distributed.collectives import world_size
from essa_dist.engine.build import Training
from essa_dist.engine.config import JobConfig
from essa_dist.engine.recording.look import Look
from essa_dist.engine.recording.metrics import Metrics
from essa_dist.engine.recording.profile import ProfileWindow
from essa_dist.engine.recording.record import flat
from essa_dist.engine.recording.telemetry import Telemetry
from essa_dist.engine.recording.trackers import Trackers
from essa_dist.engine.schedules import in_steps
from essa_dist.engine.watching.stragglers import StragglerWatch

log = logging.getLogger(__name__)


class Observer:
    """A context manager around the loop, entered and told of every step by all ranks; only rank 0 writes."""

    def __init__(self, config: JobConfig, training: Training, look: Look | None, *, start: int) -> None:
        """``start``: the step that was restored, 0 for a new run."""
        self.config, self.training, self.look, self.start = config, training, look, start
        self.folder = Path(config.out)
        accelerator = training.accelerator
        self.main, self.device = accelerator.is_main_process, accelerator.device
        self.total = training.total_steps
        self._every = 0 if look is None else in_steps(look.every, training.steps_per_epoch)
        self._telemetry = Telemetry(self.device, communication_every=config.communication_every)
        self._profile = ProfileWindow(
            config.profile, self.folder, rank=accelerator.process_index, device=self.device
        )
        self._open = ExitStack()
        self._new_best = False

    def __enter__(self) -> Self:
        with self._open as opened:
            settings = flat(self.config.model_dump())
            trackers = Trackers(self.config.track if self.main else (), self.folder, settings)
            opened.enter_context(trackers)
            self._metrics = opened.enter_context(
                Metrics(self.folder, start_step=self.start, enabled=self.main, trackers=trackers)
            )
            opened.enter_context(self._profile)
            if self.main and (self.config.profile.start or 0) > self.total:
                log.warning(
                    "profile.start=%s comes after the last step, %d", self.config.profile.start, self.total
                )
            guard = self.config.guard
            self._stragglers = StragglerWatch(guard.slow_rank, patience=guard.patience, hosts=_hosts())
            if self.look is not None:
                self._mark_best()
                if self.look.wants_start:
                    self._metrics.write(
                        {"step": self.start, "epoch": self._epoch(self.start)} | self._look(self.start)
                    )
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def is_logged(self, step: int) -> bool:
        """Whether the row of ``step``, from 1, is written."""
        return step % self.config.log_every == 0 or step == self.total or self.is_look(step)

    def is_look(self, step: int) -> bool:
        """Whether there is a look after ``step``."""
        due = step == self.total or (self._every > 0 and step % self._every == 0)
        return self.look is not None and due

    @contextmanager
    def step(self, step: int, *, waited: float) -> Iterator[None]:
        """Around the update that is ``step``, from 1, on a batch that came after ``waited`` seconds."""
        self._profile.before(step)
        with self._telemetry.step(logged=self.is_logged(step), waited=waited):
            yield
        self._profile.after(step)

    def record(self, step: int, row: Mapping[str, float], window: Mapping[str, float]) -> None:
        """After a logged step: its ``row``, what was measured in a ``window`` of steps, the ranks and the look."""
        whole = dict(row)
        self._new_best = False
        if self.is_look(step):
            whole |= self._look(step)
        ranks = self._telemetry.gather()
        measured = {**window, **ranks.summary()}
        if self.main:  # one rank's warning is enough
            measured |= self._stragglers.check(step, ranks.lists)
        self._metrics.write(whole, measured, ranks=ranks.lists)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the look after the last recorded step is the best, and its state is to be kept."""
        return self._new_best and self.look is not None and self.look.keeps_best

    def reason_to_stop(self) -> str | None:
        """The look's, in words; None: go on."""
        return self.look.reason_to_stop() if self.look is not None else None

    def _look(self, step: int) -> dict[str, float]:
        assert self.look is not None
        found = self.look.look(step)
        self._new_best = self.look.is_best(step)
        self._mark_best()
        return found

    def _mark_best(self) -> None:
        if self.main and self.look is not None and self.look.best is not None:
            best = self.look.best_step if self.look.keeps_best else None
            runfolder.mark_best(self.folder, best)

    def _epoch(self, step: int) -> float:
        return step / self.training.steps_per_epoch


def _hosts() -> list[str]:
    """Host names by rank."""
    hosts = [socket.gethostname()] * world_size()
    if world_size() > 1:
        dist.all_gather_object(hosts, socket.gethostname())
    return hosts
