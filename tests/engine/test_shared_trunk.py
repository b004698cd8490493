"""Frozen weights are in memory once, whoever trains over them, and nothing else changes."""

import errno
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from essa_dist import adapt, export
from essa_dist.adapters import AdapterConfig, inject_adapter
from essa_dist.backbones import Backbone, BackboneConfig, build_backbone
from essa_dist.backbones.weights import parameters_sha256
from essa_dist.engine import shared_trunk
from essa_dist.engine.shared_trunk import SharedTrunk, same_bits, share_trunk
from essa_dist.errors import UsageError
from tests.distributed.launching import TOLD, clean_environment, launch
from tests.engine.test_resume import assert_same_end

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def trunk(seed: int = 7) -> Backbone:
    return build_backbone(BackboneConfig(name="test_vit", weights="random"), seed=seed)


def share(folder: Path, module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> SharedTrunk:
    found = share_trunk(str(folder), module, parameters_sha256(module), dtype, CPU)
    assert found is not None
    return found


def shared_module(folder: Path, module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """``module`` in ``dtype``, all of it frozen and in the map."""
    found = share(folder, module, dtype)
    for parameter in module.requires_grad_(False).parameters():
        parameter.data = parameter.data.to(dtype)
    assert found.put_into(module) == sum(p.nbytes for p in module.parameters())
    return module


def the_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def regions(file: Path, pid: int | str = "self") -> list[tuple[range, str]]:
    """Addresses and permissions of the maps of ``file`` in a process."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions, *_, path = line.split()
        if path == str(file):
            first, last = (int(number, 16) for number in addresses.split("-"))
            found.append((range(first, last), permissions))
    return found


def is_mapped(tensor: Tensor, file: Path) -> bool:
    return any(tensor.data_ptr() in addresses for addresses, _ in regions(file))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frozen_tensors_are_views_of_one_private_map_with_the_bits_they_had(
    dtype: torch.dtype, folder: Path
) -> None:
    module = shared_module(folder, trunk(), dtype)
    ((_, permissions),) = regions(the_file(folder))
    assert permissions[3] == "p"
    for (name, parameter), right in zip(module.named_parameters(), trunk().parameters(), strict=True):
        assert is_mapped(parameter, the_file(folder)), name
        assert same_bits(parameter, right.to(dtype)), name
        assert parameter.data_ptr() % 64 == 0  # as torch's own


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "frozen"},
        {"kind": "apla"},
        {"kind": "apla", "rank": 3, "targets": ["proj", "fc1"]},
        {"kind": "lora"},
        {"kind": "lora", "init": "pissa"},
        {"kind": "apla+bitfit"},
        {"kind": "ssf"},
        {"kind": "vpt"},
        {"kind": "full"},
    ],
    ids=str,
)
def test_whatever_an_adapter_leaves_frozen_is_shared_and_nothing_that_it_trains(
    adapter: dict[str, Any], folder: Path
) -> None:
    shared_module(folder, trunk())  # another trial has written the file
    backbone = trunk()
    found, of_trunk = share(folder, backbone), list(backbone.parameters())
    inject_adapter(backbone, TypeAdapter(AdapterConfig).validate_python(adapter), seed=0)
    for parameter in backbone.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    found.put_into(backbone)
    file = the_file(folder)
    assert {id(p) for p in backbone.parameters() if is_mapped(p, file)} == {
        id(p) for p in of_trunk if not p.requires_grad
    }


def test_a_tensor_that_is_not_the_trunks_any_more_stays_as_it_is(folder: Path) -> None:
    backbone = trunk().requires_grad_(False)
    found = share(folder, backbone, torch.float32)
    backbone.vit.norm.weight[3] += 1
    changed = backbone.vit.norm.weight.clone()
    found.put_into(backbone)
    assert torch.equal(backbone.vit.norm.weight, changed)
    assert not is_mapped(backbone.vit.norm.weight, the_file(folder))
    assert is_mapped(backbone.vit.norm.bias, the_file(folder))


def test_what_an_adapter_replaced_is_not_kept_in_memory(folder: Path) -> None:
    backbone = trunk()
    found = share(folder, backbone)
    gone = torch.utils.weak.WeakIdKeyDictionary({backbone.vit.norm.weight: None})
    backbone.vit.norm = nn.Identity()
    assert len(gone) == 0
    found.put_into(backbone)


HOLD = """
import sys, torch
from pathlib import Path
from tests.engine.test_shared_trunk import shared_module, trunk
module = shared_module(Path(sys.argv[1]), trunk())
print("before", flush=True)
sys.stdin.readline()
for parameter in module.parameters():
    parameter.data.fill_(3)
print("after", flush=True)
sys.stdin.readline()
"""


def test_processes_hold_the_same_pages_until_one_writes_and_then_it_has_its_own(folder: Path) -> None:
    module = shared_module(folder, trunk())
    file = the_file(folder)
    before, bits = [p.clone() for p in module.parameters()], file.read_bytes()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "before\n"
        size = file.stat().st_size // 1024
        held = memory_of(file, child.pid)
        assert held["Anonymous"] == 0
        assert held["Rss"] == pytest.approx(size, rel=0.1)
        assert held["Pss"] == pytest.approx(size / 2, rel=0.1)  # this process holds the other half
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "after\n"
        assert memory_of(file, child.pid)["Anonymous"] == pytest.approx(size, rel=0.1)
        assert all(torch.equal(p, right) for p, right in zip(module.parameters(), before, strict=True))
        assert file.read_bytes() == bits
    finally:
        child.kill()
        child.communicate()


def memory_of(file: Path, pid: int) -> dict[str, int]:
    """KiB of the maps of ``file`` in a process, by the kernel's names."""
    found: dict[str, int] = {}
    here = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            here = line.endswith(str(file))
        elif here and rest[-1] == "kB":
            found[name[:-1]] = found.get(name[:-1], 0) + int(rest[0])
    return found


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5000] ^= 1
    file.write_bytes(data)


def lose_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors["vit.norm.bias"]
    file.unlink()
    save_file(tensors, file)


def write_nonsense(file: Path) -> None:
    file.write_text("no tensors")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_a_tensor, write_nonsense])
def test_a_damaged_file_is_written_anew(
    damage: Callable[[Path], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    share(folder, trunk())
    file = the_file(folder)
    right = file.read_bytes()
    damage(file)
    with caplog.at_level(logging.WARNING):
        module = shared_module(folder, trunk())
    assert [r.getMessage() for r in caplog.records if "is damaged" in r.getMessage()]
    assert file.read_bytes() == right
    assert all(
        same_bits(p, q.bfloat16()) for p, q in zip(module.parameters(), trunk().parameters(), strict=True)
    )


def test_trunks_and_precisions_have_files_of_their_own(folder: Path) -> None:
    for seed in (7, 8):
        for dtype in (torch.bfloat16, torch.float32):
            share(folder, trunk(seed), dtype)
    assert len(list(folder.glob("*.safetensors"))) == 4


def test_who_comes_together_writes_once_and_maps_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = shared_trunk.write

    def noted(file: Path, *rest: Any) -> None:
        written.append(file)
        write(file, *rest)

    monkeypatch.setattr(shared_trunk, "write", noted)
    modules = [trunk() for _ in range(4)]
    threads = [threading.Thread(target=shared_module, args=(folder, module)) for module in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert written == [the_file(folder)]
    assert all(is_mapped(p, the_file(folder)) for module in modules for p in module.parameters())


def test_a_folder_that_cant_be_used_is_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(shared_trunk, "flush", full)
    module = trunk()
    assert share_trunk(str(folder), module, "0" * 64, torch.bfloat16, CPU) is None
    assert [f.name for f in folder.iterdir()] == [".lock"]  # nothing that is half
    folder_is_a_file = folder / "file"
    folder_is_a_file.touch()
    assert share_trunk(str(folder_is_a_file), module, "0" * 64, torch.bfloat16, CPU) is None
    first, second = (record.getMessage() for record in caplog.records if record.name.endswith("shared_trunk"))
    assert "No space left on device" in first
    assert str(folder_is_a_file) in second


def test_what_a_killed_writer_left_is_removed(folder: Path) -> None:
    share(folder, trunk())
    file = the_file(folder)
    left = file.with_name(f".{file.name}.12345")
    left.write_bytes(file.read_bytes()[:100])
    file.unlink()
    share(folder, trunk())
    assert sorted(f.name for f in folder.iterdir()) == [".lock", file.name]


def test_odd_sizes_nan_and_signed_zeros_come_back_to_the_bit(folder: Path) -> None:
    module = nn.ParameterDict(
        {
            "a": torch.tensor([float("nan"), -0.0, 0.0, float("inf"), 1e-40]),
            "b": torch.randn(3, 7, 5),
            "c": torch.tensor(2.5),
            "d": torch.randn(1),
        }
    )
    right = {name: p.detach().clone() for name, p in module.items()}
    shared_module(folder, module, torch.float32)
    for name, parameter in module.items():
        assert same_bits(parameter, right[name])
        assert parameter.data_ptr() % 64 == 0
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(1, 2))
    held = load_file(the_file(folder))  # any reader of the format
    assert all(same_bits(held[name], value) for name, value in right.items())


def test_nothing_is_written_where_the_weights_are_on_a_gpu_or_nobody_asked(folder: Path) -> None:
    module = trunk()
    assert share_trunk(str(folder), module, "0" * 64, torch.bfloat16, torch.device("cuda")) is None
    assert share_trunk("", module, "0" * 64, torch.bfloat16, CPU) is None
    assert not folder.exists()


@pytest.mark.parametrize("adapter", ["{kind: apla, rank: 3}", "lora"])
def test_losses_checkpoints_and_exports_are_those_without(
    adapter: str, recipe: list[str], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = [*recipe, "precision=bf16", f"adapter={adapter}"]
    own, other = tmp_path / "own", tmp_path / "other"
    adapt(None, *recipe, f"out={own}")
    with caplog.at_level(logging.INFO, "essa_dist"):
        for _ in ("writes", "finds"):
            adapt(None, *recipe, f"out={other}", f"shared_trunk={folder}", "overwrite=true")
            assert_same_end(own, other)
    assert sum("MB of frozen weights are those of" in record.getMessage() for record in caplog.records) == 2
    for run in (own, other):
        export(run=str(run), out=str(run / "model"))
    assert (own / "model" / "model.safetensors").read_bytes() == (
        other / "model" / "model.safetensors"
    ).read_bytes()


def test_a_run_may_resume_with_it_and_without(recipe: list[str], folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    adapt(None, *recipe, f"out={whole}")
    adapt(None, *recipe, f"out={parts}", "duration=6")
    for newest in sorted((parts / "checkpoints").iterdir())[1:]:
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
    adapt(None, *recipe, f"out={parts}", "resume=true", f"shared_trunk={folder}")
    assert_same_end(whole, parts)


LOOK = """
import os, sys
from pathlib import Path
from essa_dist.distributed.collectives import leave
from essa_dist.engine.adapt import Adaptation
from essa_dist.engine.config import RunConfig
from essa_dist.engine.train import run_job
from essa_dist.engine.watching.signals import stop_signals
from essa_dist.settings import load
from tests.engine.test_shared_trunk import memory_of, the_file

class Looking(Adaptation):
    def finish(self, run):
        held = memory_of(the_file(Path(sys.argv[1])), os.getpid())
        print("KiB", held["Rss"], held["Anonymous"])
        return {}

with stop_signals() as signals:
    run_job(Looking(load(RunConfig, None, sys.argv[2:])), signals)
leave()
"""


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2"])
def test_ranks_have_no_page_of_their_own_and_end_as_without(
    strategy: str, recipe: list[str], folder: Path, tmp_path: Path
) -> None:
    words = [*recipe, "precision=bf16"]
    ends = launch(
        2,
        ["-c", LOOK, str(folder), *words, f"shared_trunk={folder}", f"out={tmp_path / 'other'}"],
        env=TOLD[strategy],
    )
    assert [end.exit_code for end in ends] == [0, 0], ends
    for end in ends:  # DDP and DeepSpeed write rank 0's weights into the others' before: that would be a copy
        (said,) = (line for line in end.stdout.splitlines() if line.startswith("KiB"))
        mapped, copied = (int(number) for number in said.split()[1:])
        assert mapped > the_file(folder).stat().st_size / 1024 * 0.9
        assert copied == 0
    if strategy == "ddp":
        own = launch(2, ["-m", "essa_dist", "adapt", *words, f"out={tmp_path / 'own'}"])
        assert [end.exit_code for end in own] == [0, 0], own
        assert_same_end(tmp_path / "own", tmp_path / "other")


def test_strategies_that_spread_frozen_weights_are_refused(
    recipe: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="shard_frozen=true spreads frozen weights over ranks"):
        adapt(None, *recipe, f"shared_trunk={folder}", "shard_frozen=true")
    monkeypatch.setattr(
        "essa_dist.engine.build.choose", lambda *_, **__: SimpleNamespace(name="zero3_offload")
    )
    with pytest.raises(UsageError, match="shared_trunk does not go with zero3_offload"):
        adapt(None, *recipe, f"shared_trunk={folder}")
