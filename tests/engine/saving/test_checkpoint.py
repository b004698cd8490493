"""A checkpoint is loaded as it was written or not at all, and nothing in its folder is ever executed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from essa_dist.engine.saving import restore
from essa_dist.engine.saving.saver import Saver
from essa_dist.errors import UsageError
from essa_dist.export.saved import FILES
from essa_dist.runfolder import MARKER, committed_checkpoints
from tests.engine.fakes import FakeStrategy, ThreadChannel, on_ranks, tensors

STATE = {"step": 4, "trunk_sha256": "abc", "weights_source": "random"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The newer of two checkpoints."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)

    def work(channel: ThreadChannel) -> None:
        strategy: Any = FakeStrategy(tensors(), "first", 0, 1)
        with Saver(run, strategy, channel, keep=2) as saves:
            saves.save(2, STATE | {"step": 2})
            saves.save(4, STATE)

    assert on_ranks(1, work) == [None]
    return committed_checkpoints(run)[-1]


def load(
    folder: Path, wholes: dict[str, torch.Tensor] | None = None, *, world: int = 1, trunk: str = "abc"
) -> list[Any]:
    """On each rank its strategy, or the error."""

    def work(channel: ThreadChannel) -> Any:
        strategy: Any = FakeStrategy(wholes or tensors(), "rows", channel.rank, channel.world)
        try:
            restore.resume(folder.parents[1], strategy, channel, trunk_sha256=trunk)
        finally:
            assert strategy.complete or not strategy.filled_in  # an error comes before anything was changed
        return strategy

    return on_ranks(world, work)


def refused(folder: Path, message: str, **options: Any) -> None:
    for end in load(folder, world=2, **options):
        assert type(end) is UsageError
        assert "\n" not in str(end)
        with pytest.raises(UsageError, match=message):
            raise end


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("student.safetensors", lambda data: data[:-7], r"has \d+ bytes, \d+ were written"),
    ("optimizer.safetensors", lambda data: b"", "has 0 bytes"),
    ("teacher.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "another checksum"),
    ("buffers.safetensors", lambda data: data + b"\0", r"has \d+ bytes"),
    ("state.json", lambda data: b"", "state.json can't be read"),
    ("state.json", lambda data: data[:-20], "state.json can't be read"),
    ("state.json", lambda data: b"[1, 2]", "state.json lacks step"),
    ("state.json", lambda data: b'\x80\x05{"step": 1}', "state.json can't be read"),
    ("state.json", lambda data: b"[" * 100_000, "state.json can't be read"),
    ("state.json", lambda data: data.replace(b'"step": 4', b'"step": "4"'), "not as it was written"),
    ("state.json", lambda data: data.replace(b'"sha256"', b'"md5"'), "not as it was written"),
    ("state.json", lambda data: data.replace(b'"trunk_sha256"', b'"trunk"'), "lacks trunk_sha256"),
]


@pytest.mark.parametrize(("file", "change", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line_that_names_the_way_out(
    folder: Path, file: str, change: Callable[[bytes], bytes], message: str
) -> None:
    rewrite(folder / file, change)
    refused(folder, rf"step_00000004 is damaged: .*{message}.*delete the folder to go on from step_00000002$")


@pytest.mark.parametrize("file", ["student.safetensors", "state.json", "optimizer.safetensors"])
def test_a_missing_file_is_damage(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refused(folder, f"is damaged: {file} ")


def test_the_way_out_of_the_only_checkpoint_is_another_one(folder: Path) -> None:
    (folder.parent / "step_00000002" / MARKER).unlink()
    (folder / "student.safetensors").unlink()
    refused(folder, "delete the folder to begin anew: there is no earlier one")


def test_after_deleting_a_damaged_checkpoint_the_one_before_is_loaded(folder: Path) -> None:
    (folder / "student.safetensors").write_bytes(b"")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    (strategy,) = load(folder)
    assert strategy.complete


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "no checksums"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_malicious_pickle_in_the_place_of_a_file_is_refused_and_never_executed(
    folder: Path, tmp_path: Path, kind: str, checksums: bool
) -> None:
    mark, state = tmp_path / "executed", folder / "state.json"
    for name in [*(f"{file}.safetensors" for file in FILES), "state.json"]:
        kept = (folder / name).read_bytes()
        if kind == "pickle":
            (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
        else:
            torch.save(Bomb(mark), folder / name)
        if not checksums and name != "state.json":  # whoever plants a file can forge them too
            rewrite(state, lambda data: json.dumps(json.loads(data) | {"files": {}}).encode())
        refused(folder, rf"is damaged: {name}")
        assert not mark.exists()
        (folder / name).write_bytes(kept)
    with (folder / "proof").open("wb") as file:
        pickle.dump(Bomb(mark), file)
    pickle.loads((folder / "proof").read_bytes())
    assert mark.exists(), "the bomb would have gone off"


def test_foreign_files_beside_a_checkpoint_are_never_opened(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    names = [
        "optimizer.pt",
        "pytorch_model.bin",
        "state.pkl",
        "student.pt",
        "data.pkl",
        "__init__.py",
        "extra.safetensors",
    ]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
        os.utime(folder / name, (0, 0))
    (strategy,) = load(folder)
    assert strategy.complete
    assert not mark.exists()


def test_what_fits_no_tensor_of_the_model_is_refused_by_name(folder: Path) -> None:
    other = "of another architecture or adapter"
    wholes = tensors()
    refused(folder, f"{other}: missing lora; resume", wholes=wholes | {"student/lora": torch.ones(2)})
    refused(
        folder, f"{other}: unexpected late", wholes={k: t for k, t in wholes.items() if k != "teacher/late"}
    )
    refused(
        folder, rf"{other}: late is \[4\], .* needs \[5\]", wholes=wholes | {"student/late": torch.ones(5)}
    )
    refused(
        folder,
        rf"{other}: rows is \[6\], .* needs \[2, 3\]".replace("rows", "backbone.rows"),
        wholes=wholes | {"buffers/backbone.rows": torch.ones(2, 3)},
    )


def test_another_trunk_is_refused(folder: Path) -> None:
    refused(folder, "trained on other pretrained weights", trunk="abd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale/exp_avg": None}, "missing scale/exp_avg"),
        ({"frozen/exp_avg": torch.ones(3)}, "unexpected frozen/exp_avg"),
        ({"scale/momentum": torch.ones(1)}, "unexpected scale/momentum"),
        ({"dino_head.v/exp_avg": torch.ones(3, 11)}, r"dino_head.v/exp_avg is \[3, 11\]"),
        ({"dino_head.v/step": torch.ones(2)}, r"dino_head.v/step is \[2\]"),
    ],
)
def test_optimizer_state_that_belongs_to_no_trained_tensor_is_refused(
    folder: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    path, state = folder / "optimizer.safetensors", folder / "state.json"
    found = {key: t for key, t in (load_file(path) | change).items() if t is not None}
    save_file(found, path)
    rewrite(state, lambda data: json.dumps(json.loads(data) | {"files": {}}).encode())
    refused(folder, message)


def test_a_tensor_that_was_never_stepped_gets_no_optimizer_state(folder: Path) -> None:
    (strategy,) = load(folder)
    moments = {name for name, _ in strategy.filled_in if name.startswith("optimizer/")}
    assert moments == {name for name in tensors() if name.startswith("optimizer/")}
    assert not any("late" in name for name in moments)


def test_checkpoints_of_before_without_checksums_still_load(folder: Path) -> None:
    # As they were written before: by the safetensors library, without checksums.
    for file in FILES:
        path = folder / f"{file}.safetensors"
        save_file(load_file(path), path)
    rewrite(folder / "state.json", lambda data: json.dumps(STATE | {"scaler": {}}).encode())
    (strategy,) = load(folder)
    assert torch.equal(
        strategy.filled_in["student/dino_head.v", 0], tensors()["student/dino_head.v"].flatten()
    )


def test_a_model_with_empty_tensors_takes_no_checkpoint(folder: Path) -> None:
    wholes = tensors() | {"student/late": torch.ones(0)}
    for end in load(folder, wholes, world=2):
        with pytest.raises(RuntimeError, match=r"empty tensors.*student/late"):
            raise end
