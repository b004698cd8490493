"""Images a second from a server with latency and errors, against local files: `python benchmarks/remote_data.py [PACKED]`.

Decodes and crops as training does. Prints a table and JSON; about a minute. The server is another process of this
machine, the one that the tests use.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import essa_dist  # noqa: F401  (mends torchvision where that is needed)
from essa_dist.bench.machine import machine
from essa_dist.data.augment import CropConfig, make_crops
from essa_dist.data.plan import SamplePlan, sample_seed
from essa_dist.data.remote import CacheConfig
from essa_dist.data.shards import PackedImages, open_packed

SERVER = Path(__file__).resolve().parents[1] / "tests" / "data" / "remote" / "faulty_server.py"


CELLS = Path(__file__).resolve().parents[1] / "assets" / "blood_cells"


class Batches(Dataset[str]):
    """Item i: a digest of the bytes of batch i, which was decoded and cropped."""

    def __init__(
        self, images: PackedImages, batch: int, ahead: int, stride: int, crops: CropConfig, limit: int
    ) -> None:
        self.images, self.batch, self.ahead, self.stride, self.crops = images, batch, ahead, stride, crops
        self.plan = SamplePlan(len(images), seed=0)
        self.batches = min(len(images), limit) // batch

    def __getitem__(self, step: int) -> str:
        torch.set_num_threads(1)
        samples = self.plan.indices(step, self.batch)
        encoded = self.images.read_many(samples)
        later = range(step + self.stride, step + self.stride * self.ahead + 1, self.stride)
        self.images.ahead([i for after in later for i in self.plan.indices(after, self.batch)])
        for position, (i, data) in enumerate(zip(samples, encoded, strict=True)):
            make_crops(self.images.decode(i, data), self.crops, sample_seed(0, position))
        return hashlib.sha256(b"".join(encoded)).hexdigest()

    def __len__(self) -> int:
        return self.batches


def measure(
    ref: str, cache: CacheConfig, arguments: argparse.Namespace, workers: int, ahead: int
) -> dict[str, Any]:
    """One pass; ``digest`` tells the bytes of all its samples."""
    images = open_packed(ref, prefer=("unlabelled", "train"), cache=cache)
    crops = CropConfig(global_size=arguments.size, n_local=0)
    batches = Batches(images, arguments.batch, ahead, max(1, workers), crops, arguments.images)
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    start, digest = time.perf_counter(), hashlib.sha256()
    for item in loader:
        digest.update(item.encode())
    seconds = time.perf_counter() - start
    return {
        "img_per_s": round(len(batches) * arguments.batch / seconds, 1),
        "digest": digest.hexdigest()[:16],
    }


@contextlib.contextmanager
def serving(folder: Path, latency: float, errors: float) -> Iterator[str]:
    """The address of a server of ``folder``."""
    command = [sys.executable, str(SERVER), str(folder), "--latency", str(latency), "--errors", str(errors)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path, nargs="?", default=CELLS, help="a packed data set")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds before each answer")
    parser.add_argument("--errors", type=float, default=0.01, help="share of requests answered with 503")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=640, help="at most so many of the set")
    parser.add_argument("--size", type=int, default=224, help="of the two crops")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--out", type=Path, help="a file for the JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    packed, rows = arguments.packed.resolve(), []
    with (
        tempfile.TemporaryDirectory() as kept,
        serving(packed.parent, arguments.latency, arguments.errors) as url,
    ):
        for workers in arguments.workers:
            for where, ahead, keep in (
                ("local", 0, 0),
                ("remote", 0, 0),
                ("remote", 2, 0),
                ("remote, into an empty cache", 2, 10**10),
                ("remote, from the cache", 2, 10**10),
            ):
                folder = f"{kept}/{workers}" if keep else f"{kept}/none"
                ref = str(packed) if where == "local" else f"{url}/{packed.name}"
                cache = CacheConfig(folder=folder, bytes=keep)
                row = measure(ref, cache, arguments, workers, ahead)
                rows.append({"data": where, "read_ahead": ahead, "workers": workers, **row})
                local = next(one for one in rows if one["workers"] == workers)
                rows[-1]["of_local"] = round(row["img_per_s"] / local["img_per_s"], 3)
                print(
                    f"workers {workers}  {where:<28} read_ahead {ahead}  {row['img_per_s']:>7} img/s  "
                    f"{100 * rows[-1]['of_local']:.0f} % of local",
                    flush=True,
                )
    if len({row["digest"] for row in rows}) != 1:
        raise SystemExit("bytes differ between storages")
    settings = {"latency_s": arguments.latency, "errors": arguments.errors, "batch": arguments.batch}
    text = json.dumps(
        {"machine": machine(torch.device("cpu")), **settings, "same_bytes": True, "rows": rows}, indent=1
    )
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
