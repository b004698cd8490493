"""Whatever a run does when it is told to stop: nothing is lost, every rank ends with 75, the next start goes on exactly."""

import random
import signal

import pytest

from tests.faults.drilling import Drill, stopped_by_signal

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
