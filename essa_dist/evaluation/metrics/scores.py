"""What one model scored on one set of images."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from essa_dist.errors import UsageError

LOWER_IS_BETTER = frozenset({"ece", "brier", "nll", "mae", "hd95"})


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Every value is a number: a metric that these images can't give is left out, and why is told by ``left_out``."""

    values: dict[str, float]
    """Metric to value; shares in 0..1."""
    n: int
    """Images judged."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Metric to its 95 % percentile bootstrap interval; empty where none was asked for."""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Class to metric to value; ``n`` are the images that show the class."""
    confusion: list[list[int]] | None = None
    """[K][K], rows are the truth, columns the prediction; None where an image may show several classes."""
    left_out: tuple[str, ...] = ()
    """Classes that no image shows, or every one, and which averages over classes are without."""

    def value(self, metric: str) -> float:
        """``values[metric]``; UsageError that says why where these images could not give it."""
        if metric in self.values:
            return self.values[metric]
        why = f": no image, or every one, shows {listed(self.left_out)}" if self.left_out else ""
        raise UsageError(
            f"{metric} can't be had from these {self.n} images{why}; they give {', '.join(self.values)}: choose one of"
            " these as target_metric, or judge on other images"
        )

    def as_dict(self) -> dict[str, Any]:
        """In the types that JSON knows."""
        found = asdict(self)
        found["intervals"] = {metric: list(bounds) for metric, bounds in self.intervals.items()}
        return found | {"left_out": list(self.left_out)}


def higher_is_better(metric: str) -> bool:
    return metric not in LOWER_IS_BETTER


def listed(names: Iterable[str], limit: int = 10) -> str:
    """At most ``limit`` names and the number of the rest."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
