"""What a sweep varies: parameters, some only where others have certain values, and draws from them.

A draw is a flat mapping of settings of the run, ``{"adapter.kind": "lora", "adapter.rank": 8, "optim.lr": 3e-4}``.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from pydantic import Field, model_validator

from essa_dist.settings import Config

Value: TypeAlias = bool | int | float | str
Draw: TypeAlias = dict[str, Value]
Suggest: TypeAlias = "Callable[[str, Parameter], Value]"

GRID_POINTS = 4
"""Points of a range that a grid takes where `points` doesn't say."""


class Parameter(Config):
    """One setting of the run: either `choices`, or a range from `low` to `high`."""

    choices: tuple[Value, ...] = ()
    """Values it may have."""
    low: float | None = None
    """Smallest value of a range."""
    high: float | None = None
    """Largest value of a range."""
    log: bool = False
    """Draw the logarithm evenly, as for learning rates."""
    step: float | None = Field(default=None, gt=0)
    """Only low, low + step, low + 2 step ...; not with log."""
    integer: bool = False
    """Whole numbers only."""
    points: int = Field(default=GRID_POINTS, ge=2)
    """Values of a range that search.kind=grid tries, evenly spread (with `step` or few integers: each of them)."""
    when: dict[str, tuple[Value, ...]] = Field(default={})
    """Only where other parameters, named before it, have one of these values, as {adapter.kind: [apla, lora]}."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Parameter":
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError("give either choices, or low and high")
        if self.choices:
            if self.log or self.step or self.integer:
                raise ValueError(
                    "log, step and integer are for a range: give low and high in place of choices"
                )
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"a range needs low < high, not low={self.low}, high={self.high}")
        if self.log and (self.low <= 0 or self.step):
            raise ValueError("log needs low > 0, and no step")
        if self.integer and any(x is not None and x != int(x) for x in (self.low, self.high, self.step)):
            raise ValueError("integer needs whole numbers for low, high and step")
        return self

    def sample(self, rng: np.random.Generator) -> Value:
        """A value, drawn evenly (with `log` its logarithm)."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        if (steps := self._steps()) is not None:
            return steps[int(rng.integers(len(steps)))]
        assert self.low is not None
        assert self.high is not None
        if self.log:
            return self._kind(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self._kind(float(rng.uniform(self.low, self.high)))

    def grid(self) -> tuple[Value, ...]:
        """The values that a grid tries."""
        if self.choices:
            return self.choices
        steps = self._steps()
        if steps is not None and (self.step or len(steps) <= self.points):
            return steps
        assert self.low is not None
        assert self.high is not None
        spaced = np.geomspace if self.log else np.linspace
        return tuple(dict.fromkeys(self._kind(float(x)) for x in spaced(self.low, self.high, self.points)))

    def clamp(self, value: float) -> Value:
        """The allowed value of a range that is nearest to ``value``."""
        assert self.low is not None
        assert self.high is not None
        if (steps := self._steps()) is not None:
            return min(steps, key=lambda known: abs(float(known) - value))
        return self._kind(min(max(value, self.low), self.high))

    def _steps(self) -> tuple[Value, ...] | None:
        """Every value of a range that has few; None: it is continuous, or drawn by its logarithm."""
        if self.low is None or self.high is None or self.log or not (self.step or self.integer):
            return None
        step = self.step or 1
        count = math.floor((self.high - self.low) / step * (1 + 1e-9)) + 1
        return tuple(self._kind(round(self.low + i * step, 12)) for i in range(count))

    def _kind(self, value: float) -> Value:
        return round(value) if self.integer else value


def setting_of(name: str) -> str:
    """The setting that a parameter gives: ``adapter.rank@apla`` and ``adapter.rank@lora`` are two ways to draw one."""
    return name.partition("@")[0]


class Space:
    """Parameters by name, in the order in which they are drawn. Raises ValueError for a ``when`` that can't be answered."""

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.parameters = dict(parameters)
        known: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            for asked, values in parameter.when.items():
                if asked not in known:
                    raise ValueError(
                        f"{name}: when asks for {asked}, which is not a parameter named before it"
                    )
                rest = [v for v in values if known[asked].choices and v not in known[asked].choices]
                if rest:
                    allowed = ", ".join(map(str, known[asked].choices))
                    raise ValueError(f"{name}: when asks for {asked}={rest[0]}, whose choices are {allowed}")
            if setting_of(name) in known and not parameter.when:
                raise ValueError(
                    f"{name}: {setting_of(name)} is drawn before it: say when each of the two applies"
                )
            known[setting_of(name)] = parameter

    def draw(self, suggest: Suggest) -> Draw:
        """A draw for which ``suggest(name, parameter)`` gives each value that applies."""
        drawn: Draw = {}
        for name, parameter in self.parameters.items():
            if applies(parameter, drawn):
                drawn[_free(name, drawn)] = suggest(name, parameter)
        return drawn

    def sample(self, seed: int, number: int) -> Draw:
        """Draw ``number`` of the random ones that ``seed`` makes; the same whenever it is asked for."""
        rng = np.random.default_rng([seed, number])
        return self.draw(lambda _, parameter: parameter.sample(rng))

    def grid(self) -> Iterator[Draw]:
        """Every combination of the parameters' grids, each once: parameters that don't apply multiply nothing."""

        def below(names: list[str], drawn: Draw) -> Iterator[Draw]:
            if not names:
                yield drawn
                return
            name, *rest = names
            parameter = self.parameters[name]
            if not applies(parameter, drawn):
                yield from below(rest, drawn)
                return
            for value in parameter.grid():
                yield from below(rest, {**drawn, _free(name, drawn): value})

        yield from below(list(self.parameters), {})


def _free(name: str, drawn: Mapping[str, Value]) -> str:
    """The setting of ``name``. Raises ValueError where another parameter that applies has given it."""
    if setting_of(name) in drawn:
        raise ValueError(
            f"{name}: another parameter that applies beside it gives {setting_of(name)}: let their when differ"
        )
    return setting_of(name)


def applies(parameter: Parameter, drawn: Mapping[str, Value]) -> bool:
    """Whether ``parameter`` has a value beside those already drawn."""
    return all(name in drawn and drawn[name] in values for name, values in parameter.when.items())


def words(drawn: Mapping[str, Value]) -> list[str]:
    """A draw as overrides ``key=value``; kinds first, since they decide which other keys there are."""
    order = sorted(drawn, key=lambda name: not name.endswith("kind"))
    return [f"{name}={_text(drawn[name])}" for name in order]


def _text(value: Value) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else repr(value)
        if isinstance(value, float)
        else str(value)
    )
