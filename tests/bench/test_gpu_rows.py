"""The rows of ``benchmarks/gpu_suite.py`` are commands that there are, and the new ones measure on a CPU too."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import essa_dist.reproduce
from essa_dist.planning.plan import read_words
from essa_dist.reproduce.grids import GRIDS
from essa_dist.reproduce.plan import make_plan
from essa_dist.reproduce.table import to_markdown
from essa_dist.settings import load
from essa_dist.verbs import VERBS, config_class, sort_words, verb_of


def script(repository: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, repository / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_a_command(words: list[str]) -> None:
    """Raises UsageError for words that the verb, or the run that it is for, doesn't know."""
    name, words = verb_of([word for word in words if word != "--json"])
    verb = VERBS[name]
    source, values, overrides = sort_words(verb, words)
    settings = load(config_class(verb), source, overrides, values=values)
    if verb.others == "run":
        for variant in getattr(settings, "variants", None) or ("",):
            run = read_words([*settings.run, *variant.split()])  # type: ignore[attr-defined]
            assert run.device in ("cuda", "auto")


def test_every_row_is_a_command_with_settings_that_there_are(repository: Path) -> None:
    rows = {row: found.command for row, found in script(repository, "gpu_suite").ROWS.items()}
    for row, command in rows.items():
        if command[1:3] == ["-m", "essa_dist"]:
            is_a_command(command[3:])
        elif command[1] == "benchmarks/capped.py":
            assert float(command[2]) == 24
            is_a_command(command[3:])
        elif command[1:3] == ["-m", "pytest"]:
            assert "tests/test_kernels.py" in command
            assert all((repository / word).is_file() for word in command if word.endswith(".py"))
        elif command[1] != "-m":
            assert (repository / command[1]).is_file(), row
    plans = [command[2:] for command in rows.values() if command[1] == "benchmarks/plan_accuracy.py"]
    assert plans
    for words in plans:
        script(repository, "plan_accuracy").parser().parse_args(words)
    assert "finetune_vitl14" in rows
    for name in ("finetune_speed", "small_grid"):
        of = [command[2:] for command in rows.values() if command[1] == f"benchmarks/{name}.py"]
        assert of
        for words in of:
            script(repository, name).parser().parse_args([*words, "--out", "x.json"])


def test_fine_tuning_is_timed_by_its_own_verb(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--model", "test_vit", "--size", "32", "--batch", "4", "--steps", "4", "--rounds", "1"]
    words = [*small, "--workers", "0", "--device", "cpu", "--adapters", "apla"]
    settings = ["--set", "precision=fp32", "threads=1", "--out", str(tmp_path / "speed.json")]
    monkeypatch.setattr(sys, "argv", ["finetune_speed.py", *words, *settings])
    assert script(repository, "finetune_speed").main() == 0
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert row["adapter"] == "apla"
    assert row["img_per_s"] > 0
    assert row["memory_gib"] > 0
    assert row["speed_ratios"] == [1]


def test_an_adapter_that_fails_leaves_the_others_their_rows(repository: Path) -> None:
    fast, slow = ({"img_per_s": speed, "memory_gib": 1.0} for speed in (8.0, 4.0))
    found = script(repository, "finetune_speed").table(
        [{"full": fast, "apla": slow, "lora": {"error": "x"}}] * 2
    )
    assert [row.get("speed_ratios") for row in found] == [[1, 1], [0.5, 0.5], None]
    assert found[2] == {"adapter": "lora", "error": "x"}


def test_a_slice_of_the_small_grid_holds_all_that_it_starts_from(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, asked = script(repository, "small_grid"), []

    def reproduce(config: Any) -> dict[str, Any]:
        asked.append(config)
        return {"table": {"cells": [], "rows": [], "ssa": []}, "failed": {}}

    monkeypatch.setattr(essa_dist.reproduce, "reproduce", reproduce)
    args = ["--data", "cxr", "--seed", "4", "--steps", "7", "--data_root", str(tmp_path), "--runs", "x"]
    grid.run(grid.parser().parse_args(args))
    cells = make_plan(GRIDS["small"], asked[0]).cells
    assert len(cells) == 5 + 3 * 6 * 6  # self-supervised runs; shares of labels x starts x adapters
    assert {(one.cell.data.name, one.cell.facts["seed"], one.work.steps) for one in cells} == {("cxr", 4, 7)}


def test_slices_join_to_the_table_of_the_whole_grid(repository: Path) -> None:
    def piece(seed: int) -> dict[str, Any]:
        facts = {"data": "cxr", "model": "vit_tiny", "fraction": 1.0, "metric": "auroc", "seed": seed}
        cells = [
            facts | {"start": start, "adapter": "apla", "unit": f"cxr/s{seed}", "value": value + 0.01 * seed}
            for start, value in (("full", 0.5), ("apla", 0.7))
        ]
        return {"data": "cxr", "seed": seed, "cells": cells}

    table = script(repository, "small_grid").joined([piece(seed) for seed in range(3)])
    rows = {row["start"]: row for row in table["rows"]}
    assert rows["apla"]["value"] == pytest.approx(0.71)
    assert rows["apla"]["std"] == pytest.approx(0.01)
    claim = next(one for one in table["claims"] if "APLA surpasses that of all parameters" in one["claim"])
    assert (claim["matched"], claim["units"], claim["shown"]) == (3, 3, "better")
    assert "| cxr | auroc | 100 % | vit_tiny | apla | 71.0 ± 1.0 |" in to_markdown(table)


def test_a_row_out_of_time_may_save_and_leaves_nobody_behind(repository: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        f"def save(*_): pathlib.Path({str(tmp_path / 'saved')!r}).write_text(str(child.pid)); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    script(repository, "gpu_suite").stop(process)
    assert process.returncode == 3
    child, deadline = Path("/proc", (tmp_path / "saved").read_text(), "stat"), time.monotonic() + 20
    while (
        child.exists() and child.read_text().split()[2] != "Z"
    ):  # dead, though nobody may have reaped it yet
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_row_keeps_its_result_and_what_it_said_and_a_failed_one_is_tried_again(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = script(repository, "gpu_suite")
    monkeypatch.setattr(suite, "RESULTS", tmp_path)

    def row(name: str, code: str, **options: Any) -> str:
        said: str = suite.run(name, [sys.executable, "-c", code], 60.0, **options)
        return said

    warns = "import essa_dist, sys; print('left out', file=sys.stderr); "  # the package is found, installed or not
    assert row("whole", warns + "print('{\"img\": 3}')").startswith("done in ")
    assert json.loads((tmp_path / "whole.json").read_text()) == {"img": 3}
    assert "left out" in (tmp_path / "whole.log").read_text()
    assert row("part", 'print(\'{"failed": {"apla": "OOM"}}\')').endswith("; apla failed: OOM")
    assert row("bad", "print('why'); exit(1)") == "failed (1): why"
    assert row("tests", "print('1 failed'); exit(1)", ends=(0, 1)).startswith("done")
    assert row("none", "exit('no such module')", ends=(0, 1)) == "failed (1): no such module"
    late = "import sys; open(sys.argv[-1], 'w').write('half')"  # what writes as it goes, and then fails
    begin = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda words, **how: begin([words[0], "-c", late, words[-1]], **how)
    )
    assert suite.run("half", [sys.executable, "benchmarks/x.py"], 60.0).startswith("failed (0)")
    assert sorted(file.stem for file in tmp_path.glob("*.json")) == ["part", "tests", "whole"]


def test_a_row_is_begun_if_it_is_likely_to_end_and_the_first_of_a_call_always(repository: Path) -> None:
    suite = script(repository, "gpu_suite")
    row = suite.Row(5, [])
    assert suite.fits(row, 301, started=True)
    assert not suite.fits(row, 299, started=True)
    assert suite.fits(row, 299, started=False)
    assert not suite.fits(row, 15, started=False)
