"""Scaling studies: times against a slow twin, efficiencies by hand, jobs that fail, and one real job from start to pictures."""

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from essa_dist.cli.scaled import scaled
from essa_dist.errors import UsageError
from essa_dist.planning.plan import read_words
from essa_dist.scaling.config import PARTS, ScaleConfig
from essa_dist.scaling.jobs import Job, command, jobs, run
from essa_dist.scaling.prediction import Planner, predictions
from essa_dist.scaling.scale import NothingMeasuredError, scale
from essa_dist.scaling.split import length, parts_of, union, without
from essa_dist.scaling.summary import judged, predicted, rows

SMALL = (
    "backbone.name=test_vit",
    "backbone.weights=random",
    "objective.head={prototypes: 64, hidden: 32, bottleneck: 16}",
    "data.crops={global_size: 32, local_size: 16, n_local: 1}",
    "data.workers=0",
    "precision=fp32",
    "device=cpu",
)


@dataclass
class Event:
    """What torch's profiler gives, as far as it is read."""

    label: str
    begin: int
    end: int
    device: str = "DeviceType.CPU"

    def name(self) -> str:
        return self.label

    def start_ns(self) -> int:
        return self.begin

    def duration_ns(self) -> int:
        return self.end - self.begin

    def device_type(self) -> str:
        return self.device


@pytest.mark.parametrize("seed", range(20))
def test_times_without_others_are_those_of_single_ticks(seed: int) -> None:
    draw = random.Random(seed)
    first, second = (
        [(begin, begin + draw.randint(1, 9)) for begin in draw.sample(range(60), 7)] for _ in range(2)
    )
    ticks, others = ({t for begin, end in spans for t in range(begin, end)} for spans in (first, second))
    left = without(union(first), union(second))
    assert {t for begin, end in left for t in range(begin, end)} == ticks - others
    assert length(left) * 1e9 == pytest.approx(len(ticks - others))


def test_communication_behind_computing_costs_nothing_and_parts_add_up() -> None:
    second = 10**9
    events = [
        Event("essa:forward", 0, 4 * second),
        Event("essa:backward", 4 * second, 10 * second),
        Event("aten::mm", 0, 7 * second),
        Event("gloo:all_reduce", 5 * second, 9 * second),  # from 7 on nothing hides it
        Event("aten::add", 9 * second, 10 * second),
        Event("gloo:broadcast", 20 * second, 30 * second),  # in no step
    ]
    found = parts_of(events, cuda=False)
    assert found == {"communication": 2.0, "forward": 4.0, "backward": 4.0}


def test_on_a_gpu_kernels_count_and_not_the_calls_that_start_them() -> None:
    gpu = "DeviceType.CUDA"
    events = [
        Event("essa:backward", 0, 10),
        Event("essa:backward", 0, 99, gpu),
        Event("aten::mm", 0, 10),
        Event("gemm", 0, 3, gpu),
        Event("ncclDevKernel_AllReduce_Sum", 2, 8, gpu),
    ]
    found = parts_of(events, cuda=True)
    assert found["communication"] * 1e9 == pytest.approx(5)
    assert found["backward"] * 1e9 == pytest.approx(5)


def test_a_job_that_weak_and_strong_scaling_share_runs_once_a_round_and_jobs_take_turns() -> None:
    config = ScaleConfig(out="x", sizes=(2, 1), mode="both", rounds=2)
    found = [(job.processes, job.batch_size, job.round) for job in jobs(config, 8)]
    assert found == [(1, 8, 0), (2, 16, 0), (2, 8, 0), (1, 8, 1), (2, 16, 1), (2, 8, 1)]


def test_the_launcher_is_that_of_the_strategy_or_the_users_own(tmp_path: Path) -> None:
    job = Job("zero2", 4, 32, 0)
    own = command(ScaleConfig(out="x"), job, tmp_path, ["run.yaml"])
    assert "launch/zero2.yaml" in " ".join(own)
    assert own[own.index("--num_processes") + 1] == "4"
    config = ScaleConfig(out="x", launcher="srun -n {n} wrap {strategy}")
    assert command(config, job, tmp_path, [])[:6] == ["srun", "-n", "4", "wrap", "zero2", "-m"]


def test_wrong_launchers_and_strategies_are_errors_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ddp, fsdp2"):
        command(ScaleConfig(out="x"), Job("zero9", 1, 8, 0), tmp_path, [])
    with pytest.raises(UsageError, match="nodes"):
        command(ScaleConfig(out="x", launcher="srun -N {nodes}"), Job("ddp", 1, 8, 0), tmp_path, [])
    with pytest.raises(UsageError, match="predict=4,8"):
        scale(ScaleConfig(run=SMALL, out=str(tmp_path / "a"), devices="8xh100"))
    with pytest.raises(UsageError, match="did you mean h100"):
        scale(ScaleConfig(run=SMALL, out=str(tmp_path / "a"), devices="h10"))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("print('exitcode  : -9 (pid: 7)'); raise SystemExit(1)", "killed by SIGKILL"),
        ("print('no such thing'); raise SystemExit(3)", "exit code 3: no such thing"),
        (
            "open('{folder}/cause0.txt', 'w').write('2.0 E: later'); open('{folder}/cause1.txt', 'w').write("
            "'1.0 RuntimeError: CUDA out of memory'); raise SystemExit(1)",
            "out of memory: RuntimeError",
        ),
    ],
)
def test_a_failed_job_says_why(tmp_path: Path, code: str, why: str) -> None:
    found = run([sys.executable, "-c", code.replace("{folder}", str(tmp_path))], tmp_path, timeout_s=20)
    assert why in found["error"]


def test_a_job_out_of_time_leaves_nobody_behind(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    begin = time.monotonic()
    found = run([sys.executable, "-c", code], tmp_path, timeout_s=1.5)
    assert "timeout_s=1.5" in found["error"]
    assert time.monotonic() - begin < 20
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def result(step_s: float, **more: Any) -> dict[str, Any]:
    """A job's, in which half of the time is communication."""
    split = {"data": 0.0, "forward": step_s / 2, "communication": step_s / 2}
    found = {"step_s": step_s, "split_s": split, "sent_bytes": 1e6, "peak_gib": 1.0, "device": "cpu"}
    return found | {"threads": 1, "load": 1.0} | more


def test_efficiencies_are_those_of_their_definition_and_of_rounds_of_their_own() -> None:
    config = ScaleConfig(out="x", sizes=(2, 8), mode="both", rounds=3)
    seconds = {
        (2, 16): (1.0, 2.0, 4.0),
        (8, 64): (2.0, 2.5, 4.0),
        (2, 8): (1.0, 1.0, 1.0),
        (8, 8): (0.5, 0.5, 1.0),
    }
    results = {
        Job("ddp", n, batch, i): result(s)
        for (n, batch), times in seconds.items()
        for i, s in enumerate(times)
    }
    table = rows(config, 8, results)
    found = {(row["mode"], row["processes"]): row["efficiency"] for row in table}
    assert found == {("weak", 2): 1.0, ("weak", 8): 0.8, ("strong", 2): 1.0, ("strong", 8): 0.5}
    assert table[1]["efficiency_range"] == [0.5, 1.0]
    assert table[1]["img_per_s"] == 64 / 2.5
    assert sum(table[1]["split_s"].values()) == pytest.approx(table[1]["step_s"])


def test_a_size_that_fails_is_told_and_the_others_stay() -> None:
    config = ScaleConfig(out="x", sizes=(1, 2), rounds=2)
    results = {
        Job("ddp", 1, 8, 0): result(1.0),
        Job("ddp", 1, 8, 1): {"error": "killed"},
        Job("ddp", 2, 16, 0): {"error": "gone"},
        Job("ddp", 2, 16, 1): {"error": "gone"},
    }
    first, second = rows(config, 8, results)
    assert (first["rounds"], first["errors"], first["efficiency"]) == (1, ["killed"], 1.0)
    assert second["errors"] == ["gone"]
    assert "step_s" not in second


def test_predictions_are_held_to_what_was_run_and_marked_beyond() -> None:
    config = ScaleConfig(out="x", sizes=(1, 2), predict=(4,), devices="h100", price=2.0)
    planner = Planner(config, read_words([*SMALL, "batch_size=8"]))
    results = {Job("ddp", n, 8 * n, i): result(1.0 * n) for n in (1, 2) for i in range(3)}
    table = rows(config, 8, results)
    points = predictions(planner, table)
    judged(table, points, 2.0)
    # The first size is what the planner is told; the second took twice as long as an ideal one.
    assert table[0]["predicted_over_measured"] == pytest.approx(
        0.5, abs=0.02
    )  # half of its step was communication
    assert table[1]["predicted_over_measured"] == pytest.approx(0.25, abs=0.02)
    assert table[0]["cost_per_million"] == pytest.approx(1e6 / 8 / 3600 * 2)
    beyond = predicted(points, config)
    own = [row["processes"] for row in beyond if row["device"] == "cpu" and not row["run"]]
    other = [row["processes"] for row in beyond if row["device"] == "h100"]
    assert (own, other) == ([4], [1, 2, 4])
    assert all(row["predicted"] and row["efficiency"] <= 1.0 for row in beyond)


def test_a_strategy_that_the_planner_does_not_know_is_not_predicted() -> None:
    planner = Planner(ScaleConfig(out="x"), read_words([*SMALL, "batch_size=8"]))
    assert planner.point("zero2_offload", "weak", 2, "h100", None) is None
    assert planner.point("zero2", "strong", 3, "h100", None) is None  # 8 images of 3 ranks


def test_a_study_of_a_real_job_from_start_to_pictures(tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = (*SMALL, "batch_size=4", "data.train=assets/blood_cells:unlabelled", "threads=1")
    config = ScaleConfig(
        run=words,
        out=str(out),
        sizes=(1,),
        predict=(4,),
        strategy=("single",),
        rounds=1,
        steps=3,
        launcher="{python}",
    )
    found = scale(config)
    assert (found["adapter"], found["batch_size"]) == ("apla", 4)
    (row,) = found["rows"]
    assert row["errors"] == []
    assert row["efficiency"] == 1.0
    assert set(row["split_s"]) == set(PARTS)
    assert sum(row["split_s"].values()) == pytest.approx(row["step_s"])
    assert min(row["split_s"][part] for part in ("data", "forward", "backward", "optimizer", "EMA")) > 0
    assert all(Path(file).stat().st_size > 1000 for file in found["files"])
    assert json.loads((out / "scaling.json").read_text())["rows"][0]["step_s"] == row["step_s"]
    text = scaled(found)
    assert max(map(len, text.splitlines())) < 260
    assert "~" not in text.splitlines()[3]
    with pytest.raises(UsageError, match="resume=true"):
        scale(config)
    again = scale(
        config.model_copy(update={"resume": True, "launcher": "no-such-launcher"})
    )  # nothing is run
    (kept,) = again["rows"]
    measured = [name for name in row if not name.startswith("predicted")]  # the CPU's speed is measured anew
    assert [kept[name] for name in measured] == [row[name] for name in measured]
    with pytest.raises(UsageError, match="another study"):
        scale(config.model_copy(update={"resume": True, "run": (*words, "seed=3")}))


def test_a_study_in_which_nothing_runs_ends_with_the_reason(tmp_path: Path) -> None:
    config = ScaleConfig(
        run=(*SMALL, "data.train=assets/blood_cells"),
        out=str(tmp_path / "x"),
        sizes=(1,),
        launcher="no-such-launcher {n}",
    )
    with pytest.raises(NothingMeasuredError, match="no-such-launcher can't be started"):
        scale(config)
