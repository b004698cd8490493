"""The bytes that a rank is said to send are those that the network carries, whoever starts the collective."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from essa_dist.distributed.traffic import TrafficMeter, summarise
from tests.distributed.launching import rank_environments, run

PROGRAM = Path(__file__).with_name("traffic_on_ranks.py")


def no_namespace() -> str | None:
    """Why this machine can't give a network of its own to a test; None: it can."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return "unshare or ip is not installed"
    tried = subprocess.run(
        ["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True, check=False
    )
    return None if tried.returncode == 0 else "network namespaces are not permitted"


@pytest.mark.parametrize("n", [2, 3])
def test_a_meter_counts_what_the_network_carries(n: int, tmp_path: Path) -> None:
    if why := no_namespace():
        pytest.skip(why)
    ranks = [
        " ".join(f"{key}={value}" for key, value in env.items())
        + f" {sys.executable} -W ignore {PROGRAM} {tmp_path / 'found'}"
        for env in rank_environments(n)
    ]
    # A loopback of its own, on which nobody else talks.
    script = "ip link set lo up; " + " ".join(f"env {rank} &" for rank in ranks) + " wait"
    ended = run(["unshare", "-rn", "bash", "-c", script], env={"PYTHONPATH": os.getcwd()})
    found: dict[str, Any] = (
        json.loads((tmp_path / "found").read_text()) if (tmp_path / "found").is_file() else {}
    )
    assert found, ended.stderr
    noise = found.pop("nothing")  # the barriers around it
    assert (noise["sent"], noise["calls"]) == (0, 0)
    for name, seen in found.items():
        assert seen["sent"] == pytest.approx(seen["carried"] - noise["carried"], rel=0.02), name
        assert seen["calls"] == 1, name
        assert 0 < seen["seconds"] < 5, name


def test_one_process_sends_nothing_and_is_not_profiled() -> None:
    with TrafficMeter(torch.device("cpu")) as meter:
        assert not torch._C._autograd._profiler_enabled()
    assert meter.traffic is None


def test_the_factors_are_those_of_ring_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("essa_dist.distributed.traffic.world_size", lambda: 4)

    def entry(name: str, **more: Any) -> dict[str, Any]:
        sizes = {"input_sizes": [[10, 8], [20]], "input_dtypes": ["Float", "BFloat16"]}
        return {"profiling_name": name, "process_group": ("gone", ""), **sizes, **more}

    given = 10 * 8 * 4 + 20 * 2
    kinds = {
        "all_reduce": 2 * 3 / 4,
        "_all_gather_base": 3,
        "reduce_scatter_tensor_coalesced": 3 / 4,
        "broadcast": 3 / 4,
    }
    for kind, factor in kinds.items():
        traffic = summarise(
            [entry(f"nccl:{kind}", duration_ms=2.0), entry(f"nccl:{kind}", duration_ms=3.0)], None
        )
        assert traffic.sent == pytest.approx(2 * factor * given, abs=1), kind
        assert (traffic.calls, traffic.seconds) == (2, 0.005)
        assert traffic.by_operation == {kind.lstrip("_"): traffic.sent}
    assert summarise([entry("nccl:all_reduce_barrier")], None).sent == 0
