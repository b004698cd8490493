"""Training speed and peak memory of adapters on one machine, side by side in one run.

    python benchmarks/step.py --model dinov2_vits14 --batch 8 --rounds 3                # CPU
    python benchmarks/step.py --model dinov2_vitl14 --batch 32 --device cuda --steps 30  # GPU

Every measurement is a process of its own (peak memory is a property of a process); the adapters take turns, so that
a machine that slows down slows all of them. Crops are 2 x 224 + 8 x 98 noise images, weights are random, data loading
is left out: this times the step (teacher, student, backward, clip, AdamW, EMA) and nothing else.
Prints a table and writes JSON with device, versions, date and commit.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One adapter in this process: seconds a step (median after warm-up) and peak memory."""
    import torch
    from accelerate import Accelerator

    from essa_dist.adapters import inject_adapter
    from essa_dist.backbones import build_backbone
    from essa_dist.data.batch import Batch
    from essa_dist.engine.build import DTYPES, cast_frozen
    from essa_dist.engine.config import RunConfig
    from essa_dist.engine.optim import build_optimizer, step_values
    from essa_dist.engine.step import train_step
    from essa_dist.objectives import DINOv2Objective
    from essa_dist.settings import load

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    words = [
        f"backbone.name={args.model}",
        "backbone.weights=random",
        f"adapter={args.adapter}",
        "out=unused",
    ]
    words += [f"batch_size={args.batch}", f"precision={args.precision}", *args.set]
    config = load(RunConfig, None, words)
    device, dtype = torch.device(args.device), DTYPES[config.precision]
    backbone = build_backbone(config.backbone)
    inject_adapter(backbone, config.adapter, seed=0)
    objective = DINOv2Objective(backbone, config.objective, compute_dtype=dtype)
    cast_frozen(objective, dtype)
    objective.to(device).train()
    optimizer = build_optimizer(objective.branches.students, config.optim, depth=len(backbone.vit.blocks))
    accelerator = Accelerator(cpu=device.type == "cpu")
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    masks = torch.rand(2, args.batch, (224 // backbone.patch_size) ** 2) < 0.3
    masks[:, args.batch // 2 :] = False  # half of the crops are masked, as in training
    local = 98 // backbone.patch_size * backbone.patch_size
    batch = Batch(
        global_crops=torch.randn(2, args.batch, 3, 224, 224),
        local_crops=torch.randn(8, args.batch, 3, local, local),
        masks=masks,
        keys=tuple(map(str, range(args.batch))),
        step=0,
    ).to(device, mean=backbone.mean, std=backbone.std, dtype=dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for step in range(args.warmup + args.steps):
        values = step_values(
            step, total=1000, steps_per_epoch=100, optim=config.optim, schedule=config.schedule
        )
        begin = time.perf_counter()
        train_step(
            objective,
            objective.branches,
            optimizer,
            batch,
            values,
            accelerator,
            config=config.optim,
            accumulate=1,
            scaler=scaler,
            diagnose=False,
        )  # ends with a read of the losses, so the device is done
        seconds.append(time.perf_counter() - begin)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    trained = objective.branches.count("backbone.")
    return {
        "step_s": statistics.median(seconds[args.warmup :]),
        "peak_gib": peak / 2**30,
        "trained_trunk": trained,
        "trained_heads": objective.branches.count() - trained,
    }


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Each adapter ``rounds`` times, taking turns; medians with spread, and ratios to the first adapter."""
    found: dict[str, list[dict[str, float]]] = {adapter: [] for adapter in args.adapters}
    for round_ in range(args.rounds):
        for adapter in args.adapters:
            command = [sys.executable, __file__, *sys.argv[1:], "--adapter", adapter]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output"
                print(f"round {round_ + 1} {adapter}: failed: {last}", flush=True)
                continue
            found[adapter].append(json.loads(done.stdout.splitlines()[-1]))
            one = found[adapter][-1]
            rate = args.batch / one["step_s"]
            print(
                f"round {round_ + 1} {adapter}: {rate:.2f} img/s, peak {one['peak_gib']:.2f} GiB", flush=True
            )
    rows = {adapter: summarise(runs, args.batch) for adapter, runs in found.items() if runs}
    base = args.adapters[0]
    pairs = {
        adapter: {
            "throughput": statistics.median(
                a["step_s"] / b["step_s"] for a, b in zip(found[base], found[adapter], strict=False)
            ),
            "peak_memory": rows[adapter]["peak_gib"] / rows[base]["peak_gib"],
        }
        for adapter in rows
        if base in rows
    }
    return {"rows": rows, f"ratio_to_{base}": pairs}


def summarise(runs: list[dict[str, float]], batch: int) -> dict[str, float]:
    rates = sorted(batch / run["step_s"] for run in runs)
    return {
        "img_per_s": statistics.median(rates),
        "img_per_s_min": rates[0],
        "img_per_s_max": rates[-1],
        "peak_gib": statistics.median(run["peak_gib"] for run in runs),
        "trained_trunk": runs[0]["trained_trunk"],
        "trained_heads": runs[0]["trained_heads"],
    }


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    import essa_dist  # noqa: F401  (makes torchvision importable)
    from essa_dist.engine.record import versions

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dinov2_vits14")
    parser.add_argument("--adapters", nargs="+", default=["full", "apla"], help="the first is the yardstick")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="further key=value of the run's config")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--adapter", help=argparse.SUPPRESS)  # the child process's one
    args = parser.parse_args()
    if args.adapter:
        print(json.dumps(measure(args)))
        return
    settings = {k: v for k, v in vars(args).items() if k not in {"out", "adapter"}}
    result = {
        "benchmark": "step",
        "crops": "2x224 + 8x98",
        **settings,
        **machine(args.device),
        **compare(args),
    }
    print(json.dumps(result["rows"], indent=1))
    print(json.dumps(result[f"ratio_to_{args.adapters[0]}"], indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
