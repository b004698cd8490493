"""Measurements in processes of their own: started, waited for, and never left behind."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


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
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd, env=env
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ChildError(f"no end after {timeout_s:.0f} s") from None
        finally:
            _end(process)
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


def _end(process: "subprocess.Popen[Any]") -> None:
    import psutil

    if process.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        for one in below:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.kill()
    process.wait()
