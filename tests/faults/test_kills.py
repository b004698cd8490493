"""``kill -9`` of whatever part of a run: the rest ends, nothing is left behind, the next start goes on exactly."""

import random
from dataclasses import replace

from tests.distributed.launching import torchrun
from tests.faults.drilling import Drill, launcher_killed, rank_killed


def test_kills_of_a_rank_of_one_that_saves_and_of_the_launcher_in_one_run_lose_nothing(pair: Drill) -> None:
    rng, run = random.Random(1), pair.new_run()
    by_torchrun = replace(pair, launcher=lambda: torchrun(2))
    rank_killed(
        by_torchrun, run, rng
    )  # with two checkpoints an epoch at most, it and the next are in one epoch
    rank_killed(pair, run, rng, place="save")
    launcher_killed(by_torchrun, run, rng)
    pair.finish(run)
