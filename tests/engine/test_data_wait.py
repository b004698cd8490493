"""The share of time that a run says it waited for data is the share that it waited."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from essa_dist import adapt
from essa_dist.data.storage import LocalShards, Range, Uses
from essa_dist.engine import train


def last_wait(run: Path) -> float:
    return float(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["data_wait"])


@pytest.mark.parametrize("workers", [0, 1])
def test_with_slow_storage_a_run_waits_nearly_all_the_time(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    read = LocalShards.read

    def slow(self: LocalShards, ranges: Sequence[Range], uses: Uses | None = None) -> list[bytes]:
        time.sleep(0.4)
        return read(self, ranges, uses)

    monkeypatch.setattr(LocalShards, "read", slow)
    adapt(None, *recipe, f"data.workers={workers}")
    assert last_wait(tmp_path / "run") > 0.7


def test_with_fast_storage_and_slow_steps_a_run_hardly_waits(
    recipe: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = train.train_step

    def slow(*arguments: Any, **settings: Any) -> dict[str, float]:
        time.sleep(0.15)
        return step(*arguments, **settings)

    monkeypatch.setattr(train, "train_step", slow)
    # 20 updates are averaged over, so the first one, which waits for the worker to start, is left out.
    adapt(None, *recipe, "data.workers=1", "duration=22")
    assert last_wait(tmp_path / "run") < 0.1
