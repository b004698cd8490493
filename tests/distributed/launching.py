"""Several processes as a launcher starts them: with a deadline, and with nobody left behind.

``launch(2, ["-m", "essa_dist", "adapt", ...])`` starts the ranks themselves, so that the exit code of each is seen;
``torchrun`` and ``accelerate`` start them as a user does. ``Processes`` is for tests that do something meanwhile.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "ESSA_TEST_LAUNCH"
"""A variable by which every process of a launch is found again, whatever session it moved to."""
DEADLINE_S = 150.0
"""Seconds; ten times what a tiny run takes on two cores of its own."""

_DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file"}
TOLD: dict[str, dict[str, str]] = {"single": {}, "ddp": {}} | {
    name: _DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": f"launch/deepspeed/{name}.json"}
    for name in ("zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
}
"""What ``accelerate launch --config_file launch/NAME.yaml`` tells its processes, for tests that need no launcher."""
TOLD["fsdp2"] = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


@dataclass(frozen=True)
class Ended:
    """One process that came to its end."""

    exit_code: int
    """Negative: the signal that killed it."""
    stdout: str
    stderr: str


class Processes:
    """Commands that run side by side in the repository's root; all of their offspring is dead after ``with``."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        *,
        env: Mapping[str, str] | None = None,
        each: Sequence[Mapping[str, str]] | None = None,
        cwd: Path = REPOSITORY,
    ) -> None:
        """``env`` is added to the environment of all commands, ``each`` to that of one each."""
        self.mark = uuid.uuid4().hex
        self._folder = tempfile.TemporaryDirectory(prefix="essa-launch-")
        self.folder = Path(self._folder.name)
        common = clean_environment() | {MARK: self.mark} | dict(env or {})
        self.processes = []
        for i, command in enumerate(commands):
            with (self.folder / f"{i}.out").open("wb") as out, (self.folder / f"{i}.err").open("wb") as err:
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    cwd=cwd,
                    env=common | dict(each[i] if each else {}),
                    start_new_session=True,
                )
            self.processes.append(process)

    def __enter__(self) -> "Processes":
        return self

    def stdout(self, i: int) -> str:
        """What process ``i`` has written so far."""
        return (self.folder / f"{i}.out").read_text(errors="replace")

    def stderr(self, i: int) -> str:
        return (self.folder / f"{i}.err").read_text(errors="replace")

    def send(self, number: signal.Signals, *which: int) -> None:
        """A signal to the processes ``which`` (all, if none is named)."""
        for i in which or range(len(self.processes)):
            self.processes[i].send_signal(number)

    def wait(self, timeout: float = DEADLINE_S) -> list[Ended]:
        """The ends of all processes, within ``timeout`` seconds. Raises AssertionError with all they said."""
        deadline = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            codes = [process.poll() for process in self.processes]
            said = "\n".join(f"--- {i}\n{self.stdout(i)}{self.stderr(i)}" for i in range(len(self.processes)))
            raise AssertionError(
                f"not at an end after {timeout:.0f} s (exit codes {codes}):\n{said}"
            ) from None
        return [Ended(p.returncode, self.stdout(i), self.stderr(i)) for i, p in enumerate(self.processes)]

    def alive(self) -> list[psutil.Process]:
        """Every living process of this launch, offspring in other sessions included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                continue
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + 10
        while (left := self.alive()) and time.monotonic() < deadline:
            for process in left:  # by its id; a launcher that is dying may still be starting children
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.01)
        for own in self.processes:
            own.wait()
        self._folder.cleanup()


def clean_environment() -> dict[str, str]:
    """This process's environment without what a launcher has set, with one thread for each process."""
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    prefixes = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "SLURM_")
    kept = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith(prefixes)}
    return kept | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def rank_environments(n: int) -> list[dict[str, str]]:
    """What a launcher on one node tells each of ``n`` processes."""
    port = str(free_port())
    return [
        {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
        | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for i in range(n)
    ]


def started(n: int, args: Sequence[str], *, env: Mapping[str, str] | None = None) -> Processes:
    """``n`` ranks of ``python *args``, running."""
    each = rank_environments(n) if n > 1 else None
    return Processes([[sys.executable, *args]] * n, env=env, each=each)


def launch(
    n: int, args: Sequence[str], *, timeout: float = DEADLINE_S, env: Mapping[str, str] | None = None
) -> list[Ended]:
    """Run ``n`` ranks of ``python *args``; the end of each."""
    with started(n, args, env=env) as processes:
        return processes.wait(timeout)


def run(
    command: Sequence[str], *, timeout: float = DEADLINE_S, env: Mapping[str, str] | None = None
) -> Ended:
    """Run one command, such as a launcher, in the repository's root."""
    with Processes([command], env=env) as processes:
        (ended,) = processes.wait(timeout)
        return ended


def torchrun(n: int, *options: str) -> list[str]:
    """The words before ``-m essa_dist ...`` for ``n`` ranks by torchrun on a free port."""
    port = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return [sys.executable, "-m", "torch.distributed.run", *port, f"--nproc-per-node={n}", *options]


def accelerate(config: str, n: int, *options: str) -> list[str]:
    """The words before ``-m essa_dist ...`` for ``n`` ranks by ``accelerate launch`` with ``launch/CONFIG.yaml``."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    where = ["--config_file", f"launch/{config}.yaml", "--main_process_port", "0"]
    return [*launcher, *where, "--num_processes", str(n), *options]
