"""The machine that is measured: its parts, its clocks."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "pillow", "imagecodecs", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


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


def machine(device: torch.device) -> dict[str, Any]:
    """Cores, processor, GPU where it is used, and versions; None: not installed."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
