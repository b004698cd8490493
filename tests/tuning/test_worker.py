"""How the end of a rank is understood, and that nothing of it is left."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from essa_dist.tuning import worker
from essa_dist.tuning.worker import SAVE, STOP, TOKEN, LostRankError, Rank, RankJob, verdict
from tests.tuning.driving import until

pytestmark = pytest.mark.timeout(120)


def job(folder: Path, code: str, env: dict[str, str] | None = None) -> RankJob:
    code = f"from sys import exit\n{code}"
    return RankJob(
        words=["-S", "-c", code], folder=str(folder), token="sweep/t0000", env=env or {}, cwd=str(folder)
    )


def rank(folder: Path, code: str, number: int = 0, port: str = "1") -> Rank:
    return Rank(job(folder, code), {"RANK": str(number), "MASTER_PORT": port})


def cause(text: str) -> str:
    """Code that leaves its reason where a launcher looks for it, and says something else last."""
    told = json.dumps({"message": {"message": text, "extraInfo": {"timestamp": "1"}}})
    return f"import os, sys; open(os.environ['TORCHELASTIC_ERROR_FILE'], 'w').write({told!r}); print('last words');"


def test_a_rank_that_ends_well_leaves_no_verdict(tmp_path: Path) -> None:
    rank(tmp_path, "print('all is well, step 3 was not finite once')").run()
    assert verdict(tmp_path) == {}


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("exit('step 5: not finite: loss nan')", "diverged", "step 5: not finite: loss nan (rank0.log)"),
        (cause("it has diverged") + "exit(1)", "diverged", "it has diverged (rank0.log)"),
        ("exit('torch.OutOfMemoryError: CUDA out of memory.')", "out_of_memory", "CUDA out of memory"),
        ("raise MemoryError", "out_of_memory", "MemoryError"),
        (
            cause("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes") + "exit(1)",
            "out_of_memory",
            "can't allocate memory",
        ),
        ("import sys; print('optim.lr: too large', file=sys.stderr); exit(2)", "failed", "optim.lr: too lar"),
        ("exit(3)", "failed", "exit code 3"),
    ],
)
def test_an_end_that_would_come_again_is_judged_and_not_repeated(
    tmp_path: Path, code: str, status: str, said: str
) -> None:
    rank(tmp_path, code).run()
    assert verdict(tmp_path)["status"] == status
    assert said in verdict(tmp_path)["reason"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL"),
        ("import os; os.kill(os.getpid(), 15)", "ended by SIGTERM"),
        ("exit(75)", "ended by exit code 75"),
        (cause("rank 1 was killed, or lost its machine") + "exit(1)", "killed, or lost"),
        (cause("ranks lost their connection") + "exit(1)", "lost their connection"),
        (cause("EADDRINUSE: Address already in use") + "exit(1)", "Address already in use"),
    ],
)
def test_an_end_by_anothers_hand_is_worth_another_try(tmp_path: Path, code: str, said: str) -> None:
    with pytest.raises(LostRankError, match=said):
        rank(tmp_path, code).run()
    assert verdict(tmp_path) == {}


def test_a_rank_killed_by_the_kernel_for_want_of_memory_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(worker, "kills", lambda: next(counts))
    rank(tmp_path, "import os; os.kill(os.getpid(), 9)").run()
    assert verdict(tmp_path) == {
        "status": "out_of_memory",
        "reason": "the kernel killed a rank for want of host memory (rank0.log)",
        "token": "sweep/t0000",
    }


def test_the_kernels_kills_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 2\nmax 9\noom 4\noom_kill 3\n")
    monkeypatch.setattr(worker, "_MEMORY_EVENTS", (events, tmp_path / "absent"))
    assert worker.kills() == 3


def test_what_an_earlier_start_said_is_not_taken_for_the_reason(tmp_path: Path) -> None:
    rank(tmp_path, "exit('step 5: not finite: loss nan')").run()
    (tmp_path / "verdict.json").unlink()
    rank(tmp_path, "exit(4)").run()
    assert verdict(tmp_path)["status"] == "failed"
    assert verdict(tmp_path)["reason"] == "exit code 4 (rank0.log)"


GRANDCHILD = """
import subprocess, sys, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-S', '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)'])
open('pid', 'w').write(str(child.pid))
time.sleep({seconds})
"""


def grandchild(folder: Path) -> psutil.Process:
    file = folder / "pid"
    until(lambda: file.is_file() and file.read_text())
    return psutil.Process(int(file.read_text()))


def test_a_stop_ends_the_rank_and_what_it_has_started_at_once(tmp_path: Path) -> None:
    one = rank(tmp_path, GRANDCHILD.format(seconds=600))
    thread = threading.Thread(target=one.run)
    thread.start()
    child = grandchild(tmp_path)
    begin = time.monotonic()
    (tmp_path / STOP).touch()
    thread.join(60)
    assert time.monotonic() - begin < 20
    assert one.process.returncode == -signal.SIGKILL
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)
    assert verdict(tmp_path) == {}


SAVING = """
import signal, sys, time
def save(*_):
    time.sleep({seconds})
    open('saved', 'w').close()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print('ready')
time.sleep(600)
"""


@pytest.mark.parametrize("seconds", [0, 600])
def test_a_rank_that_is_to_go_on_later_may_save_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr(worker, "GRACE_S", 2 if seconds else 60)
    one = rank(tmp_path, SAVING.format(seconds=seconds))
    thread = threading.Thread(target=one.run)
    thread.start()
    until(lambda: "ready" in one.log.read_text())
    (tmp_path / STOP).write_text(SAVE)
    thread.join(60)
    assert one.process.returncode == (-signal.SIGKILL if seconds else 75)
    assert (tmp_path / "saved").exists() == (not seconds)
    assert verdict(tmp_path) == {}


def test_a_rank_that_ends_leaves_nobody_behind(tmp_path: Path) -> None:
    rank(tmp_path, GRANDCHILD.format(seconds=0)).run()
    child = grandchild_or_none(tmp_path)
    until(lambda: child is None or not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 20)


def grandchild_or_none(folder: Path) -> psutil.Process | None:
    try:
        return psutil.Process(int((folder / "pid").read_text()))
    except psutil.NoSuchProcess:
        return None


def test_the_verdict_of_one_rank_ends_the_others_and_the_first_word_counts(tmp_path: Path) -> None:
    first = rank(tmp_path, "import time; time.sleep(600)")
    thread = threading.Thread(target=first.run)
    thread.start()
    rank(tmp_path, "exit('step 2: not finite: loss inf')", number=1).run()
    thread.join(60)
    assert first.process.returncode == -signal.SIGKILL
    rank(tmp_path, "exit('out of memory')", number=2)._judge(1)
    assert verdict(tmp_path) == {
        "status": "diverged",
        "reason": "step 2: not finite: loss inf (rank1.log)",
        "token": "sweep/t0000",
    }


def test_a_rank_finds_its_place_and_whose_it_is_in_its_environment(tmp_path: Path) -> None:
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    env: dict[str, Any] = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "9"}
    Rank(job(tmp_path, code), env | {"ACCELERATE_X": "y"}).run()
    told = json.loads((tmp_path / "rank1.log").read_text())
    assert told.items() >= (env | {TOKEN: "sweep/t0000", "ACCELERATE_X": "y"}).items()
    assert told["TORCHELASTIC_ERROR_FILE"] == str(tmp_path / "cause1.json")


def test_ranks_that_an_earlier_start_has_left_are_ended_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GRACE_S", 1)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready'); time.sleep(600)"
    (tmp_path / "other").mkdir()
    other = rank(tmp_path / "other", code, port="5")
    old = rank(tmp_path, code, number=0, port="6")
    started = [other, old]
    try:
        until(lambda: all("ready" in one.log.read_text() for one in started))
        started.append(rank(tmp_path, code, number=1, port="7"))
        assert not psutil.pid_exists(old.process.pid)
        started.append(rank(tmp_path, code, number=0, port="7"))
        assert [one.process.poll() for one in started if one is not old] == [None] * 3
    finally:
        for one in started:
            one.kill()


def test_a_folder_that_this_machine_lacks_is_no_reason_not_to_start(tmp_path: Path) -> None:
    told = job(tmp_path, "import os; print(os.getcwd())") | {"cwd": str(tmp_path / "absent")}
    Rank(told, {"RANK": "0"}).run()
    assert (tmp_path / "rank0.log").read_text().strip() == os.getcwd()
