"""launch/ray/slurm.sbatch under an srun and a scontrol that keep Slurm's promises (tests/launch/ray_slurm.py)."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import REPOSITORY, Processes

SCRIPT = REPOSITORY / "launch" / "ray" / "slurm.sbatch"
# In place of Python: everything is real but the sweep.
REAL = f"""#!/usr/bin/env bash
case "$*" in
"-m essa_dist tune"*) exec {sys.executable} "$FAKE_SLURM/driver.py" "$@" ;;
*) exec {sys.executable} "$@" ;;
esac
"""
# It tells what cluster it is on; with $STAYS it stays until it is stopped, as a sweep that can go on.
DRIVER = """
import json, os, pathlib, signal, sys, time
import ray

ray.init(address=sys.argv[-2].removeprefix("address="), log_to_driver=False)
resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
said = {"words": sys.argv[1:], "nodes": resources, "address": os.environ["RAY_ADDRESS"]}
part = pathlib.Path(os.environ["FAKE_SLURM"], "said.part")
part.write_text(json.dumps(said))
part.rename(part.with_suffix(".json"))
while "STAYS" in os.environ:
    time.sleep(0.05)
"""
# In place of Python and Ray: a head that is there at once (unless $BROKEN), a cluster to which $CAME (unset: all) have come,
# and a sweep that ends as $ENDS says.
STUB = (
    """#!/usr/bin/env bash
case "$*" in
"-c "*) echo token ;;
*ray.scripts.scripts*)
    [[ -z ${BROKEN-} ]] || { echo "no Ray here" >&2; exit 3; }
    mkdir -p "$RAY_FOLDER" && echo 127.0.0.1:1 >"$RAY_FOLDER/ray_current_cluster"
    trap 'exit 0' TERM
    for i in {1..600}; do sleep 0.1; done ;;
"- "*) PYTHONPATH=$FAKE_SLURM/stubs exec """
    + f"{sys.executable} "
    + """"$@" ;;
*essa_dist*)
    echo "$RAY_ADDRESS $*" >"$FAKE_SLURM/said"
    [[ -z ${STAYS-} ]] || { touch "$FAKE_SLURM/runs"; sleep 60; }
    exit "$ENDS" ;;
esac
"""
)

RAY = """
import os, pathlib

def init(**options):
    pathlib.Path(os.environ["FAKE_SLURM"], "waits").touch()

def nodes():
    came = os.environ.get("CAME", os.environ["FAKE_HOSTS"]).split()
    return [{"Alive": True, "Resources": {f"slurm:{name}": 1.0}} for name in came]
"""


class Slurm:
    """A job, on the nodes ``hosts``."""

    def __init__(self, folder: Path, job: int, hosts: str = "localhost node1", python: str = STUB) -> None:
        self.folder, self.job, self.hosts = folder, f"{os.getpid()}{job}", hosts
        self.ray = Path("/tmp") / f"essa-{self.job}"  # where the script puts it: sockets have short names
        (folder / "bin").mkdir(parents=True)
        (folder / "driver.py").write_text(DRIVER)
        (folder / "stubs").mkdir()
        (folder / "stubs" / "ray.py").write_text(RAY)
        fakes = {
            name: f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent}/ray_slurm.py {name} "$@"\n'
            for name in ("srun", "scontrol")
        }
        for name, text in {**fakes, "python": python}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, *words: str, **env: str) -> Processes:
        slurm = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FAKE_SLURM": str(self.folder),
            "FAKE_HOSTS": self.hosts,
            "SLURM_JOB_ID": self.job,
            "SLURM_JOB_NODELIST": "node[0-1]",
            "SLURM_CPUS_PER_TASK": "3",
            "RAY_TMPDIR": "/tmp",
        }
        return Processes([["bash", str(SCRIPT), *words]], env=slurm | env)

    def said(self, job: Processes) -> dict[str, Any]:
        """What the driver says of its cluster, once it does."""
        self.wait_for("said.json", job)
        said: dict[str, Any] = json.loads((self.folder / "said.json").read_text())
        return said

    def wait_for(self, name: str, job: Processes) -> None:
        deadline = time.monotonic() + 120
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, job.stderr(0)
            assert job.processes[0].poll() is None, job.stderr(0)
            time.sleep(0.05)

    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []


@pytest.mark.timeout(300)
def test_two_jobs_on_one_machine_have_a_cluster_each_and_leave_nothing(tmp_path: Path) -> None:
    two, one = Slurm(tmp_path / "two", 2, python=REAL), Slurm(tmp_path / "one", 1, "node9", python=REAL)
    with two.start("space.yaml", "out=a b", STAYS="1") as stays, one.start("space.yaml") as ends:
        (ended,) = ends.wait(150)
        assert ended.exit_code == 0, ended.stderr
        assert not ends.alive()
        cluster, alone = two.said(stays), one.said(ends)
        stays.send(signal.SIGUSR1)  # as --signal=B: does, to the shell
        (stopped,) = stays.wait(100)
        assert not stays.alive()  # no Ray either, in whatever session
    words = ["space.yaml", "out=a b", "address=auto", "resume=true"]
    assert cluster["words"] == ["-m", "essa_dist", "tune", *words]
    assert [node["CPU"] for node in cluster["nodes"]] == [3, 3]
    names = {name for node in cluster["nodes"] for name in node if name.startswith("slurm:")}
    assert names == {"slurm:localhost", "slurm:node1"}
    (node,) = alone["nodes"]
    assert node["slurm:node9"] == 1
    assert alone["address"] != cluster["address"]
    assert stopped.exit_code == 75, stopped.stderr
    assert (two.requeued(), one.requeued()) == ([two.job], [])
    assert not two.ray.exists()
    assert not one.ray.exists()


def test_a_node_that_does_not_come_is_named_in_one_line_and_nothing_is_started(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path / "job", 3, "localhost here gone")
    with slurm.start("space.yaml", ENDS="0", CAME="localhost here", WAIT_S="8") as job:
        (ended,) = job.wait(60)
        assert not job.alive()
    assert ended.exit_code == 1
    assert ended.stderr == "1 of 3 nodes are not in the Ray cluster in time (WAIT_S): gone\n"
    assert not (slurm.folder / "said").exists()
    assert slurm.requeued() == []


def test_a_job_that_is_preempted_while_it_waits_for_nodes_is_queued_again(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path / "job", 4)
    with slurm.start("space.yaml", ENDS="0", CAME="localhost") as job:
        slurm.wait_for("waits", job)
        job.send(signal.SIGUSR1)
        (ended,) = job.wait(60)
        assert not job.alive()
    assert ended.exit_code == 75, ended.stderr
    assert slurm.requeued() == [slurm.job]
    assert not (slurm.folder / "said").exists()


@pytest.mark.parametrize(("ends", "requeued"), [(0, False), (75, True), (2, False), (143, False)])
def test_only_a_sweep_that_was_stopped_is_queued_again(tmp_path: Path, ends: int, requeued: bool) -> None:
    slurm = Slurm(tmp_path / "job", ends)
    with slurm.start("space.yaml", "base=b.yaml", ENDS=str(ends)) as job:
        (ended,) = job.wait(60)
        assert not job.alive()
    assert ended.exit_code == ends, ended.stderr
    assert slurm.requeued() == ([slurm.job] if requeued else [])
    assert (slurm.folder / "said").read_text() == (
        "127.0.0.1:1 -m essa_dist tune space.yaml base=b.yaml address=auto resume=true\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_sweep_that_dies_of_the_signal_before_it_can_heed_it_is_queued_again(
    tmp_path: Path, number: signal.Signals
) -> None:
    slurm = Slurm(tmp_path / "job", 5)
    with slurm.start("space.yaml", STAYS="1", ENDS="0") as job:
        slurm.wait_for("runs", job)
        job.send(number)
        (ended,) = job.wait(60)
    assert ended.exit_code == 143, ended.stderr
    assert slurm.requeued() == [slurm.job]


def test_a_sweep_that_is_stopped_again_and_again_is_not_queued_for_ever(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path / "job", 6)
    with slurm.start("space.yaml", ENDS="75", SLURM_RESTART_COUNT="100") as job:
        (ended,) = job.wait(60)
    assert ended.exit_code == 75
    assert slurm.requeued() == []


def test_a_first_node_without_ray_is_named_at_once(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path / "job", 7)
    with slurm.start("space.yaml", BROKEN="1") as job:
        (ended,) = job.wait(30)  # not after the 300 s that nodes have
    assert ended.exit_code == 1
    assert "no Ray here" in ended.stderr
    assert "Ray did not start on localhost, the first node" in ended.stderr


def test_a_first_node_that_the_others_do_not_know_can_be_given_by_its_address(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path / "job", 8, "node0.invalid node1")
    with slurm.start("space.yaml", ENDS="0") as job:
        (ended,) = job.wait(60)
    assert ended.exit_code == 1
    assert "node1 knows no address of node0.invalid, the first node: name it in HEAD_IP" in ended.stderr
    with slurm.start("space.yaml", ENDS="0", HEAD_IP="127.0.0.1") as job:
        (ended,) = job.wait(60)
    assert ended.exit_code == 0, ended.stderr


def test_without_words_it_says_how_it_is_used(tmp_path: Path) -> None:
    with Slurm(tmp_path / "job", 9).start() as job:
        (ended,) = job.wait(30)
    assert ended.exit_code != 0
    assert "usage: sbatch launch/ray/slurm.sbatch SPACE base=CONFIG out=DIR" in ended.stderr


def test_sbatch_gives_each_node_one_task_and_signals_the_shell() -> None:
    head, _, body = SCRIPT.read_text().partition("\nset -euo pipefail\n")
    assert all(line.startswith("#") or not line for line in head.splitlines())
    assert "#SBATCH" not in body
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert len(options) == head.count("\n#SBATCH")  # each parsed whole: no trailing words
    assert re.fullmatch(r"B:USR1@\d+", options["signal"])
    assert options["ntasks-per-node"] == "1"
    assert options.keys() >= {"requeue", "open-mode", "time", "nodes", "gpus-per-node", "cpus-per-task"}
