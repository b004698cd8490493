"""Promises about a suite on a page: every quoted value is there as text, and drawn; odd tables don't break it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from essa_dist import evaluate
from essa_dist.evaluation.suite.table import COLUMNS
from essa_dist.evaluation.suite.words import grid, to_markdown
from essa_dist.report import ReportConfig, report
from essa_dist.report.html import fill
from essa_dist.report.suite import suite_section
from essa_dist.verbs import verb_of


def row(model: str, protocol: str, value: float, **more: Any) -> dict[str, Any]:
    common = dict.fromkeys(COLUMNS) | {
        "data": "blood",
        "fraction": 1.0,
        "protocol": protocol,
        "setting": "",
        "quoted": True,
        "metric": "balanced_accuracy",
        "model": model,
        "value": value,
        "low": value - 0.031,
        "high": value + 0.029,
        "n_seeds": 1,
        "n_bank": 40,
        "n_test": 80,
    }
    return common | more


def make(models: list[str], protocols: list[str]) -> dict[str, Any]:
    gap = {"difference": 0.0123, "difference_low": 0.0, "difference_high": 0.03, "p": 0.04}
    rows = [
        row(model, protocol, 0.5 + 0.07 * i + 0.02 * j, **(gap if i else {}))
        for j, protocol in enumerate(protocols)
        for i, model in enumerate(models)
    ]
    return {
        "models": dict.fromkeys(models, "ref"),
        "baseline": models[0],
        "seeds": [0, 1],
        "resamples": 1000,
        "rows": rows,
    }


@pytest.mark.parametrize("n_models", [1, 2, 9])
@pytest.mark.parametrize("protocols", [["knn"], ["knn", "linear", "fewshot", "retrieval"]])
def test_every_quoted_value_is_on_the_page_and_pictures_are_drawn(
    tmp_path: Path, n_models: int, protocols: list[str]
) -> None:
    table = make([f"model {i} of <b>a rather long name</b> $x_{i}$" for i in range(n_models)], protocols)
    section = suite_section(table, tmp_path, title="Suite")
    page = fill("t", "r", (), (section,))
    for one in table["rows"]:
        assert f"{100 * one['value']:.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]" in page
    assert "<b>a" not in page
    wanted = {"bars.png", "radar.png"} if n_models > 1 and len(protocols) > 2 else {"bars.png"}
    assert {picture.path.name for picture in section.pictures} == wanted
    for picture in section.pictures:
        with Image.open(picture.path) as image:
            assert 400 < image.width < 2600
            assert len(image.convert("RGB").getcolors(2**24) or ()) > 20


def test_a_value_without_interval_or_of_one_model_alone_is_shown(tmp_path: Path) -> None:
    table = make(["a", "b"], ["knn", "linear", "retrieval"])
    table["rows"] = [one | {"low": None, "high": None} for one in table["rows"]][:-1]
    section = suite_section(table, tmp_path, title="Suite")
    assert section.tables[0].rows[-1][-1] == "–"
    assert len(section.pictures) == 2


def test_lines_of_a_table_name_setting_and_share_and_hold_no_bar() -> None:
    table = make(["a|b"], ["knn"])
    table["rows"][0] |= {"setting": "k=20, T=0.07", "fraction": 0.01, "std": 0.004}
    _, ((name, metric, value),) = grid(table)
    assert (name, metric) == ("blood, k-NN (k=20, T=0.07), 1 % of the labels", "balanced_accuracy")
    assert value == "50.0 ± 0.4 [46.9, 52.9]"
    assert "a\\|b" in to_markdown(table)


def test_the_page_of_a_run_has_a_section_for_each_suite_that_it_holds(
    write_run: Callable[..., Path], fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run = write_run(config=fake.config, metrics=fake.metrics())
    for name, text in (("mine", json.dumps(make(["frozen", "apla"], ["knn"]))), ("broken", "{")):
        (run / "evaluation" / name).mkdir()
        (run / "evaluation" / name / "table.json").write_text(text)
    made = report(ReportConfig(run=str(run)))
    page = Path(made["html"]).read_text()
    assert "Suite: mine" in page
    assert "57.0 [53.9, 59.9] +1.2 (p 0.04)" in page
    assert "Suite: broken" not in page
    assert "can't be read" in caplog.text
    assert any(path.endswith("suite_mine/bars.png") for path in made["pictures"])


@pytest.mark.parametrize(
    "words",
    [["suite", "S.yaml", "models=a,b"], ["suite=S.yaml", "models=a,b"], ["models=a,b", "suite=S.yaml"]],
)
def test_a_suite_may_be_named_as_a_word_or_as_a_setting(words: list[str]) -> None:
    assert verb_of(["evaluate", *words]) == ("evaluate suite", ["S.yaml", "models=a,b"])


def test_a_suite_run_by_its_verb_leaves_table_pictures_and_page(tmp_path: Path) -> None:
    table = evaluate(
        suite="configs/suites/cells.yaml",
        models={"frozen": "vit_tiny_patch16_224", "same": "vit_tiny_patch16_224"},
        data="assets/blood_cells",
        protocols="knn,retrieval,linear_sgd",
        image_size=16,
        steps=5,
        seeds="0",
        resamples=100,
        device="cpu",
        out=str(tmp_path / "suite"),
    )
    assert (table["cells"], table["new_cells"]) == (6, 6)
    names = {path.name for path in (tmp_path / "suite").iterdir()}
    assert names == {
        "cells",
        "features",
        "table.json",
        "table.csv",
        "table.md",
        "bars.png",
        "radar.png",
        "report.html",
    }
    assert "compared with frozen" in Path(table["html"]).read_text()
