"""The demo over seeds and adapters: mean gain of k-NN and linear probe, as the README quotes it.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --adapters apla full --out benchmarks/results/demo_seeds.json

Each demo is a run folder runs/demo_<adapter>_s<seed>; one that has its summary.json is not run again.
The learning rate of `full` is its own, 5e-4 (both were taken over from earlier trials at 112 px, and tuned unequally);
everything else is configs/demo.yaml.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OWN = {"apla": [], "full": ["adapter=full", "optim.lr=5e-4"]}


def summary_of(adapter: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """The summary of one demo, run now if it isn't there."""
    run = ROOT / "runs" / f"demo_{adapter}_s{seed}"
    if not (run / "summary.json").exists():
        words = [f"out={run.relative_to(ROOT)}", "resume=true", f"seed={seed}", *OWN[adapter], *extra]
        subprocess.run([sys.executable, "-m", "essa_dist", "demo", *words], cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def over_seeds(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per evaluation: balanced accuracy in percent by seed, and the mean gain in points."""
    rows = []
    for i, row in enumerate(summaries[0]["rows"]):
        before = [100 * s["rows"][i]["before"]["balanced_accuracy"] for s in summaries]
        after = [100 * s["rows"][i]["after"]["balanced_accuracy"] for s in summaries]
        rows.append(
            {
                "protocol": row["protocol"],
                "image_size": row["image_size"],
                "crop": row["crop"],
                "before": round(statistics.mean(before), 2),
                "after_by_seed": [round(x, 2) for x in after],
                "after": round(statistics.mean(after), 2),
                "gain": round(statistics.mean(after) - statistics.mean(before), 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--adapters", nargs="+", choices=sorted(OWN), default=["apla", "full"])
    parser.add_argument("--set", nargs="*", default=[], help="further key=value of every run")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shared = ("device", "threads", "versions", "commit", "date", "steps", "batch_size", "model")
    own = (
        "trainable_parameters",
        "trunk_parameters",
        "checkpoint_bytes",
        "img_per_s",
        "adapt_seconds",
        "seconds",
    )
    result: dict[str, Any] = {"benchmark": "demo_seeds", "seeds": args.seeds, "adapters": {}}
    for adapter in args.adapters:
        summaries = [summary_of(adapter, seed, args.set) for seed in args.seeds]
        result |= {key: summaries[0][key] for key in shared}
        costs = {key: [s[key] for s in summaries] for key in own}
        result["adapters"][adapter] = {"rows": over_seeds(summaries), "by_seed": costs}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
