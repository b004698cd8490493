"""What each adapter makes of the demo's images at equal steps: k-NN and linear probe over seeds, the frozen model first.

    python benchmarks/adapters_knn.py --steps 120 --seeds 0 1 2 --jobs 2 --out benchmarks/results/adapters_knn.json

Everything but adapter, learning rate, seed and length is configs/demo.yaml. A run is a folder under runs/adapters_knn;
one that has ended is not run again. The adapters of a seed are then evaluated over one trunk at 224 px. Learning rates: those of full, apla, bitfit and lora come from earlier trials on a set of their own,
the others are guesses by kind (few tensors: 3e-3 to 5e-3; whole blocks: 5e-4). None was tuned on these images, so the
order of adapters that are close says little. Nothing is timed here: see `essa bench compare`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
FOLDER = Path("runs/adapters_knn")
PACKED = ROOT / "assets" / "blood_cells"
ADAPTERS: dict[str, list[str]] = {
    "frozen": ["adapter=frozen"],
    "full": ["adapter=full", "optim.lr=5e-4"],
    "apla": ["adapter=apla", "optim.lr=3e-3"],
    "apla_r16": ["adapter=apla", "adapter.rank=16", "optim.lr=3e-3"],
    "lora": ["adapter=lora", "optim.lr=3e-3"],
    "bitfit": ["adapter=bitfit", "optim.lr=5e-3"],
    "vpt": ["adapter=vpt", "optim.lr=5e-3"],
    "ln_tuning": ["adapter=ln_tuning", "optim.lr=5e-3"],
    "ssf": ["adapter=ssf", "optim.lr=3e-3"],
    "adaptformer": ["adapter=adaptformer", "optim.lr=3e-3"],
    "last_blocks": ["adapter=last_blocks", "optim.lr=5e-4"],
    "explora": ["adapter=explora", "optim.lr=5e-4"],
    "apla_bitfit": ["adapter=apla+bitfit", "optim.lr=3e-3"],
}
VIEW = 224  # px


def essa(*words: str) -> dict[str, Any]:
    """One command in one thread, and its result."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "essa_dist", *words, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"essa {' '.join(words)}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def adapt(adapter: str, seed: int, steps: int) -> dict[str, Any]:
    """The summary of one run, from its folder where it has ended before."""
    run = FOLDER / f"{adapter}_s{seed}"
    kept = ROOT / run / "adapted.json"
    if not kept.exists():
        words = [*ADAPTERS[adapter], f"seed={seed}", f"duration={steps}", f"out={run}", "overwrite=true"]
        words += ["threads=1", "checkpoint.every=1000", "checkpoint.keep=1"]
        kept.write_text(json.dumps(essa("adapt", "configs/demo.yaml", *words)))
    found: dict[str, Any] = json.loads(kept.read_text())
    print(f"{run.name}: {found['img_per_s']} img/s", flush=True)
    return found


def evaluate(adapters: list[str], seed: int) -> list[dict[str, float]]:
    """Balanced accuracy in percent by protocol, of the frozen model and of each adapter over the same trunk."""
    from essa_dist.data.shards import open_packed
    from essa_dist.evaluation import ProbeConfig, evaluate_model
    from essa_dist.export.attach import attach
    from essa_dist.export.models import load_model

    bank, test = open_packed(str(PACKED), prefer=("train",)), open_packed(f"{PACKED}:test", prefer=("test",))
    base = load_model("vit_tiny_patch16_224")
    config, scores = ProbeConfig(image_size=VIEW, precision="bf16", workers=1), []
    for adapter in ["none", *adapters]:
        model = base if adapter == "none" else attach(base, str(ROOT / FOLDER / f"{adapter}_s{seed}"))[0]
        found = evaluate_model(model, bank, test, ("knn", "linear"), config)
        scores.append({name: round(100 * r["balanced_accuracy"], 2) for name, r in found.items()})
        print(f"{adapter}, seed {seed}: {scores[-1]}", flush=True)
    return scores


def main() -> None:
    from step import machine

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", nargs="+", choices=list(ADAPTERS), default=list(ADAPTERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {(a, s): pool.submit(adapt, a, s, args.steps) for s in args.seeds for a in args.adapters}
        runs = {key: job.result() for key, job in jobs.items()}
    found = {seed: evaluate(args.adapters, seed) for seed in args.seeds}
    rows: dict[str, Any] = {}
    for i, adapter in enumerate(["none", *args.adapters]):
        row: dict[str, Any] = {}
        for protocol in ("knn", "linear"):
            by_seed = [found[seed][i][protocol] for seed in args.seeds]
            row[protocol] = {"by_seed": by_seed, "mean": round(statistics.mean(by_seed), 2)}
        if adapter != "none":
            row["trained_parameters"] = runs[adapter, args.seeds[0]]["trainable_parameters"]
            row["settings"] = ADAPTERS[adapter]
        rows[adapter] = row
        means = "  ".join(f"{name} {row[name]['mean']:5.1f}" for name in ("knn", "linear"))
        print(f"{adapter:<12} {row.get('trained_parameters', 0):>10,}  {means}")
    settings = {"steps": args.steps, "seeds": args.seeds, "image_size": VIEW}
    result = {"benchmark": "adapters_knn", **settings, **machine("cpu"), "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
