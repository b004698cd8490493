"""YAML files: each way in which one can be wrong is one line that names it."""

from pathlib import Path
from typing import Any

import pytest

from essa_dist.errors import UsageError
from essa_dist.settings import load


def refusal(recipe: type[Any], path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(recipe, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("out: a\nsteps: 1\nout: b\n", "line 3: key out is given a second time"),
        ("optim:\n  lr: 1\n  lr: 2\n", "line 3: key lr is given a second time"),
        ("- 1\n", "holds a list; settings are a mapping"),
        ("hello\n", "holds a single value; settings are a mapping"),
        ("out: [a\n", "line 2: not YAML"),
        ("out: a\n---\nout: b\n", "line 2: not YAML"),
        ("out: !!python/object:os.system x\n", "line 1: not YAML"),
        ("base: [a]\n", "base: ['a'] is not allowed"),
        ("base: none.yaml\n", "no file"),
    ],
)
def test_a_file_that_is_no_mapping_of_settings_is_refused(
    recipe: type[Any], tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert words in refusal(recipe, tmp_path / "a.yaml")


def test_a_missing_file_brings_the_nearest_to_mind(recipe: type[Any], tmp_path: Path) -> None:
    assert refusal(recipe, tmp_path / "demo.yaml").endswith(f"{tmp_path} holds no YAML file")
    for name in ("demo.yaml", "smoke.yaml"):
        (tmp_path / name).touch()
    assert refusal(recipe, tmp_path / "dmo.yaml").endswith(f"did you mean {tmp_path / 'demo.yaml'}?")
    assert refusal(recipe, tmp_path / "xyz").endswith("holds demo.yaml, smoke.yaml")
    assert refusal(recipe, tmp_path / "no" / "demo.yaml").endswith(
        f"there is no folder {tmp_path / 'no'} either"
    )


def test_a_folder_and_a_binary_file_are_refused(recipe: type[Any], tmp_path: Path) -> None:
    assert "is a folder; give a YAML file" in refusal(recipe, tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    assert refusal(recipe, tmp_path / "a.yaml").endswith("is not text; give a YAML file")


def test_a_file_of_comments_gives_the_defaults(recipe: type[Any], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert load(recipe, tmp_path / "a.yaml", ["out=a"]) == load(recipe, {"out": "a"})


def test_a_base_lies_below_the_file_that_names_it_from_its_own_folder(
    recipe: type[Any], tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "root.yaml").write_text(
        "out: root\nsteps: 5\noptim: {lr: 1, clip: 2}\nadapter: {kind: rows, rank: 3}\n"
    )
    (tmp_path / "middle.yaml").write_text("base: root.yaml\nout: middle\noptim: {lr: 3}\n")
    (tmp_path / "deep" / "top.yaml").write_text("base: ../middle.yaml\nadapter: lowrank\n")
    config = load(recipe, tmp_path / "deep" / "top.yaml")
    assert (str(config.out), config.steps, config.optim.lr, config.optim.clip) == ("middle", 5, 3.0, 2.0)
    assert (config.adapter.kind, config.adapter.rank) == ("lowrank", 8)


def test_a_circle_of_bases_is_refused(recipe: type[Any], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    assert "its base leads back to itself" in refusal(recipe, tmp_path / "a.yaml")
