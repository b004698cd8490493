"""Ranks whose batches lack something make the same calls as the others, and the run is that of one process.

A rank or a micro-batch without any masked patch, losses without weight, no local crops. A rank that left out a layer would
be waited for: by DDP in its backward pass, by ZeRO-3 and FSDP2 when they gather that layer's tensors.
"""

from pathlib import Path

import pytest
import torch

from tests.distributed.stepping import run_steps

N_STEPS = 2
OWN = "objective.ibot_head={prototypes: 16, hidden: 16, bottleneck: 8}"
RUNS = {
    "one_masked_crop": ["adapter=full", OWN, "data.masks.probability=0.125"],
    "no_ibot_no_local_crops": ["adapter=full", OWN, "objective.ibot_weight=0", "data.crops.n_local=0"],
    "no_dino": ["adapter=bitfit", OWN, "objective.dino_weight=0", "objective.centering=sinkhorn"],
}
SPREAD = ["accumulate=2", "backbone.checkpoint_activations=true"]


def outcome(
    packed: str, folder: Path, config: str, processes: int, *extra: str
) -> dict[str, dict[str, torch.Tensor]]:
    folder.mkdir()
    runs = {name: [*extra, *words] for name, words in RUNS.items()}
    found = run_steps(packed, folder, config, processes, runs, N_STEPS)
    return {name: tensors for name, (tensors, _) in found.items()}


@pytest.fixture(scope="module")
def reference(packed: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return outcome(packed, tmp_path_factory.mktemp("one") / "runs", "single", 1)


@pytest.mark.parametrize("config", ["ddp", "zero3", "fsdp2"])
def test_ranks_whose_batches_lack_something_keep_step(
    config: str, packed: str, tmp_path: Path, reference: dict[str, dict[str, torch.Tensor]]
) -> None:
    found = outcome(packed, tmp_path / "runs", config, 2, *SPREAD)
    for name, expected in reference.items():
        for key, right in expected.items():
            if key.startswith(("loss:", "last:student", "last:buffers")):
                error = (found[name][key].double() - right.double()).norm() / right.double().norm().clamp_min(
                    1e-12
                )
                assert error < (1e-4 if key.startswith("loss:") else 1e-3), f"{name} {key}: {error:.1e}"
