"""Everything that needs a GPU, in order of value; each row is saved when it ends, and a second call does the rest.

    python benchmarks/gpu_suite.py --list                      # rows, their minutes, and what is done
    python benchmarks/gpu_suite.py --minutes 9                 # in slices, on a machine that is lent for minutes
    python benchmarks/gpu_suite.py --minutes 9 --wheels WHEELS # the same offline, with what that machine lacks

A row is a command that writes JSON; this only runs them, one after another, within the time given: what is not likely to
end in it waits for the next call, as do rows that failed. The first rows are short and go through everything that may
fail on a new GPU. Results: benchmarks/results/gpu/<row>.json, and what was said meanwhile in <row>.log.

WHEELS is a folder of wheels that were brought along; those of packages that are missing are installed, none is replaced.
Large ones may come in parts (split -b 50M NAME.whl NAME.whl.part-). On a machine with a network, fill it by

    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 -d WHEELS -r <(grep -vE \\
        '^(torch|torchvision|triton|deepspeed|nvidia-(cu[a-z]+|nccl|nvjitlink|nvshmem|nvtx)(-[a-z0-9]+)?)==' constraints.txt)
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
    ends: tuple[int, ...] = (0,)
    """Exit codes that come with a result."""


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


def gpu_tests() -> list[str]:
    """The tests that need a GPU; the files are named, for to look into all of them takes a minute."""
    files = [
        file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text("utf-8")
    ]
    words = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    return [sys.executable, *words, *(str(file.relative_to(ROOT)) for file in files)]


def smoke(*variants: str) -> Row:
    """A few steps of a small model with each of ``variants``: what fails on this GPU, fails here in seconds."""
    words = ["adapters=apla", f"variants={'|'.join(variants)}", "warmup=2", "steps=3"]
    return Row(0.4 * len(variants), compare(S, 4, *words, rounds=1))


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
    "pytest_gpu": Row(4, gpu_tests(), ends=(0, 1)),  # 1: some failed, which is a result
    "peaks": Row(1, [*ESSA, "bench", "peaks", "device=cuda", "--json"]),
    "smoke": smoke(
        "engine.fast=true", "engine.fast=false", "engine.trunk=fp8", "engine.trunk=int8", "engine.trunk=nf4", "engine.keep=8bit",
        "engine.offload=true", "engine.recompute=blocks",
    ),
    "smoke_compiled": smoke(
        "engine.compile=auto", "engine.compile=auto engine.trunk=fp8",
        "engine.compile=auto engine.keep=8bit engine.recompute=mlp engine.offload=true",
    ),
    "fast_vitl14": Row(5, compare(L, 32, "adapters=full,apla", "variants=engine.fast=true|engine.fast=false")),
    "fp8_vitl14": Row(5, compare(L, 32, "adapters=full,apla", "variants=engine.trunk=precision|engine.trunk=fp8")),
    "fp8_step_vitl14": Row(2, step(L, 64, "adapter=apla", "engine.trunk=fp8", "engine.compile=auto")),
    "step_vitl14": Row(2, step(L, 64, "adapter=apla", "engine.compile=auto")),
    "items_vitl14": Row(9, items(L, 32, "engine.pack=false", "engine.compile=auto", "engine.keep=8bit", "engine.recompute=mlp")),
    "items_memory_vitl14": Row(8, items(L, 32, "engine.offload=true", "engine.recompute=blocks", "engine.trunk=int8", "engine.trunk=nf4")),
    "plan_vitl14": Row(5, planned("--models", B, L, "--batch", "16", "--adapters", "apla", "full", "--checkpointing", "false")),
    "memory_vitl14": Row(1, [*ESSA, "bench", "memory", *model(L, 8), "device=cuda", "adapters=full,apla", "--json"]),
    "head": Row(2, [*ESSA, "bench", "head", *model(L, 32), "device=cuda", "--json"]),
    "attention": Row(2, [*ESSA, "bench", "attention", *model(L, 32), "device=cuda", "--json"]),
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
    "data_wait": Row(4, script("data_wait", "--decoders", "torchvision")),
    "data_wait_dali": Row(4, script("data_wait", "--decoders", "dali")),
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


def run(row: str, command: list[str], timeout_s: float, ends: tuple[int, ...] = (0,)) -> str:
    """Run one row and keep its result, and what it said; what became of it, in words."""
    out, part = RESULTS / f"{row}.json", RESULTS / f"{row}.part"
    if command[1].startswith("benchmarks/") and "--json" not in command:
        command = [*command, "--out", str(part)]  # some write there as they go
    begin = time.monotonic()
    # Where the package isn't installed, the scripts of this folder are to find it too.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (RESULTS / f"{row}.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=log,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            stop(process)
            return f"out of time after {timeout_s:.0f} s; call again"
        log.write(said)
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
    if process.returncode not in ends or not said.strip():
        return f"failed ({process.returncode}): {lines[-1] if lines else 'no output'}"
    found = last_word(said)
    if part.exists():
        part.replace(out)
    else:
        out.write_text(json.dumps(found, indent=1) + "\n")
    return f"done in {time.monotonic() - begin:.0f} s{shortfall(found)}"


def shortfall(found: object) -> str:
    """What a row that has a result couldn't do, in words."""
    failed = found.get("failed") if isinstance(found, dict) else None
    return (
        "".join(f"; {name} failed: {why}" for name, why in failed.items()) if isinstance(failed, dict) else ""
    )


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
    brought = sorted((wheels / "reference").glob("*.whl"))
    if brought and not list(REFERENCE.glob("lib/*/site-packages/lightly_train-*")):
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(REFERENCE)], check=True)
        # This may be an environment itself, of which the new one sees nothing: torch is not brought along twice.
        (packages,) = REFERENCE.glob("lib/*/site-packages")
        (packages / "outside.pth").write_text("\n".join(filter(os.path.isdir, sys.path[1:])) + "\n")
        subprocess.run([str(REFERENCE / "bin" / "python"), *install, *map(str, brought)], check=True)


def is_installed(package: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


def stop(process: "subprocess.Popen[str]") -> None:
    """Ask a row to save and end; then end it and all that it has started."""
    import psutil  # may have been brought along

    below = psutil.Process(process.pid).children(recursive=True)  # ranks lead sessions of their own
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in below:
        with suppress(psutil.Error):
            one.kill()
    process.communicate()


def fits(row: Row, left_s: float, started: bool) -> bool:
    """Whether to begin it. The first of a call always: minutes are estimates, and a short slice would never come to it."""
    return left_s > 20 and (not started or 60 * row.minutes <= left_s)


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
        try:
            bring(args.wheels)
        except subprocess.CalledProcessError as error:
            parser.exit(1, f"--wheels {args.wheels}: {error}\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    begin, failed, started = time.monotonic(), 0, False
    for row in args.rows or ROWS:
        if (RESULTS / f"{row}.json").exists():
            print(f"{row}: already there", flush=True)
        elif args.list:
            print(f"{row}: to do, some {ROWS[row].minutes:g} min: {' '.join(ROWS[row].command[1:])}")
        else:
            left = 60 * args.minutes - (time.monotonic() - begin)
            if fits(ROWS[row], left, started):
                outcome, started = run(row, ROWS[row].command, left, ROWS[row].ends), True
            else:
                outcome = "no time left; call again"
            failed += not outcome.startswith("done")
            print(f"{row}: {outcome}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
