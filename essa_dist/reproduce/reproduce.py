"""``essa reproduce``: a paper's comparison as one command that plans, runs what is missing, and fills the table."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from essa_dist.errors import UsageError
from essa_dist.evaluation.suite.table import write_table
from essa_dist.packing.lock import lock
from essa_dist.reproduce.config import ReproduceConfig
from essa_dist.reproduce.estimate import Speed, speed
from essa_dist.reproduce.grids import GRIDS
from essa_dist.reproduce.plan import Plan, Planned, is_packed, make_plan, pack_words, read_result
from essa_dist.reproduce.running import Processes, run_cell
from essa_dist.reproduce.table import COLUMNS, table_of, to_markdown

log = logging.getLogger(__name__)


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Plan the grid; unless it is a dry run, run what is missing and write ``out/table.{json,csv,md}``.

    Returns ``plan`` (see :func:`told`), of a run also ``table``, ``failed`` (cell to reason), ``left`` (cells that
    could not be run, with what they need) and ``files``; ``exit_code`` 1 where cells failed. Finished cells, known by
    ``out/cells/NAME.json``, are not run again unless their settings or images have changed. Raises UsageError for what
    doesn't fit, and Preempted after a signal, when the cells that ran have saved.
    """
    grid, out = GRIDS[config.grid], Path(config.out)
    if not Path(config.data_root).is_dir():
        raise UsageError(f"no folder data_root={config.data_root}: give the folder of the data sets")
    plan = make_plan(grid, config)
    if config.dry_run:
        return {"plan": told(plan)}
    if out.exists() and not out.is_dir():
        raise UsageError(f"out={out} is a file: name a folder")
    processes = Processes(config.launch)
    busy = f"another essa reproduce runs in out={out}: wait for it, or choose another out"
    with closing(lock(out / ".lock", busy)), processes.listening():
        plan = make_plan(
            grid, config
        )  # again: another driver may have finished cells before this one had the lock
        if grid.packs:
            _pack_missing(plan)
            plan = make_plan(grid, config)
        failed = _run(plan, processes)
    table = table_of(plan, grid.cells(config, plan.seeds))
    files = write_table(table, out, columns=COLUMNS, page=to_markdown)
    left = {one.cell.name: one.status for one in plan.cells if one.status in ("data", "weights")}
    return {
        "plan": told(plan),
        "table": table,
        "failed": failed,
        "left": left,
        "files": [str(file) for file in files],
        "exit_code": int(bool(failed)),
    }


def told(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: ``cells`` with their commands and estimates, ``sets`` with the commands that pack what is missing."""
    fast = measured_speed(plan)
    todo = [one for one in plan.cells if one.status != "done"]
    return {
        "grid": plan.config.grid,
        "counts": dict(Counter(one.status for one in plan.cells)),
        "sets": plan.sets,
        "weights": sorted({one.cell.weights for one in plan.cells if one.status == "weights"}),
        "device": plan.grid.device,
        "tflops": fast.tflops,
        "measured_on": fast.measured,
        "hours_left": sum(fast.seconds(one.work) for one in todo) / 3600,
        "cells": [
            {
                "name": one.cell.name,
                "status": one.status,
                "steps": one.work.steps,
                "images": one.work.images,
                "seconds": round(fast.seconds(one.work), 1),
                "command": one.command,
            }
            for one in plan.cells
        ],
    }


def measured_speed(plan: Plan) -> Speed:
    """Of the cells that were finished in one go, or the one that is assumed."""
    finished = [
        (one.work, result["seconds"])
        for one in plan.cells
        if (result := read_result(one.result, one.identity)) is not None and not result.get("resumed")
    ]
    assumed = plan.config.tflops or plan.grid.tflops
    return speed(assumed, plan.grid.start_s, finished)


def _pack_missing(plan: Plan) -> None:
    from essa_dist.packing.pack import PackConfig, pack
    from essa_dist.settings import load

    for one in plan.grid.sets:
        if one.name in plan.sets and not is_packed(plan.grid, plan.config, one):
            _, _, src, *words = pack_words(plan.grid, plan.config, one)
            log.info("packing %s", src)
            pack(load(PackConfig, None, words, values={"src": src}))


def _run(plan: Plan, processes: Processes) -> dict[str, str]:
    """Run what is missing; cells that failed, with the reason."""
    failed: dict[str, str] = {}
    todo = [one for one in plan.cells if one.status == "missing"]
    progress = Progress(len(todo))

    def one_cell(one: Planned) -> None:
        if processes.stopped:
            return
        if one.cell.start in failed:
            reason = f"{one.cell.start}, which it starts from, failed"
        else:
            begin = time.monotonic()
            reason = run_cell(one, processes, keep_checkpoints=plan.config.keep_checkpoints)
            progress.tell(one, time.monotonic() - begin, reason)
        if reason:
            failed[one.cell.name] = reason

    for verb in ("adapt", "finetune"):
        _each(one_cell, [one for one in todo if one.cell.verb == verb], plan.config.jobs)
    return failed


def _each(work: Callable[[Planned], None], cells: Sequence[Planned], jobs: int) -> None:
    if jobs == 1:
        for one in cells:
            work(one)
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, one) for one in cells]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Progress:
    """A line for each cell that ends."""

    def __init__(self, total: int) -> None:
        self.total, self.count, self.begin = total, 0, time.monotonic()

    def tell(self, one: Planned, seconds: float, reason: str) -> None:
        """What became of it, and when all will be done at this pace."""
        self.count += 1
        left = (time.monotonic() - self.begin) / self.count * (self.total - self.count)
        found = read_result(one.result, one.identity)
        said = f"failed: {reason}" if reason else _value(found or {})
        log.info(
            "%d/%d %s: %s, %.0f s; about %.0f min left",
            self.count,
            self.total,
            one.cell.name,
            said,
            seconds,
            left / 60,
        )


def _value(found: dict[str, Any]) -> str:
    result = found.get("result", {})
    test = result.get("test")
    if not test:
        return "done"
    metric = result["target_metric"]
    return f"{metric} {json.dumps(test['values'][metric])[:6]}"
