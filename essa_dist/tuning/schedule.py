"""Which trials go on: Ray Tune schedulers, with time counted in percent of a run."""

from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from essa_dist.tuning.config import ASHA, PBT, TuneConfig
from essa_dist.tuning.search import NUMBER
from essa_dist.tuning.space import Draw, Parameter, Space, Value

PROGRESS = "progress"
"""Percent of the run, in every result of a trial."""


def scheduler(config: TuneConfig) -> TrialScheduler:
    """The one that ``config.scheduler`` names; it looks at the first objective."""
    goal, chosen = config.goals()[0], config.scheduler
    by_goal = {"metric": goal.name, "mode": goal.mode, "time_attr": PROGRESS}
    if isinstance(chosen, ASHA):
        return AsyncHyperBandScheduler(
            **by_goal,
            max_t=100,
            grace_period=100 * chosen.grace,
            reduction_factor=chosen.reduction,
            stop_last_trials=False,  # one at its last look is yet to save
        )
    if isinstance(chosen, PBT):
        changed = {name: config.space[name] for name in chosen.mutate}
        return PopulationBasedTraining(
            **by_goal,
            perturbation_interval=100 * chosen.interval,
            burn_in_period=0,
            hyperparam_mutations={name: _mutation(one, config.seed) for name, one in changed.items()},
            quantile_fraction=chosen.quantile,
            resample_probability=chosen.resample,
            custom_explore_fn=Bounds(changed),
            log_config=False,
        )
    return FIFOScheduler()


class Bounds:
    """Brings what was multiplied by 1.2 or 0.8 back into its range."""

    def __init__(self, parameters: dict[str, Parameter]) -> None:
        self.parameters = parameters

    def __call__(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """``drawn`` with every changed number inside its range."""
        ranges = {name: one for name, one in self.parameters.items() if not one.choices and name in drawn}
        return drawn | {name: one.clamp(float(drawn[name])) for name, one in ranges.items()}


class Sampler:
    """New draws of one parameter; a class, so that the scheduler can be saved."""

    def __init__(self, parameter: Parameter, seed: int) -> None:
        self.parameter, self.rng = parameter, np.random.default_rng(seed)

    def __call__(self) -> Value:
        """One draw."""
        return self.parameter.sample(self.rng)


def _mutation(parameter: Parameter, seed: int) -> Any:
    return list(parameter.choices) if parameter.choices else Sampler(parameter, seed)


def population(config: TuneConfig) -> dict[str, Any]:
    """Ray's space of a population: the number of each trial, and what changes on the way, from that trial's draw."""
    assert isinstance(config.scheduler, PBT)
    space, seed = Space(config.space), config.seed
    assert config.search.kind == "random"
    return {NUMBER: tune.grid_search(list(range(config.search.trials)))} | {
        name: tune.sample_from(First(space, seed, name)) for name in config.scheduler.mutate
    }


class First:
    """The first value of one changed parameter."""

    def __init__(self, space: Space, seed: int, name: str) -> None:
        self.space, self.seed, self.name = space, seed, name

    def __call__(self, spec: Any) -> Value:
        """Of the trial whose number Ray has chosen."""
        return self.space.sample(self.seed, spec.config[NUMBER])[self.name]


def drawn(config: TuneConfig, of_ray: dict[str, Any]) -> Draw:
    """A trial's draw, from what Ray gives it."""
    given = {name: value for name, value in of_ray.items() if name != NUMBER}
    if isinstance(config.scheduler, PBT):
        return Space(config.space).sample(config.seed, int(of_ray[NUMBER])) | given
    return given
