"""Processes that measure: whatever they start ends with them, and why one failed is said in a line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from essa_dist.bench import children
from essa_dist.bench.children import ChildError, end, exit_code, run, run_json

SLEEPS = "import subprocess, sys, time\nbelow = [sys.executable, '-S', '-c', 'import time; time.sleep(60)']\n"
TELL = "open(sys.argv[1] + '.new', 'w').write(str(child.pid)); import os; os.rename(sys.argv[1] + '.new', sys.argv[1])\n"


def python(code: str, *words: object) -> list[str]:
    return [sys.executable, "-S", "-c", code, *map(str, words)]


def written(file: Path) -> psutil.Process:
    """The process whose number is in ``file``, as soon as it is."""
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return psutil.Process(int(file.read_text()))


def lives(one: psutil.Process) -> bool:
    return one.is_running() and one.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("own_session", [False, True])
def test_who_is_out_of_time_ends_with_all_below_it_in_whatever_session(
    tmp_path: Path, own_session: bool
) -> None:
    code = f"{SLEEPS}child = subprocess.Popen(below, start_new_session={own_session})\n{TELL}time.sleep(60)"
    process = subprocess.Popen(python(code, tmp_path / "child"))
    child = written(tmp_path / "child")
    end(process)
    assert process.returncode == -signal.SIGTERM
    assert not lives(child)


def test_who_outlives_its_parent_is_known_by_the_session(tmp_path: Path) -> None:
    code = f"{SLEEPS}child = subprocess.Popen(below)\n{TELL}sys.exit(3)"
    assert exit_code(python(code, tmp_path / "child"), timeout_s=20, start_new_session=True) == 3
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or not lives(psutil.Process(child))


def test_all_are_asked_first_and_who_does_not_heed_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "def asked(*_): open(sys.argv[1], 'a').write('asked ')\n"
        "signal.signal(signal.SIGTERM, asked); open(sys.argv[1], 'w').close()\n"
        "while True: time.sleep(60)"
    )
    process = subprocess.Popen(python(code, tmp_path / "said"))
    while not (tmp_path / "said").exists():
        time.sleep(0.02)
    end(process, grace_s=0.3)
    assert (tmp_path / "said").read_text() == "asked "
    assert process.returncode == -signal.SIGKILL


def test_an_interrupted_wait_leaves_nobody_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[psutil.Process] = []

    def interrupted(self: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        found.append(written(tmp_path / "child"))
        raise KeyboardInterrupt

    monkeypatch.setattr(children.subprocess.Popen, "wait", interrupted)
    code = f"{SLEEPS}child = subprocess.Popen(below)\n{TELL}time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        exit_code(python(code, tmp_path / "child"), timeout_s=20)
    assert not lives(found[0])


def test_no_end_in_time_is_said_with_the_time() -> None:
    with pytest.raises(ChildError, match="no end after 1 s"):
        run(python("import time; time.sleep(60)"), timeout_s=1)


def test_a_child_says_in_one_line_why_it_failed() -> None:
    error = json.dumps({"error": "a\nb"})
    with pytest.raises(ChildError, match=r"^a b$"):
        run(python(f"print({error!r}); raise SystemExit(2)"), timeout_s=20)
    with pytest.raises(ChildError, match=r"^ZeroDivisionError: division by zero$"):
        run(python("1 / 0"), timeout_s=20)
    with pytest.raises(ChildError, match="said nothing"):
        run_json(python("print('x')"), timeout_s=20)
    assert run_json(python("print('x'); print('{\"a\": 1}')"), timeout_s=20) == {"a": 1}
