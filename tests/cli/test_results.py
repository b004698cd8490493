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
