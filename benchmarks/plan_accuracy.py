"""How near `essa plan` comes to the peak memory of a real `essa adapt` or `essa finetune`, in processes of their own.

    python benchmarks/plan_accuracy.py --out benchmarks/results/plan_accuracy.json                  # CPU: peak resident set
    python benchmarks/plan_accuracy.py --device cuda --models dinov2_vitb14 dinov2_vitl14 --batch 16  # GPU: allocated, reserved

    python benchmarks/plan_accuracy.py --verb finetune --models vit_tiny_patch16_224 --precisions bf16 --checkpointing false

Every pair is one plan and one run of a few steps, with the loader in the training process: on noise images, or, labelled, on
blood cells, whose test images are predicted at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
CELLS = "assets/blood_cells"

MEASURE = """
import json, sys, essa_dist
from essa_dist.progress import memory_gib
from essa_dist.verbs import call
import torch
call(sys.argv[1], None, tuple(sys.argv[2:]))
cuda = torch.cuda.is_initialized()
reserved = torch.cuda.max_memory_reserved() / 2**30 if cuda else None
print(json.dumps({"peak_gib": memory_gib(peak=True), "reserved_gib": reserved}))
"""


def child(command: list[str]) -> Any:
    """The JSON that a process of its own ends with; raises with its last words if it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=900)
    said = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not said:
        raise SystemExit("\n".join(done.stderr.strip().splitlines()[-5:]))
    return json.loads(said[-1])


def compare(
    verb: str, words: list[str], packed: Path | str, folder: Path, device: str, name: str
) -> dict[str, Any]:
    """Peak of the plan and of the run, GiB, and the plan's error in percent of the run's peak."""
    common = [*words, f"data.train={packed}"]
    plan = ["-m", "essa_dist", "plan", *common, f"verb={verb}", f"devices={name}", "--json"]
    row = child(plan)["rows"][0]
    run = [*common, f"out={folder / str(abs(hash(tuple(words))))}", f"device={device}", "duration=4"]
    run += ["data.workers=0", "log_every=1000", "checkpoint.every=0"]
    real = child(["-c", MEASURE, verb, *run])
    outside = ("fragmentation", "libraries' workspace", "CUDA context") if device == "cuda" else ()
    planned = sum(size for term, size in row["terms"].items() if term not in outside) / GIB
    return {
        "verb": verb,
        "settings": words,
        "planned_gib": round(planned, 3),
        "measured_gib": round(real["peak_gib"], 3),
        "error_percent": round(100 * (planned / real["peak_gib"] - 1), 1),
        "planned_with_all_gib": round(row["needs_bytes"] / GIB, 3),
        "reserved_gib": real["reserved_gib"],
        "dominates": max(row["terms"], key=row["terms"].__getitem__),
    }


def gpu_name() -> str:
    """Of this machine's GPU in the planner's table. SystemExit where it lacks it."""
    import torch

    from essa_dist.planning.devices import known_as, read_table

    name = known_as(torch.cuda.get_device_name(), read_table())
    if name is None:
        raise SystemExit(f"the table has no {torch.cuda.get_device_name()}: say --name, as h100")
    return name


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--verb", choices=["adapt", "finetune"], default="adapt")
    parser.add_argument("--models", nargs="+", default=["vit_tiny_patch16_224", "vit_small_patch16_224"])
    parser.add_argument("--adapters", nargs="+", default=["apla", "lora", "full"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--checkpointing", nargs="+", default=["false", "true"])
    parser.add_argument("--fast", nargs="+", default=["true"], help="engine.fast")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--name", default="", help="of the device in the table; default: cpu, or h100")
    parser.add_argument("--set", nargs="*", default=[], help="further key=value of the run")
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    import torch

    from essa_dist.bench.machine import machine
    from essa_dist.bench.synthetic import synthetic_set

    args = parser().parse_args()
    result: dict[str, Any] = {
        "benchmark": "plan_accuracy",
        "machine": machine(torch.device(args.device)),
        "rows": [],
    }
    choices = product(args.models, args.precisions, args.checkpointing, args.fast, args.adapters)
    with tempfile.TemporaryDirectory() as folder:
        packed: Path | str = CELLS
        if args.verb == "adapt":
            packed = synthetic_set("jpeg8", Path(folder), images=max(16, args.batch), size=256).folder
        for model, precision, checkpointing, fast, adapter in choices:
            words = [
                f"backbone.name={model}",
                "backbone.weights=random",
                f"adapter={adapter}",
                f"precision={precision}",
                f"engine.fast={fast}",
            ]
            words += [f"backbone.checkpoint_activations={checkpointing}", f"batch_size={args.batch}"]
            words += ["data.crops.local_size=96"] if "14" not in model and args.verb == "adapt" else []
            words += ["validation.every=null"] * (args.verb == "finetune")  # the cells have no split for it
            name = args.name or ("cpu" if args.device == "cpu" else gpu_name())
            row = compare(args.verb, [*words, *args.set], packed, Path(folder), args.device, name)
            result["rows"].append(row)
            print(json.dumps(row), flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(result, indent=1) + "\n")
    errors = [abs(row["error_percent"]) for row in result["rows"]]
    print(f"{len(errors)} runs, errors at most {max(errors):.1f} %")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
