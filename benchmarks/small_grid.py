"""`essa reproduce small` with more updates and seeds, in slices of one data set and seed that fit into minutes of a GPU.

    python benchmarks/small_grid.py --data blood --seed 0 --out benchmarks/results/gpu/small_blood_s0.json
    python benchmarks/small_grid.py --join benchmarks/results/gpu/small_*.json     # the table and the claims

A slice is whole in itself: what its supervised runs start from is trained in it. Stopped by a signal it goes on where it
was when it is called again on the same machine.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETS = ("blood", "cxr", "nuclei")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One slice: its cells, what self-supervision cost, and what failed."""
    from essa_dist.reproduce import ReproduceConfig, reproduce

    found = reproduce(
        ReproduceConfig(
            grid="small",
            data_root=args.data_root,
            out=args.runs,
            only=args.only or f"{args.data}/*/s{args.seed}",
            seeds=(args.seed,),
            ssa_seeds="each",
            settings=(f"duration={args.steps}", *args.set),
            jobs=args.jobs,
        )
    )
    table = found["table"]
    told = {"cells": table["cells"], "rows": table["rows"], "ssa": table["ssa"], "failed": found["failed"]}
    return {"data": args.data, "seed": args.seed, "steps": args.steps, "settings": args.set, **told}


def joined(slices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table of all slices, as `essa reproduce` fills it, but for intervals over test images."""
    from essa_dist.reproduce.claims import FACTS, judge_claim
    from essa_dist.reproduce.grids import GRIDS

    cells = [cell for one in slices for cell in one["cells"]]
    groups = defaultdict(list)
    for cell in cells:
        groups[tuple(cell[name] for name in (*FACTS, "metric"))].append(cell["value"])
    rows = [
        dict(zip((*FACTS, "metric"), key, strict=True))
        | {
            "value": mean(values),
            "std": stdev(values) if len(values) > 1 else None,
            "low": None,
            "high": None,
        }
        for key, values in groups.items()
    ]
    return {
        "grid": "small",
        "seeds": sorted({one["seed"] for one in slices}),
        "rows": rows,
        "cells": cells,
        "ssa": [],
        "claims": [judge_claim(claim, rows, rows, cells) for claim in GRIDS["small"].claims],
        "figures": [],
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--join", nargs="+", type=Path, metavar="JSON", help="slices; run nothing")
    made.add_argument("--data", choices=SETS, default="blood")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--steps", type=int, default=400, help="updates of each run")
    made.add_argument("--jobs", type=int, default=6, help="runs that share the device")
    made.add_argument("--only", default="", help="cells, as of essa reproduce, in place of all of the slice")
    made.add_argument("--set", nargs="*", default=[], help="more settings of every run")
    made.add_argument("--data_root", default=str(ROOT / "shared" / "data"))
    made.add_argument("--runs", default=str(ROOT / "runs" / "gpu_small"))
    made.add_argument("--out", type=Path, help="JSON file")
    return made


def main() -> int:
    from essa_dist.errors import Preempted
    from essa_dist.reproduce.table import to_markdown

    args = parser().parse_args()
    if args.join:
        result = joined([json.loads(file.read_text()) for file in args.join])
        print(to_markdown(result))
    else:
        try:
            result = run(args)
        except Preempted as stopped:
            print(stopped, file=sys.stderr)
            return stopped.exit_code
        for name, reason in result["failed"].items():
            print(f"{name}: {reason}", file=sys.stderr)
    if args.out and not result.get("failed"):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(result.get("failed")))


if __name__ == "__main__":
    sys.exit(main())
