"""``srun`` and ``scontrol`` for a machine without Slurm: nodes are processes of this one.

Run as ``python slurm.py srun ...``. It keeps srun's promises that ``launch/slurm.sbatch`` stands on: tasks are numbered in
blocks over the nodes, signals go on to every task, after the first end of a task the others have the seconds of
``--wait``, and the largest exit code of all tasks is srun's own (128 and more: killed).
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OPTIONS = {"--distribution", "--cpus-per-task", "--kill-on-bad-exit", "--wait"}


def srun(words: list[str]) -> int:
    options = {}
    while words[0].startswith("-"):
        name, _, value = words.pop(0).partition("=")
        assert name in OPTIONS, f"srun has no {name} here"
        options[name] = value
    assert options["--distribution"] == "block"
    assert options["--kill-on-bad-exit"] == "0"
    nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
    ranks = [
        subprocess.Popen(
            words,
            env=os.environ
            | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % (tasks // nodes))}
            | {"SLURM_NODEID": str(i // (tasks // nodes))},
        )
        for i in range(tasks)
    ]

    def forward(number: int, _: object) -> None:
        for rank in ranks:
            rank.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    (Path(os.environ["FAKE_SLURM"]) / "tasks").write_text("\n".join(str(rank.pid) for rank in ranks))
    deadline = None
    while any(rank.poll() is None for rank in ranks):
        if deadline is None and any(rank.poll() is not None for rank in ranks):
            deadline = time.monotonic() + int(options["--wait"])
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.02)
    codes = [rank.returncode for rank in ranks]
    return max(code if code >= 0 else 128 - code for code in codes)


def scontrol(words: list[str]) -> int:
    match words:
        case ["show", "hostnames", nodes]:
            assert nodes == "node[0-1]"
            sys.stdout.write(
                "localhost\nnode1.invalid\n"
            )  # a rank that looks for the others on the second one finds nobody
        case ["requeue", job]:
            with (Path(os.environ["FAKE_SLURM"]) / "requeued").open("a") as requeued:
                requeued.write(f"{job}\n")
        case _:
            raise AssertionError(f"scontrol knows no {words} here")
    return 0


if __name__ == "__main__":
    raise SystemExit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
