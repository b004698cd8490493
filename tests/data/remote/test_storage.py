"""Remote shards give the bytes that local ones give, whatever the server does on the way."""

import logging
import multiprocessing
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Fault
from torch.utils.data import DataLoader, Dataset

from essa_dist.data.remote import RemoteShards
from essa_dist.data.remote.storage import coalesce
from essa_dist.data.shards import open_packed
from essa_dist.data.storage import LocalShards, Range
from essa_dist.errors import DataError

Local = Callable[[], LocalShards]
HEALING = {
    "error": Fault(status=500),
    "busy": Fault(status=503),
    "too many": Fault(status=429),
    "dropped": Fault(drop=True),
    "cut off": Fault(truncate=True),
    "short": Fault(short=True),
}


@pytest.mark.parametrize("name", HEALING)
def test_a_passing_fault_is_repeated_and_the_bytes_are_those_of_the_file(
    name: str, make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set()
    shards = open_it()
    server.faults.extend([HEALING[name]] * 5)
    assert shards.read(ranges) == local().read(ranges)
    assert not server.faults
    assert 2 <= shards.stats().retries <= 5  # the HTTP library itself repeats some on a new connection


def test_a_flipped_byte_is_noticed_and_fetched_again(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    one = make_set()[3]
    shards = open_it()
    server.faults.append(Fault(flip=True))
    assert shards.read([one]) == local().read([one])
    assert (shards.stats().damaged, server.gets()) == (1, 2)


def test_bytes_that_stay_wrong_are_handed_on_for_the_reader_to_refuse_and_not_kept(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    one = make_set()[3]
    shards = open_it()
    server.faults.extend([Fault(flip=True)] * 2)
    assert shards.read([one]) != local().read([one])
    assert shards.read([one]) == local().read([one])
    assert server.gets() == 3


def test_a_server_that_asks_for_a_pause_gets_it(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set()
    shards = open_it(concurrency=1)
    server.faults.append(Fault(status=429, headers=(("Retry-After", "1"),)))
    start = time.monotonic()
    assert shards.read(ranges) == local().read(ranges)
    assert 1.0 <= time.monotonic() - start < 3.0


def test_a_request_without_an_answer_is_given_up_and_repeated(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set()
    shards = open_it(timeout=0.3)
    server.faults.append(Fault(delay=20.0))
    start = time.monotonic()
    assert shards.read(ranges) == local().read(ranges)
    assert time.monotonic() - start < 5


def test_a_fault_that_lasts_ends_in_one_line_that_names_the_shard(
    make_set: Any, server: Any, open_it: Any
) -> None:
    one = make_set()[0]
    shards = open_it(retries=2)
    server.faults.extend([Fault(status=502)] * 9)
    with pytest.raises(DataError, match=r"/set/train-0.tar can't be read in 3 tries.*HTTP 502") as error:
        shards.read([one])
    assert "\n" not in str(error.value)
    assert server.gets() == 3


@pytest.mark.parametrize(("status", "told"), [(401, "credentials"), (403, "credentials"), (404, "not there")])
def test_what_no_repetition_can_mend_is_told_at_once(
    status: int, told: str, make_set: Any, server: Any, open_it: Any
) -> None:
    one = make_set()[0]
    shards = open_it()
    server.faults.append(Fault(status=status))
    with pytest.raises(DataError, match=rf"train-0.tar.*{told}"):
        shards.read([one])
    assert server.gets() == 1


def test_a_shard_that_vanishes_in_the_middle_is_named_and_others_can_be_read(
    make_set: Any, tmp_path: Path, open_it: Any, local: Local
) -> None:
    ranges = make_set()
    shards = open_it()
    expected = local().read(ranges)
    (tmp_path / "served" / "set" / "train-1.tar").unlink()
    with pytest.raises(DataError, match=r"set/train-1\.tar is not there"):
        shards.read(ranges)
    others = [one for one in ranges if one.shard != 1]
    assert shards.read(others) == [data for one, data in zip(ranges, expected, strict=True) if one.shard != 1]


def test_a_server_that_sends_whole_files_only_is_refused_before_it_sends_them(
    make_set: Any, server: Any, open_it: Any
) -> None:
    make_set()
    server.ranges = False
    with pytest.raises(DataError, match="no HTTP range requests"):
        open_it()


def test_secrets_of_an_address_appear_neither_in_errors_nor_in_logs_nor_in_the_cache(
    make_set: Any, server: Any, open_it: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = make_set()[0]
    secret = server.url.replace("http://", "http://user:hunter2@") + "/set?sig=hunter3"
    caplog.set_level(logging.DEBUG, logger="essa_dist")
    shards = open_it(secret, retries=1)
    messages = []
    for fault in (
        Fault(status=500),
        Fault(drop=True),
        Fault(truncate=True),
        Fault(status=403),
        Fault(status=404),
    ):
        server.faults.extend([fault] * 9)
        with pytest.raises(DataError) as error:
            shards.read([one])
        messages.append(f"{error.value} {error.value.__cause__}")
        server.faults.clear()
    shards.read([one])
    kept = b"".join(file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file())
    everything = "".join(messages) + caplog.text + kept.decode(errors="replace")
    assert len(caplog.records) > 0
    assert "hunter" not in everything


def test_announced_samples_are_fetched_once_and_before_they_are_read(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set()
    shards = open_it(bytes=0)
    server.latency = 0.15
    start = time.monotonic()
    shards.ahead(ranges)
    assert time.monotonic() - start < 0.1
    time.sleep(0.05)
    assert shards.read(ranges) == local().read(ranges)  # still on their way
    fetched = server.gets()
    assert fetched == len(list(coalesce(ranges)))
    assert shards.stats().requests == fetched


def test_no_more_is_held_ahead_than_was_allowed_and_what_is_passed_over_is_dropped(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set(shards=(30, 2))
    random.Random(0).shuffle(ranges)
    shards = open_it(bytes=0, ahead_bytes=20_000)
    process = shards._here()
    for first in range(0, len(ranges), 8):
        shards.ahead(ranges[first:])
        announced = list(process._announced)
        assert 11_000 < sum(one.length for one in announced) <= 20_000 or first + 8 > len(ranges) - 8
        assert set(announced) == set(ranges[first : first + len(announced)])
        mine = ranges[first + 1 : first + 2]  # the first is passed over
        assert shards.read(mine) == local().read(mine)
        assert mine[0] not in process._announced


def test_requests_at_a_time_are_bounded(make_set: Any, server: Any, open_it: Any) -> None:
    ranges = make_set(shards=(1,) * 12)
    shards = open_it(concurrency=3)
    server.latency = 0.02
    shards.read(ranges)
    assert server.most_busy == 3


def test_neighbours_come_by_one_request_and_strangers_do_not() -> None:
    near, far = [Range(0, 1000, 10), Range(0, 2000, 10)], Range(0, 10**6, 10)
    groups = list(coalesce([far, *reversed(near), Range(1, 2000, 10), far]))
    assert groups == [near, [far], [Range(1, 2000, 10)]]
    long = [Range(0, i * 3 * 2**20, 3 * 2**20) for i in range(5)]
    assert [len(group) for group in coalesce(long)] == [2, 2, 1]


def test_what_was_read_once_needs_no_server_later_nor_in_another_run(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set(masks=True)
    assert any(one.length < 900 for one in ranges)
    open_it().read(ranges)
    server.seen.clear()
    later = open_it()
    server.error_rate = 1.0
    assert later.read(ranges) == local().read(ranges)
    assert later.stats().hits == len(ranges)
    assert server.gets() == 0


def _read_in_child(shards: RemoteShards, ranges: list[Range], results: Any) -> None:
    results.put((shards.read(ranges), shards.stats().requests))


def test_a_forked_process_reads_on_its_own_while_its_parent_is_reading(
    make_set: Any, server: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set()
    shards = open_it(bytes=0)
    server.latency = 0.05
    shards.ahead(ranges)  # threads, connections and requests are there when the child is made
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_read_in_child, args=(shards, ranges, results))
    child.start()
    mine = shards.read(ranges)
    theirs, requests = results.get(timeout=30)
    child.join(10)
    assert mine == theirs == local().read(ranges)
    assert requests == len(list(coalesce(ranges)))
    assert child.exitcode == 0


def test_pickled_shards_read_on_their_own_and_take_neither_the_index_nor_what_is_under_way_along(
    make_set: Any, open_it: Any, local: Local
) -> None:
    ranges = make_set(shards=(200, 3))
    shards = open_it()
    shards.ahead(ranges)
    pickled = pickle.dumps(shards)
    assert len(pickled) < 1000
    del shards
    assert pickle.loads(pickled).read(ranges) == local().read(ranges)


class _Reads(Dataset[list[bytes]]):
    def __init__(self, images: Any, batches: list[list[int]]) -> None:
        self.images, self.batches = images, batches

    def __getitem__(self, i: int) -> list[bytes]:
        self.images.ahead([j for batch in self.batches[i + 1 : i + 3] for j in batch])
        return list(self.images.read_many(self.batches[i]))

    def __len__(self) -> int:
        return len(self.batches)


def test_loader_workers_get_the_same_bytes_from_every_storage(
    make_set: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_set(shards=(20, 15, 3))
    monkeypatch.setenv("ESSA_CACHE", str(tmp_path / "cache"))
    order = random.Random(0).sample(range(35), 35)
    batches = [order[i : i + 5] for i in range(0, 35, 5)]
    near = open_packed(f"{tmp_path}/served/set:train")
    expected = [near.read_many(batch) for batch in batches]
    server.error_rate = 0.2
    far = open_packed(f"{server.url}/set:train")
    for workers in (0, 2):
        loader = DataLoader(_Reads(far, batches), batch_size=None, collate_fn=list, num_workers=workers)
        assert list(loader) == expected
    assert pickle.loads(pickle.dumps(far)).read_many(order) == near.read_many(order)
