"""launch/ray.yaml is what ``ray up`` takes: Ray's own code reads and completes it."""

from typing import Any

import pytest
import yaml

from tests.distributed.launching import REPOSITORY


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config  # as `ray up` calls them

    config: dict[str, Any] = prepare_config(yaml.safe_load((REPOSITORY / "launch" / "ray.yaml").read_text()))
    validate_config(config)
    return config


def test_ray_starts_on_every_machine_that_is_named(cluster: dict[str, Any]) -> None:
    workers = len(cluster["provider"]["worker_ips"])
    (node,) = cluster["available_node_types"].values()
    assert (node["min_workers"], node["max_workers"]) == (workers, workers)
    assert cluster["head_node_type"] in cluster["available_node_types"]


def test_workers_go_to_the_port_of_the_head_and_nobody_else_reaches_its_dashboard(
    cluster: dict[str, Any],
) -> None:
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    assert "--head --port=6379" in head
    assert "--dashboard-host=127.0.0.1" in head  # jobs are anybody's commands
    assert worker == "ray start --address=$RAY_HEAD_IP:6379"
