"""Dynamic loss scaling for fp16, whose smallest gradients would vanish. Source: Micikevicius et al., arXiv:1710.03740.

Its own few lines rather than torch's GradScaler, which wants to see the gradients: under ZeRO they are DeepSpeed's.
The constants are GradScaler's.
"""

from typing import Any

START = 2.0**16
GROWTH_INTERVAL = 2000


class LossScale:
    """A power of two; 1 and constant unless ``enabled``."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = START if enabled else 1.0
        self._good_steps = 0

    def update(self, *, applied: bool) -> None:
        """After each try of an update: halve when it overflowed, double after many that did not."""
        if not self.enabled:
            return
        self._good_steps = self._good_steps + 1 if applied else 0
        if not applied:
            self.scale /= 2
        elif self._good_steps == GROWTH_INTERVAL:
            self.scale, self._good_steps = self.scale * 2, 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"scale": self.scale, "good_steps": self._good_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Go on as ``state`` says; a run in another precision starts as ever."""
        if self.enabled and state:
            self.scale, self._good_steps = float(state["scale"]), int(state["good_steps"])
