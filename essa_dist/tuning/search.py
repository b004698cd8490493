"""Which trials there are: Ray Tune searchers over a :class:`Space`, with conditions between parameters."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch as RayOptuna

from essa_dist.tuning.config import GridSearch, OptunaSearch, TuneConfig
from essa_dist.tuning.record import Objective
from essa_dist.tuning.space import Draw, Parameter, Space, Value

NUMBER = "number"
"""Beside the draw in a trial's Ray settings: which trial of the sweep it is."""


def searcher(config: TuneConfig) -> Searcher:
    """The one that ``config.search`` names."""
    space, goals = Space(config.space), config.goals()
    if isinstance(config.search, OptunaSearch):
        return _optuna(space, goals, config.search, config.seed)
    grid = isinstance(config.search, GridSearch)
    return Listed(space, goals[0], grid=grid, seed=config.seed)


class Listed(Searcher):
    """Trials that are known beforehand: the points of a grid in order, or random draws, each by its number."""

    def __init__(self, space: Space, goal: Objective, *, grid: bool, seed: int) -> None:
        super().__init__(metric=goal.name, mode=goal.mode)
        self.space, self.grid, self.seed = space, grid, seed
        self.number = 0

    def suggest(self, trial_id: str) -> Any:
        """The next draw; FINISHED after a grid's last."""
        drawn = self._draw()
        if drawn is None:
            return Searcher.FINISHED
        self.number += 1
        return {**drawn, NUMBER: self.number - 1}

    def _draw(self) -> Draw | None:
        if not self.grid:
            return self.space.sample(self.seed, self.number)
        rest: Iterator[Draw] = islice(self.space.grid(), self.number, None)
        return next(rest, None)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing is learnt from results."""

    def save(self, checkpoint_path: str) -> None:
        """Write how many were given out."""
        Path(checkpoint_path).write_text(json.dumps({"number": self.number}))

    def restore(self, checkpoint_path: str) -> None:
        """Go on behind the last that was given out."""
        self.number = int(json.loads(Path(checkpoint_path).read_text())["number"])


class Ask:
    """Draws from the space by an Optuna trial; a class, so that the searcher can be saved."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, trial: Any) -> dict[str, int]:
        """Ask ``trial`` for what applies; the constants that Ray adds to the draw."""

        def suggest(name: str, parameter: Parameter) -> Value:
            if parameter.choices:
                return trial.suggest_categorical(name, list(parameter.choices))  # type: ignore[no-any-return]
            step = parameter.step
            if parameter.integer:
                whole = {"step": int(step)} if step else {}
                return int(trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log, **whole))
            return float(
                trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log, step=step)
            )

        self.space.draw(suggest)
        return {NUMBER: trial.number}


def _optuna(space: Space, goals: tuple[Objective, ...], search: OptunaSearch, seed: int) -> Searcher:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Trials that run are taken for bad ones, so that those asked for at the same time are not alike.
    sampler = optuna.samplers.TPESampler(n_startup_trials=search.startup, seed=seed, constant_liar=True)
    one = len(goals) == 1
    return RayOptuna(
        space=Ask(space),
        metric=goals[0].name if one else [goal.name for goal in goals],
        mode=goals[0].mode if one else [goal.mode for goal in goals],
        sampler=sampler,
    )
