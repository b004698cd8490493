"""Measurements in processes of their own: started, waited for, and never left behind."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

GRACE_S = 10.0
"""How long a process that is told to end may take."""


class ChildError(Exception):
    """A process that measured nothing; its text is one line."""


def run_json(
    command: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The last JSON object on the standard output of ``command``. Raises ChildError."""
    said = run(command, timeout_s=timeout_s, cwd=cwd, env=env)
    objects = [line for line in said.splitlines() if line.startswith("{")]
    if not objects:
        raise ChildError("it said nothing")
    found: dict[str, Any] = json.loads(objects[-1])
    return found


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """The standard output of ``command``, which ends with all that it has started. Raises ChildError."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # pipes could fill
        try:
            code = exit_code(command, timeout_s=timeout_s, stdout=out, stderr=err, cwd=cwd, env=env)
        except subprocess.TimeoutExpired:
            raise ChildError(f"no end after {timeout_s:.0f} s") from None
        for stream in (out, err):
            stream.seek(0)
        said, complained = out.read(), err.read()
    if code:
        raise ChildError(_cause(said, complained, code))
    return said


def _cause(said: str, complained: str, code: int) -> str:
    """In one line: what our own command says of it, else the last line of what was said."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            return " ".join(str(json.loads(line)["error"]).split())
    ours = [line for line in complained.splitlines() if line.startswith("essa") and "error: " in line]
    if ours:
        return ours[0].partition("error: ")[2]
    lines = [line.strip() for text in (said, complained) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}, without a word"


def exit_code(command: Sequence[str], *, timeout_s: float, **how: Any) -> int:
    """That of ``command``, which ends with all that it has started, however this returns.

    ``how``: more of Popen's words. Raises OSError where it can't be started, TimeoutExpired.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **how)
    try:
        return process.wait(timeout_s)
    finally:
        end(process)


def end(process: "subprocess.Popen[Any]", grace_s: float = GRACE_S) -> None:
    """End ``process`` and all that it has started: asked first, killed after ``grace_s`` seconds.

    That is all below it, also in sessions of their own, as torchrun's ranks are; and if it was started in a new session,
    whoever is in that, also behind a parent that has ended.
    """
    killed_from = time.monotonic() + grace_s
    known: set[psutil.Process] = set()
    asked: set[psutil.Process] = set()
    while known := {one for one in known | _family(process) if _lives(one)}:
        late = time.monotonic() > killed_from
        for one in known if late else known - asked:
            with suppress(psutil.Error):  # it was quicker
                one.kill() if late else one.terminate()
        asked |= known
        if time.monotonic() > killed_from + grace_s:  # even SIGKILL waits for a disk or a driver
            break
        time.sleep(0.05)
    process.poll()


def _family(process: "subprocess.Popen[Any]") -> set[psutil.Process]:
    """The process, who else is in a session that it leads, and all below them."""
    heads: set[psutil.Process] = set()
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == process.pid or (pid == process.pid and process.returncode is None):
                heads.add(psutil.Process(pid))
    found = set(heads)
    for head in heads:
        with suppress(psutil.Error):
            found |= set(head.children(recursive=True))
    return found


def _lives(one: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(one.is_running() and one.status() != psutil.STATUS_ZOMBIE)
    return False
