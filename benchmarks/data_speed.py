"""Data throughput on this machine, into ``results/data_speed.json``: `python benchmarks/data_speed.py [key=value ...]`.

The same as `essa bench data out=benchmarks/results/data_speed.json`; its settings: `essa bench data --help`.
"""

import sys
from pathlib import Path

from essa_dist.bench import BenchDataConfig, bench_data
from essa_dist.settings import load

if __name__ == "__main__":
    out = Path(__file__).with_name("results") / "data_speed.json"
    print(*bench_data(load(BenchDataConfig, None, [f"out={out}", *sys.argv[1:]]))["table"], sep="\n")
