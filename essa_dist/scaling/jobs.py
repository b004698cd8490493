"""The jobs of a study: what each is, the command that starts it, and what became of it."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from essa_dist.bench.children import exit_code
from essa_dist.errors import UsageError, is_out_of_memory
from essa_dist.scaling.config import ScaleConfig

PROFILED = 2
"""Steps at the end of a job that are profiled, which slows them on a CPU."""
RESULT, LOG, CAUSE = "result.json", "log.txt", "cause*.txt"
LAUNCHER = "{python} -m accelerate.commands.launch --config_file {launch}/{strategy}.yaml --main_process_port 0 --num_processes {n}"


@dataclass(frozen=True)
class Job:
    """So many processes under a strategy, in one of the rounds."""

    strategy: str
    processes: int
    batch_size: int
    """Images of an update, over all processes."""
    round: int

    @property
    def name(self) -> str:
        return f"{self.strategy}_{self.processes}x_batch{self.batch_size}_round{self.round + 1}"


def jobs(config: ScaleConfig, batch_size: int) -> list[Job]:
    """In the order in which they run: round by round. A job that weak and strong scaling share is there once."""
    found: dict[Job, None] = {}
    for round_ in range(config.rounds):
        for size in sorted(config.sizes):
            for strategy in config.strategy:
                for mode in config.modes:
                    found[Job(strategy, size, batch_of(mode, batch_size, size), round_)] = None
    return list(found)


def batch_of(mode: str, batch_size: int, size: int) -> int:
    """Images of an update of ``size`` processes."""
    return batch_size * size if mode == "weak" else batch_size


def launch_folder() -> Path:
    """Where the launchers' files lie. Raises UsageError where they aren't."""
    for folder in (Path("launch"), Path(__file__).parents[2] / "launch"):
        if (folder / "ddp.yaml").is_file():
            return folder
    raise UsageError(
        "no folder launch/ here: give the command in the root of the repository, or launcher='COMMAND' with {n} in it"
    )


def command(config: ScaleConfig, job: Job, folder: Path, words: Sequence[str]) -> list[str]:
    """What starts ``job`` in ``folder``; ``words`` are those of its run. Raises UsageError for a strategy that isn't there."""
    launch = "" if config.launcher else str(launch_folder())
    if launch and not (Path(launch) / f"{job.strategy}.yaml").is_file():
        known = ", ".join(
            sorted(file.stem for file in Path(launch).glob("*.yaml") if file.stem != "kubernetes")
        )
        raise UsageError(f"no file {launch}/{job.strategy}.yaml: strategy is one or several of {known}")
    values = {"n": job.processes, "strategy": job.strategy, "python": sys.executable, "launch": launch}
    try:
        start = [part.format(**values) for part in shlex.split(config.launcher or LAUNCHER)]
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(
            f"launcher={config.launcher!r} can't be filled in ({error}): it may hold {{n}}, {{strategy}} and {{python}}"
        ) from None
    # Windows of rows: to warm up, to be timed, and the profiled steps.
    settings = [
        f"batch_size={job.batch_size}",
        f"duration={2 * config.steps + PROFILED}",
        f"log_every={config.steps}",
        "communication_every=1000000",  # once, at the end of the warm-up
        "checkpoint.every=0",
        "canary.every=null",
        "profile.start=null",
        "track=[]",
        "ledger=false",
        "resume=false",
        # A step as most of a run's are: everything is trained.
        "schedule.warmup=0",
        "schedule.head_warmup=0",
        "schedule.freeze_last_layer=0",
        "overwrite=true",
        f"out={folder / 'run'}",
    ]
    return [*start, "-m", "essa_dist.scaling.rank", str(folder), str(config.steps), *words, *settings]


def run(command: list[str], folder: Path, *, timeout_s: float) -> dict[str, Any]:
    """Start a job and wait for it: what its rank 0 has written, or ``error``, why there is nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob(CAUSE), folder / RESULT):
        old.unlink(missing_ok=True)
    root = Path(__file__).parents[2]  # files of launch/ name each other from there
    try:
        with (folder / LOG).open("w") as log:
            code = exit_code(
                command,
                timeout_s=timeout_s,
                cwd=root if (root / "launch").is_dir() else None,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        return {"error": f"{command[0]} can't be started: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"error": f"did not end within timeout_s={timeout_s:g}; its last words are in {folder / LOG}"}
    return read(folder) or {"error": reason(folder, code)}


def read(folder: Path) -> dict[str, Any]:
    """What a job has written; empty: nothing."""
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / RESULT).read_text())
        return found
    return {}


def reason(folder: Path, code: int) -> str:
    """Why a job failed: what its first rank said, or how one was killed, or the launcher's last line."""
    said = sorted(
        text.split(" ", 1) for text in (file.read_text() for file in folder.glob(CAUSE)) if " " in text
    )
    if said:
        return f"out of memory: {said[0][1]}" if is_out_of_memory(said[0][1]) else said[0][1]
    with suppress(OSError):
        text = (folder / LOG).read_text(errors="replace")
        if killed := re.search(r"exitcode\s*:\s*-(\d+)", text):
            name = signal.Signals(int(killed[1])).name
            why = ", as the kernel does for want of memory" if name == "SIGKILL" else ""
            return f"a rank was killed by {name}{why}"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return f"exit code {code}: {lines[-1]}"
    return f"exit code {code}"
