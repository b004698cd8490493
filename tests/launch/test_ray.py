"""launch/ray/cluster.yaml is what ``ray up`` takes: Ray's own code reads and completes it."""

import shlex
from typing import Any

import pytest
import yaml

from tests.distributed.launching import REPOSITORY

FILE = REPOSITORY / "launch" / "ray" / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config  # as `ray up` calls them

    config: dict[str, Any] = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(config)
    return config


def started(command: str) -> tuple[dict[str, str], dict[str, str]]:
    """Variables and options of `ray start`; Ray's own parser takes the options."""
    from ray.scripts.scripts import start

    words = shlex.split(command)
    ray = words.index("ray")
    assert words[ray : ray + 2] == ["ray", "start"]
    start.make_context("start", words[ray + 2 :])
    options = {name: value for name, _, value in (word.partition("=") for word in words[ray + 2 :])}
    return dict(word.split("=", 1) for word in words[:ray]), options


def test_ray_starts_on_every_machine_that_is_named(cluster: dict[str, Any]) -> None:
    workers = len(cluster["provider"]["worker_ips"])
    (node,) = cluster["available_node_types"].values()
    assert (node["min_workers"], node["max_workers"]) == (workers, workers)
    assert cluster["head_node_type"] in cluster["available_node_types"]


def test_workers_go_to_the_port_of_the_head_and_nobody_else_reaches_its_dashboard(
    cluster: dict[str, Any],
) -> None:
    _, head = started(cluster["head_start_ray_commands"][-1])
    _, worker = started(cluster["worker_start_ray_commands"][-1])
    assert "--head" in head
    assert head["--dashboard-host"] == "127.0.0.1"  # jobs are anybody's commands
    assert worker["--address"] == f"$RAY_HEAD_IP:{head['--port']}"


def test_all_machines_ask_for_the_same_token(cluster: dict[str, Any]) -> None:
    for kind in ("head", "worker"):
        variables, _ = started(cluster[f"{kind}_start_ray_commands"][-1])
        assert variables["RAY_AUTH_MODE"] == "token"
    (token,) = cluster["file_mounts"]
    assert token.endswith(".ray/auth_token")  # where Ray looks for it


def test_a_sweep_that_is_stopped_has_time_to_end_its_trials(cluster: dict[str, Any]) -> None:
    variables, _ = started(cluster["head_start_ray_commands"][-1])
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
