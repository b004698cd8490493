"""Sweeps as a test needs them, without any training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from essa_dist.tuning.record import MEMORY, TIME, Objective, Sweep, Trial

KNN = "canary_knn"
OBJECTIVES = (Objective(KNN, "max"), Objective(MEMORY, "min"), Objective(TIME, "min"))


def trial(number: int, score: float | None = None, **given: Any) -> Trial:
    """A trial that was done with ``score`` after three looks, or without any look."""
    values = {"name": f"t{number:04d}", "params": {}, "folder": f"trials/t{number:04d}", "status": "done"}
    if score is not None:
        curve = [{"step": 10 * i, "seconds": 7.0 * i, KNN: score - 0.05 * (3 - i)} for i in (1, 2, 3)]
        values |= {"step": 30, "curve": curve, "best": {"step": 30, KNN: score}}
    return Trial(**(values | {"total_steps": 30, "seconds": 25.0, "starts": 1} | given))


def sweep(trials: Sequence[Trial], **given: Any) -> Sweep:
    values: dict[str, Any] = {
        "name": "a sweep",
        "objectives": OBJECTIVES[:1],
        "parameters": tuple(dict.fromkeys(name for one in trials for name in one.params)),
        "log": (),
        "trials": tuple(trials),
        "base": "base.yaml",
    }
    return Sweep(**(values | given))


def drawn(
    count: int, seed: int = 0, extra: int = 0, kinds: Sequence[str] = ("apla", "full", "lora")
) -> Sweep:
    """Trials of a conditional space whose score hangs on the learning rate, with memory and time by rank."""
    rng = np.random.default_rng(seed)
    trials = []
    for i in range(count):
        kind = str(rng.choice(kinds))
        params: dict[str, Any] = {"adapter.kind": kind, "optim.lr": float(10 ** rng.uniform(-5, -2))}
        if kind != "full":
            params["adapter.rank"] = [4, 16, 64, "full"][rng.integers(4 if kind == "apla" else 3)]
        params |= {f"group.extra_{e}": float(rng.uniform(0, 10**e)) for e in range(extra)}
        one = trial(
            i, 0.8 - 0.1 * abs(np.log10(params["optim.lr"]) + 3.5) + 0.002 * rng.normal(), params=params
        )
        rank = params.get("adapter.rank")
        size = rank if isinstance(rank, int) else 128
        for row in (*one.curve, one.best):
            row |= {MEMORY: 1 + size / 100, TIME: 0.2 + size / 500}
        trials.append(one)
    parameters = ("adapter.kind", "adapter.rank", "optim.lr", *(f"group.extra_{e}" for e in range(extra)))
    return sweep(trials, objectives=OBJECTIVES, parameters=parameters, log=("optim.lr",))
