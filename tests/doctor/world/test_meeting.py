"""Ranks that meet in a store: who is missing is known to all of them alike, after the deadline and not much later."""

import json
import threading
import time

import pytest
from torch._C._distributed_c10d import HashStore, Store

from essa_dist.doctor.world.absence import absent, hello, silent
from essa_dist.doctor.world.meeting import Meeting, Roll
from essa_dist.doctor.world.place import Place, find_place
from essa_dist.doctor.world.words import ranks
from essa_dist.errors import UsageError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "2",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
}


def place(rank: int, world_size: int = 4, address: str = "10.0.0.1") -> Place:
    return Place(rank, world_size, rank % 2, 2, rank // 2, address, 29500, hosted=True)


def rolls_of(store: Store, coming: dict[int, float], *, world: int, seconds: float) -> dict[int, Roll]:
    """The roll that each of ``coming`` (rank to its delay, s) gets from one round, each in its thread."""
    found: dict[int, Roll] = {}

    def come(rank: int, delay: float) -> None:
        time.sleep(delay)
        found[rank] = Meeting(store, place(rank, world), seconds=seconds).round("here", f"I am {rank}")

    threads = [threading.Thread(target=come, args=item) for item in coming.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_whole_world_meets_without_waiting_and_hears_what_was_said() -> None:
    store, begin = HashStore(), time.monotonic()
    rolls = rolls_of(store, dict.fromkeys(range(4), 0.0), world=4, seconds=20)
    assert rolls == dict.fromkeys(range(4), Roll(missing=(), speaker=0))
    assert time.monotonic() - begin < 5
    said = Meeting(store, place(2), seconds=1).said("here", range(4))
    assert said == {rank: f"I am {rank}" for rank in range(4)}


def test_all_who_came_agree_on_who_did_not_and_on_who_tells() -> None:
    begin = time.monotonic()
    rolls = rolls_of(HashStore(), {1: 0.0, 3: 0.3}, world=5, seconds=1)
    assert rolls == dict.fromkeys((1, 3), Roll(missing=(0, 2, 4), speaker=1))
    assert 1 <= time.monotonic() - begin < 5


def test_who_comes_after_the_verdict_is_missing_for_itself_too() -> None:
    rolls = rolls_of(HashStore(), {0: 0.0, 1: 1.5}, world=2, seconds=0.5)
    assert rolls == dict.fromkeys((0, 1), Roll(missing=(1,), speaker=0))


def test_a_restarted_world_does_not_hear_the_one_before() -> None:
    store = HashStore()
    Meeting(store, place(0), seconds=1).say("verdict", "failed")
    restarted = Place(0, 4, 0, 2, 0, "10.0.0.1", 29500, hosted=True, attempt=1)
    assert Meeting(store, restarted, seconds=1).hear("verdict", 0) is None


def test_missing_ranks_are_told_with_their_nodes_and_with_who_is_here() -> None:
    hellos = {0: json.dumps({"host": "a"}), 1: json.dumps({"host": "a"}), 4: json.dumps({"host": "c"})}
    text = absent([2, 3, 5], hellos, place(0, 6), 30, twice={}).text
    assert text.startswith(
        "ranks 2-3, 5 of 6 (all of node 1) did not come in 30 s; here: ranks 0-1 on a, rank 4 on c."
    )
    assert "10.0.0.1:29500" in text
    assert "leads every host to itself" not in text


def test_a_loopback_that_several_nodes_were_given_is_the_first_suspect() -> None:
    text = absent([2, 3], {0: hello()}, place(0, 4, "127.0.0.1"), 30, twice={}).text
    assert "MASTER_ADDR=127.0.0.1 leads every host to itself" in text
    alone = absent([1], {0: hello()}, place(0, 2, "127.0.0.1"), 30, twice={}).text
    assert "leads every host to itself" not in alone


def test_a_rank_number_given_twice_is_told_as_such() -> None:
    hellos = {0: json.dumps({"host": "a"}), 1: json.dumps({"host": "b"})}
    text = absent([2], hellos, place(0, 3), 30, twice={1: json.dumps({"host": "c"})}).text
    assert "rank 1 came from b and again from c; rank 2 never came" in text


def test_a_silent_rank_is_told_with_what_it_began_last() -> None:
    hellos = {rank: json.dumps({"host": f"h{rank}"}) for rank in range(3)}
    text = silent([1, 2], hellos, {1: "opening data.train=/nfs/x"}, 25).text
    assert "rank 1 on h1 at opening data.train=/nfs/x; rank 2 on h2 at the start" in text


def test_a_place_is_read_from_torchrun_and_from_srun() -> None:
    assert find_place(TORCHRUN) == Place(3, 4, 1, 2, 1, "10.0.0.1", 29500, hosted=True, attempt=2)
    assert find_place(SRUN) == Place(5, 8, 1, None, 2, "n0", 29500, hosted=False)
    assert find_place(SRUN | {"RANK": "0", "WORLD_SIZE": "1"}) == Place(
        0, 1, None, None, None, "n0", 29500, hosted=False
    )


def test_without_a_launcher_there_is_no_place() -> None:
    assert find_place({}) is None
    assert find_place({"MASTER_ADDR": "n0", "LOCAL_RANK": "0"}) is None
    batch_script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    assert find_place(batch_script) is None


def test_accelerates_single_process_is_a_world_of_one() -> None:
    found = find_place({"ACCELERATE_MIXED_PRECISION": "no"})
    assert found is not None
    assert (found.rank, found.world_size) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RANK": "4"}, "RANK=4 with WORLD_SIZE=4: ranks are 0 to 3"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 with LOCAL_WORLD_SIZE=2"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE='four' is not a number"),
        ({"MASTER_ADDR": ""}, r"MASTER_ADDR=\(not set\) MASTER_PORT=29500"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_place(TORCHRUN | changes)


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE"])
def test_half_an_environment_is_refused(missing: str) -> None:
    with pytest.raises(UsageError, match=f"{missing} is not"):
        find_place({name: value for name, value in TORCHRUN.items() if name != missing})


def test_ranks_are_told_in_runs() -> None:
    assert [ranks([3]), ranks([7, 0, 1, 2, 5, 8])] == ["rank 3", "ranks 0-2, 5, 7-8"]
