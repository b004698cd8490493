"""The machine that is measured: its parts, its clocks, and what ran on it."""

import datetime
import json
import os
import platform
import subprocess
import threading
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch

from essa_dist.errors import UsageError
from essa_dist.progress import memory_gib

PACKAGES = (
    "essa-dist", "torch", "torchvision", "timm", "accelerate", "deepspeed", "triton", "pillow", "imagecodecs",
    "nvidia-dali-cuda130", "nvidia-dali-cuda120",
)  # fmt: skip
LOOK_S = 0.002


def cpu_seconds() -> float:
    """User and system time of this process and of those it started, living or ended."""
    import psutil

    own = os.times()
    living = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended
            continue
        living += times.user + times.system
    return own.user + own.system + own.children_user + own.children_system + living


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_device() -> str:
    """The GPU where torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_device(name: str) -> torch.device:
    """Of ``auto``, ``cpu`` or ``cuda``. Raises UsageError where torch has no GPU to use."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device=cuda, but there is no GPU that torch can use: say device=auto, or ask essa doctor"
        )
    return torch.device(best_device() if name == "auto" else name)


class MemoryPeak:
    """Around some work: GiB at its highest above what was there before; ``gib`` is told behind it.

    On a CPU the resident set is looked at every few milliseconds, for not every system lets a process forget its peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.gib = device, float("nan")
        self._done = threading.Event()

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self._before = self._highest = memory_gib()
        self._watch = threading.Thread(target=self._look, daemon=True)
        if self.device.type != "cuda":
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self._highest = memory_gib(peak=True)
        else:
            self._done.set()
            self._watch.join()
        self.gib = self._highest - self._before

    def _look(self) -> None:
        while not self._done.wait(LOOK_S):
            self._highest = max(self._highest, memory_gib())


def machine(device: torch.device) -> dict[str, Any]:
    """Cores, threads, processor, GPU where it is used, versions (None: not installed), date and commit."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "versions": {package: _version(package) for package in PACKAGES},
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
    }


def check_out(out: str) -> None:
    """Raise UsageError, before minutes of measuring, for a file ``out`` that can't be written."""
    if out and not Path(out).parent.is_dir():
        raise UsageError(f"out={out}: its folder is not there; make it, or name another")
    if out and Path(out).is_dir():
        raise UsageError(f"out={out} is a folder: name a JSON file")


def write_result(out: str, result: dict[str, Any]) -> None:
    """As JSON, where a file was named."""
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that the package is run from; with ``+`` where files differ from it."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        head, changed = (
            subprocess.run([*here, *words], capture_output=True, text=True, timeout=20, check=True).stdout
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if changed.strip() else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
