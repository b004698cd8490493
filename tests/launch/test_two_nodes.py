"""Two nodes with networks and launchers of their own train as one node with two processes does, and come to an end.

The launchers are started with the words of launch/kubernetes.yaml, once for each of two pods of one GPU.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import Processes, accelerate
from tests.distributed.launching import run as finish
from tests.launch.manifests import command
from tests.launch.two_nodes import ADDRESSES, Nodes, NotPossible, two_nodes

DEADLINE_S = 200  # a launcher whose ranks have ended waits 300 s for that of a node where one was killed
FP32 = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    try:
        with two_nodes() as made:
            yield made
    except NotPossible as why:
        pytest.skip(f"two nodes can't be made here: {why}")


def words_of_pod(index: int, strategy: str, essa: list[str]) -> list[str]:
    """What the manifest starts in this pod, for a run of two GPUs in all."""
    words = command(index, PROCESSES="2")
    words = words[: words.index("adapt") + 1]
    known = {
        "python": sys.executable,
        "launch/zero2.yaml": f"launch/{strategy}.yaml",
        "essa-0.essa": ADDRESSES[0],
    }
    return [known.get(word, word) for word in words] + essa


def student(run: Path) -> dict[str, torch.Tensor]:
    return load_file(committed_checkpoints(run)[-1] / "student.safetensors")


@pytest.fixture(scope="module")
def found() -> dict[str, torch.Tensor]:
    """Filled by the first test that needs it."""
    return {}


@pytest.fixture
def one_node(found: dict[str, torch.Tensor], run: list[str], tmp_path: Path) -> dict[str, torch.Tensor]:
    """What one node with two processes trains."""
    if not found:
        out = tmp_path / "one"
        ended = finish([*accelerate("ddp", 2), "-m", "essa_dist", "adapt", *run, f"out={out}"])
        assert ended.exit_code == 0, ended.stderr
        found |= student(out)
    return found


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "fsdp2"])
def test_two_nodes_train_like_one(
    strategy: str, nodes: Nodes, one_node: dict[str, torch.Tensor], run: list[str], tmp_path: Path
) -> None:
    commands = [nodes.on(i, words_of_pod(i, strategy, run)) for i in range(2)]
    with Processes(commands, each=[nodes.env(i) for i in range(2)]) as launchers:
        ended = launchers.wait(DEADLINE_S)
    assert [end.exit_code for end in ended] == [0, 0], ended
    assert f"{strategy} on 2 x cpu (gloo)" in ended[0].stderr
    torch.testing.assert_close(student(tmp_path / "run"), one_node, **FP32)
