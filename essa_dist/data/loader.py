"""Batches of crops in the order of the sample plan, the same for any number of ranks and workers."""

import atexit
import logging
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Sampler

from essa_dist.data.augment import CropConfig
from essa_dist.data.batch import Batch
from essa_dist.data.masks import MaskConfig
from essa_dist.data.plan import SamplePlan, rank_slice
from essa_dist.data.quota import BadQuota
from essa_dist.data.rank_batches import Failed, RankBatches, Request
from essa_dist.data.shards import PackedImages
from essa_dist.errors import DataError, UsageError
from essa_dist.settings import Config

logger = logging.getLogger(__name__)


class DataConfig(Config):
    """What is trained on, and how it is cropped and masked."""

    train: str = ""
    """The packed data set: `DIR` or `DIR:split`. Required for `essa adapt`."""
    crops: CropConfig = CropConfig()
    """Multi-crop augmentation."""
    masks: MaskConfig = MaskConfig()
    """Patches hidden from the student."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that decode and crop, for each rank; 0: the training process does it itself; `auto`: the rank's
    share of the machine's CPU cores, 1 to 16."""
    prefetch: int = Field(default=2, ge=1)
    """Batches that each worker prepares ahead; they wait in shared memory."""
    bad_sample_quota: BadQuota = BadQuota()
    """How many different samples may be undecodable; each is replaced by the next one of the data set."""


class CropLoader:
    """Makes one rank's batches of a run.

    Raises UsageError where the global batch can't be shared evenly by the ranks, a crop is no whole number of
    patches, or there are fewer than two samples.
    """

    def __init__(
        self,
        images: PackedImages,
        config: DataConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        patch_size: int,
    ) -> None:
        _check_patches(config.crops, patch_size)
        mine = rank_slice(global_batch, rank, world_size)
        self._allowed = config.bad_sample_quota.allowed(len(images))
        self._samples = len(images)
        self._bad: dict[str, None] = {}  # a set that keeps its order
        self._steps = _Steps(SamplePlan(len(images), seed), global_batch, mine)
        workers = _auto_workers() if config.workers == "auto" else config.workers
        self._items: Iterator[Batch | Failed] | None = None
        self._loader: DataLoader[Batch | Failed] = DataLoader(
            RankBatches(
                images,
                config.crops,
                config.masks,
                seed=seed,
                global_batch=global_batch,
                mine=mine,
                patch_size=patch_size,
                allowed=self._allowed,
            ),
            sampler=self._steps,
            batch_size=None,  # a request is a whole batch already
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=config.prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_main,
        )

    @property
    def bad(self) -> tuple[str, ...]:
        """``shard:key`` of the undecodable samples met so far."""
        return tuple(self._bad)

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The batches of steps ``start_step`` up to, not with, ``stop_step``.

        Raises DataError where a tar can't be read or more samples are undecodable than the quota allows.
        """
        self.close()
        self._steps.range = range(start_step, stop_step)
        items = self._items = iter(self._loader)
        atexit.register(
            self.close
        )  # before multiprocessing's own hook, which would wait for the workers for ever
        try:
            for item in _explaining_dead_workers(items):
                self._note(item.bad)
                if isinstance(item, Failed):
                    raise DataError(item.reason)
                yield item
        finally:
            if self._items is items:  # else other batches were asked for since
                self.close()

    def close(self) -> None:
        """End the workers. Happens by itself when :meth:`batches` ends, is closed or the program exits."""
        atexit.unregister(self.close)
        # Not by dropping the iterator: a kept traceback may hold it, and the workers don't heed SIGTERM.
        shutdown = getattr(self._items, "_shutdown_workers", None)
        self._items = None
        if shutdown is not None:
            shutdown()

    def _note(self, bad: Sequence[str]) -> None:
        for where in bad:
            if where not in self._bad:
                self._bad[where] = None
                logger.warning("can't decode %s: the next sample takes its place", where)
        if len(self._bad) > self._allowed:
            raise DataError(
                f"{len(self._bad)} of {self._samples} samples can't be decoded, {self._allowed} are allowed; first "
                f"{', '.join(self.bad[:3])}; pack the data again, or raise data.bad_sample_quota"
            )


class _Steps(Sampler[Request]):
    """One request per step of ``range``. Runs in the main process; workers never see the plan."""

    def __init__(self, plan: SamplePlan, global_batch: int, mine: slice) -> None:
        self.plan, self.global_batch, self.mine = plan, global_batch, mine
        self.range = range(0)

    def __iter__(self) -> Iterator[Request]:
        for step in self.range:
            positions = self.plan.positions(step, self.global_batch)[self.mine]
            yield Request(step, positions, [self.plan.index(position) for position in positions])

    def __len__(self) -> int:
        return len(self.range)


def _as_it_is(item: Any) -> Any:
    return item


def _explaining_dead_workers(items: Iterator[Batch | Failed]) -> Iterator[Batch | Failed]:
    try:
        yield from items
    except (RuntimeError, OSError, EOFError) as error:  # the last two: its end of a pipe is gone
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a data worker was killed, most often for want of memory or of shared memory (/dev/shm): "
            "lower data.workers or data.prefetch, or give the container more"
        ) from error


def _leave_signals_to_main(_worker: int) -> None:
    """Ctrl-C and SIGTERM reach the whole process group; only the main process may decide to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _auto_workers() -> int:
    cores = len(os.sched_getaffinity(0))
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return min(16, max(1, cores // ranks_here))


def _check_patches(crops: CropConfig, patch_size: int) -> None:
    for name, size in (("global_size", crops.global_size), ("local_size", crops.local_size)):
        if size % patch_size:
            below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
            nearest = " or ".join(str(option) for option in (below, above) if option)
            raise UsageError(
                f"data.crops.{name} {size} is no multiple of the patch size {patch_size} of this model; "
                f"use {nearest}"
            )
