"""Whatever a run does when it is told to stop: nothing is lost, every rank ends with 75, the next start goes on exactly."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.drilling import Drill, last_checkpoint, last_step, stopped_by_signal
from tests.faults.zygote import Zygote

TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


def test_a_run_that_is_stopped_in_a_step_an_evaluation_and_a_save_ends_as_if_it_never_was(
    pair: Drill,
) -> None:
    rng, run = random.Random(0), pair.new_run()
    for number, place in ((TERM, "step"), (INT, "evaluation"), (USR1, "first save")):
        stopped_by_signal(pair, run, rng, number=number, place=place)
    pair.finish(run)


@pytest.mark.parametrize(
    ("number", "place"),
    [(USR1, "settings"), (TERM, "weights"), (INT, "standardization"), (TERM, "first batch")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_that_has_not_begun_to_train_is_stopped_at_once_and_saves_nothing(
    lone: Drill, number: signal.Signals, place: str
) -> None:
    stopped_by_signal(lone, lone.new_run(), random.Random(0), number=number, place=place)


def test_a_rank_whose_batch_does_not_come_and_one_that_waits_for_it_stop_together_with_a_checkpoint(
    zygote: Zygote, recipe: list[str], tmp_path: Path
) -> None:
    words = ["adapt", *recipe, "duration=20", "checkpoint.every=100"]
    with zygote.ranks(2, "data-hangs", 0, 4, words) as ranks:
        deadline = time.monotonic() + 60
        while last_step(tmp_path / "run") < 3:
            assert time.monotonic() < deadline, ranks.stderr(0)
            time.sleep(0.01)
        time.sleep(0.5)  # rank 1 has its batch by now
        for i in (1, 0):
            ranks.send(TERM, i)
        assert ranks.wait(seconds=25) == [75, 75]
        assert len(ranks.said("error: stopped by SIGTERM after step 3 of 20")) == 1
    assert last_checkpoint(tmp_path / "run") == 3
