"""Cells as processes of their own: what one of them meets, it alone doesn't survive."""

import json
import logging
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from essa_dist.disk import write_whole
from essa_dist.errors import Preempted
from essa_dist.reproduce.plan import Planned

log = logging.getLogger(__name__)

PATIENCE_S = 60
"""How long a cell that is told to stop may take to save."""


class Processes:
    """The processes that run now; all are told to stop when the driver is."""

    def __init__(self, launch: str = "") -> None:
        self.command = (
            [*shlex.split(launch), "-m", "essa_dist"] if launch else [sys.executable, "-m", "essa_dist"]
        )
        self._running: set[subprocess.Popen[str]] = set()
        self.stopped = False

    def run(self, words: Sequence[str], log_file: Path) -> tuple[int, dict[str, Any]]:
        """Exit code, and the JSON object that the verb printed ({} where it printed none)."""
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("a", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                [*self.command, *words, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
            self._running.add(process)
            try:
                if self.stopped:
                    process.terminate()
                out, _ = process.communicate()
            finally:
                self._running.discard(process)
        try:
            found = json.loads(out.splitlines()[-1])
        except (ValueError, IndexError):
            found = {}
        return process.returncode, found if isinstance(found, dict) else {}

    def stop(self) -> None:
        """Tell all to save and stop, and wait for it."""
        self.stopped = True
        for process in list(self._running):
            with suppress(OSError):
                process.terminate()
        for process in list(self._running):
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_S)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Raises Preempted where SIGTERM or Ctrl-C comes, after the cells have saved."""

        def heard(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, heard)
        try:
            yield
        except KeyboardInterrupt:
            self.stop()
            raise Preempted("stopped by a signal; the same command goes on where it stopped") from None
        finally:
            signal.signal(signal.SIGTERM, before)


def run_cell(planned: Planned, processes: Processes, *, keep_checkpoints: bool) -> str:
    """Run a cell and write its result; the reason where it failed, or nothing (empty)."""
    started = planned.result.with_suffix(".started")
    ours = started.is_file() and started.read_text(encoding="utf-8") == planned.identity
    how = "resume=true" if ours or not planned.run.exists() else "overwrite=true"
    write_whole(started, planned.identity)
    failed = planned.result.with_suffix(".failed.json")
    begin = time.monotonic()
    log_file = planned.result.parents[len(planned.cell.name.split("/"))] / "logs" / f"{planned.cell.name}.log"
    code, found = processes.run([*planned.words, how], log_file)
    seconds = round(time.monotonic() - begin, 1)
    about = {
        "name": planned.cell.name,
        "command": planned.command,
        "identity": planned.identity,
        "facts": {"data": planned.cell.data.name, **planned.cell.facts},
        "steps": planned.work.steps,
        "resumed": ours,
    }
    if code or not found:
        if processes.stopped or code == Preempted.exit_code:
            return "stopped by a signal"
        reason = found.get("error") or f"ended with exit code {code} and said nothing; see {log_file}"
        write_whole(
            failed, json.dumps(about | {"reason": reason, "exit_code": code, "seconds": seconds}, indent=1)
        )
        return str(reason)
    write_whole(planned.result, json.dumps(about | {"seconds": seconds, "result": found}, indent=1) + "\n")
    failed.unlink(missing_ok=True)
    if planned.cell.verb == "finetune" and not keep_checkpoints:
        _drop_tensors(planned.run)
    return ""


def _drop_tensors(run: Path) -> None:
    """Free a finished run's checkpoints: of full fine-tuning they are three times the model, hundreds of times."""
    for file in (run / "checkpoints").rglob("*.safetensors"):
        file.unlink()
