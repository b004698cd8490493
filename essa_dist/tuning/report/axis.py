"""Where a parameter's values stand on a line from 0 to 1: numbers, above them words, below them its absence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from essa_dist.tuning.report.values import is_number, middle, number
from essa_dist.tuning.space import Value

FEW = 8
"""As many different numbers as this were chosen, not drawn: each gets its tick, and powers of two even steps."""
_WORD = 0.13  # of the line for each word above numbers
_NONE = 0.14  # of the line below all else for the trials that lack the parameter
_NEAR = 0.065  # ticks that are nearer than this would overlap


@dataclass(frozen=True)
class Axis:
    """A line for the values of one parameter."""

    numbers: tuple[float, ...]
    """Different ones, ascending."""
    words: tuple[str, ...]
    absent: bool
    """Whether some trial lacks the parameter."""
    log: bool

    @classmethod
    def of(cls, values: Sequence[Value | None], *, log: bool) -> "Axis":
        """The line for ``values``, None where a trial has none; ``log`` for numbers drawn by their logarithm."""
        numbers = tuple(sorted({float(v) for v in values if v is not None and is_number(v)}))
        words = tuple(sorted({number(v) for v in values if v is not None and not is_number(v)}))
        chosen = 2 < len(numbers) <= FEW and numbers[0] > 0 and numbers[-1] >= 8 * numbers[0]
        positive = bool(numbers) and numbers[0] > 0
        return cls(numbers, words, None in values, positive and (log or chosen))

    def place(self, value: Value | None) -> float:
        """Of one of the values that the line was made for."""
        low, high = self._span()
        if value is None:
            return 0.0
        if is_number(value):
            return self._number_place(float(value))
        i, n = self.words.index(number(value)), len(self.words)
        if self.numbers:
            return high + (i + 1) * (1 - high) / n
        return (low + 1) / 2 if n == 1 else low + i * (1 - low) / (n - 1)

    def ticks(self, limit: int = 14) -> list[tuple[float, str]]:
        """Places and words, of at most ``limit`` characters; none so near to another that they overlap."""
        kept: list[tuple[float, str]] = [(0.0, "none")] if self.absent else []
        kept += [(self.place(word), middle(word, limit)) for word in self.words]
        for value in self._numbers_to_name():
            place = self._number_place(value)
            if all(abs(place - other) >= _NEAR for other, _ in kept):
                kept.append((place, f"{value:.3g}"))
        return sorted(kept)

    def _span(self) -> tuple[float, float]:
        low = _NONE if self.absent else 0.0
        return low, 1.0 - min(_WORD * len(self.words), 0.5) if self.words else 1.0

    def _number_place(self, value: float) -> float:
        low, high = self._span()
        first, last = self.numbers[0], self.numbers[-1]
        if first == last:
            return (low + high) / 2
        if self.log:
            value, first, last = math.log(value), math.log(first), math.log(last)
        return low + (high - low) * (value - first) / (last - first)

    def _numbers_to_name(self) -> list[float]:
        """The ends first: they stay where others are too near."""
        if not self.numbers:
            return []
        first, last = self.numbers[0], self.numbers[-1]
        if len(self.numbers) <= FEW:
            between = list(self.numbers)
        elif self.log:
            decades = range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
            between = [10.0**power for power in decades] if len(decades) > 1 else [math.sqrt(first * last)]
        else:
            between = [
                float(tick)
                for tick in MaxNLocator(
                    5, integer=all(value.is_integer() for value in self.numbers)
                ).tick_values(first, last)
            ]
        return [first, last, *(value for value in between if first < value < last)]
