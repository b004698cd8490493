"""launch/ray/kuberay.yaml against the fields of ray.io/v1 (https://ray-project.github.io/kuberay/reference/api/)."""

import shlex
from pathlib import PurePosixPath
from typing import Any

import pytest
import ray
import yaml

from essa_dist.config import RunConfig
from essa_dist.settings import load
from essa_dist.tuning.config import TuneConfig
from tests.distributed.launching import REPOSITORY

# Fields that this API has, of those that the file may use, and whether it needs them.
JOB = {
    "entrypoint": True,
    "backoffLimit": True,
    "shutdownAfterJobFinishes": True,
    "ttlSecondsAfterFinished": False,
    "activeDeadlineSeconds": False,
    "submissionMode": False,
    "runtimeEnvYAML": False,
    "rayClusterSpec": True,
}
CLUSTER = {"rayVersion": True, "authOptions": True, "headGroupSpec": True, "workerGroupSpecs": True}
HEAD = {"rayStartParams": True, "template": True, "serviceType": False}
WORKERS = {
    "groupName": True,
    "replicas": False,
    "minReplicas": True,
    "maxReplicas": True,
    "numOfHosts": False,
    "rayStartParams": True,
    "template": True,
}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    (document,) = yaml.safe_load_all((REPOSITORY / "launch" / "ray" / "kuberay.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    spec: dict[str, Any] = document["spec"]
    return spec


@pytest.fixture
def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's, and the workers'."""
    cluster = job["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pod(group: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = group["template"]["spec"]
    return spec


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(group)["containers"]
    assert isinstance(only, dict)
    return only


def words(job: dict[str, Any]) -> dict[str, str]:
    """The settings of the command."""
    essa, tune, space, *settings = shlex.split(job["entrypoint"])
    assert (essa, tune) == ("essa", "tune")
    return {"": space} | dict(word.split("=", 1) for word in settings)


def test_every_field_is_one_of_the_api_and_none_that_is_needed_is_missing(
    job: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    head, *workers = groups
    parts = [
        (job, JOB),
        (job["rayClusterSpec"], CLUSTER),
        (head, HEAD),
        *((group, WORKERS) for group in workers),
    ]
    for part, fields in parts:
        assert part.keys() <= fields.keys()
        assert {name for name, needed in fields.items() if needed} <= part.keys()
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # a map of texts


def test_the_options_of_ray_are_options_that_ray_start_has(groups: list[dict[str, Any]]) -> None:
    from ray.scripts.scripts import start

    known = {option.lstrip("-") for parameter in start.params for option in parameter.opts}
    for group in groups:
        assert group["rayStartParams"].keys() <= known
    # Tokens are known to Ray from 2.52 on, and the operator refuses to hand one out below.
    (major, minor), (ours, _) = (tuple(map(int, v.split(".")[:2])) for v in (ray.__version__, "2.52"))
    assert (major, minor) >= (ours, 52)


def test_the_command_is_one_that_a_shell_leaves_as_it_is(job: dict[str, Any]) -> None:
    assert not set(job["entrypoint"]) & set("&|;<>$`\\\"'(){}*?#!\n")
    assert " ".join(shlex.split(job["entrypoint"])) == job["entrypoint"]


def test_a_sweep_goes_on_in_a_new_cluster_and_gives_its_gpus_back(job: dict[str, Any]) -> None:
    given = words(job)
    assert (given["address"], given["resume"]) == ("auto", "true")
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"] is True


def test_what_is_named_in_the_image_is_in_the_repository_and_makes_a_sweep(job: dict[str, Any]) -> None:
    given = words(job)
    space, base = (REPOSITORY / PurePosixPath(given[name]).relative_to("/essa") for name in ("", "base"))
    own = {name: value for name, value in given.items() if name.split(".")[0] in TuneConfig.model_fields}
    run = [f"{name}={value}" for name, value in given.items() if name and name not in own]
    sweep = load(TuneConfig, space, [f"{name}={value}" for name, value in own.items()])
    assert (sweep.base, sweep.address, sweep.resume) == (given["base"], "auto", True)
    assert load(RunConfig, base, run).canary.every == "1ep"


def test_all_pods_see_the_data_and_the_sweep_and_have_shared_memory(
    job: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    given = words(job)
    claims = set()
    for group in groups:
        volumes = {volume["name"]: volume for volume in pod(group)["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container(group)["volumeMounts"]}
        claims.add(mounts["/data"]["persistentVolumeClaim"]["claimName"])
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert len(claims) == 1
    for name in ("out", "data.train", "canary.data"):
        assert given[name].startswith("/data/")


def test_a_trial_fits_a_pod_and_none_is_put_beside_the_driver(
    job: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    head, workers = groups
    given = words(job)
    limits = container(workers)["resources"]["limits"]
    assert int(given["job.workers"]) * float(given["job.gpus"]) <= int(limits["nvidia.com/gpu"])
    assert {"cpu", "memory"} <= limits.keys()  # Ray counts what is limited
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in container(head)["resources"]["limits"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_a_pod_ends_in_its_own_time_and_image_and_environment_are_the_same_on_all(
    job: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    head, workers = (container(group) for group in groups)
    assert [head[key] for key in ("image", "env", "workingDir")] == [
        workers[key] for key in ("image", "env", "workingDir")
    ]
    env = {entry["name"]: entry["value"] for entry in head["env"]}
    for group in groups:
        grace = pod(group)["terminationGracePeriodSeconds"]
        assert grace > 30  # seconds that Ray waits by itself when it is told to end
        assert float(env["RAY_JOB_STOP_WAIT_TIME_S"]) < grace
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE" not in env  # the operator sets it, with the token
