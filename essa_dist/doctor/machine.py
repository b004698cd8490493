"""What the machine offers to this process: processors, memory, disk. Sizes in GiB."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")


def devices() -> dict[str, Any]:
    """Processor and CUDA devices as torch sees them; ``cores`` are those that this process may use."""
    import torch

    info = _read(Path("/proc/cpuinfo"))
    flags = set((_search(r"^flags\s*:\s*(.*)$", info) or "").split())
    return {
        "cpu": _search(r"^model name\s*:\s*(.*)$", info),
        "cores": len(os.sched_getaffinity(0)),
        "core_quota": _core_quota(),
        "threads": torch.get_num_threads(),
        "bf16_instructions": sorted(flags & {"amx_bf16", "avx512_bf16"}),
        "nvidia_driver": _search(
            r"Kernel Module.*?\s(\d+\.[\d.]+)\s", _read(Path("/proc/driver/nvidia/version"))
        ),
        "cuda": [_cuda_device(index) for index in range(torch.cuda.device_count())],
    }


def memory() -> dict[str, float | None]:
    """Total and available memory, and the limit that a container sets, if any."""
    info = _read(Path("/proc/meminfo"))
    total, available = (
        int(kib) * 1024 if (kib := _search(rf"^{field}:\s*(\d+) kB", info)) else None
        for field in ("MemTotal", "MemAvailable")
    )
    limit, used = (_read(CGROUP / f"memory.{name}").strip() for name in ("max", "current"))
    ceiling = int(limit) if limit.isdigit() else None
    if ceiling is not None and available is not None and used.isdigit():
        available = min(available, ceiling - int(used))
    return {"total": _gib(total), "available": _gib(available), "container_limit": _gib(ceiling)}


def disk() -> dict[str, float]:
    """Free space in the current folder, and the size of the shared memory that data workers use."""
    shm = Path("/dev/shm")
    return {
        "free_here": round(shutil.disk_usage(".").free / GIB, 2),
        "shm": round(shutil.disk_usage(shm).total / GIB, 3) if shm.is_dir() else 0.0,
    }


def _cuda_device(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gib": _gib(properties.total_memory),
        "capability": f"{properties.major}.{properties.minor}",
    }


def _core_quota() -> float | None:
    """Cores' worth of time that a container grants, None where it doesn't say."""
    quota, _, period = _read(CGROUP / "cpu.max").strip().partition(" ")
    return round(int(quota) / int(period), 2) if quota.isdigit() and period else None


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / GIB, 1)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _search(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else None
