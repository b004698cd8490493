"""``essa doctor``: what is installed, what the machine has, and what works here, each thing tried for real."""

import os
from typing import Any

from pydantic import Field

from essa_dist import _torchvision
from essa_dist.doctor.checks import run_checks
from essa_dist.doctor.machine import devices, disk, memory
from essa_dist.doctor.packages import package_problems, versions
from essa_dist.doctor.world.place import find_place
from essa_dist.settings import Config


class DoctorConfig(Config):
    """Alone, doctor looks at the machine and at the folder that it is run in; under a launcher, at all ranks together."""

    run: tuple[str, ...] = ()
    """The words of an `essa adapt`: its config file and settings, given as they are. What the run would read is then
    compared over the ranks: settings, weights, data, output folder."""
    launch: str | None = None
    """The Accelerate config that the launcher was given (null: look at its command line); its numbers of processes and
    nodes are compared with those that came."""
    seconds: float = Field(25, gt=0, le=600)
    """How long to wait for a rank that doesn't come, doesn't answer or hangs."""


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Look, try, and tell; alone, the network is never asked. Takes some 15 s on two cores.

    ``ok`` is true when ``problems`` is empty. Each problem is one line and ends with its remedy. Under a launcher see
    ``world.examine_world``.
    """
    if (place := find_place()) is not None:
        from essa_dist.doctor.world.examine import (
            examine_world,
        )  # torch and Accelerate, which may be what is broken

        return examine_world(place, words=config.run, launch=config.launch, seconds=config.seconds)
    run_problems = _run_problems(config.run) if config.run else []  # first: it refuses wrong words
    checks = run_checks()
    hardware, store, disks = devices(), memory(), disk()
    problems = [
        *package_problems(),
        *_machine_problems(hardware, store, disks),
        *(
            f"{name}: {check['error']}: {check['remedy']}"
            for name, check in checks.items()
            if not check["ok"]
        ),
        *run_problems,
    ]
    return {
        "ok": not problems,
        "problems": problems,
        "versions": versions(),
        "torchvision_mended": _torchvision.was_needed(),
        "devices": hardware,
        "memory_gib": store,
        "disk_gib": disks,
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"},
        "checks": {name: {"ok": check["ok"], "seconds": check["seconds"]} for name, check in checks.items()},
    }


def _run_problems(words: tuple[str, ...]) -> list[str]:
    """What a run of these words could not read. Raises UsageError for words that are wrong."""
    from essa_dist.doctor.world.run import read_run, run_facts

    return run_facts(read_run(words), lambda _: None, first_on_node=True).failures


def _machine_problems(
    hardware: dict[str, Any], store: dict[str, float | None], disks: dict[str, float]
) -> list[str]:
    problems = []
    if hardware["nvidia_driver"] and not hardware["cuda"]:
        problems.append(
            f"an NVIDIA driver ({hardware['nvidia_driver']}) is here but torch sees no CUDA device: "
            "install the CUDA build of torch, or a driver new enough for it"
        )
    if (available := store["available"]) is not None and available < 2:
        problems.append(f"{available} GiB of memory are free, the demo takes 2: end other programs")
    if disks["free_here"] < 2:
        problems.append(f"{disks['free_here']} GiB of disk are free here: write runs elsewhere with out=DIR")
    # Workers hand each batch over through shared memory; containers are born with 64 MiB of it.
    if 0 < disks["shm"] < 0.25:
        problems.append(
            f"/dev/shm has {disks['shm']} GiB, too little for data workers: "
            "start the container with --shm-size=8g, or set data.workers=0"
        )
    return problems
