"""One worker of a trial: it runs its rank as a process group of its own, and ends with it.

A group can be killed whole, which gives back its memory whatever state it is in; a training loop inside Ray's own process
could only be asked to stop. Ray's worker watches; it holds no tensor.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import psutil

from essa_dist.disk import write_whole
from essa_dist.errors import EssaError, is_out_of_memory

STOP, VERDICT = "stop", "verdict.json"
SAVE = "save"
"""In the file STOP: the trial is to go on later."""
GROUPS = "placement_groups"
"""In the trial's folder: the placement groups that its starts have had."""
TOKEN = "ESSA_TRIAL"
"""In the environment of a trial's processes: whose they are."""
POLL_S = 0.2
GRACE_S = 30
"""How long a rank may take to save when it is told to end."""
_MEMORY_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


class RankJob(TypedDict):
    """What the ranks of a trial run; the same on all."""

    words: list[str]
    """Behind ``python``."""
    folder: str
    """The trial's."""
    token: str
    env: dict[str, str]
    """What a launcher would add to the environment."""
    cwd: str


class LostRankError(EssaError):
    """A process of a trial is gone, for no reason that would come again."""


def run_rank(job: RankJob) -> None:
    """The training function of Ray Train: run this worker's rank to its end.

    Returns when it is done, was stopped, or has ended for a reason that would come again, which is then in ``verdict.json``;
    raises LostRankError where going on from the checkpoint may help.
    """
    import ray.train
    import ray.util
    from ray.train import collective

    context = ray.train.get_context()
    group = ray.util.get_current_placement_group()
    if group is not None and context.get_world_rank() == 0:
        with (Path(job["folder"]) / GROUPS).open("a") as file:
            file.write(f"{group.id.hex()}\n")
    # The first rank's machine, which need not be the one that the sweep runs on.
    host, port = collective.broadcast_from_rank_zero(_own_address())
    place = {
        "RANK": context.get_world_rank(),
        "LOCAL_RANK": context.get_local_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "GROUP_RANK": context.get_node_rank(),
        "MASTER_PORT": port,
    }
    env = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": host} | job["env"]
    Rank(job, env).run()


class Rank:
    """A rank's process group, from its start to its end."""

    def __init__(self, job: RankJob, env: Mapping[str, str]) -> None:
        self.folder, self.number, self.token = Path(job["folder"]), env["RANK"], job["token"]
        self.log = self.folder / f"rank{self.number}.log"
        self.until: float | None = None
        """When a rank that was told to save is killed."""
        self.cause = self.folder / f"cause{self.number}.json"
        self.cause.unlink(missing_ok=True)
        end_leftovers(self.folder, env.get("MASTER_PORT", ""))
        self.kills = kills()
        self.start = self.log.stat().st_size if self.log.is_file() else 0
        mine = {TOKEN: job["token"], "TORCHELASTIC_ERROR_FILE": str(self.cause), "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *job["words"]],
                env=os.environ | mine | dict(env),
                cwd=job["cwd"] if os.path.isdir(job["cwd"]) else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self) -> None:
        """See :func:`run_rank`."""
        try:
            while self.process.poll() is None:
                if self._is_to_end():
                    return
                time.sleep(POLL_S)
        finally:
            self.kill()
        if self.until is None:
            self._judge(self.process.returncode)

    def _is_to_end(self) -> bool:
        """Whether to kill the rank now; one that is to go on later saves first, in the time it is given."""
        if (self.folder / VERDICT).exists():
            return True
        with suppress(OSError):
            if (self.folder / STOP).read_text() != SAVE:
                return True
            if self.until is None:
                self.until = time.monotonic() + GRACE_S
                self.process.terminate()
        return self.until is not None and time.monotonic() > self.until

    def kill(self) -> None:
        """End the group, whatever state it is in, and wait for it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _judge(self, code: int) -> None:
        if code == 0:
            return None
        said = self._said()
        if is_out_of_memory(said) or (code == -signal.SIGKILL and kills() > self.kills):
            return self._end("out_of_memory", said or "the kernel killed a rank for want of host memory")
        if code < 0 or code == 75 or _is_lost_peer(said):
            by = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise LostRankError(f"rank {self.number} ended by {by}{f': {said}' if said else ''}")
        diverged = "not finite" in said or "diverged" in said
        return self._end("diverged" if diverged else "failed", said or f"exit code {code}")

    def _end(self, status: str, reason: str) -> None:
        verdict = self.folder / VERDICT
        if not verdict.exists():  # the first word counts
            said = {"status": status, "reason": f"{reason} ({self.log.name})", "token": self.token}
            write_whole(verdict, json.dumps(said))

    def _said(self) -> str:
        """Why it ended, in its own words: what it left for a launcher, or its last line."""
        with suppress(OSError, ValueError, KeyError):
            return str(json.loads(self.cause.read_text())["message"]["message"])
        with suppress(OSError):
            lines = self.log.read_bytes()[self.start :].decode(errors="replace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ""


def _own_address() -> tuple[str, int]:
    """This machine's address in the cluster, and a port that is free now."""
    import ray.util

    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])


def free_lost(folder: Path) -> None:
    """Give back what earlier starts of the trial in ``folder`` hold of the cluster.

    Ray keeps the placement group of a controller that was killed until the whole sweep has ended, unless its dashboard
    runs; another start of the trial could then wait for ever.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    file = folder / GROUPS
    for line in file.read_text().split() if file.is_file() else ():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(line))))
    file.unlink(missing_ok=True)


def end_leftovers(folder: Path, port: str) -> None:
    """Wait for this machine's ranks of an earlier start of the trial in ``folder``, whose workers are gone; kill those that stay.

    They save, or hang, and hold the run's folder and memory: also those of a sweep that was killed. ``port`` tells the
    present start's from them.
    """
    before = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            env = process.environ()
            of = Path(env.get("TORCHELASTIC_ERROR_FILE", "")).parent
            if TOKEN in env and of == folder and env.get("MASTER_PORT", "") != port:
                before.append(process)
    _, late = psutil.wait_procs(before, timeout=GRACE_S)
    for process in late:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(late, timeout=GRACE_S)


def kills() -> int:
    """How often the kernel has killed for want of memory, in this container or on this machine."""
    count = 0
    for file in _MEMORY_EVENTS:
        with suppress(OSError):
            named = dict(line.split() for line in file.read_text().splitlines())
            count += int(named.get("oom_kill", 0))
    return count


def _is_lost_peer(said: str) -> bool:
    """Whether a rank ended because another was gone: its own reason isn't one."""
    text = said.lower()
    return any(
        words in text
        for words in (
            "killed, or lost",
            "another rank was killed",
            "lost their connection",
            "address already in use",
        )
    )


def verdict(folder: Path) -> dict[str, Any]:
    """What ended the trial for good: its ``status`` and ``reason``; empty: nothing has."""
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / VERDICT).read_text())
        return found
    return {}
