"""Measurements between the steps of a run, which can stop it and choose its result: the canary's and validation's."""

from typing import Any, Protocol

from essa_dist.engine.schedules import Duration


class Look(Protocol):
    """All ranks call the same methods, at the same steps."""

    name: str
    """What it is called in messages and checkpoints."""
    best: float | None
    """None before the first measurement."""
    best_step: int
    """Steps after which the value was best."""

    @property
    def every(self) -> Duration:
        """How often there is one, besides after the last step; 0: only then."""
        ...

    @property
    def wants_start(self) -> bool:
        """Whether one is due before the first step."""
        ...

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint of the best one is the run's result."""
        ...

    def look(self, step: int) -> dict[str, float]:
        """Measure after ``step`` updates: entries of a row of metrics."""
        ...

    def is_best(self, step: int) -> bool:
        """Whether the one after ``step`` is the best."""
        ...

    def reason_to_stop(self) -> str | None:
        """Why the run should end here, in words; None: it should go on."""
        ...

    def state(self) -> dict[str, Any]:
        """For the checkpoint; of JSON's types."""
        ...

    def load(self, state: dict[str, Any] | None) -> None:
        """Take up :meth:`state`."""
        ...
