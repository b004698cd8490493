"""What a data set of millions of samples costs to open and to plan: seconds, memory of the process, time of a step's plan.

python benchmarks/data_plan.py [--samples 1000000 100000000] [--out RESULT.json]

Makes an index without images (tars of holes take no disk; the index takes 90 bytes a sample) in a temporary folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from essa_dist.data.index import Index, Keys
from essa_dist.data.manifest import Manifest, Shard

PER_SHARD = 10_000
IMAGE_BYTES = 25_000

OPEN = """
import json, sys, time
from pathlib import Path
import numpy, torch, pyarrow.ipc
import essa_dist.data.plan, essa_dist.data.shards
import essa_dist.data as data
from essa_dist.progress import memory_gib
def private():
    status = Path("/proc/self/status").read_text()
    return int(next(row for row in status.splitlines() if row.startswith("RssAnon")).split()[1]) / 1024
before, private_before, begin = memory_gib(), private(), time.perf_counter()
images = data.open_packed(sys.argv[1])
opened = time.perf_counter() - begin
plan = data.SamplePlan(len(images), 0)
begin = time.perf_counter()
for step in range(100):
    for index in plan.indices(step * 1000, 256):
        images.where(index), images.index.offset[index]
print(json.dumps({
    "open_s": round(opened, 4),
    "plan_ms_per_step_of_256": round((time.perf_counter() - begin) * 10, 3),
    "resident_mb": round((memory_gib() - before) * 1024, 1),
    "of_it_private_mb": round(private() - private_before, 1),
}))
"""


def make(folder: Path, n: int) -> None:
    """An index of ``n`` samples and the manifest of its shards."""
    rows = np.arange(n, dtype=np.int64)
    place = rows % PER_SHARD
    ones = np.ones(n, np.float32)
    Index(
        shard=(rows // PER_SHARD).astype(np.int32),
        offset=place * IMAGE_BYTES,
        length=np.full(n, IMAGE_BYTES),
        crc32=rows.astype(np.uint32),
        height=np.full(n, 512, np.int32),
        width=np.full(n, 512, np.int32),
        channels=np.ones(n, np.uint8),
        bits=np.full(n, 8, np.uint8),
        low=0 * ones,
        high=255 * ones,
        slope=ones,
        intercept=0 * ones,
        label=(rows % 14).astype(np.int32),
        patient=(rows // 4).astype(np.int32),
        mask_offset=np.full(n, -1),
        mask_length=np.zeros(n, np.int64),
        key=keys(n),
    ).write(folder)
    shards = []
    for number in range(-(-n // PER_SHARD)):
        name = f"train-{number:06d}.tar"
        with (folder / name).open("wb") as file:
            file.truncate(PER_SHARD * IMAGE_BYTES)
        count = min(PER_SHARD, n - number * PER_SHARD)
        shards.append(
            Shard(file=name, split="train", count=count, bytes=PER_SHARD * IMAGE_BYTES, sha256="0" * 64)
        )
    Manifest(
        name="holes",
        label_kind="single",
        classes=tuple("abcdefghijklmn"),
        splits=("train",),
        shards=tuple(shards),
        counts={"train": {}},
        samples={"train": n},
        bits={"8": n},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        source="",
        licence="",
        attribution="",
        skipped={},
    ).write(folder)


def keys(n: int) -> Keys:
    """``images/000000000`` and so on, made by Arrow: Python's own strings of 100 million would take 7 GB."""
    import pyarrow as pa
    import pyarrow.compute as pc

    padded = pc.utf8_lpad(pc.cast(pa.array(np.arange(n)), pa.large_string()), 9, "0")
    return Keys(
        pc.binary_join_element_wise(
            pa.scalar("images", pa.large_string()), padded, pa.scalar("/", pa.large_string())
        )
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--samples", type=int, nargs="+", default=[1_000_000, 100_000_000])
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    rows = []
    for n in given.samples:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            make(Path(folder), n)
            row = {"samples": n, "index_bytes": (Path(folder) / "index.arrow").stat().st_size}
            row["write_s"] = round(time.perf_counter() - begin, 1)
            done = subprocess.run(
                [sys.executable, "-c", OPEN, folder], capture_output=True, text=True, check=True
            )
            rows.append(row | json.loads(done.stdout))
            print(json.dumps(rows[-1]))
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
