"""A small tree of settings with one of each: a section, a union of kinds, a list, a dict, bounds, a rule of its own."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field, model_validator

from essa_dist.settings import Config


class Rows(Config):
    kind: Literal["rows"] = "rows"
    """Train some rows."""
    rank: Literal["full"] | Annotated[int, Field(ge=1)] = "full"
    """How many."""


class LowRank(Config):
    kind: Literal["lowrank"] = "lowrank"
    """Train two thin matrices."""
    rank: int = Field(8, ge=1)
    """Their inner width."""
    alpha: float = Field(16.0, gt=0)
    """Scale of their product."""


def _kind_alone(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


class Optim(Config):
    lr: float = Field(1e-3, gt=0)
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam."""
    clip: float | None = 3.0
    """Largest gradient norm."""


class Head(Config):
    width: int = Field(64, ge=1)
    """Of the hidden layer."""


class Recipe(Config):
    """A run."""

    out: Path
    """Where to write."""
    steps: int = Field(100, ge=1, le=1000)
    """How long."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What is computed in."""
    resume: bool = False
    """Go on."""
    note: str | None = None
    """Whatever you like."""
    weights: dict[str, float] = Field(default_factory=dict)
    """By class."""
    adapter: Annotated[Rows | LowRank, Field(discriminator="kind"), BeforeValidator(_kind_alone)] = Rows()
    """What is trained."""
    head: Literal["shared"] | Head = "shared"
    """The second head."""
    optim: Optim = Optim()
    """The optimizer."""

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        if self.steps == 13:
            raise ValueError("steps=13 can't be: take 14")
        return self


@pytest.fixture(scope="session")
def recipe() -> type[Any]:
    return Recipe
