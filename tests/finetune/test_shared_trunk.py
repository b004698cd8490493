"""Labelled runs share their frozen weights too, those of a kept adapter included, and are what they are without."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_resume import FILES
from tests.finetune.conftest import Tuned


@pytest.mark.parametrize("start", [[], ["model={adapted}", "keep_adapter=true"]], ids=["trunk", "kept"])
def test_a_labelled_run_is_that_without(
    start: list[str],
    cells: str,
    adapted: Callable[[str], str],
    tune: Callable[..., Tuned],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [word.format(adapted=adapted("lora")) for word in start] + ["adapter=apla", "precision=bf16"]
    own = tune("own", cells, *words)
    with caplog.at_level(logging.INFO, "essa_dist"):
        other = tune("other", cells, *words, f"shared_trunk={tmp_path / 'shared'}")
    assert any("MB of frozen weights are those of" in record.getMessage() for record in caplog.records)
    assert all(np.array_equal(rows, other.rows()[name]) for name, rows in own.rows().items())
    ours, others = (sorted((tuned.run / "checkpoints").iterdir())[-1] for tuned in (own, other))
    for name in FILES:
        file = f"{name}.safetensors"
        assert (ours / file).read_bytes() == (others / file).read_bytes()
