"""How long training stands still for a checkpoint, and how long the checkpoint takes: ViT-S, all of it trained, on CPUs.

python benchmarks/checkpoint_pause.py [--processes 1 2] [--saves 5] [--every 12] [--out RESULT.json]

Real updates on small crops, with 65,536 prototypes, and a save every few of them: the checkpoint is as large as with
large crops, and the step shorter. ``pause_s`` is what the loop waits in ``Saver.save`` and ``Saver.copied``, on the
slowest rank. ``step_s_beside_a_save`` is longer where the thread that copies and writes shares the cores with training.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = [
    "batch_size=4",
    "duration=100000",
    "precision=fp32",
    "device=cpu",
    "threads=1",
    "backbone.name=dinov2_vits14",
    "backbone.weights=random",
    "adapter=full",
    "objective.head.prototypes=65536",
    "data.crops={policy: medical, global_size: 56, local_size: 28, n_local: 2}",
    "data.workers=0",
]


def train(folder: Path, saves: int, every: int) -> None:
    """One rank: writes what it measured to ``folder``."""
    import torch

    from essa_dist.distributed.collectives import leave
    from essa_dist.distributed.environment import make_accelerator
    from essa_dist.distributed.messages import Channel
    from essa_dist.engine.adapt import Adaptation
    from essa_dist.engine.build import DTYPES
    from essa_dist.engine.config import RunConfig
    from essa_dist.engine.optim import step_values
    from essa_dist.engine.saving.saver import Saver
    from essa_dist.engine.step import train_step
    from essa_dist.settings import load

    config = load(RunConfig, None, [*WORDS, f"data.train={folder / 'packed'}", f"out={folder / 'run'}"])
    torch.set_num_threads(1)
    training = Adaptation(config).build(make_accelerator(cpu=True))
    backbone, channel = training.objective.backbone, Channel()
    channel.together(lambda: (folder / "run" / "checkpoints").mkdir(parents=True))
    saver = Saver(folder / "run", training.strategy, channel, keep=1)
    beside, apart = [], []
    for step, batch in enumerate(training.loader.batches(0, (saves + 1) * every), start=1):
        ready = batch.to("cpu", mean=backbone.mean, std=backbone.std, dtype=DTYPES[config.precision])
        values = step_values(
            step, total=10**5, steps_per_epoch=16, optim=config.optim, schedule=config.schedule
        )
        begin, busy = time.perf_counter(), saver.busy
        train_step(
            training.strategy,
            ready,
            values,
            accumulate=1,
            loss_scale=training.loss_scale,
            diagnose=False,
            at=lambda place: saver.copied() if place == "update" else None,
        )
        if busy == saver.busy and step > 2:
            (beside if busy else apart).append(time.perf_counter() - begin)
        if step % every == 0 and step <= saves * every:
            saver.save(step, {"step": step})
    saver.wait()
    found = {
        "bytes": saver.done[-1].bytes,
        "pause_s": [saved.pause_s for saved in saver.done],
        "save_s": [saved.seconds for saved in saver.done],
        "beside": beside,
        "apart": apart,
    }
    (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
    leave()


def pack_images(folder: Path) -> None:
    """Some images, large enough to be cropped."""
    import numpy as np
    from PIL import Image

    from essa_dist import pack

    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for i in range(64):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / "images" / f"{i:02d}.png")
    pack(str(folder / "images"), out=str(folder / "packed"))


def measure(processes: int, saves: int, every: int) -> dict[str, Any]:
    """What the ranks of one run measured, together."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        pack_images(folder)
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        words = [__file__, "--rank", str(folder), "--saves", str(saves), "--every", str(every)]
        subprocess.run(
            [sys.executable, *(launcher if processes > 1 else []), *words],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        ranks = [json.loads((folder / f"{i}.json").read_text()) for i in range(processes)]
    pauses = [max(of_one_save) for of_one_save in zip(*(r["pause_s"] for r in ranks), strict=True)]
    save_s = ranks[0]["save_s"]
    return {
        "processes": processes,
        "checkpoint_bytes": ranks[0]["bytes"],
        "save_s": round(statistics.median(save_s), 3),
        "pause_s": round(statistics.median(pauses), 4),
        "pause_share": round(sum(pauses) / sum(save_s), 4),
        "first_pause_s": round(pauses[0], 4),
        "worst_pause_s": round(max(pauses), 4),
        "step_s": round(statistics.median(ranks[0]["apart"]), 3),
        "step_s_beside_a_save": round(statistics.median(ranks[0]["beside"]), 3)
        if ranks[0]["beside"]
        else None,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments.add_argument("--saves", type=int, default=5)
    arguments.add_argument("--every", type=int, default=12, help="updates between two saves")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.rank:
        train(given.rank, given.saves, given.every)
        return
    rows = []
    for processes in given.processes:
        rows.append(measure(processes, given.saves, given.every))
        print(json.dumps(rows[-1]))
    if given.out:
        about = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
        }
        given.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
