"""Batches of crops from a stream of foreign tars, with the interface of ``CropLoader``."""

import logging
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from essa_dist.data.batch import Batch
from essa_dist.data.loader import DataConfig, check_patches
from essa_dist.data.plan import rank_slice
from essa_dist.data.stream import TarStream
from essa_dist.data.stream_batches import Made, StreamBatches
from essa_dist.data.workers import Work, begin_worker, count_workers
from essa_dist.errors import DataError, UsageError

logger = logging.getLogger(__name__)


class StreamLoader:
    """Makes one rank's batches of a run, each rank as many as any other.

    The same tars, seed, first step, ranks and workers give the same batches; a run that goes on from a later step draws
    anew. Raises UsageError where the global batch can't be shared evenly by the ranks, a crop is no whole number of
    patches, or DALI is asked for.
    """

    def __init__(
        self,
        stream: TarStream,
        config: DataConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        patch_size: int,
    ) -> None:
        check_patches(config.crops, patch_size)
        if config.decoder == "dali":
            raise UsageError(
                "data.decoder=dali needs an index: use data.decoder=torchvision, or essa pack index"
            )
        workers = count_workers(config.workers)
        self._quota = config.bad_sample_quota
        self._bad: dict[str, str] = {}
        self._met = 0
        self._batches = StreamBatches(
            stream,
            config.crops,
            config.masks,
            config.bad_sample_quota,
            seed=seed,
            global_batch=global_batch,
            rank=rank,
            mine=rank_slice(global_batch, rank, world_size),
            patch_size=patch_size,
            window_jitter=config.window_jitter,
        )
        loader: DataLoader[Made] = DataLoader(
            self._batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=config.prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=begin_worker,
        )
        self._work = Work(loader)
        if rank == 0:
            _say(stream, readers=world_size * max(1, workers))

    @property
    def bad(self) -> tuple[str, ...]:
        """``shard:key`` of the unusable samples, and ``shard`` of the unusable tars, met so far."""
        return tuple(self._bad)

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch, None, None]:
        """The batches of steps ``start_step`` up to, not with, ``stop_step``.

        Raises DataError where there is nothing to be drawn, or more is unusable than the quota allows.
        """
        self._batches.steps = range(start_step, stop_step)
        with closing(self._work.items()) as items:
            for step, made in zip(range(start_step, stop_step), items, strict=True):
                self._note(made)
                if made.batch is None:
                    raise DataError(made.failed)
                assert made.batch.step == step
                yield replace(
                    made.batch,
                    bad=tuple(where for where, _ in made.bad),
                    why=tuple(reason for _, reason in made.bad),
                )

    def close(self) -> None:
        """End the workers. Happens by itself when :meth:`batches` ends, is closed or the program exits."""
        self._work.close()

    def _note(self, made: Made) -> None:
        for where, reason in made.bad:
            if where not in self._bad:
                self._bad[where] = reason
                logger.warning("left out %s: %s", where, reason)
        self._met += len(made.bad) + (len(made.batch.keys) if made.batch else 0)
        allowed = self._quota.allowed(self._met)
        if len(self._bad) > allowed:
            first = ", ".join(f"{where} ({reason})" for where, reason in list(self._bad.items())[:3])
            raise DataError(
                f"{len(self._bad)} of the {self._met} samples read can't be used, {allowed} are allowed; first {first}; "
                "mend the tars, or raise data.bad_sample_quota"
            )


def _say(stream: TarStream, *, readers: int) -> None:
    shards = len(stream.shards)
    shared = f"; {readers} workers share {shards} tars, so some read the same" if shards < readers else ""
    logger.warning(
        "data.order=stream: %d tars are drawn at random with replacement%s. The order depends on ranks and workers, and a "
        "resumed run draws anew; `essa pack index` makes the same tars a data set with an exact order and resume",
        shards,
        shared,
    )
