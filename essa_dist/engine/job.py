"""What differs between the kinds of runs that one loop makes: self-supervised and supervised adaptation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from accelerate import Accelerator

from essa_dist.engine.build import DTYPES, Training
from essa_dist.engine.config import JobConfig
from essa_dist.engine.recording.look import Look
from essa_dist.objectives import StepValues

if TYPE_CHECKING:
    from essa_dist.engine.train import Run

C = TypeVar("C", bound=JobConfig)


class Job(ABC, Generic[C]):
    """One run's parts and schedules, made from its settings; the loop is :class:`~essa_dist.engine.train.Run`."""

    scheduled: ClassVar[tuple[str, ...]] = ("lr", "head_lr", "weight_decay", "head_weight_decay")
    """The schedules whose values are recorded."""

    def __init__(self, config: C) -> None:
        self.config = config

    @abstractmethod
    def build(self, accelerator: Accelerator, *, restored: bool) -> Training:
        """Everything at step 0, or (``restored``) made to be filled from a checkpoint. Raises UsageError and the like."""

    @abstractmethod
    def values(self, step: int, training: Training) -> StepValues:
        """The schedules at ``step``, from 0."""

    @abstractmethod
    def open_look(self, training: Training) -> Look | None:
        """What is measured between steps, its images read. Raises UsageError or DataError."""

    def check(self, step: int, batch: Any, numbers: Mapping[str, float], training: Training) -> None:
        """Look at the numbers of a logged step, from 1; warn where something is wrong."""

    def to_device(self, batch: Any, training: Training) -> Any:
        """``batch``, normalised and on the device."""
        backbone = training.objective.backbone
        dtype = DTYPES[self.config.precision]
        return batch.to(training.accelerator.device, mean=backbone.mean, std=backbone.std, dtype=dtype)

    def attend(self, moved: Callable[[], object], interrupted: Callable[[], bool]) -> None:
        """What long work between steps is to call: ``moved`` where it gets on, ``interrupted``, on all ranks together, to
        hear whether it is to be given up."""
        self.moved, self.interrupted = moved, interrupted

    def state(self) -> dict[str, Any]:
        """More entries of a checkpoint's state; of JSON's types."""
        return {}

    def finish(self, run: "Run") -> dict[str, Any]:
        """What is still to be done behind the last step, on all ranks; more entries for the summary."""
        return {}

    def recorded(self, values: StepValues) -> dict[str, float]:
        """The values that are written with a row."""
        every = asdict(values)
        return {name: every[name] for name in self.scheduled}
