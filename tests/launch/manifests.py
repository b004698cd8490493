"""The Kubernetes manifest as Kubernetes reads it."""

import re
from typing import Any

import yaml

from tests.distributed.launching import REPOSITORY


def documents() -> dict[str, dict[str, Any]]:
    """By their kind."""
    text = (REPOSITORY / "launch" / "kubernetes.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def container() -> dict[str, Any]:
    (only,) = documents()["Job"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def command(index: int, **env: str) -> list[str]:
    """Command and arguments of the pod ``index``, with the container's variables (or ``env``) filled in."""
    values = {entry["name"]: entry["value"] for entry in container()["env"]} | env
    values["JOB_COMPLETION_INDEX"] = str(index)  # added by the controller of indexed jobs
    words = [*container()["command"], *container()["args"]]
    # A reference that can't be resolved stays as it is: https://kubernetes.io/docs/tasks/inject-data-application
    return [re.sub(r"\$\((\w+)\)", lambda found: values.get(found[1], found[0]), word) for word in words]
