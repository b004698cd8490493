"""Fine-tunes some runs one after another. Started by tests, one process a rank.

usage: python finetunes_of.py FOLDER '{"NAME": ["key=value", ...], ...}'
Writes FOLDER/NAME and FOLDER/results.json. Each run named resumed goes on from the first checkpoint of the one before it.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from essa_dist import finetune
from essa_dist.distributed.collectives import leave, rank, world_size
from essa_dist.runfolder import committed_checkpoints


def as_if_stopped(run: Path, copy: Path) -> None:
    """``copy`` is ``run`` as it was when its first checkpoint was written."""
    if rank() == 0:
        shutil.copytree(run, copy)
        for checkpoint in committed_checkpoints(copy)[1:]:
            shutil.rmtree(checkpoint)
        shutil.rmtree(copy / "evaluation")
    if world_size() > 1:
        dist.barrier()


def main(folder: str, runs: str) -> None:
    torch.set_num_threads(1)
    results, before = {}, Path()
    for name, words in json.loads(runs).items():
        out = Path(folder) / name
        if name == "resumed":
            as_if_stopped(before, out)
        results[name] = finetune(None, *words, f"out={out}", "resume=true")
        before = out
    if rank() == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
