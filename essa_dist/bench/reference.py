"""``essa bench reference``: lightly-train's DINOv2 step and ours on the same ViT, crops, batch and machine, in turns.

Its step is what its own profiler calls ``batch_time``: masks, teacher, student, losses, backward, clipping, AdamW and EMA;
loading of images is not in it and told apart. Ours is that of ``essa bench step``.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import Field

from essa_dist.bench.children import ChildError, run_json
from essa_dist.bench.clock import spread
from essa_dist.bench.compare import ESSA, Case, Variants
from essa_dist.bench.machine import check_out, chosen_device, machine, write_result
from essa_dist.bench.peer import VERSION, make_images, peer_command, peer_turn, ready_environment
from essa_dist.bench.tables import markdown
from essa_dist.engine.config import RunConfig
from essa_dist.errors import EssaError
from essa_dist.planning.plan import crops_in_words, read_words
from essa_dist.settings import Config
from essa_dist.settings.words import OneOrMore

log = logging.getLogger(__name__)

PEER = "lightly-train"
DIFFERENCES = (
    "its batch_time also holds the drawing of masks and Lightning's logging; its student's last layer has a learning rate of "
    "0 in the first 1,250 steps, and its gradient is computed",
    "it trains every parameter, as full does; apla trains part of the trunk, and all of the heads",
    "decoding and augmentation are in neither step; both have the same threads, prototypes, crops, masks and losses",
)


class BenchReferenceConfig(Config):
    """Words that are not named here are those of `essa adapt`: backbone.name (dinov2_vit{s,b,l,g}14), batch_size, crops."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`, given as they are."""
    env: str = "~/.cache/essa_dist/lightly_train"
    """Folder of the virtual environment with lightly-train; made, and filled from the package registry, where it isn't."""
    adapters: OneOrMore[str] = ("full", "apla")
    """Ours, with settings after colons, as `full,apla:rank=8`."""
    variants: Variants = ("",)
    """Settings of ours, as `engine.fast=true|engine.fast=false`; blanks between the words of one."""
    rounds: int = Field(3, ge=1)
    """Turns of each."""
    warmup: int = Field(2, ge=1)
    """Steps of a turn before those that are timed."""
    steps: int = Field(3, ge=1)
    """Steps of a turn that are timed; their median counts."""
    timeout_s: float = Field(1800.0, gt=0)
    """Seconds after which one turn is given up."""
    out: str = ""
    """JSON file to write after each round; empty: none."""


def bench_reference(config: BenchReferenceConfig) -> dict[str, Any]:
    """Images per second of each, and ratios to lightly-train's of the same round.

    Raises UsageError for settings that one of the two has no words for, EssaError where lightly-train can't be had or run.
    """
    check_out(config.out)
    run = read_words(config.run)
    cases = _cases(config)
    device = chosen_device(run.device)
    threads = run.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    peer_command(
        run, images=Path(), out=Path(), gpu=device.type == "cuda"
    )  # what can't be told is told at once
    env = Path(config.env).expanduser().absolute()
    versions = ready_environment(env)
    result: dict[str, Any] = {
        "benchmark": "reference",
        "versions": versions,
        "differences": DIFFERENCES,
        "settings": config.model_dump(mode="json"),
        "machine": machine(device),
    }
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in (PEER, *cases)}
    with tempfile.TemporaryDirectory(prefix="essa_reference_") as folder:
        scratch = Path(folder)
        make_images(scratch / "images", run.batch_size * (config.warmup + config.steps))
        words = peer_command(run, images=scratch / "images", out=scratch / "out", gpu=device.type == "cuda")
        for number in range(config.rounds):
            try:
                found: dict[str, Any] = peer_turn(
                    env, words, scratch=scratch, threads=threads, out=scratch / "out", timeout_s=config.timeout_s
                )  # fmt: skip
                seconds = median(found["step_s"][config.warmup :] or found["step_s"])
                waited = median(found["data_s"] or [0.0])
                turns[PEER].append(found | {"img_per_s": run.batch_size / seconds, "data_s": waited})
                _tell(config, number, PEER, turns)
                for name, case in cases.items():
                    turns[name].append(_our_turn(case, config, threads))
                    _tell(config, number, name, turns)
            except ChildError as error:
                raise EssaError(f"round {number + 1}: {error}") from None
            result["rows"] = rows_of(turns)
            result["table"] = list(_lines(run, result, threads))
            write_result(config.out, result)
    return result


def _cases(config: BenchReferenceConfig) -> dict[str, Case]:
    """Ours, by name; their words are looked at here."""
    found = {}
    for adapter in config.adapters:
        for variant in config.variants:
            case = Case(adapter, "single", variant)
            read_words(case.words(config.run, weak=False))
            found[" ".join(["essa", adapter, *variant.split()])] = case
    return found


def _our_turn(case: Case, config: BenchReferenceConfig, threads: int) -> dict[str, Any]:
    words = [f"warmup={config.warmup}", f"steps={config.steps}", "peaks=false", "count=false"]
    words += [f"threads={threads}", "--json"]
    command = [*ESSA, "bench", "step", *case.words(config.run, weak=False), *words]
    return run_json(command, timeout_s=config.timeout_s)


def _tell(
    config: BenchReferenceConfig, number: int, name: str, turns: Mapping[str, Sequence[dict[str, Any]]]
) -> None:
    log.info("round %d/%d  %s: %.2f img/s", number + 1, config.rounds, name, turns[name][-1]["img_per_s"])


def rows_of(turns: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Median rates with their spread, and ratios of the same round to the first's."""
    base = next(iter(turns.values()))
    return [
        {
            "name": name,
            "img_per_s": spread([turn["img_per_s"] for turn in done]),
            "ratio": spread([b["img_per_s"] / a["img_per_s"] for a, b in zip(base, done, strict=True)]),
            **({"data_s": median(turn["data_s"] for turn in done)} if "data_s" in done[0] else {}),
            **({"peak_gib": median(turn["peak_gib"] for turn in done)} if "peak_gib" in done[0] else {}),
        }
        for name, done in turns.items()
    ]


def _lines(run: RunConfig, result: Mapping[str, Any], threads: int) -> Iterator[str]:
    where = result["machine"]["gpu"] or f"{result['machine']['processor']}, {threads} threads"
    yield f"{run.backbone.name}, {crops_in_words(run)}, batch {run.batch_size}, {run.precision}, {where}"
    cells = [
        [
            row["name"],
            f"{row['img_per_s']['median']:.2f}",
            f"{row['img_per_s']['min']:.2f} - {row['img_per_s']['max']:.2f}",
            f"{row['ratio']['median']:.2f}",
            f"{row['ratio']['min']:.2f} - {row['ratio']['max']:.2f}",
        ]
        for row in result["rows"]
    ]
    yield from markdown(["", "img/s", "min - max", "ratio", "min - max"], cells)
    data = result["rows"][0].get("data_s", 0.0)
    yield f"{PEER} {result['versions'][PEER]} (made for {VERSION}); its loading of images, {data:.2f} s a step, is not in it"
    yield from DIFFERENCES
