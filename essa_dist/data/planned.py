"""What every loader by the sample plan does: workers answer the requests of the steps, bad samples are counted."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from essa_dist.data.batch import TrainingBatch
from essa_dist.data.quota import BadQuota
from essa_dist.data.rank_batches import Failed, SampleBatches
from essa_dist.data.steps import Steps
from essa_dist.data.workers import Work, as_it_is, begin_worker
from essa_dist.errors import DataError

logger = logging.getLogger(__name__)

Made = TypeVar("Made", bound=TrainingBatch)


class PlannedLoader(Generic[Made]):
    """One rank's batches of a run, in the order of its ``steps``."""

    def __init__(
        self,
        batches: SampleBatches[Any, Any],
        steps: Steps,
        *,
        quota: BadQuota,
        workers: int,
        prefetch: int,
        pin_memory: bool = True,
    ) -> None:
        self._samples = len(batches.among)
        self._allowed = quota.allowed(self._samples)
        self._bad: dict[str, str] = {}  # shard:key and the reason
        self._steps = steps
        loader: DataLoader[Any] = DataLoader(
            batches,
            sampler=steps,
            batch_size=None,  # a request is a whole batch already
            collate_fn=as_it_is,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            pin_memory=pin_memory and torch.cuda.is_available(),
            worker_init_fn=begin_worker,
        )
        self._work = Work(loader)

    @property
    def bad(self) -> tuple[str, ...]:
        """``shard:key`` of the undecodable samples met so far."""
        return tuple(self._bad)

    def batches(self, start_step: int, stop_step: int) -> Generator[Made, None, None]:
        """The batches of steps ``start_step`` up to, not with, ``stop_step``.

        Raises DataError where a tar can't be read or more samples are undecodable than the quota allows.
        """
        self._steps.range = range(start_step, stop_step)
        with closing(self._work.items()) as made:
            for item in self._finished(made):
                self._note(item.bad, item.why)
                if isinstance(item, Failed):
                    raise DataError(item.reason)
                yield item

    def close(self) -> None:
        """End the workers. Happens by itself when :meth:`batches` ends, is closed or the program exits."""
        self._work.close()

    def _finished(self, made: Generator[Any, None, None]) -> Generator[Any, None, None]:
        """What is left to be done to what the workers made: nothing."""
        return made

    def _note(self, bad: Sequence[str], why: Sequence[str]) -> None:
        for where, reason in zip(bad, why, strict=True):
            if where not in self._bad:
                self._bad[where] = reason
                logger.warning("can't decode %s (%s): the next sample takes its place", where, reason)
        if len(self._bad) > self._allowed:
            first = ", ".join(f"{where} ({reason})" for where, reason in list(self._bad.items())[:3])
            raise DataError(
                f"{len(self._bad)} of {self._samples} samples can't be decoded, {self._allowed} are allowed; first "
                f"{first}; pack the data again, or raise data.bad_sample_quota"
            )
