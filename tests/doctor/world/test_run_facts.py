"""What a rank reads of the run: the same contents have the same hash, and what can't be read is a line."""

from pathlib import Path

import pytest

from essa_dist.doctor.world import run
from essa_dist.doctor.world.launching import _option
from essa_dist.doctor.world.record import code_sha256
from essa_dist.doctor.world.run import flat, path_sha256, read_run, run_facts, sees, write_token
from essa_dist.errors import UsageError, WeightsError


def test_weights_are_told_apart_by_one_byte_whatever_their_name(tmp_path: Path) -> None:
    for name, text in {"a": b"xyz", "b": b"xyz", "c": b"xyZ", "d": b"xy"}.items():
        (tmp_path / name).write_bytes(text)
    a, b, c, d = (path_sha256(tmp_path / name) for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_of_large_weights_first_last_and_pieces_between_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_CHUNK", 10)
    monkeypatch.setattr(run, "_CHUNKS", 4)
    path, values = tmp_path / "w", bytearray(1000)
    path.write_bytes(values)
    whole = path_sha256(path)
    seen = []
    for at in range(1000):
        values[at] = 1
        path.write_bytes(values)
        if path_sha256(path) != whole:
            seen.append(at)
        values[at] = 0
    assert len(seen) == 40
    assert {0, 9, 990, 999} <= set(seen)
    path.write_bytes(bytes(1001))
    assert path_sha256(path) != whole


def test_weights_that_are_not_there_are_a_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not here: copy it"):
        path_sha256(tmp_path / "none")


def test_all_that_can_not_be_read_is_told_and_the_rest_is_read(tmp_path: Path, repository: Path) -> None:
    words = [
        f"backbone.weights={tmp_path / 'none'}",
        f"data.train={repository / 'assets' / 'blood_cells'}",
        "seed=3",
    ]
    stages: list[str] = []
    facts = run_facts(read_run(words), stages.append, first_on_node=True)
    (failure,) = facts.failures
    assert "is not here" in failure
    assert facts.data is not None
    assert facts.settings["seed"] == "3"
    assert [stage.split()[0] for stage in stages] == ["reading", "opening"]
    assert run_facts(read_run(words), stages.append, first_on_node=False).failures == []


def test_the_words_are_those_of_adapt() -> None:
    with pytest.raises(UsageError, match=r"^optim\.lrr: unknown key .* did you mean optim\.lr"):
        read_run(["optim.lrr=1"])
    with pytest.raises(UsageError, match="one word too many"):
        read_run(["configs/smoke.yaml", "b.yaml"])
    assert read_run(["configs/smoke.yaml", "batch_size=6"]).batch_size == 6


def test_a_token_lies_above_a_run_that_is_not_there_yet_and_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_SEEN_S", 0.2)
    token = write_token(str(tmp_path / "runs" / "a"))
    assert token.parent == tmp_path
    assert list(tmp_path.iterdir()) == [token]
    assert sees(token)
    token.unlink()
    assert not sees(token)


def test_settings_are_flat_texts() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, None]}) == {"a.b": "1", "a.c": "{}", "d": "[1, None]"}


def test_code_is_told_apart_by_names_and_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name, file, text in (("1", "a.py", "x"), ("2", "b.py", "x"), ("3", "a.py", "y"), ("4", "a.py", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
        (tmp_path / name / "notes.txt").write_text(name)
        hashes.add(code_sha256(tmp_path / name))
    assert len(hashes) == 3


def test_a_launchers_options_are_found_in_each_spelling() -> None:
    words = ["accelerate", "launch", "--num-processes", "4", "--num_machines=2", "x.py"]
    assert [_option(words, f"--{name}") for name in ("num_processes", "num_machines", "cpu")] == [
        "4",
        "2",
        None,
    ]
