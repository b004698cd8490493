"""Supervised adaptation over a packed trunk."""

import json
from collections.abc import Callable
from typing import Any


def test_a_task_is_learnt_and_judged_over_a_packed_trunk(tune: Callable[..., Any], cells: str) -> None:
    result = tune("packed", cells, "engine.trunk=int8", "adapter={kind: lora, rank: 4}")
    lines = (result.run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]
    assert len(result.rows())
