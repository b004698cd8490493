"""Crops that pass together give the run of crops that pass apart, where blocks are gathered for their passes."""

from pathlib import Path

import pytest

from tests.distributed.stepping import run_steps
from tests.distributed.test_equality import TOLERANCE, relative_errors

RUNS = {
    "full": ["adapter=full", "backbone.drop_path=0.3", "accumulate=2"],
    "apla": ["adapter=apla", "backbone.checkpoint_activations=true"],
}


@pytest.mark.parametrize("config", ["fsdp2", "zero3"])
def test_a_run_with_packed_crops_is_the_slow_run(config: str, packed: str, tmp_path: Path) -> None:
    runs = {f"{name}_fast": [*words, "engine.pack=true"] for name, words in RUNS.items()}
    runs |= {f"{name}_slow": [*words, "engine.fast=false"] for name, words in RUNS.items()}
    found = run_steps(packed, tmp_path, config, 2, runs, 3)
    for name in RUNS:
        errors = relative_errors(found[f"{name}_fast"][0], found[f"{name}_slow"][0])
        for kind, (error, tensor) in errors.items():
            assert error <= TOLERANCE[kind], f"{name} {tensor}: {error:.1e}"
