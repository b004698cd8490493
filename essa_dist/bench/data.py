"""``essa bench data``: how fast batches are made, and for how much CPU time, by the usual ways and by ours.

All ways take the same samples through the same worker processes and end in the same uint8 batches; only what is done
to a sample differs. They run in turns, so that a busy moment of the machine hits all of them; medians are told.
"""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from essa_dist.bench.machine import best_device, cpu_seconds, machine, wait
from essa_dist.bench.synthetic import synthetic_set
from essa_dist.bench.usual import PilBatches, TensorBatches, usual_batches
from essa_dist.data.batch import Batch
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.data.views import CropConfig
from essa_dist.errors import UsageError
from essa_dist.settings import Config

logger = logging.getLogger(__name__)

Way = Literal["pil", "v2", "torchvision", "dali"]
USUAL = {"pil": PilBatches, "v2": TensorBatches}


class BenchDataConfig(Config):
    """What is measured."""

    packed: str = ""
    """A packed data set, `DIR` or `DIR:split`; empty: two that are made for it, 8-bit JPEG and 16-bit PNG."""
    ways: tuple[Way, ...] = ("pil", "v2", "torchvision", "dali")
    """`pil`: Pillow and torchvision's transforms on PIL images; `v2`: the same transforms on tensors; `torchvision` and
    `dali`: ours, see `data.decoder`."""
    crops: CropConfig = CropConfig()
    """Multi-crop augmentation."""
    batch_size: int = Field(default=32, ge=1)
    """Samples in a batch."""
    steps: int = Field(default=8, ge=1)
    """Batches that are timed in each turn."""
    warmup: int = Field(default=4, ge=1)
    """Batches before them, which are not: processes start, queues fill."""
    rounds: int = Field(default=3, ge=1)
    """Turns of each way."""
    workers: int = Field(default=2, ge=0)
    """Worker processes; DALI has as many threads besides."""
    device: str = "auto"
    """Where DALI decodes: `auto`, `cpu`, `cuda`."""
    images: int = Field(default=64, ge=2)
    """Pictures in each set that is made."""
    image_size: int = Field(default=512, ge=32)
    """Pixels of their sides."""
    out: str = ""
    """JSON file to write; empty: none."""


def bench_data(config: BenchDataConfig) -> dict[str, Any]:
    """Medians of images per second and CPU-seconds per image, for each set and each way of ``config.ways``.

    Raises UsageError where DALI is asked for and missing, DataError for images that can't be read.
    """
    if config.out and not Path(config.out).parent.is_dir():
        raise UsageError(f"out={config.out}: its folder is not there; make it, or name another")
    device = torch.device(config.device if config.device != "auto" else best_device())
    with tempfile.TemporaryDirectory(prefix="essa_bench_") as folder:
        rows = [row for images in _sets(config, Path(folder)) for row in _measure(images, config, device)]
    result = {
        "table": _table(rows),
        "rows": rows,
        "settings": config.model_dump(mode="json"),
        "machine": machine(device),
    }
    if config.out:
        Path(config.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _sets(config: BenchDataConfig, folder: Path) -> Iterator[PackedImages]:
    if config.packed:
        yield open_packed(config.packed, prefer=("unlabelled", "train"))
        return
    for kind in ("jpeg8", "png16"):
        yield synthetic_set(kind, folder, images=config.images, size=config.image_size)


def _measure(images: PackedImages, config: BenchDataConfig, device: torch.device) -> list[dict[str, Any]]:
    """One row for each way, the first the baseline of ``speedup``."""
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in config.ways}
    for number in range(config.rounds):
        for way in config.ways:
            turn = _turn(_batches(way, images, config, device), config, device)
            turns[way].append(turn)
            logger.info(
                "%s round %d/%d %-12s%7.1f img/s %7.2f CPU ms/img",
                images.manifest.name,
                number + 1,
                config.rounds,
                way,
                turn["img_per_s"],
                1e3 * turn["cpu_s_per_img"],
            )
    rows = [_row(images, way, found, device) for way, found in turns.items()]
    return [row | {"speedup": round(row["img_per_s"] / rows[0]["img_per_s"], 2)} for row in rows]


def _row(
    images: PackedImages, way: str, turns: list[dict[str, float]], device: torch.device
) -> dict[str, Any]:
    def median(name: str) -> float:
        return statistics.median(turn[name] for turn in turns)

    return {
        "set": images.manifest.name,
        "way": way,
        "device": str(device) if way == "dali" else "cpu",
        "img_per_s": round(median("img_per_s"), 1),
        "cpu_ms_per_img": round(1e3 * median("cpu_s_per_img"), 2),
        "fallback": round(median("fallback"), 3),
        "turns_img_per_s": [round(turn["img_per_s"], 1) for turn in turns],
    }


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each row, for a reader."""
    lines = [
        f"{'set':<12}{'way':<14}{'device':<8}{'img/s':>9}{'CPU ms/img':>12}{'speed-up':>10}{'fallback':>10}"
    ]
    for row in rows:
        lines.append(
            f"{row['set']:<12}{row['way']:<14}{row['device']:<8}{row['img_per_s']:>9.1f}"
            f"{row['cpu_ms_per_img']:>12.2f}{row['speedup']:>10.2f}{row['fallback']:>10.0%}"
        )
    return lines


def _turn(
    batches: Generator[Batch, None, None], config: BenchDataConfig, device: torch.device
) -> dict[str, float]:
    """Time ``config.steps`` batches. The workers go on at the end as they did at the start, so the queues are alike."""
    with closing(batches):
        for _ in range(config.warmup):
            next(batches)
        wait(device)
        cpu, start = cpu_seconds(), time.perf_counter()
        timed = [next(batches).fallback for _ in range(config.steps)]
        wait(device)
        wall, spent = time.perf_counter() - start, cpu_seconds() - cpu
    count = config.steps * config.batch_size
    return {
        "img_per_s": count / wall,
        "cpu_s_per_img": spent / count,
        "fallback": sum(timed) / count,
    }


def _batches(
    way: Way, images: PackedImages, config: BenchDataConfig, device: torch.device
) -> Generator[Batch, None, None]:
    steps = range(config.warmup + config.steps + 2 * max(1, config.workers) + 2)  # more than are taken
    if way in USUAL:
        return usual_batches(
            USUAL[way],
            images,
            config.crops,
            batch_size=config.batch_size,
            workers=config.workers,
            patch_size=_patch(config),
            steps=steps,
        )
    data = DataConfig(decoder=way, crops=config.crops, workers=config.workers)
    loader = CropLoader(
        images, data, seed=0, global_batch=config.batch_size, patch_size=_patch(config), device=device
    )
    return loader.batches(steps.start, steps.stop)


def _patch(config: BenchDataConfig) -> int:
    """A patch size that fits both crops: masks are made as in training."""
    fits = [n for n in (14, 16, 8, 4, 2) if not (config.crops.global_size % n or config.crops.local_size % n)]
    return fits[0] if fits else 1
