"""Everything that watches a run from beside the loop: metrics, trackers, the ranks' clocks, canary and profiler."""

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch import Tensor

from essa_dist import runfolder
from essa_dist.data.batch import normalise
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.distributed.collectives import world_size
from essa_dist.engine.build import DTYPES, Training
from essa_dist.engine.config import RunConfig
from essa_dist.engine.recording.canary import Canary, Embedder, Probe
from essa_dist.engine.recording.metrics import Metrics
from essa_dist.engine.recording.profile import ProfileWindow
from essa_dist.engine.recording.record import flat
from essa_dist.engine.recording.telemetry import Telemetry
from essa_dist.engine.recording.trackers import Trackers
from essa_dist.engine.schedules import in_steps
from essa_dist.engine.watching.stragglers import StragglerWatch
from essa_dist.errors import UsageError
from essa_dist.objectives import Embed

log = logging.getLogger(__name__)


class Observer:
    """A context manager around the loop, entered and told of every step by all ranks; only rank 0 writes."""

    def __init__(self, config: RunConfig, training: Training, canary: Canary | None, *, start: int) -> None:
        """``start``: the step that was restored, 0 for a new run."""
        self.config, self.training, self.canary, self.start = config, training, canary, start
        self.folder = Path(config.out)
        accelerator = training.accelerator
        self.main, self.device = accelerator.is_main_process, accelerator.device
        self.total = training.total_steps
        self._every = in_steps(config.canary.every or 0, training.steps_per_epoch)
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
            guard = self.config.guard
            self._stragglers = StragglerWatch(guard.slow_rank, patience=guard.patience, hosts=_hosts())
            if self.canary is not None:
                self._mark_best()
                if self.canary.start is None:
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
        """Whether the canary looks at the teacher after ``step``."""
        due = step == self.total or (self._every > 0 and step % self._every == 0)
        return self.canary is not None and due

    @contextmanager
    def step(self, step: int, *, waited: float) -> Iterator[None]:
        """Around the update that is ``step``, from 1, on a batch that came after ``waited`` seconds."""
        self._profile.before(step)
        with self._telemetry.step(logged=self.is_logged(step), waited=waited):
            yield
        self._profile.after(step)

    def record(self, step: int, row: Mapping[str, float], window: Mapping[str, float]) -> None:
        """After a logged step: its ``row``, what was measured in a ``window`` of steps, the ranks and the canary."""
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
        return self._new_best and self.config.canary.rollback

    def reason_to_stop(self) -> str | None:
        """The canary's, in words; None: go on."""
        return self.canary.reason_to_stop() if self.canary is not None else None

    def _look(self, step: int) -> dict[str, float]:
        assert self.canary is not None
        found = self.canary.look(step, embedder(self.config, self.training))
        self._new_best = self.canary.is_best(step)
        self._mark_best()
        return found

    def _mark_best(self) -> None:
        if self.main and self.canary is not None and self.canary.best is not None:
            best = self.canary.best_step if self.config.canary.rollback else None
            runfolder.mark_best(self.folder, best)

    def _epoch(self, step: int) -> float:
        return step / self.training.steps_per_epoch


def open_canary(config: RunConfig, training: Training) -> Canary | None:
    """The canary that ``config`` asks for, its images read. Raises UsageError or DataError."""
    settings, data = config.canary, config.data
    if settings.every is None:
        return None
    images = training.images
    if settings.data:
        window = None if data.window == "header" else data.window
        images = open_packed(settings.data, prefer=("val", "train"), window=window, cache=data.cache)
    if not isinstance(images, PackedImages):
        raise UsageError(
            "data.order=stream names no images for the canary: give it a packed set, canary.data=PACKED"
        )
    return Canary(settings, Probe(images, settings, image_size=data.crops.global_size))


def embedder(config: RunConfig, training: Training) -> Embedder:
    """The teacher's class tokens, through the module that the strategy wrapped."""
    backbone, device = training.objective.backbone, training.accelerator.device
    dtype = DTYPES[config.precision]

    def embed(pixels: Tensor) -> Tensor:
        ready = normalise(pixels.to(device), backbone.mean, backbone.std, dtype)
        cls: Tensor = training.strategy.model(Embed(ready)).cls
        return cls

    return embed


def _hosts() -> list[str]:
    """Host names by rank."""
    hosts = [socket.gethostname()] * world_size()
    if world_size() > 1:
        dist.all_gather_object(hosts, socket.gethostname())
    return hosts
