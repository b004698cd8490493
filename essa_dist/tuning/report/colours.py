"""The colour of a trial in all pictures: by its score, from pale (worst) to dark (best); grey without one."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from essa_dist.tuning.record import Sweep, Trial
from essa_dist.tuning.report.values import value_of

BEST = "#d1490f"
"""Of the best trial, which is drawn thick and above the others."""
NO_SCORE = "#b9c0c7"
_PALEST = 0.12  # of the colour map reversed: its first colours can't be seen on white


def by_score(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, str]:
    """Colour by name of ranked ``trials``; scores far below the others get the palest, so that those still differ."""
    if not trials:
        return {}
    sign = 1 if sweep.objectives[0].mode == "max" else -1
    goodness = sign * np.array([value_of(trial, sweep.objectives[0].name) for trial in trials])
    q1, q3 = np.quantile(goodness, [0.25, 0.75])
    low, high = max(goodness.min(), q1 - 1.5 * (q3 - q1)), goodness.max()
    share = np.clip((goodness - low) / (high - low), 0, 1) if high > low else np.ones(len(trials))
    palette = colormaps["viridis_r"](_PALEST + (1 - _PALEST) * share)
    return {trial.name: to_hex(colour) for trial, colour in zip(trials, palette, strict=True)}
