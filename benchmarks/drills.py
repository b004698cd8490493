"""Fault drills, many times at random moments: attempts, passes, the longest way to a safe stop and to the next update.

usage: python benchmarks/drills.py [--only TEXT] [--skip TEXT,TEXT] [--times N] [--seed S] [--out FILE]

A tiny run on two CPU ranks (gloo); what is drilled and promised is in tests/faults/drilling.py. The seconds of a stop
are those from the fault to the end of the last process, the seconds of a resume those from the new command to its first
new update, imports included. Results of drills that are not run again are kept in FILE.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from essa_dist import pack  # noqa: E402
from essa_dist.bench.machine import machine  # noqa: E402
from tests.distributed.launching import accelerate, torchrun  # noqa: E402
from tests.faults import drilling, hanging  # noqa: E402
from tests.faults.drilling import Drill  # noqa: E402

RESULTS = REPOSITORY / "benchmarks/results/drills.json"
Befall = Callable[[Drill, Path, random.Random], float]
"""What befalls the run in a folder; the seconds until its end. AssertionError where a promise is broken."""
Launcher = Callable[[], list[str]]

DRILLS: dict[str, tuple[Befall, Launcher | None, int]] = {}
"""Name to what befalls the run, how it is launched, and how often by default."""


def by_torchrun() -> list[str]:
    return torchrun(2)


def register() -> None:
    """Every drill. A new one is an entry: name, what befalls, launcher, repetitions."""
    kill, kill_in_save = drilling.rank_killed, partial(drilling.rank_killed, place="save")
    DRILLS["kill -9 of a rank, any step"] = (kill, by_torchrun, 20)
    DRILLS["kill -9 of a rank, any step, no launcher"] = (kill, None, 10)
    DRILLS["kill -9 twice in an epoch"] = (twice, by_torchrun, 5)
    DRILLS["kill -9 during a save"] = (kill_in_save, by_torchrun, 10)
    DRILLS["kill -9 of the launcher"] = (drilling.launcher_killed, by_torchrun, 10)
    restarts = partial(torchrun, 2, "--max-restarts=2")
    DRILLS["kill -9 of a rank, torchrun restarts"] = (drilling.restarted, restarts, 5)
    DRILLS["SIGTERM to the launcher"] = (drilling.launcher_told, by_torchrun, 10)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for place in ("settings", "weights", "standardization", "first batch", "step", "evaluation", "save"):
            stop = partial(drilling.stopped_by_signal, number=number, place=place)
            DRILLS[f"{number.name} during {place}"] = (stop, None, 10)
    for strategy in ("zero2", "fsdp2"):
        launcher = partial(accelerate, strategy, 2)
        DRILLS[f"kill -9 of a rank, any step, {strategy}"] = (kill, launcher, 5)
        DRILLS[f"kill -9 during a save, {strategy}"] = (kill_in_save, launcher, 5)
        DRILLS[f"SIGTERM to the launcher, {strategy}"] = (drilling.launcher_told, launcher, 5)
    DRILLS["kill -STOP of a rank, any step"] = (hanging.stopped_process, by_torchrun, 5)
    for fault, place in (
        ("data", "waiting for a batch"),
        ("step", "forward and backward"),
        ("save", "saving"),
    ):
        hang: Befall = partial(hanging.hung, fault=f"{fault}-hangs", place=place)
        DRILLS[f"a rank hangs {place}"] = (hang, by_torchrun, 5)
    DRILLS["NaN on a rank, any step"] = (hanging.not_finite, by_torchrun, 10)
    DRILLS["disk full at a save"] = (hanging.disk_full, by_torchrun, 5)
    DRILLS["a second job with the same out"] = (hanging.second_job, by_torchrun, 3)


def twice(drill: Drill, run: Path, rng: random.Random) -> float:
    return max(drilling.rank_killed(drill, run, rng) for _ in range(2))


def run(name: str, packed: str, folder: Path, *, times: int | None, seed: int) -> dict[str, object]:
    """One drill, as often as wished."""
    befall, launcher, often = DRILLS[name]
    drill = Drill.tiny(packed, folder, launcher=launcher)
    rng = random.Random(f"{seed} {name}")
    stops, resumes, faults = [], [], []
    attempts = times or often
    for attempt in range(attempts):
        begin = time.monotonic()
        try:
            folder_of_run = drill.new_run()
            stop, resume = befall(drill, folder_of_run, rng), drill.finish(folder_of_run)
        except AssertionError as error:
            faults.append(str(error)[-4000:])
            print(f"{name}: attempt {attempt + 1} FAILED: {error}", flush=True)
            continue
        stops.append(stop)
        resumes.append(resume)
        print(
            f"{name}: attempt {attempt + 1} of {attempts}, stop {stop:.1f} s, resume {resume:.1f} s, "
            f"{time.monotonic() - begin:.0f} s in all",
            flush=True,
        )
    return {
        "attempts": attempts,
        "passes": len(stops),
        "worst_s_to_stop": round(max(stops, default=float("nan")), 2),
        "worst_s_to_resume": round(max(resumes, default=float("nan")), 2),
        "faults": faults,
    }


def make_images(folder: Path) -> str:
    rng = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    for i in range(20):
        pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(images / f"{i:02d}.png")
    pack(str(images), out=str(folder / "packed"))
    return str(folder / "packed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="drills with this in their name")
    parser.add_argument("--skip", default="", help="but not those with one of these, separated by commas")
    parser.add_argument("--times", type=int, help="of each drill, in place of its own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    register()
    with tempfile.TemporaryDirectory(prefix="essa-drills-") as folder:
        packed = make_images(Path(folder))
        for i, name in enumerate(DRILLS):
            if args.only in name and not any(part in name for part in args.skip.split(",") if part):
                own = Path(folder) / f"drill_{i}"
                own.mkdir()
                found = run(name, packed, own, times=args.times, seed=args.seed)
                kept = json.loads(args.out.read_text()) if args.out.is_file() else {"drills": {}}
                kept["drills"][name] = found
                kept["machine"], kept["seed"] = machine(torch.device("cpu")), args.seed
                args.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
