"""The weights of one trial as the start of another: what is kept, and that a run goes on from all of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from essa_dist import adapt, runfolder
from essa_dist.config import RunConfig
from essa_dist.distributed.strategies.interface import Strategy
from essa_dist.engine.saving import restore
from essa_dist.settings import load, to_yaml
from essa_dist.tuning.generation import KEPT, PINNED, Pointer, begin_from, pin


def checkpoint(run: Path, step: int, *, committed: bool = True) -> Path:
    folder = runfolder.checkpoint_folder(run, step)
    (folder / "deep").mkdir(parents=True)
    (folder / "tensors").write_bytes(bytes(range(step, step + 50)))
    (folder / "deep" / "more").write_bytes(b"x" * step)
    if committed:
        (folder / runfolder.MARKER).touch()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_newest_whole_checkpoint_is_pinned_and_outlives_the_original(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pin("t0001", tmp_path, run) is None
    checkpoint(run, 2)
    original = checkpoint(run, 4)
    checkpoint(run, 6, committed=False)
    before = contents(original)
    pointer = pin("t0001", tmp_path, run)
    assert pointer is not None
    assert (pointer["trial"], pointer["step"]) == ("t0001", 4)
    shutil.rmtree(run)
    assert contents(Path(pointer["checkpoint"])) == before


def test_no_more_checkpoints_are_kept_than_exploits_need(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pointers = []
    for step in (2, 4, 6, 8):
        checkpoint(run, step)
        pointers += [pin("t0001", tmp_path, run), pin("t0001", tmp_path, run)]
    kept = {Path(one["checkpoint"]) for one in pointers[-2 * KEPT :] if one is not None}
    assert set((tmp_path / PINNED).iterdir()) == kept
    assert len(kept) == KEPT


@pytest.mark.parametrize("links", [True, False])
def test_a_run_that_begins_from_anothers_checkpoint_has_it_byte_for_byte(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr("os.link", refuse)
    donor = checkpoint(tmp_path / "donor" / "run", 4)
    pointer = pin("t0001", tmp_path / "donor", tmp_path / "donor" / "run")
    assert pointer is not None
    run = tmp_path / "taker" / "run1"
    checkpoint(run, 8)  # of an exploit that was interrupted
    config = load(RunConfig, {"out": str(run), "optim": {"lr": 0.25}})
    begin_from(pointer, run, to_yaml(config))
    assert [one.name for one in runfolder.committed_checkpoints(run)] == ["step_00000004"]
    assert contents(runfolder.checkpoint_folder(run, 4)) == contents(donor)
    assert load(RunConfig, run / runfolder.CONFIG) == config


def test_an_exploit_whose_checkpoint_is_gone_takes_a_later_one_of_the_same_trial(tmp_path: Path) -> None:
    donor, run = tmp_path / "donor", tmp_path / "taker" / "run1"
    pointers = []
    for step in (4, 8, 12, 16):
        checkpoint(donor / "run", step)
        pointers.append(pin("t0001", donor, donor / "run"))
    first, newest = pointers[0], pointers[-1]
    assert first is not None
    assert newest is not None
    assert not Path(first["checkpoint"]).exists()
    assert begin_from(first, run, "") == 16
    assert contents(runfolder.checkpoint_folder(run, 16)) == contents(Path(newest["checkpoint"]))
    shutil.rmtree(donor)
    with pytest.raises(FileNotFoundError):
        begin_from(first, run, "")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.stem}/{name}": value.flatten()
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def test_an_exploit_restores_both_branches_the_heads_and_the_optimizer_to_the_bit(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, taker = tmp_path / "donor", tmp_path / "taker"
    short = [*recipe, "duration=6", "checkpoint.every=4", "checkpoint.keep=9", "objective.koleo_weight=0.1"]
    adapt(None, *short, f"out={donor / 'run'}", "optim.lr=1e-2")
    last = runfolder.checkpoint_folder(donor / "run", 4)
    shutil.rmtree(runfolder.checkpoint_folder(donor / "run", 6))
    pointer = pin("t0000", donor, donor / "run")
    assert pointer == Pointer(trial="t0000", step=4, checkpoint=str(donor / PINNED / "run_step_00000004"))
    before = tensors(last)
    shutil.rmtree(donor / "run")

    words = [*short, f"out={taker / 'run1'}", "optim.lr=3e-3", "resume=true"]
    begin_from(pointer, taker / "run1", to_yaml(load(RunConfig, None, words)))
    seen = dict[str, torch.Tensor]()
    resume = restore.resume

    def resume_and_look(run: Path, strategy: Strategy, *more: Any, **names: Any) -> Any:
        state = resume(run, strategy, *more, **names)
        seen.update({part.name: part.values.clone() for part in strategy.parts()})
        return state

    monkeypatch.setattr(restore, "resume", resume_and_look)
    adapt(None, *words)
    assert seen.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(seen[name], value), name
    students = [name for name in before if name.startswith("student/")]
    teachers = {name: name.replace("student/", "teacher/") for name in students}
    assert any("head" in name for name in students)
    assert any(name.startswith("optimizer/") and name.endswith("/exp_avg_sq") for name in before)
    assert not all(torch.equal(before[one], before[other]) for one, other in teachers.items())
    after = tensors(runfolder.checkpoint_folder(taker / "run1", 6))
    assert not any(torch.equal(after[name], before[name]) for name in students if "proj.weight" in name)
