"""What the launcher asked for, and an Accelerator that really does it.

Accelerate reads the launcher's wishes from the environment, and where it can't follow one it may go on without a
word: FSDP and DeepSpeed are dropped on CPUs, ``--cpu`` starts a single process. So the wish is read here as well, and
compared with what came of it.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.state import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env

from essa_dist.errors import UsageError

log = logging.getLogger(__name__)


def wanted() -> str:
    """What the launcher's environment asks for: ``zero``, ``fsdp2``, ``ddp`` or ``single``. Raises UsageError."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return "zero"
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise UsageError(
                f"the launcher asks for FSDP version {version}: say fsdp_version: 2 in its config"
            )
        return "fsdp2"
    return "ddp" if int(os.environ.get("WORLD_SIZE") or 1) > 1 else "single"


def check_told(wish: str) -> None:
    """UsageError where what the launcher told can't be followed, such as what another one has left in the environment."""
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if wish == "zero" and file and not os.path.isfile(file):
        raise UsageError(
            f"the launcher's config names {file}, which is not in {os.getcwd()}: give the command in the root of the repository"
        )
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    lacking = [name for name in needed if not os.environ.get(name)]
    if (wish == "zero" or int(os.environ.get("WORLD_SIZE") or 1) > 1) and lacking:
        raise UsageError(
            f"the environment asks for {wish} on {os.environ.get('WORLD_SIZE', 'no')} processes but lacks {', '.join(lacking)}: "
            "start through accelerate-launch or torchrun, or unset what a launcher has left (ACCELERATE_*, WORLD_SIZE)"
        )


def make_accelerator(*, cpu: bool, timeout: timedelta | None = None) -> Accelerator:
    """The process's Accelerator, on ``cpu`` over gloo, else on its GPU over NCCL.

    ``timeout``: of collectives (default: torch's). Raises UsageError where Accelerate did something else than the
    launcher asked for.
    """
    wish = wanted()
    check_told(wish)
    # Naming a backend makes Accelerate look for a process group, so none is named where nobody launched us.
    gloo = {"backend": "gloo"} if cpu and "LOCAL_RANK" in os.environ else {}
    world = InitProcessGroupKwargs(**gloo, timeout=timeout)
    # Centres are equal on all ranks by their own all-reduce; DDP need not send them around before each forward pass.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    if "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ["ACCELERATE_MIXED_PRECISION"] != "no":
        log.warning("mixed_precision of the launcher's config is ignored: the run's own precision= holds")
    options: dict[str, Any] = {"mixed_precision": "no", "kwargs_handlers": [world, ddp]}
    if not cpu or wish in ("ddp", "single"):
        accelerator = Accelerator(cpu=cpu, **options)
    else:
        with _cpu_for_all():
            accelerator = Accelerator(**options)
    _check(accelerator, wish, cpu=cpu)
    return accelerator


@contextmanager
def _cpu_for_all() -> Iterator[None]:
    """Lets Accelerate use DeepSpeed and FSDP2 without a GPU, which it does not by itself (Accelerator(cpu=True) drops both)."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["DS_ACCELERATOR"] = "cpu"
    own = PartialState._prepare_backend

    def as_on_gpus(*args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = as_on_gpus
    try:
        yield
    finally:
        PartialState._prepare_backend = own


def _check(accelerator: Accelerator, wish: str, *, cpu: bool) -> None:
    name, processes = strategy_name(accelerator), int(os.environ.get("WORLD_SIZE") or 1)
    if not name.startswith(wish):
        raise UsageError(
            f"the launcher asks for {wish}, Accelerate chose {name}: look at its config file, and at essa doctor"
        )
    if accelerator.num_processes != processes:
        raise UsageError(
            f"the launcher started {processes} processes, Accelerate sees {accelerator.num_processes}: "
            "start through accelerate launch or torchrun"
        )
    if (accelerator.device.type == "cpu") != cpu:
        raise UsageError(f"asked for {'cpu' if cpu else 'cuda'}, Accelerate chose {accelerator.device.type}")
    plugin = accelerator.state.deepspeed_plugin if wish == "zero" else None
    for kind in ("bf16", "fp16"):
        if plugin and plugin.deepspeed_config.get(kind, {}).get("enabled") is True:
            raise UsageError(
                f"the DeepSpeed config enables {kind}: remove it, precision={kind} of the run is what holds"
            )


def strategy_name(accelerator: Accelerator) -> str:
    """``single``, ``ddp``, ``zero1`` to ``zero3``, with ``_offload``, or ``fsdp2``. Raises UsageError for others."""
    kind = accelerator.distributed_type
    if kind is DistributedType.DEEPSPEED:
        zero = accelerator.state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        if zero.get("stage") not in (1, 2, 3):
            raise UsageError(
                f"zero_optimization.stage of the DeepSpeed config is {zero.get('stage')}: 1, 2 or 3"
            )
        offloads = [zero.get(f"offload_{what}", {}).get("device", "none") for what in ("optimizer", "param")]
        return f"zero{zero['stage']}" + ("_offload" if set(offloads) - {"none"} else "")
    if kind is DistributedType.FSDP:
        plugin: FullyShardedDataParallelPlugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version == 2:
            return "fsdp2"
    elif kind in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        return "ddp" if accelerator.num_processes > 1 else "single"
    elif kind is DistributedType.NO:
        return "single"
    raise UsageError(f"Accelerate chose {kind.value}: use one of the configs in launch/")


def backend() -> str:
    """The process group's, such as ``gloo`` or ``nccl``; ``none`` on one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return str(torch.distributed.get_backend())
    return "none"
