"""``essa bench data``: every way makes the same batches of the same samples, and their cost is counted whole."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from essa_dist.bench.data import USUAL, BenchDataConfig, bench_data
from essa_dist.bench.machine import cpu_seconds
from essa_dist.bench.synthetic import synthetic_set
from essa_dist.bench.usual import usual_batches
from essa_dist.data.loader import CropLoader, DataConfig
from essa_dist.data.shards import PackedImages, open_packed
from essa_dist.data.views import CropConfig
from essa_dist.errors import UsageError

SMALL = CropConfig(global_size=32, local_size=16, n_local=2)


@pytest.fixture(scope="module")
def cells(repository: Path) -> PackedImages:
    return open_packed(f"{repository / 'assets' / 'blood_cells'}:test")


def test_rows_tell_each_way_and_the_file_holds_them(cells: PackedImages, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    config = BenchDataConfig(
        packed=f"{cells.folder}:test",
        ways=("pil", "torchvision"),
        crops=SMALL,
        batch_size=4,
        steps=2,
        warmup=1,
        rounds=3,
        workers=1,
        out=str(out),
    )
    result = bench_data(config)
    assert json.loads(out.read_text())["rows"] == result["rows"]
    assert [(row["set"], row["way"]) for row in result["rows"]] == [
        (cells.manifest.name, way) for way in ("pil", "torchvision")
    ]
    for row in result["rows"]:
        assert row["img_per_s"] == sorted(row["turns_img_per_s"])[1] > 0
        assert row["cpu_ms_per_img"] > 0
    assert len(result["table"]) == 3


@pytest.mark.parametrize("policy", ["dinov2", "medical"])
@pytest.mark.parametrize("way", USUAL)
def test_the_usual_ways_make_batches_of_the_same_samples_and_looks(
    cells: PackedImages, way: str, policy: str
) -> None:
    crops = SMALL.model_copy(update={"policy": policy, "resize": 64})
    settings = {"batch_size": 24, "workers": 0, "patch_size": 8, "steps": range(2)}
    usual = list(usual_batches(USUAL[way], cells, crops, **settings))
    loader = CropLoader(cells, DataConfig(crops=crops, workers=0), seed=0, global_batch=24, patch_size=8)
    ours = list(loader.batches(0, 2))
    assert [(batch.keys, batch.step) for batch in usual] == [(batch.keys, batch.step) for batch in ours]
    for name in ("global_crops", "local_crops"):
        theirs, mine = (torch.cat([getattr(batch, name) for batch in made]) for made in (usual, ours))
        assert (theirs.shape, theirs.dtype) == (mine.shape, torch.uint8)
        # Other draws of the same distributions.
        assert abs(theirs.float().mean() - mine.float().mean()) < 15
        assert abs(theirs.float().std() - mine.float().std()) < 10


def test_the_16_bit_set_is_stored_with_16_bits_and_fills_its_range(tmp_path: Path) -> None:
    images = synthetic_set("png16", tmp_path, images=2, size=64)
    assert images.index.bits.tolist() == [16, 16]
    shown = images.decode(0)
    assert shown.shape == (3, 64, 64)
    assert shown.float().std() > 20


def test_cpu_time_of_living_and_of_ended_children_counts() -> None:
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); input()"
    before = cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        while_living = cpu_seconds() - before
        child.communicate(b"\n")
    assert while_living >= 0.45
    assert cpu_seconds() - before >= 0.45
    time.sleep(0.2)
    idle = cpu_seconds()
    time.sleep(0.1)
    assert cpu_seconds() - idle < 0.1


def test_a_folder_that_is_not_there_is_said_before_minutes_of_measuring(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its folder is not there"):
        bench_data(BenchDataConfig(out=str(tmp_path / "no" / "speed.json")))
