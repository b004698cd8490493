"""A run so small that a step of it takes milliseconds."""

import pytest

SMALL = (
    "backbone.name=test_vit",
    "precision=fp32",
    "device=cpu",
    "batch_size=4",
    "data.crops={global_size: 32, local_size: 16, n_local: 3}",
    "objective.head={prototypes: 48, hidden: 40, bottleneck: 24}",
)


@pytest.fixture
def small() -> tuple[str, ...]:
    """The words of its ``essa adapt``."""
    return SMALL
