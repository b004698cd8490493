"""However a run is stopped, resuming it ends where the uninterrupted run ends, bit for bit, in fresh processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from essa_dist import adapt
from essa_dist.backbones import BackboneConfig, build_backbone
from essa_dist.engine.recording.metrics import MEASURED
from essa_dist.engine.saving import checkpoint
from essa_dist.errors import UsageError
from essa_dist.runfolder import MARKER, committed_checkpoints

DEADLINE_S = 120
FILES = ("student", "teacher", "buffers", "optimizer")


def end_state(run: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[dict[str, Any]]]:
    last = committed_checkpoints(run)[-1]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (
        {name: load_file(last / f"{name}.safetensors") for name in FILES},
        [{key: value for key, value in row.items() if key not in MEASURED} for row in metrics],
    )


def assert_same_end(run: Path, other: Path) -> None:
    (tensors, metrics), (other_tensors, other_metrics) = end_state(run), end_state(other)
    assert metrics == other_metrics
    for name in FILES:
        assert tensors[name].keys() == other_tensors[name].keys()
        assert all(torch.equal(t, other_tensors[name][key]) for key, t in tensors[name].items()), name


def start(*overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "essa_dist", "adapt", *overrides]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").is_file() and len(
            (run / "metrics.jsonl").read_text().splitlines()
        ) >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1]}")


@pytest.mark.parametrize(
    ("how", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 75)],
    ids=["kill", "term", "int"],
)
def test_a_stopped_run_resumes_to_the_bit(
    recipe: list[str], tmp_path: Path, how: signal.Signals, code: int
) -> None:
    longer = ["duration=40", "data.workers=1", "backbone.drop_path=0.1", "checkpoint.every=7"]
    run = tmp_path / "run"
    process = start(*recipe, *longer)
    wait_for_step(run, 15, process)  # the save at 14 has waited for that at 7
    process.send_signal(how)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, stderr
    reached = int(committed_checkpoints(run)[-1].name.removeprefix("step_"))
    assert 7 <= reached < 40
    if code == 75:
        assert f"after step {reached} of 40; go on with resume=true" in stderr
        assert reached == len((run / "metrics.jsonl").read_text().splitlines())
    resumed = start(*recipe, *longer, "resume=true")
    _, stderr = resumed.communicate(timeout=DEADLINE_S)
    assert resumed.returncode == 0, stderr
    assert "resumed from" in stderr
    adapt(None, *recipe, *longer, f"out={tmp_path / 'straight'}")
    assert_same_end(run, tmp_path / "straight")


def test_a_run_that_goes_on_is_left_alone_by_a_second_one(recipe: list[str], tmp_path: Path) -> None:
    longer = ["duration=4000", "checkpoint.every=1000"]
    process = start(*recipe, *longer)
    try:
        wait_for_step(tmp_path / "run", 2, process)
        for again in ("resume=true", "overwrite=true"):
            with pytest.raises(UsageError, match="another process trains in out="):
                adapt(None, *recipe, *longer, again)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    adapt(None, *recipe, "overwrite=true")  # a lock ends with its process, however that ends


def test_resuming_a_finished_run_changes_nothing(recipe: list[str], tmp_path: Path) -> None:
    adapt(None, *recipe)
    before = end_state(tmp_path / "run")[1]
    result = adapt(None, *recipe, "resume=true")
    assert (result["step"], end_state(tmp_path / "run")[1]) == (6, before)


def test_resume_of_a_new_folder_is_a_new_run(recipe: list[str]) -> None:
    assert adapt(None, *recipe, "resume=true")["step"] == 6


def test_resume_refuses_to_continue_another_run(recipe: list[str]) -> None:
    adapt(None, *recipe)
    with pytest.raises(UsageError, match=r"another run .*optim\.lr was 0\.01, is 0\.5"):
        adapt(None, *recipe, "resume=true", "optim.lr=0.5")
    assert adapt(None, *recipe, "resume=true", "log_every=3", "checkpoint.keep=1")["step"] == 6


def test_weights_that_lie_elsewhere_now_are_known_by_their_content(recipe: list[str], tmp_path: Path) -> None:
    old, moved, other = (tmp_path / name / "vit.safetensors" for name in ("old", "moved", "other"))
    for seed, file in enumerate((old, moved, other)):
        file.parent.mkdir()
        config = BackboneConfig(name="test_vit", weights="random")
        save_file(build_backbone(config, seed=seed // 2).vit.state_dict(), file)
    recipe = [word for word in recipe if not word.startswith("backbone.weights=")]
    adapt(None, *recipe, f"backbone.weights={old}")
    old.unlink()
    assert adapt(None, *recipe, "resume=true", f"backbone.weights={moved}")["step"] == 6
    with pytest.raises(UsageError, match="trained on other pretrained weights"):
        adapt(None, *recipe, "resume=true", f"backbone.weights={other}")
    with pytest.raises(UsageError, match=r"another run .*backbone\.weights was .*other.*, is random"):
        adapt(None, *recipe, "resume=true", "backbone.weights=random")


def test_a_half_written_checkpoint_is_never_taken(recipe: list[str], tmp_path: Path) -> None:
    adapt(None, *recipe)
    (tmp_path / "run" / "checkpoints" / "step_00000006" / MARKER).unlink()
    assert adapt(None, *recipe, "resume=true")["step"] == 6  # from step 4
    assert committed_checkpoints(tmp_path / "run")[-1].name == "step_00000006"


def test_a_full_disk_leaves_the_old_checkpoint_and_no_debris(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(None, *recipe, "duration=2")
    real, calls = checkpoint.TensorFile.finish, []

    def full(self: Any) -> Any:
        calls.append(self)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self)

    folder = tmp_path / "run" / "checkpoints"
    monkeypatch.setattr(checkpoint.TensorFile, "finish", full)
    with pytest.raises(OSError, match=r"No space left.*step_00000002"):
        adapt(None, *recipe, "duration=4", f"out={tmp_path / 'other'}")
    assert list((tmp_path / "other" / "checkpoints").iterdir()) == []
    assert [p.name for p in folder.iterdir()] == ["step_00000002"]


def test_a_checkpoint_of_another_adapter_or_trunk_is_refused(recipe: list[str], tmp_path: Path) -> None:
    adapt(None, *recipe)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("rank: full", "rank: 3"))
    with pytest.raises(UsageError, match=r"of another architecture or adapter: .*proj"):
        adapt(None, *recipe, "resume=true", "adapter.rank=3")
    state = tmp_path / "run" / "checkpoints" / "step_00000006" / "state.json"
    config.write_text(config.read_text().replace("rank: 3", "rank: full"))
    state.write_text(state.read_text().replace('"trunk_sha256": "', '"trunk_sha256": "0'))
    with pytest.raises(UsageError, match="trained on other pretrained weights"):
        adapt(None, *recipe, "resume=true")


def test_two_processes_compute_what_one_does(recipe: list[str], tmp_path: Path, free_port: int) -> None:
    # Sinkhorn, centres and KoLeo see the global batch, whatever the number of processes.
    for centering in ("softmax", "sinkhorn"):
        one, two = tmp_path / f"one_{centering}", tmp_path / f"two_{centering}"
        words = [*recipe, f"objective.centering={centering}", "optim.lr=1e-3", "log_every=1"]
        adapt(None, *words, f"out={one}")
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port}"]
        command = [sys.executable, *launcher, "-m", "essa_dist", "adapt", *words, f"out={two}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stderr
        assert "on 2 x cpu" in done.stderr
        (tensors, metrics), (other_tensors, other_metrics) = end_state(one), end_state(two)
        for name in ("student", "teacher", "buffers"):
            for key, tensor in tensors[name].items():
                torch.testing.assert_close(other_tensors[name][key], tensor, rtol=1e-3, atol=1e-4, msg=key)
        assert metrics[-1]["ema_momentum"] == other_metrics[-1]["ema_momentum"]
