"""The settings of a trial's run: base, settings of all trials, and one draw."""

import json
from collections.abc import Iterator
from pathlib import Path

from essa_dist.engine.config import JobConfig, RunConfig
from essa_dist.engine.schedules import Duration
from essa_dist.errors import UsageError
from essa_dist.settings import load, to_yaml
from essa_dist.tuning.config import PBT, GridSearch, TuneConfig
from essa_dist.tuning.space import Draw, Space, words
from essa_dist.verbs import VERBS, config_class

TRIED = 200
"""Draws whose settings are checked before the sweep starts."""


def run_config(config: TuneConfig, drawn: Draw, out: str = "runs/trial") -> JobConfig:
    """The settings of the run that tries ``drawn``. Raises UsageError."""
    overrides = [*config.settings, *words(drawn), f"out={out}"]
    loaded = load(config_class(VERBS[config.verb]), Path(config.base), overrides)
    assert isinstance(loaded, JobConfig)
    if isinstance(config.scheduler, PBT):  # an exploit takes the weights of the look that decided
        kept = {"every": look_every(loaded), "keep": max(2, loaded.checkpoint.keep)}
    elif not loaded.checkpoint.every:  # a trial whose process was lost would begin anew
        kept = {"every": look_every(loaded)}
    else:
        return loaded
    return loaded.model_copy(update={"checkpoint": loaded.checkpoint.model_copy(update=kept)})


def look_every(config: JobConfig) -> Duration:
    """How often the run measures what the sweep decides by. Raises UsageError where it doesn't."""
    if isinstance(config, RunConfig):
        if config.canary.every is None:
            raise UsageError(
                "a trial of essa adapt is judged by its canary, and the base has none: add canary.data=PACKED:val canary.every=STEPS"
            )
        return config.canary.every
    every: Duration = config.validation.every  # type: ignore[attr-defined]
    return every


def check_runs(config: TuneConfig) -> JobConfig:
    """The settings of the first draw, after many draws were found to be allowed. Raises UsageError that names the draw."""
    first: JobConfig | None = None
    for drawn in preview(config, TRIED):
        try:
            loaded = run_config(config, drawn)
            look_every(loaded)
        except UsageError as error:
            if first is None:
                look_every(
                    run_config(config, {})
                )  # is it the base itself? then its own error is the better one
            said = " ".join(words(drawn))
            raise UsageError(f"the space allows {said}, which a run doesn't: {error}") from None
        if loaded.resume or loaded.overwrite:
            raise UsageError("resume and overwrite belong to the sweep: take them out of the base")
        first = first or loaded
    assert first is not None
    return first


def preview(config: TuneConfig, most: int) -> Iterator[Draw]:
    """Draws of the space, up to ``most``: of a grid its points, else random ones."""
    space = Space(config.space)
    if isinstance(config.search, GridSearch):
        yield from (drawn for drawn, _ in zip(space.grid(), range(most), strict=False))
        return
    yield from (space.sample(config.seed, number) for number in range(most))


def trials_of(config: TuneConfig) -> int:
    """How many trials the sweep makes."""
    if isinstance(config.search, GridSearch):
        return sum(1 for _ in Space(config.space).grid())
    return config.search.trials


def run_yaml(config: TuneConfig, drawn: Draw, out: str) -> str:
    """The settings of the run that tries ``drawn``, whole, as its folder has them."""
    return to_yaml(run_config(config, drawn, out))


def share(config: TuneConfig, run: JobConfig, env: dict[str, str]) -> tuple[str, ...]:
    """The settings by which trials of a machine share a folder: those that ``run`` allows.

    ``env``: of its launcher. DALI decodes by itself, a stream has no index, ZeRO-3 spreads frozen weights over ranks.
    """
    data = run.data  # type: ignore[attr-defined]
    can_decode = getattr(data, "decoder", "") != "dali" and getattr(data, "order", "plan") == "plan"
    if {"data.decoder", "data.order"} & config.space.keys():
        can_decode = False
    file = env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    zero = json.loads(Path(file).read_text()).get("zero_optimization", {}) if file else {}
    spread = zero.get("stage") == 3 or run.shard_frozen
    return ("data.decoded",) * can_decode + ("shared_trunk",) * (not spread)
