"""Training speed and peak memory of adapters on one machine, side by side in one run.

    python benchmarks/step.py --model dinov2_vits14 --batch 8 --rounds 3                # CPU
    python benchmarks/step.py --model dinov2_vitl14 --batch 32 --device cuda --steps 30  # GPU
    python benchmarks/step.py --adapters apla --strategies ddp@1 ddp@2 zero2@2 fsdp2@2   # weak scaling: --batch is a process's

Every measurement is a process of its own (peak memory is a property of a process); the adapters take turns, so that
a machine that slows down slows all of them. Crops are 2 x 224 + 8 x 98 noise images, weights are random, data loading
is left out: this times the step (teacher, student, backward, clip, AdamW, EMA) and nothing else.
Prints a table and writes JSON with device, versions, date and commit.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Step:
    """One adapter's training step in this process, at any batch size."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from essa_dist.adapters import inject_adapter
        from essa_dist.backbones import build_backbone
        from essa_dist.distributed.environment import make_accelerator
        from essa_dist.distributed.strategies import Clipping, choose
        from essa_dist.engine.build import DTYPES
        from essa_dist.engine.config import RunConfig
        from essa_dist.engine.fast import make_ready
        from essa_dist.engine.loss_scale import LossScale
        from essa_dist.engine.optim import build_optimizer
        from essa_dist.objectives import DINOv2Objective
        from essa_dist.settings import load

        if args.threads:
            torch.set_num_threads(args.threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(0)
        adapter, *settings = args.adapter.split(":")
        words = [f"backbone.name={args.model}", "backbone.weights=random", f"adapter={adapter}"]
        words += [f"adapter.{setting}" for setting in settings]
        words += ["out=unused", f"precision={args.precision}", *args.set]
        self.config = load(RunConfig, None, words)
        accelerator = make_accelerator(cpu=args.device == "cpu")
        self.device, self.dtype = accelerator.device, DTYPES[self.config.precision]
        backbone = build_backbone(self.config.backbone)
        self.trunk_parameters = sum(p.numel() for p in backbone.parameters())
        inject_adapter(backbone, self.config.adapter, seed=0)
        self.objective = DINOv2Objective(backbone, self.config.objective, compute_dtype=self.dtype)
        make_ready(self.objective, self.config.engine, self.dtype)
        self.objective.to(self.device).train()
        depth = len(backbone.vit.blocks)
        self.trained = (self.objective.branches.count("backbone."), self.objective.branches.count())
        optimizer = build_optimizer(self.objective.branches.students, self.config.optim, depth=depth)
        self.strategy = choose(accelerator)
        clipping = Clipping(self.config.optim.clip, self.config.optim.clip_over)
        self.strategy.prepare(self.objective, optimizer, clipping, micro_batch=args.batch)
        self.loss_scale = LossScale(enabled=self.config.precision == "fp16")
        torch.manual_seed(accelerator.process_index)

    def batch(self, size: int) -> Any:
        """Noise crops, 2 x 224 and 8 x 98 px (the next multiple of the patch below), half of the globals masked."""
        import torch

        from essa_dist.data.batch import Batch

        backbone = self.objective.backbone
        masks = torch.rand(2, size, (224 // backbone.patch_size) ** 2) < 0.3
        masks[:, size // 2 :] = False
        local = 98 // backbone.patch_size * backbone.patch_size
        return Batch(
            global_crops=torch.randn(2, size, 3, 224, 224),
            local_crops=torch.randn(8, size, 3, local, local),
            masks=masks,
            keys=tuple(map(str, range(size))),
            step=0,
        ).to(self.device, mean=backbone.mean, std=backbone.std, dtype=self.dtype)

    def run(self, batch: Any, step: int) -> float:
        """Seconds of one update; it ends with a read of the losses, so the device is done."""
        from essa_dist.engine.optim import step_values
        from essa_dist.engine.step import train_step

        optim, schedule = self.config.optim, self.config.schedule
        values = step_values(step, total=1000, steps_per_epoch=100, optim=optim, schedule=schedule)
        begin = time.perf_counter()
        train_step(self.strategy, batch, values, accumulate=1, loss_scale=self.loss_scale, diagnose=False)
        return time.perf_counter() - begin

    def bytes_on_disk(self) -> tuple[int, int]:
        """What the trained tensors of one branch take alone (with the adapter's buffers), and a whole checkpoint."""
        from safetensors.torch import save

        from essa_dist.distributed.messages import Channel
        from essa_dist.engine.saving.saver import Saver

        trained = {
            name.removeprefix("student/"): shape
            for name, shape in self.strategy.shapes().items()
            if name.startswith("student/backbone.")
        }
        buffers = {name: tensor.cpu() for name, tensor in self.objective.backbone.named_buffers()}
        alone = sum(4 * shape.numel() for shape in trained.values()) + len(save(buffers))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "checkpoints").mkdir()
            saver = Saver(Path(folder), self.strategy, Channel(), keep=1)
            saver.save(1, {"step": 1})
            saver.wait()
            return alone, saver.done[-1].bytes


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One adapter in this process: seconds a step (median after warm-up), peak memory, sizes."""
    import torch

    from essa_dist.progress import memory_gib

    step = Step(args)
    cuda = step.device.type == "cuda"
    found: dict[str, float] = {}
    if args.largest:
        found["largest_batch"] = largest(lambda size: _fits(step, size), args.batch)
    batch = step.batch(args.batch)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = [step.run(batch, i) for i in range(args.warmup + args.steps)]
    peak_gib = memory_gib(peak=True)
    trained, every = step.trained
    adapter_bytes, checkpoint_bytes = step.bytes_on_disk()
    return found | {
        "processes": step.strategy.accelerator.num_processes,
        "step_s": statistics.median(seconds[args.warmup :]),
        "peak_gib": peak_gib,
        "trained_trunk": trained,
        "trained_share": trained / step.trunk_parameters,
        "trained_heads": every - trained,
        "adapter_bytes": adapter_bytes,
        "checkpoint_bytes": checkpoint_bytes,
    }


def _fits(step: Step, size: int) -> bool:
    import torch

    try:
        for i in range(2):  # the optimizer's state appears in the first
            step.run(step.batch(size), i)
    except torch.OutOfMemoryError:
        return False
    finally:
        step.strategy.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def largest(fits: Callable[[int], bool], start: int) -> int:
    """The largest size that fits, to an eighth of itself; 0 if ``start`` and all below it are too large."""
    high = start
    while fits(high):
        high *= 2
    low = high // 2 if high > start else 0
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def child(args: argparse.Namespace, adapter: str, strategy: str) -> list[str]:
    """The command that measures one of them; ``strategy`` is a file of launch/ and a number of processes."""
    this = [str(Path(__file__).resolve()), *sys.argv[1:], "--adapter", adapter]
    name, _, processes = strategy.partition("@")
    if name == "single":
        return [sys.executable, *this]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", f"launch/{name}.yaml"]
    return [
        sys.executable,
        *launcher,
        "--main_process_port",
        "0",
        "--num_processes",
        processes or "1",
        *this,
    ]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Each pair of adapter and strategy ``rounds`` times, taking turns; medians with spread, and ratios to the first."""
    pairs = [(adapter, strategy) for strategy in args.strategies for adapter in args.adapters]
    names = {pair: pair[0] if len(args.strategies) == 1 else " ".join(pair) for pair in pairs}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names.values()}
    for round_ in range(args.rounds):
        for pair, name in names.items():
            done = subprocess.run(child(args, *pair), capture_output=True, text=True, cwd=ROOT)
            said = [line for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode or not said:
                last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output"
                print(f"round {round_ + 1} {name}: failed: {last}", flush=True)
                continue
            one = json.loads(said[-1])
            found[name].append(one)
            rate = args.batch * one["processes"] / one["step_s"]
            print(f"round {round_ + 1} {name}: {rate:.2f} img/s, peak {one['peak_gib']:.2f} GiB", flush=True)
    rows = {name: summarise(runs, args.batch) for name, runs in found.items() if runs}
    base = names[pairs[0]]
    ratios = {
        name: {
            "throughput": statistics.median(
                (b["processes"] * a["step_s"]) / (a["processes"] * b["step_s"])
                for a, b in zip(found[base], found[name], strict=False)
            ),
            "peak_memory": rows[name]["peak_gib"] / rows[base]["peak_gib"],
        }
        for name in rows
        if base in rows
    }
    return {"rows": rows, "ratio_to": base, "ratios": ratios}


def summarise(runs: list[dict[str, float]], batch: int) -> dict[str, float]:
    rates = sorted(batch * run["processes"] / run["step_s"] for run in runs)
    constant = {k: v for k, v in runs[0].items() if k not in ("step_s", "peak_gib")}
    return {
        "img_per_s": statistics.median(rates),
        "img_per_s_min": rates[0],
        "img_per_s_max": rates[-1],
        "peak_gib": statistics.median(run["peak_gib"] for run in runs),
        **constant,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: adapter, trained parameters, share, sizes, and step time and peak memory relative to the first."""
    lines = ["| adapter | trained | of trunk | adapter file | checkpoint | img/s | step time | peak memory |"]
    lines.append("| --- " * 8 + "|")
    for adapter, row in result["rows"].items():
        ratio = result["ratios"][adapter]
        cells = [
            adapter,
            f"{row['trained_trunk']:,}",
            f"{row['trained_share']:.2%}",
            f"{row['adapter_bytes'] / 1e6:.2f} MB",
            f"{row['checkpoint_bytes'] / 1e6:.0f} MB",
            f"{row['img_per_s']:.2f}",
            f"{1 / ratio['throughput']:.2f}",
            f"{ratio['peak_memory']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    import essa_dist  # noqa: F401  (makes torchvision importable)
    from essa_dist.engine.recording.record import versions

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
    parser.add_argument(
        "--adapters",
        nargs="+",
        default=["full", "apla"],
        help="the first is the yardstick; settings after colons, as apla:rank=8",
    )
    parser.add_argument(
        "--strategies",
        nargs="+",
        default=["single"],
        help="files of launch/ with a number of processes, as zero2@2",
    )
    parser.add_argument("--batch", type=int, default=8, help="images an update and process")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="further key=value of the run's config")
    parser.add_argument(
        "--largest", action="store_true", help="also search the largest batch that fits (CUDA)"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--adapter", help=argparse.SUPPRESS)  # the child process's one
    args = parser.parse_args()
    if args.adapter:
        from essa_dist.distributed.collectives import leave, rank

        found = measure(args)
        if rank() == 0:
            print(json.dumps(found))
        leave()
        return
    settings = {k: v for k, v in vars(args).items() if k not in {"out", "adapter"}}
    result = {
        "benchmark": "step",
        "crops": "2x224 + 8x98",
        **settings,
        **machine(args.device),
        **compare(args),
    }
    print(table(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
