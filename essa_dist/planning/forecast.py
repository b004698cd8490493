"""What a run on GPUs is told of its memory: a warning at its start if it won't fit, and what to change when it didn't.

The plan is made by a process of its own beside the start of the run, which it delays by nothing; fake tensors in the run's
own process would meet the collectives of real ones.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from essa_dist.distributed.environment import wanted
from essa_dist.engine.config import JobConfig
from essa_dist.errors import OutOfMemory

log = logging.getLogger(__name__)

GIB = 2**30
ANSWER_S = 120.0
"""How long to wait for a plan after memory has run out; one takes some 10 s."""


class Forecast:
    """A context manager around a run. Does nothing without a GPU. Raises OutOfMemory where torch runs out of it."""

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.on_gpu = config.device != "cpu" and torch.cuda.is_available()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if self.on_gpu and int(os.environ.get("RANK", "0")) == 0:
            threading.Thread(target=self._warn, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, torch.OutOfMemoryError):
                raise OutOfMemory(f"the GPU ran out of memory. {after(self._ask())}") from error
        finally:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def _warn(self) -> None:
        if words := before(self._ask()):
            log.warning("%s", words)

    def _ask(self) -> dict[str, Any] | None:
        """The plan's answer; None: there is none, for example because the run has ended before it."""
        index = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.cuda.get_device_properties(index)
        question = {
            "config": self.config.model_dump(mode="json"),
            "layout": layout_name(),
            "ranks": int(os.environ.get("WORLD_SIZE") or 1),
            "name": device.name,
            "memory": device.total_memory,
        }
        launcher = ("RANK", "WORLD_SIZE", "LOCAL_", "ACCELERATE_", "FSDP_", "MASTER_", "TORCHELASTIC_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "essa_dist.planning.answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        try:
            said, _ = self._process.communicate(json.dumps(question), timeout=ANSWER_S)
            found: dict[str, Any] = json.loads(said)
            return found
        except (OSError, ValueError, subprocess.TimeoutExpired):  # without an answer the run goes its way
            return None


def before(answer: dict[str, Any] | None) -> str:
    """The warning; empty where it fits."""
    if answer is None or answer["needs"] <= answer["memory"]:
        return ""
    return (
        f"this run takes about {answer['needs'] / GIB:.1f} GiB of each {answer['name']}, which has {answer['memory'] / GIB:.1f}: "
        f"{'; or '.join(answer['ways'])} (see essa plan)"
    )


def after(answer: dict[str, Any] | None) -> str:
    """Which term it was, and the way out."""
    if answer is None:
        return (
            "Set engine.keep=8bit or engine.recompute=mlp, or raise accumulate; essa plan says what they save"
        )
    sum_, size = answer["needs"] / GIB, answer["terms"][answer["dominates"]] / GIB
    fits = answer["needs"] <= answer["memory"]
    other = ", which should have been enough: is another process on this GPU (nvidia-smi)?" if fits else ""
    return (
        f"By the plan it needs {sum_:.1f} GiB{other}; the largest term is {answer['dominates']}, {size:.1f} GiB. "
        f"Ways out: {'; or '.join(answer['ways'])}"
    )


def layout_name() -> str:
    """The strategy that the launcher asks for, before Accelerate has said what it makes of it."""
    name = wanted()
    if name != "zero":
        return name
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file:
        stage = (
            json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 2)
        )
    else:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    return f"zero{stage}"
