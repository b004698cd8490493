"""Every strategy's file in launch/ is opened as a user opens it, and does what its name says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

from tests.distributed.launching import REPOSITORY, accelerate
from tests.distributed.launching import run as finish

LAUNCH = REPOSITORY / "launch"
KINDS = {
    "single": "NO",
    "ddp": "MULTI_GPU",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "zero2_offload": "DEEPSPEED",
    "zero3_offload": "DEEPSPEED",
    "fsdp2": "FSDP",
}
ZERO = [name for name in KINDS if name.startswith("zero")]
SPREADING = {"zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}
LEFT_TO_THE_RUN = {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}


def config(name: str) -> ClusterConfig:
    return load_config_from_file(str(LAUNCH / f"{name}.yaml"))


def deepspeed(name: str) -> dict[str, Any]:
    # The path is relative to the root of the repository, where all commands are given.
    return json.loads((REPOSITORY / config(name).deepspeed_config["deepspeed_config_file"]).read_text())


def test_every_strategy_has_its_files_and_every_file_is_a_strategy() -> None:
    documents = {path.stem: next(yaml.safe_load_all(path.read_text())) for path in LAUNCH.glob("*.yaml")}
    assert {name for name, first in documents.items() if "distributed_type" in first} == KINDS.keys()
    assert {path.stem for path in (LAUNCH / "deepspeed").iterdir()} == set(ZERO)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_of_its_kind_and_fixes_neither_precision_nor_the_number_of_gpus(name: str) -> None:
    loaded = config(name)
    assert loaded.distributed_type == KINDS[name]
    assert loaded.mixed_precision in (None, "no")  # not False, which an unquoted no would be
    assert loaded.num_processes == (
        1 if name == "single" else -1
    )  # -1: Accelerate insists on --num_processes
    assert (loaded.num_machines, loaded.machine_rank, loaded.main_process_ip) == (1, 0, None)
    assert loaded.use_cpu is False


@pytest.mark.parametrize("name", ZERO)
def test_a_deepspeed_file_holds_how_to_spread_and_nothing_of_the_run(name: str) -> None:
    settings, stage = deepspeed(name), int(name[4])
    zero = settings["zero_optimization"]
    assert zero["stage"] == stage
    offloaded = {
        "zero2_offload": {"offload_optimizer"},
        "zero3_offload": {"offload_optimizer", "offload_param"},
    }
    assert {key for key in zero if key.startswith("offload")} == offloaded.get(name, set())
    assert all(zero[key]["device"] == "cpu" for key in offloaded.get(name, set()))
    assert settings.keys() == SPREADING | LEFT_TO_THE_RUN
    assert {settings[key] for key in LEFT_TO_THE_RUN} == {"auto"}
    # Several nodes: a launcher of ours on each. DeepSpeed's own would go through pdsh.
    assert config(name).deepspeed_config["deepspeed_multinode_launcher"] == "standard"


def test_activation_checkpointing_is_left_to_the_run() -> None:
    fsdp = config("fsdp2").fsdp_config
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_activation_checkpointing"] is False
    assert not any("activation_checkpointing" in deepspeed(name) for name in ZERO)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_launch_runs_two_steps_of_the_strategy(name: str, run: list[str], tmp_path: Path) -> None:
    n = 1 if name == "single" else 2
    ended = finish([*accelerate(name, n), "-m", "essa_dist", "adapt", *run])
    assert ended.exit_code == 0, ended.stderr
    world = re.search(r"2 steps of 4, (\w+) on (\d) x cpu \((\w+)\), fp32", ended.stderr)
    assert world is not None, ended.stderr
    assert world.groups() == (name, str(n), "none" if n == 1 else "gloo")
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
