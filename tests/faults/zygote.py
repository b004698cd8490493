"""Ranks without their imports: processes forked from one that has imported everything, each a rank of a drill.

An ``essa`` process spends seconds on imports before its first step, and a drill needs two of them. ``Zygote`` starts a
process that imports once; ``zygote.ranks(2, "nan", 1, 3, ["adapt", ...])`` are two children of it, each in a session of
its own, running ``tests/faults/faulty.py`` with these arguments.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from torch.distributed import TCPStore

from tests.distributed.launching import REPOSITORY, clean_environment, rank_environments


class Ranks:
    """The ranks of one drill; all of them, and their offspring, are dead after ``with``."""

    def __init__(self, folder: Path, pids: Sequence[int], store: TCPStore | None) -> None:
        self.folder, self.pids, self.store = folder, list(pids), store

    def stderr(self, i: int) -> str:
        return (self.folder / f"{i}.err").read_text(errors="replace")

    def said(self, words: str) -> list[str]:
        """The lines of all ranks' stderr with ``words`` in them."""
        return [line for i in range(len(self.pids)) for line in self.stderr(i).splitlines() if words in line]

    def errors(self) -> list[str]:
        """What was said at the end."""
        return [line.partition("error: ")[2] for line in self.said("error: ")]

    def send(self, number: signal.Signals, i: int) -> None:
        os.kill(self.pids[i], number)

    def wait(self, *which: int, seconds: float) -> list[int]:
        """Exit codes of the ranks ``which`` (all, if none is named), negative where a signal killed one.

        Raises AssertionError with all they said after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        files = [self.folder / f"{i}.code" for i in which or range(len(self.pids))]
        while not all(file.exists() for file in files):
            if time.monotonic() > deadline:
                texts = "\n".join(f"--- {i}\n{self.stderr(i)}" for i in range(len(self.pids)))
                raise AssertionError(f"not at an end after {seconds:.0f} s:\n{texts}")
            time.sleep(0.02)
        return [int(file.read_text()) for file in files]

    def alive(self) -> list[int]:
        """Living processes of the ranks' sessions."""
        return [
            p.pid
            for p in psutil.process_iter(["status"])
            if p.info["status"] != psutil.STATUS_ZOMBIE and _session(p.pid) in self.pids
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while left := self.alive():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


class Zygote:
    """The process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._drills = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=clean_environment(),
        )

    def ranks(
        self, n: int, fault: str, rank: int, step: int, words: Sequence[str], *, keeps_store: bool = True
    ) -> Ranks:
        """``n`` ranks of ``faulty.py FAULT RANK STEP WORDS``, running.

        ``keeps_store``: as torchrun does, this process has the store by which the ranks find each other, else rank 0.
        """
        folder = self.folder / f"drill_{self._drills}"
        self._drills += 1
        folder.mkdir(parents=True)
        each, store = rank_environments(n), None
        if keeps_store:
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            like_torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            each = [env | like_torchrun | {"MASTER_PORT": str(store.port)} for env in each]
        order = {"folder": str(folder), "args": [fault, str(rank), str(step), *words], "each": each}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ranks(folder, json.loads(self._process.stdout.readline()), store)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """Until stdin closes: fork the ranks of each order, write their exit codes to files."""
    import torch.utils.tensorboard  # noqa: F401

    import essa_dist.engine.adapt  # noqa: F401
    from tests.faults import faulty

    answers = os.fdopen(os.dup(1), "w")
    running: dict[int, Path] = {}
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            line = sys.stdin.readline()
            if not line:
                return
            order = json.loads(line)
            pids = [_fork(i, order, env, faulty.run) for i, env in enumerate(order["each"])]
            running |= {pid: Path(order["folder"], f"{i}.code") for i, pid in enumerate(pids)}
            answers.write(json.dumps(pids) + "\n")
            answers.flush()
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                file = running.pop(pid)
                file.with_suffix(".tmp").write_text(str(os.waitstatus_to_exitcode(status)))
                file.with_suffix(".tmp").rename(file)


def _fork(i: int, order: Mapping[str, Any], env: Mapping[str, str], run: Any) -> int:
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        os.environ.update(env)
        with open(os.devnull, "rb") as null, open(Path(order["folder"], f"{i}.err"), "wb") as err:
            for stream, number in ((null, 0), (err, 1), (err, 2)):
                os.dup2(stream.fileno(), number)
        code = run(order["args"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 70
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
