"""The Ray cluster of a sweep: joining it, and whether the trials fit."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from essa_dist.errors import UsageError
from essa_dist.tuning.config import PBT, JobShape, TuneConfig

T = TypeVar("T")

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials have records of their own
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of the settings are relative to where the command was given
    "TUNE_GLOBAL_CHECKPOINT_S": "5",  # what a killed sweep may forget; its trials know more
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # ranks hear of their machine's end by SIGTERM, and save
    "RAY_worker_niceness": "0",  # Ray's 15 is inherited by the ranks, which then yield to everything else on the machine
}


@contextmanager
def cluster(config: TuneConfig) -> Iterator[None]:
    """Be part of the cluster while it lasts. Raises UsageError where there is none at ``config.address``."""
    import ray

    if ray.is_initialized():  # a program's own, which calls the sweep
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if config.address == "local":
            cpus = config.cpus or os.cpu_count() or 1
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
        else:
            ray.init(address=config.address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"no Ray cluster at address={config.address} ({said[:200]}): start one (launch/ray/), or say address=local"
        ) from None
    try:
        with _sigterm_as_sigint():  # from here on: Ray has put a handler of its own, which just ends
            yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """Ray Tune stops at SIGINT, with its state saved; SIGTERM is to do the same."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def machines() -> list[dict[str, float]]:
    """CPUs and GPUs of each machine of the cluster that is there now."""
    import ray

    return [
        {name: float(node["Resources"].get(name, 0)) for name in ("CPU", "GPU")}
        for node in ray.nodes()
        if node["Alive"]
    ]


def on_machines(function: Callable[..., T], *args: Any, timeout_s: float = 10) -> list[tuple[str, T]]:
    """What ``function``, importable there, returns on each machine of the cluster that is there now, by its host name.

    On this machine in this process. Raises what it raises, or Ray's error for a machine that is gone or doesn't answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    ask = ray.remote(num_cpus=0)(function)
    others = [node for node in nodes if node != own]
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*args)
        for node in others
    ]
    found = [(nodes[own], function(*args))]
    return found + list(zip((nodes[node] for node in others), ray.get(asked, timeout=timeout_s), strict=True))


def places(shape: JobShape, nodes: list[dict[str, float]]) -> int:
    """How many workers fit ``nodes`` at a time."""
    needs = {"CPU": shape.cpus} | ({"GPU": shape.gpus} if shape.gpus else {})
    return sum(min(int(node[name] / need + 1e-9) for name, need in needs.items()) for node in nodes)


def concurrent(config: TuneConfig, nodes: list[dict[str, float]]) -> int:
    """Trials that run at a time. Raises UsageError, with what is missing, where not even one fits."""
    shape, room = config.job, places(config.job, nodes)
    fitting = room // shape.workers
    if fitting < 1:
        gpus = f" and {shape.gpus:g} GPU" if shape.gpus else ""
        there = ", ".join(f"{node['CPU']:g} CPU and {node['GPU']:g} GPU" for node in nodes)
        raise UsageError(
            f"a trial needs {shape.workers} workers of {shape.cpus:g} CPU{gpus} each, and the cluster has room for {room} of them "
            f"({len(nodes)} machine{'s' if len(nodes) > 1 else ''}: {there}): lower job.workers, job.cpus or job.gpus, "
            f"add machines{', or give out more CPUs than there are with cpus=' if config.address == 'local' else ''}"
        )
    if (
        isinstance(config.scheduler, PBT)
        and config.search.kind == "random"
        and config.search.trials > fitting
    ):
        raise UsageError(
            f"a population of {config.search.trials} trials runs all at once, and the cluster has room for {fitting}: lower "
            "search.trials, job.workers or job.cpus, or add machines"
        )
    return min(config.concurrent or fitting, fitting)
