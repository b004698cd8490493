"""Fault drills of a sweep: a trial of two ranks whose processes are killed, one kind after another.

usage: python benchmarks/tune_drills.py [--only TEXT] [--times N] [--out FILE]

Each drill starts ``essa tune`` on a tiny run, kills a process with SIGKILL when the trial is under way, and waits for the
end (of a killed sweep: starts it again with resume=true). It passes where the sweep ends well and the trial's checkpoint
is, byte for byte, that of a sweep nobody disturbed. Seconds are those from the kill to the next look of the run that is
new, so with the start of new processes, and with the work that is done again.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from essa_dist import pack  # noqa: E402
from essa_dist.bench.machine import machine  # noqa: E402

RESULTS = REPOSITORY / "benchmarks/results/tune_drills.json"
STEPS, LOOKS = 60, 5
DEADLINE_S = 600
SPACE = """
space: {optim.lr: {choices: [0.001]}}
objectives: {canary_knn: max}
search: {kind: grid}
job: {workers: 2}
"""
RUN = """
duration: 60
batch_size: 8
threads: 1
precision: fp32
log_every: 5
device: cpu
backbone: {name: vit_tiny_patch16_224, weights: random}
adapter: {kind: apla, rank: 4}
objective: {head: {prototypes: 64, hidden: 64, bottleneck: 32}}
data: {workers: 1, crops: {global_size: 32, local_size: 16, n_local: 2}}
checkpoint: {every: 5, keep: 2}
canary: {every: 5, images: 16, k: 3}
"""


def named(title: str) -> Callable[[psutil.Process], bool]:
    """Ray gives an actor's process the name of its class."""
    return lambda process: any(f"ray::{title}" in word for word in process.cmdline()[:1])


def is_rank(process: psutil.Process) -> bool:
    env = process.environ()
    return "ESSA_TRIAL" in env and env.get("RANK") == "1" and "essa_dist" in process.cmdline()


VICTIMS: dict[str, Callable[[psutil.Process], bool]] = {
    "rank": is_rank,
    "Ray worker": named("RayTrainWorker"),
    "trial driver": named("ResourceTrainable"),  # what Ray Tune makes of a Trainable with resources
    "Ray Train controller": named("TrainController"),
}
SWEEP = "sweep driver"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_files(folder)
        start = time.monotonic()
        whole = sweep(folder, "whole")
        assert whole.wait(DEADLINE_S) == 0, (folder / "whole.log").read_text()[-3000:]
        print(f"undisturbed: {time.monotonic() - start:.0f} s", flush=True)
        expected = digest(folder / "whole")
        rows = {}
        for name in (*VICTIMS, SWEEP):
            if words.only in name:
                rows[name] = repeat(name, folder, expected, words.times)
    known = json.loads(words.out.read_text())["drills"] if words.out.is_file() else {}
    words.out.write_text(
        json.dumps({**machine(torch.device("cpu")), "drills": known | rows}, indent=1) + "\n"
    )


def make_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 128, (48, 48, 3), dtype=np.uint8) + (100 if label == "b" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / label / f"{i}.png")
    pack(src=str(folder / "images"), out=str(folder / "packed"))
    (folder / "space.yaml").write_text(SPACE)
    (folder / "run.yaml").write_text(RUN)


def sweep(folder: Path, name: str, *more: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "essa_dist", "tune", str(folder / "space.yaml")]
    command += [
        f"base={folder / 'run.yaml'}",
        f"out={folder / name}",
        f"data.train={folder / 'packed'}",
        *more,
    ]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def step_of(folder: Path) -> int:
    try:
        return int(json.loads((folder / "trials/t0000/trial.json").read_text())["step"])
    except (OSError, ValueError):
        return -1


def digest(out: Path) -> str:
    """Of the tensors of the last checkpoint."""
    newest = sorted((out / "trials/t0000/run/checkpoints").glob("step_*"))[-1]
    assert newest.name == f"step_{STEPS:08d}", newest
    sums = hashlib.sha256()
    for file in sorted(newest.glob("*.safetensors")):
        sums.update(file.read_bytes())
    return sums.hexdigest()


def repeat(name: str, folder: Path, expected: str, times: int) -> dict[str, object]:
    seconds, faults = [], []
    for attempt in range(times):
        out = f"{name.replace(' ', '_')}{attempt}"
        try:
            seconds.append(drill(name, folder, out, expected))
            print(f"{name}: {seconds[-1]:.1f} s to the next look", flush=True)
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}"[-3000:])
            print(f"{name} FAILED: {faults[-1]}", flush=True)
    worst = round(max(seconds), 1) if seconds else None
    return {"attempts": times, "passes": len(seconds), "worst_s_to_next_look": worst, "faults": faults}


def drill(name: str, folder: Path, out: str, expected: str) -> float:
    running = sweep(folder, out)
    try:
        until(lambda: step_of(folder / out) >= 2 * LOOKS, running, "the run doesn't start")
        reached = step_of(folder / out)
        below = psutil.Process(running.pid).children(recursive=True)
        killed = time.monotonic()
        if name == SWEEP:
            running.kill()
            running.wait()
            running = sweep(folder, out, "resume=true")
        else:
            next(one for one in below if one.is_running() and VICTIMS[name](one)).kill()
        until(lambda: step_of(folder / out) > reached, running, "no new look", patient=True)
        seconds = time.monotonic() - killed
        code = running.wait(DEADLINE_S)
        assert code == 0, f"exit code {code}: {(folder / f'{out}.log').read_text()[-2000:]}"
        assert digest(folder / out) == expected, "another result than undisturbed"
        gone = [one for one in below if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert not gone, f"left behind: {[' '.join(one.cmdline()) for one in gone]}"
        return seconds
    finally:
        for one in (
            (*psutil.Process(running.pid).children(recursive=True), running) if running.poll() is None else ()
        ):
            one.kill()


def until(
    done: Callable[[], bool], running: "subprocess.Popen[bytes]", words: str, *, patient: bool = False
) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end, words
        assert patient or running.poll() is None, f"{words}: the sweep has ended"
        time.sleep(0.1)


if __name__ == "__main__":
    main()
