"""Fault drills: what befalls a run, how it must end, and that the next start goes on as if nothing had been.

Used by the tests of this folder and, many times with random moments, by ``benchmarks/drills.py``. A drill raises
AssertionError where the run did not do what was promised.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from essa_dist.data.ledger import audit
from essa_dist.data.plan import SamplePlan
from essa_dist.data.shards import open_packed
from essa_dist.engine.recording.metrics import MEASURED
from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import REPOSITORY, Ended, Processes, rank_environments, started

STOP_S = 30.0
"""What a scheduler mostly leaves between its signal and its kill."""
START_S = 120.0
DWELL_S = 1.0
SHARED_MEMORY = Path("/dev/shm")
TINY = (
    "duration=24",
    "batch_size=4",
    "precision=fp32",
    "device=cpu",
    "threads=1",
    "log_every=1",
    "ledger=true",
    "backbone.name=test_vit",
    "backbone.weights=random",
    "backbone.drop_path=0.1",
    "objective.head={prototypes: 32, hidden: 16, bottleneck: 8, standardize_on: 4}",
    "data.crops={policy: medical, global_size: 48, local_size: 32, n_local: 2}",
    "data.workers=1",
    "checkpoint.every=4",
    "canary.every=6",
    "canary.images=8",
    "optim.lr=1e-2",
)


@dataclass
class Drill:
    """One run that drills are made with: of how long, on how many ranks, started how."""

    words: Sequence[str]
    """Settings of ``essa adapt``, without ``out``."""
    folder: Path
    """For run folders and temporary files."""
    ranks: int = 2
    launcher: Callable[[], list[str]] | None = None
    """The words before ``-m essa_dist``; none: the ranks are started one by one."""
    straight: Path | None = None
    """A run that nothing befell, made when it is first compared with."""

    @staticmethod
    def tiny(packed: str, folder: Path, *words: str, **how: Any) -> "Drill":
        """Of 24 steps, five an epoch, with a data worker, a canary and a ledger."""
        return Drill([*TINY, f"data.train={packed}", *words], folder, **how)

    def new_run(self) -> Path:
        return self.folder / f"run_{uuid.uuid4().hex[:8]}"

    @contextmanager
    def started(
        self, run: Path, *more: str, place: str | None = None, fault: tuple[str, int, int] | None = None
    ) -> Iterator["Started"]:
        """The run, under way; at the end nobody and nothing of it is left.

        ``place``: where it dwells. ``fault``: its name, rank and step, for ``faulty.py``.
        """
        temporary, marks = run.with_suffix(".tmp"), run.with_suffix(".marks")
        for folder in (temporary, marks):
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier start
            folder.mkdir(parents=True)
        words = ["adapt", *self.words, f"out={run}", "resume=true", *more]
        entry = ["-m", "essa_dist", *words]
        if place is not None:
            entry = ["tests/faults/dwelling.py", place, str(DWELL_S), str(marks), *words]
        if fault is not None:
            entry = ["tests/faults/faulty.py", *map(str, fault), *words]
        env = {"TMPDIR": str(temporary), "PYTHONPATH": str(REPOSITORY)}
        env["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "inductor")  # torch makes it, and means to keep it
        before, begun = set(SHARED_MEMORY.iterdir()), time.time()
        if self.launcher is not None:
            processes = Processes([[*self.launcher(), *entry]], env=env)
        elif self.ranks == 1:
            processes = started(1, entry, env=env)
        else:
            command = [sys.executable, *entry]
            each = rank_environments(self.ranks)
            processes = Processes([command] * self.ranks, env=env, each=each)
        with processes:
            going = Started(self, run, processes, marks, last_checkpoint(run), begun)
            try:
                yield going
            finally:
                going.text = going.said()
            assert processes.alive() == [], "a process is left"
            left = [file for file in temporary.iterdir() if not file.name.startswith("torchelastic_")]
            assert left == [], (
                f"temporary files are left: {left}"
            )  # torchrun leaves its own even when all went well
            left = [file for file in set(SHARED_MEMORY.iterdir()) - before if _is_orphan(file)]
            assert left == [], f"shared memory is left: {left}"

    def finish(self, run: Path) -> float:
        """Go on to the end, and find what a run that nothing befell finds; the seconds until the first update."""
        begin = time.monotonic()
        with self.started(run) as going:
            going.wait_until(lambda: going.steps() > 0 or going.ended(), START_S)
            seconds = time.monotonic() - begin
            for ended in going.end(START_S):
                assert ended.exit_code == 0, ended.stderr
        self.compare(run)
        return seconds

    def run_straight(self) -> None:
        if self.straight is not None:
            return
        run = self.new_run()
        with self.started(run) as going:
            for ended in going.end(START_S):
                assert ended.exit_code == 0, ended.stderr
        self.straight = run

    def compare(self, run: Path) -> None:
        """Bit for bit, and sample by sample."""
        self.run_straight()
        assert self.straight is not None
        assert metrics(run) == metrics(self.straight)
        own, other = tensors(run), tensors(self.straight)
        assert own.keys() == other.keys()
        assert [name for name in own if not torch.equal(own[name], other[name])] == []
        settings = dict(word.split("=", 1) for word in self.words)
        images = open_packed(settings["data.train"], prefer=("unlabelled", "train"))
        plan, batch = SamplePlan(len(images), int(settings.get("seed", 0))), int(settings["batch_size"])
        found = audit(run, plan, images.keys, batch)
        assert (found.missing_steps, found.repeated, found.skipped, found.unplanned) == (0, 0, 0, 0)
        assert found.steps == int(settings["duration"])


@dataclass
class Started:
    """A run that is under way."""

    drill: Drill
    run: Path
    processes: Processes
    marks: Path
    first: int
    """The step that it goes on from."""
    begun: float
    """Seconds since 1970."""
    text: str | None = None
    """All that was said on stderr, when it has ended."""

    def steps(self) -> int:
        """Updates made since this start."""
        file = self.run / f"ledger/from_{self.first:08d}_rank_0000_of_{self.drill.ranks:04d}.jsonl"
        try:
            return file.read_bytes().count(b"\n") if file.stat().st_mtime >= self.begun else 0
        except FileNotFoundError:
            return 0

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes.processes)

    def wait_until(self, fact: Callable[[], bool], timeout: float) -> None:
        end = time.monotonic() + timeout
        while not fact():
            assert time.monotonic() < end, f"not within {timeout:.0f} s:\n{self.said()}"
            time.sleep(0.005)

    def wait_for_steps(self, n: int) -> None:
        """Until so many updates were made since this start."""
        self.wait_until(lambda: self.steps() >= n or self.ended(), START_S)
        assert not self.ended(), self.said()

    def wait_for_place(self) -> None:
        """Until the first rank is where it dwells."""
        self.wait_until(lambda: any(self.marks.iterdir()) or self.ended(), START_S)
        assert not self.ended(), self.said()

    def said(self) -> str:
        return self.text or "\n".join(self.processes.stderr(i) for i in range(len(self.processes.processes)))

    def rank_processes(self) -> list[psutil.Process]:
        """The ranks, in their order, whoever started them; without their workers."""
        found: dict[str, psutil.Process] = {}
        for process in self.processes.alive():
            try:
                rank, words = process.environ().get("RANK", "0"), process.cmdline()
                born = process.create_time()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            launches = any(name in " ".join(words) for name in ("torch.distributed.run", "accelerate"))
            if "adapt" in words and not launches and (rank not in found or born < found[rank].create_time()):
                found[rank] = process
        return [found[rank] for rank in sorted(found, key=int)]

    def signal_all(self, number: signal.Signals) -> None:
        """To each rank and its workers, as schedulers do."""
        for process in self.rank_processes():
            os.killpg(os.getpgid(process.pid), number)

    def end(self, timeout: float) -> list[Ended]:
        ended = self.processes.wait(timeout)
        grace = (
            time.monotonic() + 2.0
        )  # a worker learns of its rank's death from the kernel, and then it cleans up
        while self.processes.alive() and time.monotonic() < grace:
            time.sleep(0.01)
        return ended


def last_checkpoint(run: Path) -> int:
    """The step of the newest; 0 where there is none."""
    found = committed_checkpoints(run)
    return int(found[-1].name.removeprefix("step_")) if found else 0


def last_step(run: Path) -> int:
    """The last one of which there is a row of metrics."""
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]  # the last one may be half written
    except FileNotFoundError:
        return 0
    return max((int(json.loads(line)["step"]) for line in lines), default=0)


def metrics(run: Path) -> list[dict[str, Any]]:
    """What the rows tell of the run itself."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the newest checkpoint."""
    files = sorted(committed_checkpoints(run)[-1].glob("*.safetensors"))
    return {f"{file.stem}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def told(ends: Sequence[Ended]) -> list[str]:
    """The errors that the command has told, on all ranks."""
    lines = [line for ended in ends for line in ended.stderr.splitlines()]
    return [line for line in lines if line.startswith("essa") and "error: " in line]


def _is_orphan(file: Path) -> bool:
    """Whether it is shared memory of torch (``torch_PID_...``) whose process is gone; others' we can't judge."""
    _, _, rest = file.name.partition("torch_")
    pid = rest.partition("_")[0]
    return pid.isdecimal() and file.exists() and not psutil.pid_exists(int(pid))


# What befalls a run, new or not: the seconds from then until all its processes had ended.


def stopped_by_signal(
    drill: Drill, run: Path, rng: random.Random, *, number: signal.Signals, place: str
) -> float:
    """A signal to all processes while the ranks are at ``place``: a checkpoint of the last update, exit 75 on every rank."""
    before = committed_checkpoints(run)
    with drill.started(run, place=place) as going:
        going.wait_for_place()
        time.sleep(rng.uniform(0, DWELL_S))
        begin = time.monotonic()
        going.signal_all(number)
        ends = going.end(STOP_S)
        seconds = time.monotonic() - begin
    codes = [ended.exit_code for ended in ends]
    assert codes == [75] * len(ends), f"{place}: {codes}\n{going.said()}"
    assert len(told(ends)) == 1, going.said()
    assert "go on with resume=true" in told(ends)[0]
    assert "Traceback" not in going.said()
    if place in ("step", "evaluation", "save", "first save"):
        assert last_checkpoint(run) == last_step(run) > 0
    else:
        assert committed_checkpoints(run) == before
    return seconds


def rank_killed(drill: Drill, run: Path, rng: random.Random, *, place: str | None = None) -> float:
    """``kill -9`` of a random rank after a few steps, or of rank 0 at ``place``."""
    with drill.started(run, place=place) as going:
        if place is None:
            going.wait_for_steps(rng.randint(1, 8))
        else:
            going.wait_for_place()
        time.sleep(rng.uniform(0, 0.2))
        ranks = going.rank_processes()
        victim = rng.choice(ranks) if place is None else ranks[0]
        begin = time.monotonic()
        victim.kill()
        ends = going.end(STOP_S)
        seconds = time.monotonic() - begin
    codes = [ended.exit_code for ended in ends]
    assert 0 not in codes, going.said()
    assert drill.launcher is not None or codes.count(-9) == 1, codes
    assert [line for line in told(ends) if "killed" not in line] == [], going.said()
    assert len(told(ends)) <= 1, going.said()
    return seconds


def launcher_killed(drill: Drill, run: Path, rng: random.Random) -> float:
    """``kill -9`` of the launcher: its ranks learn of it, save and end."""
    assert drill.launcher is not None
    with drill.started(run) as going:
        going.wait_for_steps(rng.randint(1, 6))
        time.sleep(rng.uniform(0, 0.2))
        begin = time.monotonic()
        (launcher,) = going.processes.processes
        launcher.kill()
        going.wait_until(lambda: not going.processes.alive(), STOP_S)
        seconds = time.monotonic() - begin
    assert going.said().count("error: stopped by the death of its launcher") == 1, going.said()
    assert last_checkpoint(run) == last_step(run)
    return seconds


def launcher_told(drill: Drill, run: Path, rng: random.Random) -> float:
    """SIGTERM to the launcher, as by Kubernetes: it passes it on, and the ranks save and end."""
    assert drill.launcher is not None
    with drill.started(run) as going:
        going.wait_for_steps(rng.randint(1, 8))
        time.sleep(rng.uniform(0, 0.2))
        begin = time.monotonic()
        going.processes.send(signal.SIGTERM)
        (ended,) = going.end(STOP_S)
        seconds = time.monotonic() - begin
    assert ended.exit_code != 0
    assert len(told([ended])) == 1, ended.stderr
    assert last_checkpoint(run) == last_step(run)
    return seconds


def restarted(drill: Drill, run: Path, rng: random.Random) -> float:
    """``kill -9`` of a rank under ``torchrun --max-restarts``: the run ends well; the seconds until it went on."""
    assert drill.launcher is not None
    with drill.started(run) as going:
        going.wait_for_steps(rng.randint(1, 8))
        known, begin = last_step(run), time.monotonic()
        rng.choice(going.rank_processes()).kill()
        going.wait_until(lambda: last_step(run) > known + 1 or going.ended(), START_S)
        seconds = time.monotonic() - begin
        (ended,) = going.end(START_S)
        assert ended.exit_code == 0, ended.stderr
    return seconds
