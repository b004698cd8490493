"""What sharing decoded images saves: time of an image, and memory of several processes that read the same set.

python benchmarks/decoded_cache.py [PACKED:SPLIT ...] [--images 512] [--processes 1 2 4] [--out RESULT.json]

Two sets of 512 px are made besides those that are named. Each batch is made by the training loader (the crops of the
default settings) without `data.decoded`, with it for the first time, and again; then without crops. Memory is that of
processes which have all seen every image once and keep nothing, decoded images of their own, or the shared ones; the
page cache that the shared file may take comes on top, once, and the kernel may take it back.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

import essa_dist  # noqa: F401  (mends torchvision where that is needed)
from essa_dist.bench.machine import machine
from essa_dist.bench.synthetic import synthetic_set
from essa_dist.data.decoded import used
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.shards import PackedImages, open_packed

BATCH, PATCH = 16, 14
READER = """
import sys
import torch
import essa_dist
from essa_dist.data.shards import open_packed
ref, way, folder = sys.argv[1:]
torch.set_num_threads(1)
images = open_packed(ref).keep_decoded(folder if way == "shared" else "", 1000)
kept = []
for i in range(len(images)):
    image = images.decode(i)
    if way == "own":
        kept.append(image[: int(images.index.channels[i])].clone() if images.index.bits[i] == 8 else image)
print("ready", flush=True)
sys.stdin.read()
"""


Work = Callable[[int], Any]
"""Makes the batch of a step."""


def speed(ref: str, count: int) -> dict[str, Any]:
    """CPU milliseconds an image by each way."""
    steps = min(count, len(open_packed(ref))) // BATCH
    return {
        "images": steps * BATCH,
        "loader": in_turns(ref, steps, cropping),
        "without_crops": in_turns(ref, steps, decoding),
    }


def in_turns(ref: str, steps: int, maker: Callable[[PackedImages], Work]) -> dict[str, float]:
    """Step by step without, for the first time, and again, so that a busy moment of the machine hits all of them."""
    with tempfile.TemporaryDirectory() as folder:
        folders = {"without": "", "first": folder, "later": folder}
        ways = {way: maker(open_packed(ref).keep_decoded(kept, 1000)) for way, kept in folders.items()}
        return row([{way: timed(work, step) for way, work in ways.items()} for step in range(steps)])


def cropping(images: PackedImages) -> Work:
    loader = CropLoader(images, DataConfig(workers=0), seed=0, global_batch=BATCH, patch_size=PATCH)
    return lambda step: list(loader.batches(step, step + 1))


def decoding(images: PackedImages) -> Work:
    return lambda step: [images.decode(i) for i in range(BATCH * step, BATCH * (step + 1))]


def timed(work: Work, step: int) -> float:
    """CPU milliseconds an image: other processes of the machine change them less than the clock."""
    begin = time.process_time()
    work(step)
    return 1e3 * (time.process_time() - begin) / BATCH


def row(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians of the steps, the first of which warms up, and of the ratios within them."""
    steps = steps[1:]
    found = {f"{way}_ms": statistics.median(step[way] for step in steps) for way in steps[0]}
    found |= {
        f"{way}_speedup": statistics.median(step["without"] / step[way] for step in steps)
        for way in ("first", "later")
    }
    return {name: round(value, 3) for name, value in found.items()}


def memory(ref: str, processes: int, way: str) -> dict[str, Any]:
    """MB of so many processes together."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", READER, ref, way, folder]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        try:
            if any(one.stdout is None or one.stdout.readline() != "ready\n" for one in running):
                raise SystemExit(f"{ref}: a reader ended early")
            taken = [psutil.Process(one.pid).memory_full_info() for one in running]
            page_cache = used(Path(folder))
        finally:
            for one in running:
                one.communicate()  # its standard input is closed, so it ends
    return {
        "way": way,
        "processes": processes,
        "pss_mb": round(sum(info.pss for info in taken) / 1e6),
        "uss_mb": round(sum(info.uss for info in taken) / 1e6),
        "page_cache_mb": round(page_cache / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "packed", nargs="*", help="packed sets, as DIR:SPLIT; of the first, memory is measured"
    )
    parser.add_argument("--images", type=int, default=512, help="of each set, at most, for times")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "decoded_cache", "machine": machine(torch.device("cpu"))}
    with tempfile.TemporaryDirectory() as folder:
        made = [synthetic_set(kind, Path(folder), images=48, size=512) for kind in ("jpeg8", "png16")]
        refs = [*given.packed, *(f"{images.folder}:{images.split}" for images in made)]
        result["sets"] = [about(ref) | speed(ref, given.images) for ref in refs]
        result["memory"] = about(refs[0]) | {
            "readers": [
                memory(refs[0], processes, way)
                for processes in given.processes
                for way in ("nothing", "own", "shared")
            ]
        }
    text = json.dumps(result, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


def about(ref: str) -> dict[str, Any]:
    images = open_packed(ref)
    index = images.index
    return {
        "set": images.manifest.name,
        "samples": len(images),
        "size": [int(index.height[0]), int(index.width[0])],
        "bits": int(index.bits[0]),
        "format": {b"\xff\xd8": "JPEG", b"\x89P": "PNG"}.get(images.read(0)[:2], "other"),
    }


if __name__ == "__main__":
    main()
