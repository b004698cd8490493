"""``essa plan``: what a run will take, device by device and layout by layout, before any of it is booked."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from essa_dist.engine.build import DTYPES
from essa_dist.engine.config import JobConfig, RunConfig
from essa_dist.engine.schedules import in_steps
from essa_dist.errors import UsageError
from essa_dist.planning.choices import Case, Choices, Row
from essa_dist.planning.config import PlanConfig
from essa_dist.planning.devices import CPU, measured_cpu, parse, read_table
from essa_dist.planning.sets import nbytes
from essa_dist.planning.subject import subject_of
from essa_dist.settings import load
from essa_dist.settings.files import read_tree


def plan(config: PlanConfig) -> dict[str, Any]:
    """Memory, time and cost of the run, on each device; sizes in bytes. Raises UsageError for what is not there.

    ``rows``: one for each of ``devices``, with the cheapest layout that fits; ``layouts``: all of them on ``ranks`` ranks of
    the first device.
    """
    begin = time.perf_counter()
    run = read_run(config.run, config.verb)
    table = read_table(config.table)
    network = table.interconnect(config.interconnect)
    wanted = [parse(word, table) for word in config.devices or [n for n in table.devices if n != CPU]]
    dtype = DTYPES[run.precision]
    choices = Choices(run, network, per_machine=config.per_machine, classes=config.classes)
    images = choices.subject.samples(config.images)
    rows = []
    for name, count, device in wanted:
        device = measured_cpu(device, dtype) if name == CPU else device
        if run.precision not in device.tflops:
            raise UsageError(
                f"devices={name}: the table has no tflops of {run.precision}, it has {', '.join(device.tflops)}"
            )
        price = device.price if config.price is None else config.price
        case = Case(name, count, device, price)
        rows.append((case, choices.best(case)))
    first = rows[0][0]
    several = next((count for _, count, _ in wanted if count > 1), config.ranks)
    compared = (
        [choices.row(first._replace(ranks=several), layout) for layout in choices.spread]
        if first.name != CPU
        else []
    )
    steps = _steps(run, images)
    seen = choices.seen(first)
    if config.picture:
        from essa_dist.planning.picture import draw

        draw(Path(config.picture), choices, rows[0][1], first)
    return {
        **choices.subject.facts(),
        "trained_trunk": seen.sets.trunk_parameters,
        "trained_heads": seen.sets.head_parameters,
        "frozen": seen.sets.frozen_parameters,
        "tflop_per_image": choices.tflop_per_image(first),
        "checkpoint_bytes": sum(map(nbytes, (*seen.sets.trained, *seen.sets.teacher, *seen.sets.moments))),
        "images": images,
        "steps": steps,
        "rows": [_told(case, row, run, steps) for case, row in rows],
        "layouts": [_told(first._replace(ranks=several), row, run, steps) for row in compared],
        "dominates": rows[0][1].dominates,
        "interconnect": config.interconnect,
        "picture": config.picture or None,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def read_run(words: Sequence[str], verb: str = "auto") -> JobConfig:
    """The settings that ``verb`` would make of them; ``out`` may be left out. Raises UsageError.

    auto: ``essa finetune`` where a key on top is one that it alone has, as task, head or validation; else ``essa adapt``.
    """
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise UsageError(f"{files[1]!r} is one word too many; settings are written key=value")
    texts = [word for word in words if "=" in word]
    if not any(text.startswith("out=") for text in texts):
        texts = ["out=unused", *texts]
    source = Path(files[0]) if files else None
    tree = read_tree(RunConfig, source) if source and verb == "auto" else {}
    keys = {*tree, *(text.partition("=")[0].partition(".")[0] for text in texts)}
    return load(config_with(keys) if verb == "auto" else _config_of(verb), source, texts)


def config_with(keys: Iterable[str]) -> type[JobConfig]:
    """The settings that have these keys on top: those of ``essa finetune`` if one is there alone."""
    foreign = set(keys) - RunConfig.model_fields.keys()
    finetune = bool(foreign) and bool(foreign & _config_of("finetune").model_fields.keys())
    return _config_of("finetune" if finetune else "adapt")


def _config_of(verb: str) -> type[JobConfig]:
    if verb == "adapt":
        return RunConfig
    from essa_dist.finetune import FinetuneConfig

    return FinetuneConfig


def read_words(words: Sequence[str]) -> RunConfig:
    """Those of an ``essa adapt``, as :func:`read_run`. Raises UsageError for those of an ``essa finetune`` too."""
    run = read_run(words)
    if not isinstance(run, RunConfig):
        raise UsageError(
            f"{' '.join(words)}: these are words of essa finetune; here give those of an essa adapt (essa plan takes both)"
        )
    return run


def facts_of(run: RunConfig) -> dict[str, Any]:
    """What a measurement of ``run`` is of."""
    return subject_of(run).facts()


def crops_in_words(run: RunConfig) -> str:
    """As ``2 x 224 + 8 x 98 px``."""
    return subject_of(run).crops


def _steps(run: JobConfig, images: int | None) -> int | None:
    """Updates of the run; None: they depend on the number of images, which nobody told."""
    if isinstance(run.duration, int):
        return run.duration
    return None if images is None else in_steps(run.duration, max(1, images // run.batch_size))


def _told(case: Case, row: Row, run: JobConfig, steps: int | None) -> dict[str, Any]:
    """A row of the result."""
    found: dict[str, Any] = {
        "device": case.name,
        "ranks": case.ranks,
        "layout": row.layout,
        "problem": row.problem,
        "fits": row.fits,
        "memory_bytes": case.memory,
        "needs_bytes": row.needs,
        "terms": row.terms,
        "largest_batch": row.largest,
        "ways_out": row.ways,
    }
    if row.speed is not None:
        slow, fast = row.speed.seconds
        hours = None if steps is None else [steps * fast / 3600, steps * slow / 3600]
        found |= {
            "img_per_s": [run.batch_size / slow, run.batch_size / fast],
            "sent_bytes": row.speed.sent,
            "sending_s": row.speed.sending,
            "hours": hours,
            "price": case.price,
            "cost": None if hours is None else [case.ranks * case.price * hour for hour in hours],
        }
    return found
