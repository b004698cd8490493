"""Watching a run: collapse, and what the other guards are told."""

import logging
import math

from pydantic import Field

from essa_dist.settings import Config

log = logging.getLogger(__name__)


class GuardConfig(Config):
    patience: int = Field(50, ge=0)
    """Steps before the first warning, and between repetitions of the same one."""
    timeout_s: float = Field(600.0, ge=0)
    """Seconds without progress on any rank after which the run ends and names the rank to blame; 0: wait for ever."""
    start_timeout_s: float = Field(1800.0, ge=0)
    """The same until the end of the first step, which waits for servers, compiles and warms up."""
    slow_rank: float = Field(1.5, gt=1)
    """Warn of a rank that takes this many times longer over its own part of a step than the others."""
    skip_budget: int = Field(0, ge=0)
    """Updates that a run may leave out because a number is not finite; the next such step ends it."""
    skip_in_a_row: int = Field(3, ge=1)
    """End the run when so many updates in a row are not finite, whatever is left of the budget."""


class CollapseGuardConfig(GuardConfig):
    rankme_floor: float = Field(0.05, ge=0, le=1)
    """Warn when the features' effective rank falls under this share of the largest possible one."""
    entropy_floor: float = Field(0.05, ge=0, le=1)
    """Warn when all images go to few prototypes: entropy of the mean target under this share of ln K."""
    uniform_share: float = Field(0.99, gt=0, le=1)
    """Warn when the teacher says nothing: mean entropy of its targets over this share of ln K."""


class CollapseWatch:
    """Warns, with the number, when features or targets collapse; it never stops a run."""

    def __init__(self, config: CollapseGuardConfig, *, prototypes: int) -> None:
        self.config = config
        self.log_prototypes = math.log(prototypes)
        self._last: dict[str, int] = {}

    def check(
        self, step: int, *, rankme: float, max_rank: int, prototype_entropy: float, teacher_entropy: float
    ) -> None:
        """Look at one step's diagnostics (``objectives.diagnostics``; entropies in nats)."""
        c = self.config
        if rankme < c.rankme_floor * max_rank:
            self._warn(step, "features", f"effective rank of the features is {rankme:.1f} of {max_rank}")
        if prototype_entropy < c.entropy_floor * self.log_prototypes:
            share = prototype_entropy / self.log_prototypes
            self._warn(
                step, "prototypes", f"targets use few prototypes: their entropy is {share:.1%} of ln K"
            )
        if teacher_entropy > c.uniform_share * self.log_prototypes:
            share = teacher_entropy / self.log_prototypes
            self._warn(
                step, "uniform", f"teacher targets are nearly uniform: their entropy is {share:.1%} of ln K"
            )

    def _warn(self, step: int, kind: str, what: str) -> None:
        if step - self._last.get(kind, 0) < self.config.patience:
            return
        self._last[kind] = step
        log.warning(
            "collapse? step %d: %s; lower optim.lr, raise schedule.ema_momentum or the batch size, "
            "or lower schedule.teacher_temp if they are uniform",
            step,
            what,
        )
