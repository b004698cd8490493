"""``kill -9`` in the middle of a save, of whatever rank: the checkpoint before is loaded, and no rank waits for ever."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from essa_dist.engine.saving import restore
from essa_dist.runfolder import committed_checkpoints
from tests.distributed.launching import Ended, launch
from tests.engine.fakes import FakeStrategy, ThreadChannel, on_ranks, tensors


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


def save(run: Path, ranks: int, how: str) -> list[Ended]:
    return launch(ranks, ["-m", "tests.distributed.saves_of", str(run), how], timeout=120)


def loaded(run: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Step and tensors of what a fresh start would go on from."""

    def work(channel: ThreadChannel) -> Any:
        strategy: Any = FakeStrategy(tensors(), "first", 0, 1)
        state = restore.resume(run, strategy, channel, trunk_sha256="abc")
        assert state is not None
        return state["step"], {name: part for (name, _), part in strategy.filled_in.items()}

    (end,) = on_ranks(1, work)
    step, found = end
    return step, found


def assert_loads(run: Path, step: int, seed: int) -> None:
    found_step, found = loaded(run)
    assert found_step == step
    assert all(torch.equal(found[name], whole.flatten()) for name, whole in tensors(seed).items())


@pytest.mark.parametrize(
    ("how", "ranks", "killed"), [("rename", 1, 0), ("rename", 2, 0), ("receiving", 2, 0), ("sending", 2, 1)]
)
@pytest.mark.timeout(300)
def test_a_kill_during_a_save_leaves_the_checkpoint_before_and_its_leftovers_go_with_the_next_save(
    run: Path, how: str, ranks: int, killed: int
) -> None:
    ends = save(run, ranks, how)
    assert ends[killed].exit_code == -signal.SIGKILL, ends[killed].stderr
    assert all(end.exit_code not in (0, -signal.SIGKILL) for i, end in enumerate(ends) if i != killed)
    assert [folder.name for folder in committed_checkpoints(run)] == ["step_00000002"]
    assert_loads(run, 2, seed=1)
    hidden = list((run / "checkpoints").glob(".*"))
    assert [p.name for p in hidden] == ([".step_00000004.new.writing"] if killed == 0 else [])
    if killed == 0 and ranks == 2:
        assert [end.exit_code for end in save(run, 2, "never")] == [0, 0]
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000002", "step_00000004"]
        assert_loads(run, 4, seed=2)
