"""The ledger's promises: it survives kills and changes of ranks, and its audit finds every repeat and gap."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from essa_dist.data.ledger import FOLDER, Ledger, Start, audit
from essa_dist.data.plan import SamplePlan, rank_slice
from essa_dist.errors import DataError

N, BATCH = 10, 4
KEYS = [f"image {i}" for i in range(N)]
PLAN = SamplePlan(N, seed=3)


def record(
    run: Path,
    start: int,
    stop: int,
    *,
    ranks: int,
    wrong: dict[int, str] | None = None,
    bad: Sequence[str] = (),
) -> None:
    """Updates start + 1 .. stop on so many ranks; ``wrong``: keys seen instead, by position of the stream."""
    for rank in range(ranks):
        with Ledger(run, start_step=start, rank=rank, world_size=ranks, enabled=True) as ledger:
            for step in range(start, stop):
                positions = PLAN.positions(step, BATCH)[rank_slice(BATCH, rank, ranks)]
                keys = [
                    (wrong or {}).get(p, KEYS[i]) for p, i in zip(positions, PLAN.at(positions), strict=True)
                ]
                ledger.write(step + 1, keys, bad)


def test_a_run_that_was_killed_and_went_on_with_other_ranks_saw_every_sample_once(tmp_path: Path) -> None:
    record(tmp_path, 0, 9, ranks=2)  # killed after 9, its checkpoint is of 6
    record(tmp_path, 6, 8, ranks=4)  # killed before it saved
    record(tmp_path, 6, 20, ranks=1)
    found = audit(tmp_path, PLAN, KEYS, BATCH)
    assert found.starts == (Start(0, 2), Start(6, 1))
    assert (found.steps, found.samples, found.epochs) == (20, 80, 8)
    assert (found.missing_steps, found.replaced, found.unplanned) == (0, 0, 0)
    assert (found.repeated, found.skipped) == (0, 0)


def test_a_sample_seen_twice_is_counted_with_the_one_it_displaced(tmp_path: Path) -> None:
    seen_before = KEYS[PLAN.at(range(3, 4))[0]]
    record(tmp_path, 0, 5, ranks=2, wrong={7: seen_before})
    found = audit(tmp_path, PLAN, KEYS, BATCH)
    assert (found.repeated, found.skipped, found.unplanned) == (1, 1, 1)


@pytest.mark.parametrize("shard", ["a.tar", "s3://bucket/a.tar", "http://host:80/a.tar"])
def test_a_broken_sample_is_replaced_not_repeated(tmp_path: Path, shard: str) -> None:
    broken = KEYS[PLAN.at(range(7, 8))[0]]
    record(tmp_path, 0, 5, ranks=2, wrong={7: KEYS[PLAN.at(range(3, 4))[0]]}, bad=[f"{shard}:{broken}"])
    found = audit(tmp_path, PLAN, KEYS, BATCH)
    assert (found.replaced, found.repeated, found.skipped, found.unplanned) == (1, 0, 0, 0)


def test_a_run_that_lost_its_place_is_found_out(tmp_path: Path) -> None:
    record(tmp_path, 0, 5, ranks=1)
    with Ledger(tmp_path, start_step=5, rank=0, world_size=1, enabled=True) as ledger:
        for step in range(5):  # from the start of the epoch again
            ledger.write(step + 6, [KEYS[i] for i in PLAN.indices(step, BATCH)])
    found = audit(tmp_path, PLAN, KEYS, BATCH)
    assert found.unplanned > 0


def test_a_step_that_one_rank_did_not_finish_is_missing_until_it_is_done_again(tmp_path: Path) -> None:
    record(tmp_path, 0, 6, ranks=2)
    path = tmp_path / FOLDER / "from_00000000_rank_0001_of_0002.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:5]) + lines[5][:10])  # step 3 lost, step 6 cut in mid-line
    found = audit(tmp_path, PLAN, KEYS, BATCH)
    assert (found.steps, found.missing_steps, found.skipped) == (5, 1, 4)
    record(tmp_path, 2, 6, ranks=2)
    assert audit(tmp_path, PLAN, KEYS, BATCH).missing_steps == 0


def test_without_a_ledger_the_way_to_have_one_is_said(tmp_path: Path) -> None:
    with Ledger(tmp_path, start_step=0, rank=0, world_size=1, enabled=False) as ledger:
        ledger.write(1, ["a"])
    with pytest.raises(DataError, match="ledger=true"):
        audit(tmp_path, PLAN, KEYS, BATCH)
