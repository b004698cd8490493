"""Speed and peak memory of `essa finetune` on one device, adapters in turns.

    python benchmarks/finetune_speed.py --model dinov2_vitl14 --batch 64                        # GPU
    python benchmarks/finetune_speed.py --model vit_tiny_patch16_224 --batch 8 --device cpu     # CPU

Every measurement is a whole run of the verb on the embedded blood cells, decoding, augmentation and logging included, in
a process of its own (peak memory is a property of a process), with random weights and without validation and test: the
speed depends on neither. Of its speeds the median after the first third counts. Prints a table and writes JSON.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ADAPTERS = ("full", "apla", "lora", "frozen")


def words_of(args: argparse.Namespace, adapter: str, out: Path) -> list[str]:
    """Of `essa finetune`."""
    return [
        "finetune", str(ROOT / "configs/finetune.yaml"), f"data.train={ROOT / 'assets/blood_cells'}", f"out={out}",
        f"backbone.name={args.model}", "backbone.weights=random", f"adapter={adapter}", f"batch_size={args.batch}",
        f"data.image_size={args.size}", f"data.workers={args.workers}", f"device={args.device}", f"duration={args.steps}",
        "schedule.warmup=0", "validation.every=null", "test.enabled=false", "checkpoint.every=0", "log_every=1",
        *args.set, "--json",
    ]  # fmt: skip


def measure(args: argparse.Namespace, adapter: str) -> dict[str, Any]:
    """Of one run: img/s, peak memory in GiB, trained parameters; or ``error``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [sys.executable, "-m", "essa_dist", *words_of(args, adapter, out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        lines = done.stdout.splitlines()
        result: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        if done.returncode:
            return {"error": result.get("error") or (done.stderr.strip() or "no output").splitlines()[-1]}
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steady = [row["img_per_s"] for row in rows[len(rows) // 3 :] if row.get("img_per_s")]
    return {
        "img_per_s": statistics.median(steady),
        "memory_gib": result["memory_gib"],
        "trainable_parameters": result["trainable_parameters"],
        "checkpoint_bytes": result["checkpoint_bytes"],
        "seconds": result["seconds"],
    }


def table(rounds: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each adapter: the median over rounds, and each round's speed relative to the first adapter's."""
    found = []
    first = next(iter(rounds[0]))
    for adapter in rounds[0]:
        good = [one[adapter] for one in rounds if "error" not in one[adapter]]
        if not good:
            found.append({"adapter": adapter, **rounds[0][adapter]})
            continue
        ratios = [
            one[adapter]["img_per_s"] / one[first]["img_per_s"]
            for one in rounds
            if "error" not in one[adapter] and "error" not in one[first]
        ]
        middle = {name: statistics.median(one[name] for one in good) for name in good[0]}
        found.append({"adapter": adapter, **middle, "speed_ratios": ratios})
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="dinov2_vits14")
    made.add_argument("--adapters", nargs="+", default=list(ADAPTERS))
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--size", type=int, default=224, help="px")
    made.add_argument("--steps", type=int, default=45)
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--workers", type=int, default=8)
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--set", nargs="*", default=[], help="more settings, as precision=fp32")
    made.add_argument("--out", type=Path, help="JSON file")
    return made


def main() -> int:
    args = parser().parse_args()
    rounds = [{adapter: measure(args, adapter) for adapter in args.adapters} for _ in range(args.rounds)]
    rows = table(rounds)
    for row in rows:
        told = row.get("error") or (
            f"{row['img_per_s']:8.1f} img/s  {row['memory_gib']:6.2f} GiB  {row['trainable_parameters']:>12,} trained"
        )
        print(f"{row['adapter']:<12} {told}")
    result = {
        "model": args.model,
        "batch": args.batch,
        "size": args.size,
        "steps": args.steps,
        "device": args.device,
        "device_name": device_name(args.device),
        "settings": args.set,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": rows,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(all("error" in row for row in rows))


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
