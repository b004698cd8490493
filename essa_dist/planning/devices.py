"""The table of devices and interconnects, and what this machine's CPU can do."""

import re
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, ValidationError

from essa_dist.errors import UsageError
from essa_dist.nearest import nearest
from essa_dist.settings import Config

TABLE = Path(__file__).with_name("devices.yaml")
CPU = "cpu"


class Device(Config):
    """A kind of device; units as in devices.yaml."""

    name: str
    memory_gib: float = Field(0.0, ge=0)
    tflops: dict[str, float] = Field(default={})
    bandwidth_gbs: float = Field(0.0, ge=0)
    link_gbs: float = Field(1.0, gt=0)
    host_gbs: float = Field(25.0, gt=0)
    workspace_mib: float = Field(0.0, ge=0)
    context_mib: float = Field(0.0, ge=0)
    price: float = Field(0.0, ge=0)
    source: str


class Interconnect(Config):
    gbs: float = Field(gt=0)
    latency_s: float = Field(ge=0)
    source: str


class Table(Config):
    devices: dict[str, Device] = Field(default={})
    interconnects: dict[str, Interconnect] = Field(default={})

    def device(self, name: str) -> Device:
        """Raises UsageError for one that isn't there."""
        found: Device = _find(self.devices, name, "device")
        return found

    def interconnect(self, name: str) -> Interconnect:
        """Raises UsageError for one that isn't there."""
        found: Interconnect = _find(self.interconnects, name, "interconnect")
        return found


def _find(known: dict[str, Any], name: str, what: str) -> Any:
    if name.lower() in known:
        return known[name.lower()]
    best = nearest(name.lower(), known)
    hint = f"; did you mean {best}?" if best else ""
    raise UsageError(
        f"no {what} {name!r}; there are {', '.join(known)}{hint} (table=FILE adds more, as essa_dist/planning/devices.yaml)"
    )


def known_as(gpu: str, table: Table) -> str | None:
    """The table's name of what torch calls ``gpu``, as h100 of "NVIDIA H100 80GB HBM3"; None: it isn't there."""
    squeezed = gpu.lower().replace(" ", "")
    # The longest: "l4" is a part of "l40s".
    return max((key for key in table.devices if key != CPU and key in squeezed), key=len, default=None)


def read_table(more: str = "") -> Table:
    """The package's table, with the entries of the file ``more`` over it. Raises UsageError where that can't be read."""
    own = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    if not more:
        return Table(**own)
    try:
        added = yaml.safe_load(Path(more).read_text(encoding="utf-8")) or {}
        merged = dict(own)
        for section, entries in added.items():
            mine = merged.get(section, {})
            merged[section] = mine | {name: mine.get(name, {}) | entry for name, entry in entries.items()}
        return Table(**merged)
    except (OSError, yaml.YAMLError, TypeError, AttributeError) as error:
        raise UsageError(f"table={more} is no table like essa_dist/planning/devices.yaml: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"table={more}: {where}: {first['msg']}; see essa_dist/planning/devices.yaml"
        ) from None


def parse(word: str, table: Table) -> tuple[str, int, Device]:
    """``8xh100`` as its name, number and entry. Raises UsageError."""
    found = re.fullmatch(r"(\d+)x(.+)", word)
    count, name = (int(found[1]), found[2]) if found else (1, word)
    if count < 1:
        raise UsageError(f"devices={word}: give at least one, as 8x{name}")
    return name.lower(), count, table.device(name)


def measured_cpu(device: Device, dtype: torch.dtype) -> Device:
    """``device`` with this machine's memory and what one thread team makes of a product of matrices and a copy; 0.3 s."""
    import psutil

    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    side = 1024
    a = torch.ones(side, side, dtype=dtype)
    b = torch.ones(16 * 2**20)
    product = _seconds(lambda: a @ a)
    copy = _seconds(lambda: b.clone())
    found = {
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "tflops": {precision: 2 * side**3 / product / 1e12},
        "bandwidth_gbs": 2 * b.nbytes / copy / 1e9,
    }
    return device.model_copy(update={key: value for key, value in found.items() if not getattr(device, key)})


def _seconds(work: Any) -> float:
    work()
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best
