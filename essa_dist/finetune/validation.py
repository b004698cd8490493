"""Validation: how good the model is on held-out labelled images, every so many steps, and which checkpoint was best."""

import logging
import math
from collections.abc import Callable
from typing import Any

from pydantic import Field

from essa_dist.engine.schedules import Duration
from essa_dist.finetune.judging import Interrupted
from essa_dist.settings import Config

log = logging.getLogger(__name__)


class ValidationConfig(Config):
    every: Duration | None = "1ep"
    """How often the validation images are predicted: updates, or epochs as in 1ep, and at the end (null: never, and the
    last checkpoint is the result)."""
    batch_size: int = Field(32, ge=1)
    """Images of a forward pass, on each rank; of the test images too."""
    stop_after: int | None = Field(None, ge=1)
    """Stop the run after so many validations in a row without a new best (null: never)."""


class Validation:
    """A look (see ``engine.recording.look``) that keeps the checkpoint with the best target metric."""

    name = "validation"
    keeps_best = True

    def __init__(
        self,
        config: ValidationConfig,
        measure: Callable[[], dict[str, float]],
        *,
        metric: str,
        higher_is_better: bool,
        identity: dict[str, Any],
    ) -> None:
        """``measure`` gives the scores, the same on all ranks; ``identity`` tells what they are comparable with."""
        self.config, self.measure = config, measure
        self.metric, self.higher, self.identity = metric, higher_is_better, identity
        self.best: float | None = None
        self.best_step = 0
        self.since_best = 0
        self.pending = False
        """Whether one was given up after a signal, and is to be made up for first."""

    @property
    def wants_start(self) -> bool:
        """Where a run goes on that was stopped during one."""
        return self.pending

    @property
    def every(self) -> Duration:
        """How often."""
        return self.config.every or 0

    def look(self, step: int) -> dict[str, float]:
        """The scores after ``step`` updates as ``val_NAME``, and the best so far."""
        try:
            values = self.measure()
        except Interrupted:
            self.pending = True
            return {}
        self.pending = False
        value = values.get(self.metric, math.nan)
        if math.isfinite(value) and (self.best is None or self._is_better(value)):
            self.best, self.best_step, self.since_best = value, step, 0
        else:
            self.since_best += 1
        best = math.nan if self.best is None else self.best
        log.info(
            "validation, step %d: loss %.4f, %s %.4f; best %.4f after step %d",
            step,
            values["loss"],
            self.metric,
            value,
            best,
            self.best_step,
        )
        return {f"val_{name}": value for name, value in values.items()} | {f"val_{self.metric}_best": best}

    def _is_better(self, value: float) -> bool:
        assert self.best is not None
        return value > self.best if self.higher else value < self.best

    def is_best(self, step: int) -> bool:
        """Whether the one after ``step`` is the best."""
        return self.best is not None and self.best_step == step

    def reason_to_stop(self) -> str | None:
        """No new best for ``stop_after`` validations."""
        limit = self.config.stop_after
        if limit is None or self.since_best < limit:
            return None
        return (
            f"{self.metric} had no new best in {self.since_best} validations (validation.stop_after): "
            f"{self.best if self.best is not None else math.nan:.4f} after step {self.best_step}"
        )

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        kept = {name: getattr(self, name) for name in ("best", "best_step", "since_best", "pending")}
        return kept | {"identity": self.identity}

    def load(self, state: dict[str, Any] | None) -> None:
        """Take up :meth:`state`, unless it is of other images or another metric."""
        if not state:
            return
        if state["identity"] != self.identity:
            log.warning(
                "other validation images or another metric than before: the best starts anew at this step"
            )
            return
        for name in ("best", "best_step", "since_best", "pending"):
            setattr(self, name, state[name])
