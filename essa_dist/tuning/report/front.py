"""Trials that no other beats in everything: the Pareto front over score, memory and time."""

import numpy as np

from essa_dist.tuning.record import Sweep, Trial
from essa_dist.tuning.report.values import measured, ranked, value_of


def front(sweep: Sweep) -> list[Trial]:
    """Ranked trials that aren't dominated, best score first.

    One dominates another when it is nowhere worse and somewhere better. A trial without a finite value of each measured
    objective can't be compared and is left out. Cost: quadratic in the trials.
    """
    objectives = measured(sweep)
    signs = np.array([1.0 if one.mode == "min" else -1.0 for one in objectives])
    trials = ranked(sweep)
    loss_TO = np.array([[value_of(t, one.name) for one in objectives] for t in trials]).reshape(
        len(trials), -1
    )
    loss_TO = loss_TO * signs
    comparable_T = np.isfinite(loss_TO).all(axis=1)
    others_TO = loss_TO[comparable_T]
    return [
        trial
        for trial, loss_O, comparable in zip(trials, loss_TO, comparable_T, strict=True)
        if comparable and not ((others_TO <= loss_O).all(axis=1) & (others_TO < loss_O).any(axis=1)).any()
    ]
