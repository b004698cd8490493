"""``essa data show``'s promises: any step, its own samples, boxes where the crops were cut."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from essa_dist.errors import UsageError
from essa_dist.report.record import read_record
from essa_dist.report.step_view import ShowStepConfig, show_step
from essa_dist.report.steps import seen_step


def test_a_picture_names_its_samples_by_shard_key_and_position(adapted_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "step.png"
    made = show_step(ShowStepConfig(run=str(adapted_run), step=2, samples=3, out=str(out)))
    seen = seen_step(read_record(adapted_run).config, 2, count=3)
    assert [where.partition(":")[2] for where in made["samples"]] == list(seen.batch.keys)
    assert made["positions"] == [4, 5, 6]  # batches of four: the second begins at 4
    assert np.array(Image.open(out).convert("L")).std() > 20


def test_another_step_shows_other_samples(adapted_run: Path, tmp_path: Path) -> None:
    shown = [
        show_step(ShowStepConfig(run=str(adapted_run), step=step, out=str(tmp_path / "p.png")))["samples"]
        for step in (1, 2)
    ]
    assert shown[0] != shown[1]


def test_a_sample_beyond_the_batch_and_a_folder_that_is_no_run_are_refused(
    adapted_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="samples 0 to 3"):
        show_step(ShowStepConfig(run=str(adapted_run), first=4))
    with pytest.raises(UsageError, match="no run folder"):
        show_step(ShowStepConfig(run=str(tmp_path)))
