"""``essa bench compare``: adapters, strategies and settings side by side, each in processes of its own, taking turns.

Peak memory is a property of a process; and a machine that slows down slows all of them. Ratios are of measurements of the
same round.
"""

import logging
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field

from essa_dist.bench.children import ChildError, run_json
from essa_dist.bench.machine import check_out, write_result
from essa_dist.bench.summary import summary
from essa_dist.errors import EssaError, UsageError
from essa_dist.planning.plan import read_words
from essa_dist.settings import Config
from essa_dist.settings.words import OneOrMore

log = logging.getLogger(__name__)


def _parts(value: Any) -> Any:
    """``a=1 b=2|`` as a list; an empty one is nothing set."""
    return [part.strip() for part in value.split("|")] if isinstance(value, str) else value


Variants = Annotated[tuple[str, ...], BeforeValidator(_parts), Field(min_length=1)]


class BenchCompareConfig(Config):
    """Words that are not named here are those of `essa adapt`, for all of them. Needs no data."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    adapters: OneOrMore[str] = ("full", "apla")
    """Adapters, with settings after colons, as `full,apla:rank=8`; the first is what the others are compared with."""
    strategies: OneOrMore[str] = ("single",)
    """Files of launch/ with a number of processes, as `single,ddp@2,zero2@2`."""
    variants: Variants = ("",)
    """Settings to compare, as `engine.fast=true|engine.fast=false`; blanks between the words of one."""
    rounds: int = Field(3, ge=1)
    """Turns of each."""
    warmup: int = Field(2, ge=1)
    """Steps of a turn before those that are timed."""
    steps: int = Field(3, ge=1)
    """Steps of a turn that are timed; their median counts."""
    weak: bool = False
    """batch_size is that of one process; false: of all, as in `essa adapt`."""
    sizes: bool = False
    """Tell what an adapter's file and a checkpoint take."""
    largest: bool = False
    """Search the largest batch that fits too, to an eighth; one GPU."""
    timeout_s: float = Field(1800.0, gt=0)
    """Seconds after which one turn is given up."""
    out: str = ""
    """JSON file to write after each round; empty: none."""


class Case(NamedTuple):
    """One of what is compared."""

    adapter: str
    strategy: str
    variant: str

    def words(self, run: Sequence[str], *, weak: bool) -> list[str]:
        """Those of its `essa adapt`."""
        kind, *settings = self.adapter.split(":")
        words = [*run, f"adapter={kind}", *(f"adapter.{one}" for one in settings), *self.variant.split()]
        if weak:
            words.append(f"batch_size={read_words(words).batch_size * self.processes}")
        return words

    @property
    def processes(self) -> int:
        return int(self.strategy.partition("@")[2] or 1)


def bench_compare(config: BenchCompareConfig) -> dict[str, Any]:
    """Medians over rounds, and ratios to the first; what fails is told in its row, the others go on.

    Raises UsageError for settings that `essa adapt` would refuse, before anything is measured.
    """
    check_out(config.out)
    cases = _cases(config)
    run = read_words(config.run)
    device = [f"device={run.device}", f"precision={run.precision}"]
    device += [f"threads={run.threads}"] if run.threads else []
    try:
        peaks = run_json([*ESSA, "bench", "peaks", *device, "--json"], timeout_s=config.timeout_s)
    except ChildError as error:
        raise EssaError(f"the machine's peaks can't be measured: {error}") from None
    result: dict[str, Any] = {
        "benchmark": "compare",
        "settings": config.model_dump(mode="json"),
        "machine": peaks["machine"],
        "peaks": {name: peaks[name] for name in ("matmul_tflops", "copy_gbs")},
    }
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for number in range(config.rounds):
        for name, case in cases.items():
            turns[name].append(_turn(case, config, first=all("error" in turn for turn in turns[name])))
            log.info("round %d/%d  %s: %s", number + 1, config.rounds, name, _told(turns[name][-1]))
        result |= summary(turns, result["peaks"]["matmul_tflops"])
        write_result(config.out, result)
    return result if result["rows"] else result | {"exit_code": 1}


ESSA = [sys.executable, "-m", "essa_dist"]


def _cases(config: BenchCompareConfig) -> dict[str, Case]:
    """By name: of what differs. Raises UsageError."""
    lists = (config.adapters, config.strategies, config.variants)
    found: dict[str, Case] = {}
    for parts in product(*lists):
        case = Case(*parts)
        read_words(case.words(config.run, weak=False))
        launcher, _, count = case.strategy.partition("@")
        if (count and not count.isdigit()) or case.processes < 1:
            raise UsageError(f"strategies={case.strategy}: write a name and a number of processes, as ddp@2")
        if not _launch_file(launcher).is_file():
            there = ", ".join(sorted(file.stem for file in _launch_file("x").parent.glob("[!k]*.yaml")))
            raise UsageError(
                f"strategies={case.strategy}: no {_launch_file(launcher)}; there are {there or 'none'}"
            )
        differing = [part or "as it is" for part, of in zip(parts, lists, strict=True) if len(of) > 1]
        found[" ".join(differing) or case.adapter] = case
    return found


def _root() -> Path:
    """Where launch/ is, which names files of its own from there."""
    return Path.cwd() if Path("launch").is_dir() else Path(__file__).parents[2]


def _launch_file(name: str) -> Path:
    return _root() / "launch" / f"{name}.yaml"


def _turn(case: Case, config: BenchCompareConfig, *, first: bool) -> dict[str, Any]:
    """One measurement, or what went wrong."""
    run = [os.path.abspath(word) if os.path.isfile(word) else word for word in config.run]
    # Neither the arithmetic nor sizes change from round to round.
    once = {"count": True, "sizes": config.sizes, "largest": config.largest}
    words = [f"{name}={str(wanted and first).lower()}" for name, wanted in once.items()]
    words += ["peaks=false", f"warmup={config.warmup}", f"steps={config.steps}"]
    command = ["bench", "step", *case.words(run, weak=config.weak), *words, "--json"]
    launcher, _, _ = case.strategy.partition("@")
    started = ESSA
    if launcher != "single":
        file, count = str(_launch_file(launcher)), str(case.processes)
        started = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            file,
            "--num_processes",
            count,
        ]
        started += ["--main_process_port", "0", "-m", "essa_dist"]
    try:
        return run_json([*started, *command], timeout_s=config.timeout_s, cwd=_root())
    except ChildError as error:
        return {"error": str(error)}


def _told(turn: dict[str, Any]) -> str:
    if "error" in turn:
        return f"failed: {turn['error']}"
    return f"{turn['img_per_s']:.2f} img/s, peak {turn['peak_gib']:.2f} GiB"
