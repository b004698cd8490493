"""A rank that is slow is named in the metrics and, once, in words: with its host, how slow it is and at what."""

import json
import re
from pathlib import Path

import pytest

from tests.faults.zygote import Zygote

SETTINGS = [
    "duration=6",
    "log_every=1",
    "communication_every=1",
    "guard.patience=100",
    "checkpoint.every=100",
]


@pytest.mark.parametrize(
    ("fault", "what"),
    [("step-slow", "most of it is computing"), ("data-slow", "most of it is waiting for data")],
)
def test_a_rank_that_sleeps_is_named_with_what_it_sleeps_in(
    zygote: Zygote, recipe: list[str], tmp_path: Path, fault: str, what: str
) -> None:
    with zygote.ranks(2, fault, 1, 1, ["adapt", *recipe, *SETTINGS]) as ranks:
        assert ranks.wait(seconds=180) == [0, 0]
        (said,) = ranks.said("is slow")
    assert re.search(r"rank 1 \(host \S+\) is slow and the others wait for it", said)
    assert what in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["slowest_rank"] == 1
    assert rows[-1]["slowest_ratio"] > 1.5
