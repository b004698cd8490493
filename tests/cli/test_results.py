"""Results as JSON that every reader takes, and as text that a person reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from essa_dist.cli.results import to_json, to_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (Path("a/b"), "a/b"),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.int64(3), 3),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (np.bool_(True), True),
        ((1, {2: Path("c")}), [1, {"2": "c"}]),
        (None, None),
        ("two\nlines", "two\nlines"),
    ],
)
def test_a_value_becomes_json(value: Any, expected: object) -> None:
    text = to_json({"value": value})
    assert "\n" not in text
    assert json.loads(text, parse_constant=pytest.fail) == {"value": expected}


def test_an_evaluation_is_a_sentence_with_its_interval() -> None:
    result = {
        "protocol": "knn",
        "model": "runs/a",
        "image_size": 224,
        "accuracy": 0.75,
        "balanced_accuracy": 0.7123,
        "interval": [0.689, 0.736],
        "k": 20,
        "n_bank": 800,
        "n_test": 400,
        "classes": ["a", "b"],
    }
    assert to_text("evaluate", result) == (
        "knn (k=20) of runs/a at 224 px: balanced accuracy 71.2 % (95 % interval 68.9 % to 73.6 %), accuracy 75.0 %; "
        "400 images tested, 800 in the bank, 2 classes\n"
    )
    assert to_text("evaluate", result | {"protocol": "linear", "k": None}).startswith("linear of runs/a")


def test_an_evaluation_at_several_settings_has_a_line_for_each() -> None:
    result = {
        "protocol": "knn",
        "model": "m",
        "image_size": 64,
        "auroc": 0.71,
        "balanced_accuracy": 0.5,
        "accuracy": 0.9,
        "interval": [0.68, 0.74],
        "k": 10,
        "n_bank": 8,
        "n_test": 4,
        "classes": ["a"],
    }
    grid = [{"k": k, "temperature": 0.1, "auroc": 0.5 + k / 100, "interval": [0.4, 0.8]} for k in (10, 20)]
    assert to_text("evaluate", result | {"grid": grid}).splitlines() == [
        "knn (k=10) of m at 64 px: mean AUROC 71.0 % (95 % interval 68.0 % to 74.0 %); 4 images tested, 8 in the bank, "
        "1 classes",
        "  k=10, temperature=0.1: 60.0 % (95 % interval 40.0 % to 80.0 %)",
        "  k=20, temperature=0.1: 70.0 % (95 % interval 40.0 % to 80.0 %)",
    ]


def test_a_suite_is_a_table_of_what_is_quoted() -> None:
    row = {
        "quoted": True,
        "data": "blood",
        "fraction": 0.1,
        "protocol": "knn",
        "setting": "k=20",
        "metric": "map",
    }
    rows = [
        row | {"model": "a", "value": 0.5, "std": None, "low": 0.4, "high": 0.6, "difference": None},
        row
        | {"model": "b", "value": 0.61, "std": 0.02, "low": 0.5, "high": 0.7, "difference": 0.11, "p": 0.002},
        row | {"model": "b", "value": 0.999, "quoted": False},
    ]
    table = {"models": {"a": "x", "b": "y"}, "baseline": "a", "seeds": [0, 1], "resamples": 200, "rows": rows}
    text = to_text("evaluate suite", table | {"cells": 3, "new_cells": 1, "files": ["out/table.json"]})
    assert "blood, k-NN (k=20), 10 % of the labels" in text
    assert "61.0 ± 2.0 [50.0, 70.0]   +11.0 (p 0.002)" in text
    assert "99.9" not in text
    assert "1 of 3 cells done now" in text


def test_other_results_are_aligned_rows() -> None:
    result = {
        "out": Path("runs/a"),
        "images": 12345,
        "seconds": 1.23456,
        "done": True,
        "missing": ["one thing", "another"],
        "disk": {"free": 3.0, "used": None},
        "checks": {"a": {"ok": False}, "b": {"ok": True}, "c": 1, "d": 2},
        "confusion": list(range(100)),
    }
    assert to_text("adapt", result).splitlines() == [
        "out        runs/a",
        "images     12,345",
        "seconds    1.235",
        "done       yes",
        "missing    one thing",
        "           another",
        "disk       free 3, used -",
        "checks",
        "  a        ok no",
        "  b        ok yes",
        "  c        1",
        "  d        2",
        "confusion  (100 entries)",
    ]


def test_adapters_are_a_table_with_the_points_gained() -> None:
    row = {
        "protocol": "knn",
        "image_size": 224,
        "accuracy": 0.75,
        "balanced_accuracy": 0.5,
        "interval": [0.4, 0.6],
        "n_test": 8,
        "n_bank": 4,
        "classes": ["a", "b"],
        "k": 3,
        "adapter": None,
        "trained_parameters": 0,
    }
    other = row | {"adapter": "runs/" + "a" * 80, "balanced_accuracy": 0.625, "trained_parameters": 12345}
    lines = to_text("evaluate", {"protocol": "knn", "model": "vit", "rows": [row, other]}).splitlines()
    assert lines[0].startswith("knn (k=3) of vit at 224 px")
    base, adapted = (next(line for line in lines if name in line) for name in ("none", "runs/"))
    assert "50.0 [40.0, 60.0]" in base
    assert "a" * 80 in adapted, "a name that is cut can't be told from another"
    assert {"12,345", "62.5", "+12.5"} <= set(adapted.split())
