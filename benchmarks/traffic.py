"""What a rank sends in a step, and what a checkpoint takes: every strategy with the whole trunk, APLA and LoRA.

python benchmarks/traffic.py [--out benchmarks/results/traffic.json] [--strategies ddp zero2 zero3 fsdp2] [--ranks 2]

Two processes on this machine's CPUs over gloo, a ViT-S; some 20 minutes on 2 cores. The bytes are those of
essa_dist.distributed.traffic and do not depend on the machine, the batch or the size of the crops, but gloo makes an
all-reduce of each reduce-scatter: NCCL sends half as much there. ``predicted`` gives what DDP has to send for its
gradients and what a checkpoint has to hold, from the number of trained tensors alone, for larger trunks too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from essa_dist.adapters import inject_adapter
from essa_dist.backbones import build_backbone
from essa_dist.bench.machine import machine
from essa_dist.bench.synthetic import synthetic_set
from essa_dist.config import RunConfig
from essa_dist.heads import DINOHead
from essa_dist.runfolder import committed_checkpoints
from essa_dist.settings import load

ADAPTERS = ("full", "apla", "lora")
HEAD = "objective.head={prototypes: 4096}"
FP32 = 4


def words(model: str, adapter: str) -> list[str]:
    return [f"backbone.name={model}", "backbone.weights=random", f"adapter={adapter}", HEAD]


def measure(strategy: str, adapter: str, packed: Path, folder: Path, ranks: int) -> dict[str, Any]:
    """A run of three steps, of which the last is measured."""
    run = folder / f"{strategy}_{adapter}"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", f"launch/{strategy}.yaml"]
    where = ["--num_processes", str(ranks), "--main_process_port", "0"]
    settings = [f"out={run}", f"data.train={packed}", "duration=3", "log_every=1", "communication_every=1"]
    small = ["batch_size=4", "data.crops={global_size: 96, local_size: 48, n_local: 2}", "data.workers=0"]
    command = [*launcher, *where, "-m", "essa_dist", "adapt", *settings, *small, "device=cpu", "threads=1"]
    ended = subprocess.run(
        [sys.executable, *command, *words("vit_small_patch16_224", adapter)],
        capture_output=True,
        text=True,
        timeout=900,
    )
    if ended.returncode != 0:
        raise SystemExit(f"{strategy} {adapter} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    files = list(committed_checkpoints(run)[-1].iterdir())
    return {
        "strategy": strategy,
        "adapter": adapter,
        "sent_MB": round(last["comm_bytes"] / 1e6, 2),
        "checkpoint_MB": round(sum(file.stat().st_size for file in files) / 1e6, 2),
    }


def predicted(model: str, adapter: str, ranks: int) -> dict[str, Any]:
    """What DDP sends of gradients, and what a checkpoint holds: both branches and two moments, in fp32."""
    config = load(RunConfig, None, [*words(model, adapter), "out=nowhere"])
    backbone = build_backbone(config.backbone, seed=0)
    inject_adapter(backbone, config.adapter, seed=0)
    trunk = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    head = sum(p.numel() for p in DINOHead(backbone.embed_dim, config.objective.head).parameters())
    return {
        "model": model,
        "adapter": adapter,
        "trained_trunk": trunk,
        "trained_head": head,
        "ddp_sent_MB": round(FP32 * (trunk + head) * 2 * (ranks - 1) / ranks / 1e6, 2),
        "checkpoint_MB": round(4 * FP32 * (trunk + head) / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--strategies", nargs="*", default=["ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--adapters", nargs="+", default=list(ADAPTERS))
    parser.add_argument("--models", nargs="*", default=["vit_small_patch16_224", "vit_large_patch16_224"])
    parser.add_argument("--ranks", type=int, default=2)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "traffic",
        "ranks": given.ranks,
        "head": HEAD,
        "machine": machine(torch.device("cpu")),
    }
    result["predicted"] = [
        predicted(model, adapter, given.ranks) for model in given.models for adapter in given.adapters
    ]
    result["measured"] = []
    with tempfile.TemporaryDirectory() as folder:
        packed = synthetic_set("jpeg8", Path(folder), images=16, size=128).folder
        for strategy in given.strategies:
            for adapter in given.adapters:
                row = measure(strategy, adapter, packed, Path(folder), given.ranks)
                result["measured"].append(row)
                print(json.dumps(row), flush=True)
    text = json.dumps(result, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
