"""What one rank tells of itself."""

import hashlib
import os
import platform
import resource
import socket
from pathlib import Path

import torch
from pydantic import BaseModel

import essa_dist
from essa_dist.doctor import machine
from essa_dist.doctor.packages import installed
from essa_dist.doctor.world import network
from essa_dist.doctor.world.place import Place
from essa_dist.doctor.world.run import RunFacts

GIB = machine.GIB
PACKAGES = ("torch", "accelerate", "deepspeed", "timm", "peft", "torchvision", "numpy", "safetensors")
WATCHED = ("NCCL_", "GLOO_", "TORCH_NCCL_", "ACCELERATE_", "FSDP_", "DS_")
"""Prefixes of environment variables that have to be equal on all ranks."""


class Device(BaseModel):
    name: str
    """``cpu``, or ``cuda:0`` as this process counts."""
    kind: str
    identity: str
    """The same for ranks that share the device."""
    memory_gib: float
    free_gib: float
    on_host: int
    """Devices that this process sees; 0: it computes on the CPU."""


class RankRecord(BaseModel):
    """Read on another rank, whose code may differ: unknown fields are left out."""

    rank: int
    world_size: int
    local_rank: int | None
    node_rank: int | None
    host: str
    node: str
    """The same for ranks that share a kernel and its network."""
    address: str | None
    """Where packets to MASTER_ADDR leave from."""
    interface: str | None
    """Of ``address``."""
    interfaces: dict[str, list[str]]
    gloo_address: str | None
    """What gloo will offer to the other ranks."""
    clock: float
    """Unix time at which this rank learnt that all had come, s."""
    device: Device
    versions: dict[str, str | None]
    environment: dict[str, str]
    """Those of WATCHED."""
    shm_gib: float
    open_files: int
    """Soft limit (ulimit -n)."""
    run: RunFacts | None = None


def own_record(place: Place, *, clock: float, cpu: bool, run: RunFacts | None) -> RankRecord:
    """``cpu``: the run computes on the CPU even where there is a GPU."""
    known = network.interfaces()
    address = network.own_address(network.resolve(place.address)) if place.address else None
    return RankRecord(
        rank=place.rank,
        world_size=place.world_size,
        local_rank=place.local_rank,
        node_rank=place.node_rank,
        host=socket.gethostname(),
        node=network.network_host(),
        address=address,
        interface=next((name for name, addresses in known.items() if address in addresses), None),
        interfaces=known,
        gloo_address=network.gloo_address(known),
        clock=clock,
        device=_device(place, cpu=cpu),
        versions=world_versions(),
        environment={name: value for name, value in os.environ.items() if name.startswith(WATCHED)},
        shm_gib=machine.disk()["shm"],
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        run=run,
    )


def _device(place: Place, *, cpu: bool) -> Device:
    if cpu or not torch.cuda.is_available():
        memory = machine.memory()
        return Device(
            name="cpu",
            kind=machine.devices()["cpu"] or platform.machine(),
            identity="cpu",
            memory_gib=memory["container_limit"] or memory["total"] or 0.0,
            free_gib=memory["available"] or 0.0,
            on_host=0,
        )
    count = torch.cuda.device_count()
    index = (place.local_rank or 0) % count  # as Accelerate chooses
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Device(
        name=f"cuda:{index}",
        kind=properties.name,
        identity=str(properties.uuid),
        memory_gib=round(total / GIB, 1),
        free_gib=round(free / GIB, 1),
        on_host=count,
    )


def world_versions() -> dict[str, str | None]:
    """What has to be equal on all ranks, from the interpreter to the driver; None: not there."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "essa_dist": f"{essa_dist.__version__} ({code_sha256(Path(essa_dist.__file__).parent)[:8]})",
        **{name: installed(name) for name in PACKAGES},
        "CUDA": torch.version.cuda,
        "NCCL": None if nccl is None else ".".join(map(str, nccl)),
        "driver": machine.devices()["nvidia_driver"],
    }


def code_sha256(package: Path) -> str:
    """Hash over names and bytes of a package's modules: two checkouts can have one version and not one code."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
