"""Everything that needs a GPU, in order of value; each row is saved when it ends, and a second call does the rest.

    python benchmarks/gpu_suite.py --minutes 9        # in slices, on a machine that is lent for minutes
    python benchmarks/gpu_suite.py --list

A row is a command that writes JSON; this only runs them, one after another, within the time given. Rows that failed
are tried again by the next call. Results: benchmarks/results/gpu/<row>.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"

ESSA = [sys.executable, "-m", "essa_dist"]
STEP = [
    sys.executable,
    "benchmarks/step.py",
    "--device",
    "cuda",
    "--warmup",
    "5",
    "--steps",
    "20",
    "--rounds",
    "2",
]

FEW = ["full", "apla", "lora", "bitfit", "vpt"]  # those of ESSA's own comparison
MORE = ["full", "ln_tuning", "ssf", "adaptformer", "last_blocks", "explora", "frozen"]
TABLE = [
    "--rounds",
    "1",
    "--steps",
    "10",
    "--largest",
]  # trained parameters, sizes, speed, memory, largest batch


def adapters(model: str, batch: int, kinds: list[str]) -> list[str]:
    """One table: every adapter of ``kinds`` at the same batch, and the largest batch that each can take."""
    return [*STEP, *TABLE, "--model", model, "--batch", str(batch), "--adapters", *kinds]


def strategies(model: str, batch: int) -> list[str]:
    """APLA and full on one GPU under every strategy: img/s and peak memory."""
    spread = ["single", "ddp@1", "zero2@1", "zero3@1", "fsdp2@1"]
    return [
        *STEP,
        *TABLE[:-1],
        "--model",
        model,
        "--batch",
        str(batch),
        "--adapters",
        "apla",
        "full",
        "--strategies",
        *spread,
    ]


def finetuning(model: str, batch: int) -> list[str]:
    """`essa finetune` as a user runs it, with the adapters of the comparison: img/s and peak memory."""
    script = [sys.executable, "benchmarks/finetune_speed.py"]
    return [*script, "--model", model, "--batch", str(batch), "--adapters", "full", "apla", "lora", "frozen"]


def small_grid(seeds: int) -> dict[str, list[str]]:
    """The small grid of `essa reproduce`, four times as long as on a CPU, a row for each set and seed."""
    script = [sys.executable, "benchmarks/small_grid.py"]
    return {
        f"small_{data}_s{seed}": [*script, "--data", data, "--seed", str(seed)]
        for seed in range(seeds)
        for data in ("nuclei", "cxr", "blood")
    }


ROWS: dict[str, list[str]] = {
    "demo": [*ESSA, "demo", "out=runs/gpu_demo", "overwrite=true", "--json"],
    "step_vitl14_b32": [*STEP, "--model", "dinov2_vitl14", "--batch", "32"],
    "adapters_vitl14": adapters("dinov2_vitl14", 32, FEW),
    "finetune_vitl14": finetuning("dinov2_vitl14", 64),
    "finetune_vits14": finetuning("dinov2_vits14", 64),
    "bench_data": [*ESSA, "bench", "data", "--json"],
    "data_wait": [sys.executable, "benchmarks/data_wait.py"],
    "adapters_vitg14": adapters("dinov2_vitg14", 8, FEW),
    "adapters_vitb14": adapters("dinov2_vitb14", 32, FEW),
    "adapters_vits14": adapters("dinov2_vits14", 32, FEW),
    "step_vitl14_b64": [*STEP, "--model", "dinov2_vitl14", "--batch", "64"],
    "step_vitl14_b32_checkpointed": [
        *STEP, "--model", "dinov2_vitl14", "--batch", "32", "--set", "backbone.checkpoint_activations=true",
    ],
    "strategies_vitl14": strategies("dinov2_vitl14", 32),
    "strategies_vitg14": strategies("dinov2_vitg14", 8),
    "step_vitg14_b16": [*STEP, "--model", "dinov2_vitg14", "--batch", "16"],
    "adapters_vitl14_more": adapters("dinov2_vitl14", 32, MORE),
    "adapters_vits14_more": adapters("dinov2_vits14", 32, MORE),
    "demo_full": [*ESSA, "demo", "out=runs/gpu_demo_full", "overwrite=true", "adapter=full", "optim.lr=5e-4", "--json"],
    **small_grid(5),
}  # fmt: skip

GRACE_S = 45
"""How long a row that is out of time may take to save what it has."""


def run(row: str, command: list[str], timeout_s: float) -> str:
    """Run one row and keep its result; what became of it, in words."""
    out = RESULTS / f"{row}.json"
    if command[1].startswith("benchmarks/"):
        command = [*command, "--out", str(out)]
    begin = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        stop(process)
        return f"out of time after {timeout_s:.0f} s; call again"
    if process.returncode:
        last = (errors.strip() or "no output").splitlines()[-1]
        return f"failed ({process.returncode}): {last}"
    if not out.exists():
        out.write_text(json.dumps(json.loads(said.splitlines()[-1]), indent=1) + "\n")
    return f"done in {time.monotonic() - begin:.0f} s"


def stop(process: "subprocess.Popen[str]") -> None:
    """Ask a row to save and end; then end it and all that it has started."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--list", action="store_true", help="what there is and what is done")
    parser.add_argument("rows", nargs="*", help="only these")
    args = parser.parse_args()
    unknown = set(args.rows) - ROWS.keys()
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    deadline, failed = time.monotonic() + 60 * args.minutes, 0
    for row in args.rows or ROWS:
        if (RESULTS / f"{row}.json").exists():
            print(f"{row}: already there", flush=True)
        elif args.list:
            print(f"{row}: to do: {' '.join(ROWS[row])}")
        else:
            left = deadline - time.monotonic()
            outcome = run(row, ROWS[row], left) if left > 20 else "no time left; call again"
            failed += not outcome.startswith("done")
            print(f"{row}: {outcome}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
