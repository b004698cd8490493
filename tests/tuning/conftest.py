"""One Ray cluster for all sweeps of the tests: four CPUs, whatever the machine has."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from essa_dist.tuning.cluster import QUIET
from tests.engine.conftest import packed, recipe
from tests.tuning.driving import until

__all__ = ["packed", "recipe"]


@pytest.fixture(scope="module")
def ray_of_module() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    before = dict(os.environ)
    os.environ.update(QUIET)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def ray(ray_of_module: Any) -> Iterator[Any]:
    """The cluster; all of it must be free once more when the test has ended."""
    yield ray_of_module
    until(lambda: free(ray_of_module), 120)


def free(ray: Any) -> bool:
    """Whether nothing of the cluster is taken, and no placement group waits or holds anything."""
    groups = ray.util.placement_group_table().values()
    return (
        ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]
        and {group["state"] for group in groups} <= {"REMOVED"}
    )  # fmt: skip
