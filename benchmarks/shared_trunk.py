"""Host memory and start-up time of several runs on one machine, whose frozen weights are their own or shared.

python benchmarks/shared_trunk.py [--models dinov2_vits14 dinov2_vitl14] [--processes 1 2 4] [--out RESULT.json]

Each process is a run of its own, as a trial of a sweep: APLA and LoRA in turns, on CPUs, from one file of fp32 weights,
three updates on small crops. ``pss_gib`` is what all of them occupy together behind the last update (a page that two
processes map counts half for each), ``uss_gib`` what each has alone, ``peak_gib`` the largest sum of PSS that was seen ten
times a second from the start on, ``start_cpu_s`` what each took of a core until it could train, which other work on the
machine changes less than the time of a clock. The run called ``shared, first`` writes the file.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

ADAPTERS = ("apla", "lora")
WORDS = [
    "batch_size=2",
    "duration=3",
    "device=cpu",
    "threads=1",
    "objective.head.prototypes=1024",
    "data.crops={policy: medical, global_size: 56, local_size: 28, n_local: 2}",
    "data.workers=0",
    "checkpoint.every=0",
]
GIB = 1 << 30


def train(words: list[str]) -> None:
    """One run, which says when it has built its model and when it has trained, and then stays until it is told to go."""
    from accelerate import Accelerator

    from essa_dist.engine.adapt import Adaptation
    from essa_dist.engine.build import Training
    from essa_dist.engine.config import RunConfig
    from essa_dist.engine.train import Run, run_job
    from essa_dist.engine.watching.signals import stop_signals
    from essa_dist.settings import load

    class Staying(Adaptation):
        def build(self, accelerator: Accelerator, *, restored: bool = False) -> Training:
            training = super().build(accelerator, restored=restored)
            print(f"\nbuilt {time.process_time()}", flush=True)
            return training

        def finish(self, run: Run) -> dict[str, Any]:
            print("\ntrained", flush=True)
            sys.stdin.readline()
            return {}

    with stop_signals() as signals:
        run_job(Staying(load(RunConfig, None, words)), signals)


def memory(pid: int) -> tuple[float, float]:
    """PSS and USS of a process, GiB; zero once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (OSError, ProcessLookupError):
        return 0.0, 0.0
    held = {line.split(":")[0]: int(line.split()[1]) * 1024 / GIB for line in lines}
    return held.get("Pss", 0.0), held.get("Private_Clean", 0.0) + held.get("Private_Dirty", 0.0)


def measure(folder: Path, model: str, processes: int, shared_trunk: Path | None) -> dict[str, Any]:
    """Start ``processes`` runs at once and look at them."""
    words = [f"backbone.name={model}", f"backbone.weights={folder / model}.safetensors"]
    words += [f"shared_trunk={shared_trunk}"] if shared_trunk else []
    running = []
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        logs = [Path(runs) / f"{i}.log" for i in range(processes)]
        for i, log in enumerate(logs):
            own = [*WORDS, *words, f"data.train={folder / 'packed'}"]
            own += [f"adapter={ADAPTERS[i % 2]}", f"out={Path(runs) / str(i)}"]
            running.append(start(own, log))
        try:
            peak = 0.0
            while not all("\ntrained" in log.read_text() for log in logs):
                peak = max(peak, sum(memory(p.pid)[0] for p in running))
                if any(p.poll() is not None for p in running):
                    raise RuntimeError("\n".join(log.read_text() for log in logs))
                time.sleep(0.1)
            found = [memory(p.pid) for p in running]
            said = [line for log in logs for line in log.read_text().splitlines()]
        finally:
            for p in running:
                p.kill()
                p.wait()
    return {
        "pss_gib": round(sum(pss for pss, _ in found), 3),
        "uss_gib": [round(uss, 3) for _, uss in found],
        "peak_gib": round(peak, 3),
        "start_cpu_s": [round(float(line.split()[1]), 1) for line in said if line.startswith("built ")],
    }


def start(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    out: IO[bytes]
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, __file__, "--train", *words],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def prepare(folder: Path, models: list[str]) -> None:
    """A packed set, and a file of random weights for each model."""
    import numpy as np
    from PIL import Image
    from safetensors.torch import save_file

    from essa_dist import pack
    from essa_dist.backbones import BackboneConfig, build_backbone

    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for i in range(16):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / "images" / f"{i:02d}.png")
    pack(str(folder / "images"), out=str(folder / "packed"))
    for model in models:
        backbone = build_backbone(BackboneConfig(name=model, weights="random"))
        save_file(backbone.vit.state_dict(), folder / f"{model}.safetensors")


def compare(folder: Path, model: str, processes: int) -> list[dict[str, Any]]:
    """Without, and with a file that is there or, for a model's first comparison, is written."""
    shared = folder / f"shared-{model}"
    ways = ["own", *["shared, first"] * (not shared.exists()), "shared"]
    return [
        {"model": model, "processes": processes, "weights": way}
        | measure(folder, model, processes, None if way == "own" else shared)
        for way in ways
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--models", nargs="+", default=["dinov2_vits14", "dinov2_vitl14"])
    arguments.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--train", nargs="+", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.train:
        train(given.train)
        return
    rows = []
    about = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.models)
        for model in given.models:
            for processes in given.processes:
                found = compare(Path(name), model, processes)
                print("\n".join(json.dumps(row) for row in found), flush=True)
                rows += found
                if given.out:
                    given.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
