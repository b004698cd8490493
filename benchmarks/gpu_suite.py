"""Everything that needs a GPU, in order of value; each row is saved when it ends, and a second call does the rest.

    python benchmarks/gpu_suite.py --list                      # rows, their minutes, and what is done
    python benchmarks/gpu_suite.py --minutes 9                 # in slices, on a machine that is lent for minutes
    python benchmarks/gpu_suite.py --minutes 9 --wheels WHEELS # the same offline, with what that machine lacks

A row is a command that writes JSON; this only runs them, one after another, within the time given. Rows that failed
are tried again by the next call. Results: benchmarks/results/gpu/<row>.json.

WHEELS is a folder of wheels that were brought along; those of packages that are missing are installed, none is replaced.
Large ones may come in parts (split -b 50M NAME.whl NAME.whl.part-). On a machine with a network, fill it by

    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 -d WHEELS -r <(grep -viE '^(torch|torchvision|triton|nvidia-[a-ce-z])' constraints.txt \\
        | grep -viE '^deepspeed')
    DS_BUILD_OPS=0 pip wheel --no-deps -w WHEELS "$(grep -i '^deepspeed==' constraints.txt)"   # it is published as source only

and, for the row `reference`, WHEELS/reference by `pip download ... -d WHEELS/reference lightly-train` with all it needs.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
REFERENCE = ROOT / "runs" / "gpu_reference"
"""An environment of its own for lightly-train."""


class Row(NamedTuple):
    minutes: float
    """An estimate, of nothing that was measured, for an H100."""
    command: list[str]


ESSA = [sys.executable, "-m", "essa_dist"]
FEW = "full,apla,lora,bitfit,vpt"  # those of ESSA's own comparison
MORE = "full,ln_tuning,ssf,adaptformer,last_blocks,explora,frozen"
TIMED = ["device=cuda", "warmup=5", "steps=20"]
SPREAD = "strategies=single,ddp@1,zero2@1,zero3@1,fsdp2@1"


def model(name: str, batch: int) -> list[str]:
    """Words of `essa adapt`."""
    words = [f"backbone.name={name}", "backbone.weights=random", f"batch_size={batch}"]
    return [*words, "data.crops.local_size=96"] if "patch16" in name else words


def compare(name: str, batch: int, *words: str, rounds: int = 2) -> list[str]:
    """Adapters, strategies or settings side by side on one GPU, in turns: img/s, peak memory, ratios."""
    return [*ESSA, "bench", "compare", *model(name, batch), *TIMED, f"rounds={rounds}", *words, "--json"]


def table(name: str, batch: int, kinds: str) -> list[str]:
    """Every adapter of ``kinds`` at the same batch, with sizes, and the largest batch that each can take."""
    return compare(name, batch, f"adapters={kinds}", "largest=true", "sizes=true", "steps=10", rounds=1)


def items(name: str, batch: int, *settings: str) -> list[str]:
    """APLA with each of ``settings`` in place of what is the default."""
    variants = ["engine.fast=true", "engine.fast=false", *settings]
    return compare(name, batch, "adapters=apla", f"variants={'|'.join(variants)}")


def step(name: str, batch: int, *words: str) -> list[str]:
    """One configuration, phase by phase."""
    return [*ESSA, "bench", "step", *model(name, batch), *TIMED, *words, "--json"]


def within(gib: float, command: list[str]) -> list[str]:
    """The same, of a GPU with so much memory."""
    return [sys.executable, "benchmarks/capped.py", str(gib), *command[len(ESSA) :]]


def script(name: str, *words: str) -> list[str]:
    """One of this folder."""
    return [sys.executable, f"benchmarks/{name}.py", *words]


def finetuning(name: str, batch: int) -> list[str]:
    """`essa finetune` as a user runs it, with the adapters of the comparison: img/s and peak memory."""
    adapters = ("full", "apla", "lora", "frozen")
    return script("finetune_speed", "--model", name, "--batch", str(batch), "--adapters", *adapters)


def planned(*words: str) -> list[str]:
    """The plan's peak memory beside the measured one."""
    return script("plan_accuracy", "--device", "cuda", "--precisions", "bf16", *words)


def small_grid(seeds: int) -> dict[str, Row]:
    """The small grid of `essa reproduce`, four times as long as on a CPU, a row for each set and seed."""
    return {
        f"small_{data}_s{seed}": Row(9, script("small_grid", "--data", data, "--seed", str(seed)))
        for seed in range(seeds)
        for data in ("nuclei", "cxr", "blood")
    }


L, G, B, S = "dinov2_vitl14", "dinov2_vitg14", "dinov2_vitb14", "dinov2_vits14"
HUGE = "vit_7b_patch16_dinov3"

ROWS: dict[str, Row] = {
    "fast_vitl14": Row(5, compare(L, 32, "adapters=full,apla", "variants=engine.fast=true|engine.fast=false")),
    "fp8_vitl14": Row(5, compare(L, 32, "adapters=full,apla", "variants=engine.trunk=precision|engine.trunk=fp8")),
    "fp8_step_vitl14": Row(2, step(L, 64, "adapter=apla", "engine.trunk=fp8", "engine.compile=auto")),
    "step_vitl14": Row(2, step(L, 64, "adapter=apla", "engine.compile=auto")),
    "pytest_gpu": Row(6, [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]),
    "items_vitl14": Row(9, items(L, 32, "engine.pack=false", "engine.compile=auto", "engine.keep=8bit", "engine.recompute=mlp")),
    "items_memory_vitl14": Row(8, items(L, 32, "engine.offload=true", "engine.recompute=blocks", "engine.trunk=int8", "engine.trunk=nf4")),
    "plan_vitl14": Row(5, planned("--models", B, L, "--batch", "16", "--adapters", "apla", "full", "--checkpointing", "false")),
    "memory_vitl14": Row(1, [*ESSA, "bench", "memory", *model(L, 8), "device=cuda", "adapters=full,apla", "--json"]),
    "head": Row(2, [*ESSA, "bench", "head", *model(L, 32), "device=cuda", "--json"]),
    "attention": Row(2, [*ESSA, "bench", "attention", *model(L, 32), "device=cuda", "--json"]),
    "peaks": Row(1, [*ESSA, "bench", "peaks", "device=cuda", "--json"]),
    "vitg14_in_24gb": Row(3, within(24, step(G, 8, "adapter=apla", "engine.keep=8bit", "engine.recompute=mlp"))),
    "vit7b_quantised": Row(8, step(HUGE, 2, "adapter=apla", "engine.trunk=nf4", "engine.recompute=blocks", "steps=5")),
    "plan_items": Row(8, planned("--models", L, "--batch", "16", "--adapters", "apla", "--checkpointing", "false", "true", "--fast", "true", "false")),
    "plan_quantised": Row(4, planned("--models", L, "--batch", "16", "--adapters", "apla", "lora", "--checkpointing", "false", "--set", "engine.trunk=fp8")),
    "reference_vitl14": Row(5, [*ESSA, "bench", "reference", *model(L, 16), "device=cuda", f"env={REFERENCE}", "--json"]),
    "reference_vits14": Row(4, [*ESSA, "bench", "reference", *model(S, 32), "device=cuda", f"env={REFERENCE}", "--json"]),
    "demo": Row(3, [*ESSA, "demo", "out=runs/gpu_demo", "overwrite=true", "--json"]),
    "adapters_vitl14": Row(9, table(L, 32, FEW)),
    "finetune_vitl14": Row(4, finetuning(L, 64)),
    "finetune_vits14": Row(3, finetuning(S, 64)),
    "bench_data": Row(5, [*ESSA, "bench", "data", "--json"]),
    "data_wait": Row(5, script("data_wait")),
    "scale_one": Row(4, [
        *ESSA, "scale", *model(L, 32), "data.train=assets/blood_cells:unlabelled", "sizes=1", "predict=4,8,16,64",
        "strategy=ddp,zero2,fsdp2", "rounds=1", "out=runs/gpu_scale", "overwrite=true", "--json",
    ]),
    "sweep": Row(9, [
        *ESSA, "tune", "tune/spaces/apla_rank.yaml", "base=configs/demo.yaml", "trials=4", "out=runs/gpu_sweep",
        "job.gpus=1", "overwrite=true", "--json",
    ]),
    "adapters_vitg14": Row(9, table(G, 8, FEW)),
    "adapters_vitb14": Row(8, table(B, 32, FEW)),
    "adapters_vits14": Row(6, table(S, 32, FEW)),
    "vitl14_b64": Row(4, compare(L, 64, "adapters=full,apla")),
    "strategies_vitl14": Row(9, compare(L, 32, "adapters=apla,full", SPREAD, "steps=10", rounds=1)),
    "strategies_vitg14": Row(9, compare(G, 8, "adapters=apla,full", SPREAD, "steps=10", rounds=1)),
    "vitg14_b16": Row(4, compare(G, 16, "adapters=full,apla", rounds=1)),
    "adapters_vitl14_more": Row(9, table(L, 32, MORE)),
    "adapters_vits14_more": Row(6, table(S, 32, MORE)),
    "demo_full": Row(3, [*ESSA, "demo", "out=runs/gpu_demo_full", "overwrite=true", "adapter=full", "optim.lr=5e-4", "--json"]),
    **small_grid(5),
}  # fmt: skip

GRACE_S = 45
"""How long a row that is out of time may take to save what it has."""


def run(row: str, command: list[str], timeout_s: float) -> str:
    """Run one row and keep its result; what became of it, in words."""
    out = RESULTS / f"{row}.json"
    if command[1].startswith("benchmarks/") and "--json" not in command:
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
        out.write_text(json.dumps(last_word(said), indent=1) + "\n")
    return f"done in {time.monotonic() - begin:.0f} s"


def last_word(said: str) -> object:
    """The JSON of the last line; of a command that ends otherwise, as pytest, its last lines."""
    lines = said.splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        return {"said": lines[-20:]}


def bring(wheels: Path) -> None:
    """Install from ``wheels`` what is missing, and make the environment of the reference. Raises CalledProcessError."""
    for first in sorted(wheels.rglob("*.whl.part-*aa")):
        whole = first.with_name(first.name.partition(".part-")[0])
        with whole.open("wb") as file:
            for part in sorted(first.parent.glob(f"{whole.name}.part-*")):
                file.write(part.read_bytes())
    missing = [wheel for wheel in sorted(wheels.glob("*.whl")) if not is_installed(wheel.name.split("-")[0])]
    install = ["-m", "pip", "install", "--no-index", "--no-deps"]
    if missing:
        subprocess.run([sys.executable, *install, *map(str, missing)], check=True)
    if (wheels / "reference").is_dir() and not REFERENCE.exists():
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(REFERENCE)], check=True)
        brought = map(str, sorted((wheels / "reference").glob("*.whl")))
        subprocess.run([str(REFERENCE / "bin" / "python"), *install, *brought], check=True)


def is_installed(package: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


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
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, for what is not installed")
    parser.add_argument("rows", nargs="*", help="only these")
    args = parser.parse_args()
    unknown = set(args.rows) - ROWS.keys()
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if args.wheels is not None and not args.wheels.is_dir():
        parser.error(f"--wheels {args.wheels} is no folder")
    if args.wheels is not None and not args.list:
        bring(args.wheels)
    RESULTS.mkdir(parents=True, exist_ok=True)
    deadline, failed = time.monotonic() + 60 * args.minutes, 0
    for row in args.rows or ROWS:
        if (RESULTS / f"{row}.json").exists():
            print(f"{row}: already there", flush=True)
        elif args.list:
            print(f"{row}: to do, some {ROWS[row].minutes:g} min: {' '.join(ROWS[row].command[1:])}")
        else:
            left = deadline - time.monotonic()
            outcome = run(row, ROWS[row].command, left) if left > 20 else "no time left; call again"
            failed += not outcome.startswith("done")
            print(f"{row}: {outcome}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
