"""The canary: the quality of the teacher's features on a fixed set of images, every so many steps of a run, and what
follows from it.
"""

import logging
from typing import Any

from pydantic import Field, model_validator

from essa_dist.engine.recording.probe import Embedder, Probe, ProbeConfig
from essa_dist.engine.schedules import Duration

log = logging.getLogger(__name__)


class CanaryConfig(ProbeConfig):
    every: Duration | None = None
    """How often the teacher is looked at: updates, or epochs as in 1ep, and at the start and the end (0: only then; null:
    never)."""
    max_drop: float | None = Field(None, gt=0, lt=1)
    """Stop the run when the value is lower than at the start by more than this share of it (null: never)."""
    stop_after: int | None = Field(None, ge=1)
    """Stop the run after so many looks in a row without a new best (null: never)."""
    rollback: bool = False
    """Keep the checkpoint of the best look, and let `essa evaluate` and `essa export` take it in place of the newest;
    resume still goes on from the newest."""

    @model_validator(mode="after")
    def _looks(self) -> "CanaryConfig":
        idle = [
            name for name in ("data", "protocol", "max_drop", "stop_after", "rollback") if getattr(self, name)
        ]
        if self.every is None and idle:
            raise ValueError(f"canary.{idle[0]} does nothing without canary.every: say how often, as in 1ep")
        return self


class Canary:
    """Looks, remembers the best, and says when to stop. Everything it knows is in :meth:`state`."""

    name = "canary"

    def __init__(self, config: CanaryConfig, probe: Probe, embed: Embedder) -> None:
        self.config, self.probe, self.embed = config, probe, embed
        self.start: float | None = None
        self.last: float | None = None
        self.best: float | None = None
        self.best_step = 0
        self.since_best = 0
        """Looks since then."""

    @property
    def every(self) -> Duration:
        """How often it looks."""
        return self.config.every or 0

    @property
    def wants_start(self) -> bool:
        """Whether it has yet to see what it compares with."""
        return self.start is None

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint of the best look is the run's result."""
        return self.config.rollback

    def look(self, step: int) -> dict[str, float]:
        """The value after ``step`` updates and the best so far, as entries of a row of metrics; on all ranks."""
        value = self.last = self.probe.value(self.embed)
        if self.start is None:
            self.start = value
        if self.best is None or value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
        else:
            self.since_best += 1
        name = self.probe.name
        log.info(
            "canary, step %d: %s %s, at the start %s, best %s after step %d",
            step,
            self.probe.title,
            *map(self._shown, (value, self.start, self.best)),
            self.best_step,
        )
        return {name: value, f"{name}_best": self.best}

    def is_best(self, step: int) -> bool:
        """Whether the look after ``step`` is the best."""
        return self.best is not None and self.best_step == step

    def reason_to_stop(self) -> str | None:
        """Why the run should end here, in words; None: it should go on."""
        c = self.config
        if self.start is None or self.last is None or self.best is None:
            return None
        if c.max_drop is not None and self.last < self.start * (1 - c.max_drop):
            return (
                f"{self.probe.name} fell from {self._shown(self.start)} to {self._shown(self.last)}, by more than "
                f"canary.max_drop={c.max_drop:g}"
            )
        if c.stop_after is not None and self.since_best >= c.stop_after:
            return (
                f"{self.probe.name} had no new best in {self.since_best} looks (canary.stop_after): "
                f"{self._shown(self.best)} after step {self.best_step}"
            )
        return None

    def _shown(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.probe.is_share else f"{value:.1f}"

    def state(self) -> dict[str, Any]:
        """For the checkpoint; of JSON's types."""
        kept = {name: getattr(self, name) for name in ("start", "last", "best", "best_step", "since_best")}
        return kept | {"identity": self.probe.identity}

    def load(self, state: dict[str, Any] | None) -> None:
        """Take up :meth:`state`; one of another probe, whose values can't be compared, is left with a warning."""
        if not state:
            return
        if state["identity"] != self.probe.identity:
            log.warning(
                "the canary's images or settings are others than before: its comparisons start anew at this step"
            )
            return
        for name in ("start", "last", "best", "best_step", "since_best"):
            setattr(self, name, state[name])
