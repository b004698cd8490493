"""A run is read back as it was written or refused in one line; each of its checkpoints can be named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from essa_dist.errors import UsageError
from essa_dist.export import saved
from essa_dist.export.attach import attach
from essa_dist.export.export import ExportConfig, export
from essa_dist.export.models import load_model
from essa_dist.runfolder import MARKER
from tests.export.runs import run_folder

CHECKPOINT = "checkpoints/step_00000005"
TEACHER = f"{CHECKPOINT}/teacher.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after 5 and after 8 steps."""
    run = tmp_path_factory.mktemp("runs") / "run"
    for step in (5, 8):
        run_folder(run, {"kind": "apla", "rank": 2}, step=step)
    return run


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """With the checkpoint after 5 steps alone."""
    shutil.copytree(written, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000008")
    return tmp_path / "run"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 64
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "tensors gone": (TEACHER, Path.unlink, "is damaged: teacher.safetensors is missing; put the file back"),
    "tensors cut": (
        TEACHER,
        lambda p: p.write_bytes(p.read_bytes()[:99]),
        "teacher.safetensors has 99 bytes",
    ),
    "one bit": (TEACHER, flip, "teacher.safetensors has another checksum"),
    "buffers gone": (f"{CHECKPOINT}/buffers.safetensors", Path.unlink, "buffers.safetensors is missing"),
    "state gone": (f"{CHECKPOINT}/state.json", Path.unlink, r"state.json can't be read"),
    "state cut": (f"{CHECKPOINT}/state.json", lambda p: p.write_text('{"step": 5,'), r"state.json can't be"),
    "state a list": (
        f"{CHECKPOINT}/state.json",
        lambda p: p.write_text("[5]"),
        "state.json lacks step, trunk",
    ),
    "settings empty": ("config.yaml", lambda p: p.write_text(""), "tells no model .*no settings are in it"),
    "settings cut": ("config.yaml", lambda p: p.write_text("backbone: {name: [test"), "tells no model"),
    "settings of another version": (
        "config.yaml",
        lambda p: p.write_text(p.read_text().replace("rank:", "ranks:")),
        r"tells no model \(adapter.ranks: unknown key.*did you mean adapter.rank",
    ),
    "settings without adapter": (
        "config.yaml",
        lambda p: p.write_text("backbone: {name: test_vit, weights: random}\nseed: 7\n"),
        r"tells no model \(adapter: needed and not given",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused_in_one_line_that_names_the_file(run: Path, damage: str) -> None:
    file, harm, message = DAMAGE[damage]
    harm(run / file)
    for use in (
        lambda: load_model(str(run)),
        lambda: export(ExportConfig(run=str(run), out=str(run.parent / "out"))),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not (run.parent / "out").exists()


def test_what_the_other_branch_or_the_optimizer_lost_is_no_obstacle(run: Path) -> None:
    (run / CHECKPOINT / "student.safetensors").unlink()
    load_model(str(run))
    with pytest.raises(UsageError, match=r"student.safetensors is missing"):
        load_model(f"student:{run}")


def test_each_checkpoint_of_a_run_is_a_model_of_its_own(written: Path, tmp_path: Path) -> None:
    newest, same, older = (
        load_model(str(written / folder)).vit.state_dict()
        for folder in ("", "checkpoints/step_00000008", CHECKPOINT)
    )
    assert all(torch.equal(newest[name], same[name]) for name in newest)
    assert not all(torch.equal(newest[name], older[name]) for name in newest)
    base = load_model("test_vit@random")
    with pytest.raises(Exception, match="trained on other pretrained weights"):  # and not: no run folder
        attach(base, str(written / CHECKPOINT))
    found = export(ExportConfig(run=str(written / CHECKPOINT), out=str(tmp_path / "out"), format="peft"))
    assert (found["step"], found["branch"]) == (5, "teacher")
    assert "run_config.yaml" in found["files"]


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(written: Path) -> None:
    with pytest.raises(
        UsageError, match=r"step_00000007 is no complete checkpoint .*: there is step_00000005, step_0"
    ):
        load_model(str(written / "checkpoints" / "step_00000007"))


def test_an_export_is_of_one_checkpoint_though_the_run_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, exporter: Any
) -> None:
    real = exporter.load_model

    def meanwhile(ref: str) -> Any:
        run_folder(run, {"kind": "apla", "rank": 2}, step=6)
        return real(ref)

    monkeypatch.setattr(exporter, "load_model", meanwhile)
    out = run.parent / "out"
    assert export(ExportConfig(run=str(run), out=str(out)))["step"] == 5
    of_it, of_out = (load_model(str(ref)).vit.state_dict() for ref in (run / CHECKPOINT, out))
    assert all(torch.equal(of_it[name], of_out[name]) for name in of_it)


def test_a_checkpoint_that_a_run_deletes_under_a_reader_is_not_called_damaged(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = saved.read_state

    def pruned(folder: Path) -> dict[str, Any]:
        state = real(folder)
        (folder / MARKER).unlink()
        shutil.rmtree(folder)
        return state

    monkeypatch.setattr("essa_dist.export.attach.read_state", pruned)
    with pytest.raises(
        UsageError, match="was deleted while it was read, its run having newer ones: ask again"
    ):
        load_model(str(run))
