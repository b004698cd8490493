"""Doctor tells what is here and what works, names each trouble with its remedy, and never dies of one."""

import json
from pathlib import Path
from typing import Any

import pytest

from essa_dist import doctor as package
from essa_dist.doctor import DoctorConfig, checks, doctor, machine, packages
from essa_dist.errors import UsageError
from essa_dist.verbs import VERBS, sort_words


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return doctor(DoctorConfig())


def test_the_answer_is_json_and_ok_means_no_problem(told: dict[str, Any]) -> None:
    assert json.loads(json.dumps(told)) == told
    assert told["ok"] is (told["problems"] == [])


def test_what_is_installed_and_what_the_machine_has_is_told(told: dict[str, Any]) -> None:
    import torch

    assert told["versions"]["torch"] == torch.__version__
    assert told["devices"]["cores"] >= 1
    assert 0 < told["memory_gib"]["available"] <= told["memory_gib"]["total"]
    assert told["disk_gib"]["free_here"] > 0
    assert told["hub_offline"] is True  # tests run without a network


def test_every_trial_that_applies_passes_in_this_environment(told: dict[str, Any]) -> None:
    failed = [name for name, check in told["checks"].items() if not check["ok"]]
    assert failed == [], told["problems"]
    assert {"data worker process", "gloo process group", "attention forward and backward"} <= told[
        "checks"
    ].keys()


def test_it_ends_within_its_time(told: dict[str, Any]) -> None:
    assert sum(check["seconds"] for check in told["checks"].values()) < 20


def test_a_failing_trial_becomes_one_line_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> None:
        raise OSError("no space\nleft")

    monkeypatch.setattr(checks, "CHECKS", {"disk": checks.Check(attempt, "buy a disk")})
    told = doctor(DoctorConfig())
    assert told["ok"] is False
    assert "disk: OSError: no space: buy a disk" in told["problems"]


def test_a_trial_that_does_not_apply_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    never = checks.Check(lambda: None, "", applies=lambda: False)
    monkeypatch.setattr(checks, "CHECKS", {"absent": never})
    assert checks.run_checks() == {}


def test_what_a_run_could_not_read_is_told_and_wrong_words_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "CHECKS", {})
    told = doctor(DoctorConfig(run=(f"data.train={tmp_path / 'none'}", "backbone.weights=random")))
    assert [problem for problem in told["problems"] if "no such folder" in problem]
    with pytest.raises(UsageError, match="batch_sizes: unknown key"):
        doctor(DoctorConfig(run=("batch_sizes=4",)))


def test_words_that_set_no_key_of_doctor_are_those_of_a_run() -> None:
    words = ["run.yaml", "seconds=4", "batch_size=8", "launch=a.yaml", "seed=3"]
    source, values, own = sort_words(VERBS["doctor"], words)
    assert (source, own) == (None, ["seconds=4", "launch=a.yaml"])
    assert values == {"run": ["run.yaml", "batch_size=8", "seed=3"]}
    assert sort_words(VERBS["doctor"], []) == (None, {}, [])


def test_an_import_that_kills_its_process_is_survived() -> None:
    attempt = checks._import("os; os.abort()")
    with pytest.raises(RuntimeError, match="exit code -6"):
        attempt()


def test_missing_and_unfit_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.9.1", "timm": None}
    monkeypatch.setattr(packages, "installed", lambda name: versions.get(name, "1.0"))
    needs = [packages.Requirement(line) for line in ("torch>=2.11,<2.14", "timm>=1.0", "peft<2")]
    monkeypatch.setattr(packages, "requirements", lambda: needs)
    assert packages.package_problems() == [
        f"torch 2.9.1 is outside <2.14,>=2.11: {packages.REMEDY}",
        f"timm is not installed: {packages.REMEDY}",
    ]


def test_a_local_build_of_torch_is_inside_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: "2.13.0+cpu")
    monkeypatch.setattr(packages, "requirements", lambda: [packages.Requirement("torch>=2.11,<2.14")])
    assert packages.package_problems() == []


def test_a_tight_machine_is_told_with_the_remedies() -> None:
    problems = package._machine_problems(
        {"nvidia_driver": "550.54", "cuda": []},
        {"total": 8.0, "available": 0.5, "container_limit": 1.0},
        {"free_here": 0.3, "shm": 0.062},
    )
    words = ["CUDA build", "end other programs", "out=DIR", "--shm-size"]
    assert [word in problem for word, problem in zip(words, problems, strict=True)] == [True] * 4


def test_a_containers_limits_are_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "memory.max": "1073741824",
        "memory.current": "536870912",
        "cpu.max": "150000 100000",
    }.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.memory()["container_limit"] == 1.0
    assert machine.memory()["available"] == 0.5
    assert machine.devices()["core_quota"] == 1.5
