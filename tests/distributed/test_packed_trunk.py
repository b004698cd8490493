"""Packed weights under strategies that spread frozen tensors over ranks, gather them, and free them again."""

from pathlib import Path

import pytest

from tests.distributed.stepping import Outcome, run_steps
from tests.distributed.test_equality import check

RUNS = {
    "fp8": ["engine.trunk=fp8", "adapter={kind: apla, rank: 8}"],
    "nf4": ["engine.trunk=nf4", "adapter={kind: lora, dropout: 0}", "backbone.checkpoint_activations=true"],
}
N_STEPS = 2


@pytest.fixture(scope="module")
def reference(packed: str, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run_steps(packed, tmp_path_factory.mktemp("single"), "single", 1, RUNS, N_STEPS)


@pytest.mark.parametrize(("config", "extra"), [("zero3", []), ("fsdp2", ["shard_frozen=true"])])
def test_a_run_over_a_packed_trunk_is_the_same_however_it_is_spread(
    config: str, extra: list[str], packed: str, tmp_path: Path, reference: Outcome
) -> None:
    runs = {name: [*words, *extra] for name, words in RUNS.items()}
    for name, (found, meta) in run_steps(packed, tmp_path, config, 2, runs, N_STEPS).items():
        assert (meta["strategy"], meta["ranks"]) == (config, "2")
        check(found, reference[name][0], f"{config} {name}")
