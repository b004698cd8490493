"""launch/kubernetes.yaml. That its commands start a run on two nodes is shown in test_two_nodes.py."""

from essa_dist.config import RunConfig
from essa_dist.settings import load
from tests.launch.manifests import command, container, documents


def test_the_pods_find_the_first_one_by_the_name_that_the_service_gives_it() -> None:
    service, job = documents()["Service"], documents()["Job"]
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    words = command(1)
    first = f"{job['metadata']['name']}-0.{pod['subdomain']}"  # the pod's host name in an indexed job
    assert words[words.index("--main_process_ip") + 1] == first
    assert int(words[words.index("--main_process_port") + 1]) == service["spec"]["ports"][0]["port"]


def test_every_pod_is_a_machine_of_its_own_number_and_all_gpus_have_a_process() -> None:
    spec = documents()["Job"]["spec"]
    assert spec["completionMode"] == "Indexed"
    machines = spec["completions"]
    assert spec["parallelism"] == machines  # fewer would wait for ever for the rest
    gpus = int(container()["resources"]["limits"]["nvidia.com/gpu"])
    for index in range(machines):
        words = command(index)
        options = {word: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}
        assert options["--num_machines"] == str(machines)
        assert options["--machine_rank"] == str(index)
        assert options["--num_processes"] == str(machines * gpus)


def test_a_pod_that_is_evicted_is_not_counted_as_a_failure_and_goes_on() -> None:
    spec = documents()["Job"]["spec"]
    assert {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]} in (
        spec["podFailurePolicy"]["rules"]
    )
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # the policy needs it
    assert "resume=true" in command(0)
    # The launcher is the container's first process: no shell keeps SIGTERM from it.
    assert command(0)[0] == "python"


def test_what_the_pods_are_told_is_a_valid_run_on_volumes_that_they_have() -> None:
    words = command(0)
    recipe, *overrides = words[words.index("adapt") + 1 :]
    config = load(RunConfig, recipe, overrides)
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in documents()["Job"]["spec"]["template"]["spec"]["volumes"]}
    for path in (config.out, config.data.train):
        assert str(path).startswith("/data/")
    assert "persistentVolumeClaim" in volumes[mounts["/data"]]
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
