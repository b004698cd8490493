"""What the engine trains: one module that holds trunk, heads and both branches, and gives losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from essa_dist.adapters.branches import Branches
from essa_dist.backbones.vit import Backbone


@dataclass(frozen=True, kw_only=True)
class StepValues:
    """One step's point on every schedule."""

    lr: float
    head_lr: float
    weight_decay: float
    head_weight_decay: float
    adapter_frozen: bool
    last_layer_frozen: bool = False
    ema_momentum: float = 0.0
    """Where there is a teacher, as its temperature."""
    teacher_temp: float = 1.0


class Objective(nn.Module, ABC):
    """What DDP, ZeRO or FSDP2 wraps. ``branches`` is made last, when everything trainable is in place."""

    backbone: Backbone
    branches: Branches
    units: ClassVar[frozenset[str]] = frozenset()
    """Classes of modules, besides the trunk's blocks, that are big enough to be sharded one by one."""

    def forward(self, work: Any, **options: Any) -> Any:
        """Losses of a batch, or any other ``work(objective)`` that needs tensors.

        Wrappers gather sharded tensors for the time of this call, so whatever computes with one has to come through it.
        """
        return work(self) if callable(work) else self.losses(work, **options)

    @abstractmethod
    def losses(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        """Losses of one batch of normalised images; ``total`` is the one to minimise, a mean over the images.

        With ``diagnose=True`` there may be detached measures of what is going on beside it.
        """

    def micro_batches(
        self,
        model: Callable[..., Any],  # this objective as it was wrapped
        batch: Any,
        n: int,
        values: StepValues,
    ) -> Sequence[tuple[Any, dict[str, Any]]]:
        """``batch`` in ``n`` equal parts, each with the options of its :meth:`losses`, whose mean is the loss of the whole."""
        return [(part, {}) for part in batch.split(n)]

    def settle(self, *, applied: bool) -> None:
        """End an update that was ``applied``, or was not; on all processes."""
