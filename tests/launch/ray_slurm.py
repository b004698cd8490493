"""``srun`` and ``scontrol`` for launch/ray/slurm.sbatch on a machine without Slurm: nodes are processes of this one.

Run as ``python ray_slurm.py srun ...``. It keeps srun's promises that the script stands on: a step runs once on each node
it names, a task knows its node and its CPUs, signals go on to every task, the end of one task ends no other, and the
largest exit code of all tasks is srun's own.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

KNOWN = {
    "--nodes",
    "--ntasks",
    "--nodelist",
    "--exclude",
    "--cpus-per-task",
    "--kill-on-bad-exit",
    "--wait",
}


def hosts() -> list[str]:
    return os.environ["FAKE_HOSTS"].split()


def srun(words: list[str]) -> int:
    options = {}
    while words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        assert name in KNOWN, f"srun has no {name} here"
        options[name] = value
    assert (options["--kill-on-bad-exit"], options["--wait"]) == ("0", "0")
    named = [host for host in hosts() if host in (options.get("--nodelist") or ",".join(hosts())).split(",")]
    named = [host for host in named if host != options.get("--exclude")]
    assert len(named) == int(options["--nodes"]) == int(options["--ntasks"])
    tasks: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _: object) -> None:
        for task in tasks:
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    for host in named:
        here = {"SLURMD_NODENAME": host, "SLURM_CPUS_PER_TASK": options["--cpus-per-task"]}
        tasks.append(subprocess.Popen(words, env=os.environ | here))
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def scontrol(words: list[str]) -> int:
    match words:
        case ["show", "hostnames", "node[0-1]"]:
            sys.stdout.write("".join(f"{host}\n" for host in hosts()))
        case ["requeue", job]:
            with (Path(os.environ["FAKE_SLURM"]) / "requeued").open("a") as requeued:
                requeued.write(f"{job}\n")
        case _:
            raise AssertionError(f"scontrol knows no {words} here")
    return 0


if __name__ == "__main__":
    raise SystemExit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
