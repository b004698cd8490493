"""What befalls the output folder is said in one line, ends all ranks, and never harms a checkpoint or another run."""

import hashlib
import signal
from pathlib import Path

from safetensors.torch import load_file

from essa_dist.runfolder import committed_checkpoints
from tests.faults.test_hung_rank import until_step
from tests.faults.zygote import Ranks, Zygote

LONG = ["duration=100000", "checkpoint.every=3", "checkpoint.keep=1000"]


def ended(ranks: Ranks, code: int) -> str:
    """The one thing said at the end of all ranks, which ended with ``code``."""
    assert ranks.wait(seconds=180) == [code] * len(ranks.pids), ranks.stderr(0) + ranks.stderr(1)
    assert not ranks.alive()
    assert not ranks.said("Traceback")
    (said,) = ranks.errors()
    return said


def intact(run: Path, *steps: int) -> None:
    """The checkpoints are those of ``steps``, whole, and nothing half-written is beside them."""
    found = committed_checkpoints(run)
    assert [int(folder.name[-8:]) for folder in found] == list(steps)
    assert len(list((run / "checkpoints").iterdir())) == len(steps)
    for folder in found:
        assert all(load_file(file) for file in folder.glob("*.safetensors"))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_job_is_refused_and_harms_nothing_and_a_killed_one_blocks_nobody(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with zygote.ranks(2, "none", 0, 0, ["adapt", *recipe, *LONG]) as first:
        until_step(run, 7)  # the save at step 6 has waited for the one at step 3
        before = contents(run / "checkpoints" / "step_00000003") | {
            "config": (run / "config.yaml").read_text()
        }
        with zygote.ranks(2, "none", 0, 0, ["adapt", *recipe, *LONG, "overwrite=true"]) as second:
            assert ended(second, 2).startswith(f"another process trains in out={run}: ")
        after = contents(run / "checkpoints" / "step_00000003") | {
            "config": (run / "config.yaml").read_text()
        }
        assert after == before
        steps = len((run / "metrics.jsonl").read_text().splitlines())
        until_step(run, steps + 2)
        for i in (0, 1):
            first.send(signal.SIGKILL, i)
        assert first.wait(seconds=30) == [-signal.SIGKILL] * 2
    steps = len((run / "metrics.jsonl").read_text().splitlines())
    with zygote.ranks(2, "none", 0, 0, ["adapt", *recipe, *LONG, "resume=true"]) as third:
        until_step(run, steps + 2)
        for i in (0, 1):
            third.send(signal.SIGTERM, i)
        assert third.wait(seconds=60) == [75, 75]


def test_a_folder_that_can_not_be_written_is_said_on_the_first_rank(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    with zygote.ranks(2, "read-only", 0, 0, ["adapt", *recipe]) as ranks:
        said = ended(ranks, 1)
    assert said == f"{tmp_path / 'run'}: Read-only file system; write elsewhere with out=DIR"


def test_a_folder_that_vanishes_ends_the_run_and_is_not_made_anew(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with zygote.ranks(2, "out-vanishes", 0, 3, ["adapt", *recipe, *LONG]) as ranks:
        said = ended(ranks, 1)
    assert str(run) in said
    assert "No such file or directory" in said
    assert not run.exists()


def test_a_full_disk_at_a_save_leaves_the_checkpoint_before(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with zygote.ranks(2, "disk-full-at-save", 0, 6, ["adapt", *recipe, *LONG]) as ranks:
        said = ended(ranks, 1)
    assert said.endswith("No space left on device; free some space or write elsewhere with out=DIR")
    intact(run, 3)


def test_a_full_disk_at_the_metrics_leaves_the_checkpoint_before(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with zygote.ranks(2, "disk-full-at-metrics", 0, 5, ["adapt", *recipe, *LONG]) as ranks:
        said = ended(ranks, 1)
    assert said.endswith("No space left on device; free some space or write elsewhere with out=DIR")
    intact(run, 3)
