"""What a trial of a sweep costs beside the same job started by torchrun: wall and CPU seconds.

usage: python benchmarks/tune_overhead.py [--rounds N] [--out FILE]

A tiny run on two ranks (that of tune_drills.py), in turns: alone by torchrun, as a sweep of one trial, as a sweep of three
trials one after another. The overhead of a trial is a third trial's share, (three - one) / 2 - alone; that of the sweep
itself, Ray's start and the report, is one - alone - the overhead of a trial.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.tune_drills import make_files  # noqa: E402
from essa_dist.bench.machine import machine  # noqa: E402

RESULTS = REPOSITORY / "benchmarks/results/tune_overhead.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    words = parser.parse_args()
    wall: dict[str, list[float]] = {"alone": [], "one": [], "three": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_files(folder)
        for number in range(words.rounds):
            for name, seconds in wall.items():
                seconds.append(timed(command(name, folder, f"{name}{number}")))
                print(f"{name}: {seconds[-1]:.1f} s", flush=True)
    alone, one, three = (statistics.median(wall[name]) for name in ("alone", "one", "three"))
    trial = (three - one) / 2 - alone
    found = {
        "wall_s": wall,
        "overhead_of_a_trial_s": round(trial, 1),
        "overhead_of_a_sweep_s": round(one - alone - trial, 1),
        "cpu_s_of_all": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, 1),
    }
    words.out.write_text(json.dumps({**machine(torch.device("cpu")), **found}, indent=1) + "\n")
    print(json.dumps(found))


def command(name: str, folder: Path, out: str) -> list[str]:
    run = [f"data.train={folder / 'packed'}", f"out={folder / out}"]
    if name == "alone":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "essa_dist"]
        return [*launcher, "adapt", str(folder / "run.yaml"), "optim.lr=0.001", *run]
    space = folder / f"{name}.yaml"
    lrs = "[0.001]" if name == "one" else "[0.001, 0.0011, 0.0012]"
    space.write_text(
        f"space: {{optim.lr: {{choices: {lrs}}}}}\nsearch: {{kind: grid}}\njob: {{workers: 2}}\nconcurrent: 1\n"
    )
    return ["-m", "essa_dist", "tune", str(space), f"base={folder / 'run.yaml'}", *run]


def timed(words: list[str]) -> float:
    begin = time.monotonic()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - begin


if __name__ == "__main__":
    main()
