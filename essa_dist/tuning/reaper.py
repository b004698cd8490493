"""Whether a trial that has ended has given back its memory: its processes are looked for on every machine.

Ray has left processes of stopped trials on GPUs (ray-project/ray#32725, #23971); here they carry the trial's name in
their environment, and what is still there after a while is killed.
"""

import json
import logging
import shutil
import signal
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from essa_dist.disk import write_whole
from essa_dist.tuning.cluster import on_machines
from essa_dist.tuning.worker import GRACE_S, TOKEN

log = logging.getLogger(__name__)

POLL_S = 2.0


class Found(NamedTuple):
    """A process of a trial."""

    trial: str
    pid: int
    rss: int
    """Bytes of host memory."""
    gpu: int = 0
    """Bytes of GPU memory."""


def processes_of(token: str, kill: tuple[str, ...] = ()) -> list[Found]:
    """Processes of the sweep ``token`` on this machine; those of the trials ``kill`` are killed after they are counted."""
    found, on_gpus = [], gpu_memory()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            sweep, _, trial = process.environ().get(TOKEN, "").rpartition("/")
            if sweep != token:
                continue
            on_gpu = on_gpus.get(process.pid, 0)
            found.append(Found(trial, process.pid, process.memory_info().rss, on_gpu))
            if trial in kill:
                process.send_signal(signal.SIGKILL)
    return found


def gpu_memory() -> dict[int, int]:
    """Bytes that each process holds on this machine's GPUs, as the driver counts them; empty without NVIDIA's."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    held: dict[int, int] = defaultdict(int)
    for line in told.stdout.splitlines():
        pid, _, mib = line.partition(",")
        with suppress(ValueError):  # "[N/A]" where the driver may not tell
            held[int(pid)] += int(mib) * 2**20
    return dict(held)


class Reaper:
    """Watches the processes of a sweep's trials, from a thread of its own, while Ray is connected."""

    def __init__(self, token: str, patience_s: float = GRACE_S) -> None:
        self.token, self.patience_s = token, patience_s
        self.held: dict[str, tuple[int, int]] = {}
        """Bytes of host and GPU memory that each trial held when it was last seen."""
        self.ended: dict[str, float] = {}
        """When each trial has ended, by the monotonic clock."""
        self.freed: dict[str, dict[str, float]] = {}
        """Of each ended trial: `gib` and `gpu_gib` it had held, `seconds` until all was free, `killed` processes."""
        self._killed: dict[str, int] = defaultdict(int)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Reaper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10)
        with suppress(Exception):
            self.look()

    def end(self, trial: str) -> None:
        """Expect the processes of ``trial`` to go, from now on."""
        self.ended.setdefault(trial, time.monotonic())

    def start(self, trial: str) -> None:
        """It runs, perhaps once more."""
        self.ended.pop(trial, None)

    def look(self) -> None:
        """See what is there; kill what should not be."""
        now = time.monotonic()
        late = tuple(trial for trial, since in self.ended.items() if now - since > self.patience_s)
        found = everywhere(self.token, late)
        seen: dict[str, tuple[int, int]] = {}
        for one in found:
            host, gpu = seen.get(one.trial, (0, 0))
            seen[one.trial] = host + one.rss, gpu + one.gpu
            if one.trial in late:
                self._killed[one.trial] += 1
                log.warning("%s has ended, but its process %d had not: killed", one.trial, one.pid)
        self.held |= {trial: held for trial, held in seen.items() if trial not in self.ended}
        for trial, since in self.ended.items():
            if trial not in seen and trial not in self.freed and trial in self.held:
                host, gpu = self.held[trial]
                self.freed[trial] = {
                    "gib": round(host / 2**30, 3),
                    "gpu_gib": round(gpu / 2**30, 3),
                    "seconds": round(now - since, 1),
                    "killed": self._killed[trial],
                }

    def _watch(self) -> None:
        while not self._done.wait(POLL_S):
            try:
                self.look()
            except Exception as error:  # a machine that just went away
                log.debug("processes could not be counted: %s", error)


def everywhere(token: str, kill: tuple[str, ...]) -> list[Found]:
    """:func:`processes_of` of all machines of the cluster; each process once, also where machines are one, as in tests."""
    answers = list(on_machines(processes_of, token, kill))
    found = [(host, Found(*one)) for host, answer in answers for one in answer]
    return list({(host, one.pid): one for host, one in found}.values())


def write_freed(out: Path, freed: dict[str, dict[str, float]]) -> None:
    """Write ``out/freed.json``."""
    if freed:
        write_whole(out / "freed.json", json.dumps(freed, indent=1) + "\n")
