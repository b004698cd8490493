"""What the launcher asked for is what Accelerate does, or the run says so and doesn't start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from essa_dist.distributed.environment import check_told, wanted
from essa_dist.errors import UsageError
from tests.distributed.launching import REPOSITORY, clean_environment, rank_environments

MAKE = "from essa_dist.distributed.environment import *; a = make_accelerator(cpu=True); print(strategy_name(a), a.device)"
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file"}


def made(**told: str) -> tuple[str, str]:
    """What one launched process says of its Accelerator, or its last word."""
    env = clean_environment() | rank_environments(1)[0] | told
    done = subprocess.run(
        [sys.executable, "-c", MAKE], env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    said = done.stdout.strip().splitlines()
    return said[-1] if said else "", done.stderr.strip().splitlines()[-1] if done.returncode else ""


def zero(path: Path, **config: object) -> dict[str, str]:
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": "auto", **config}))
    return DEEPSPEED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}


@pytest.mark.parametrize(
    ("told", "wish"),
    [
        ({}, "single"),
        ({"WORLD_SIZE": "2"}, "ddp"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, "zero"),
    ],
)
def test_the_wish_is_read_from_the_launchers_environment(
    told: dict[str, str], wish: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "FSDP_VERSION", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert wanted() == wish


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(UsageError, match="fsdp_version: 2"):
        wanted()


def test_zero_runs_on_a_cpu(tmp_path: Path) -> None:
    assert made(**zero(tmp_path / "zero.json", zero_optimization={"stage": 2})) == ("zero2 cpu", "")


@pytest.mark.parametrize(
    ("config", "answer"),
    [
        ({"zero_optimization": {"stage": 0}}, "stage of the DeepSpeed config is 0: 1, 2 or 3"),
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, "DeepSpeed config enables bf16"),
    ],
    ids=["stage 0", "a precision"],
)
def test_a_deepspeed_config_that_would_change_the_run_is_refused(
    config: dict[str, object], answer: str, tmp_path: Path
) -> None:
    assert answer in made(**zero(tmp_path / "zero.json", **config))[1]


@pytest.mark.parametrize(
    ("wish", "told", "answer"),
    [
        (
            "zero",
            {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "launch/none.json"},
            r"none\.json.*root of the repository",
        ),
        (
            "ddp",
            {"WORLD_SIZE": "2", "RANK": "0"},
            "lacks LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start through",
        ),
        ("zero", {}, "zero on no processes but lacks RANK"),
    ],
    ids=["elsewhere", "half a launcher", "left over"],
)
def test_what_cannot_be_followed_is_told_before_anything_waits_for_it(
    wish: str, told: dict[str, str], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=answer):
        check_told(wish)
