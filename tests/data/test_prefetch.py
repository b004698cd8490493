"""Prefetching's promises: the same batches in order, one ahead, errors and ends handed on, nothing left running."""

import threading
import time
from collections.abc import Generator, Iterator

import pytest
import torch

from essa_dist.data.batch import Batch
from essa_dist.data.prefetch import prefetch
from essa_dist.errors import DataError

CPU = torch.device("cpu")
both = pytest.mark.parametrize("threaded", [True, False])


def batch(step: int) -> Batch:
    crops = torch.full((2, 1, 3, 4, 4), step, dtype=torch.uint8)
    return Batch(crops, crops[:0], torch.zeros(2, 1, 1, dtype=torch.bool), keys=(str(step),), step=step)


class Source:
    """Counts what was asked of it, and whether it was closed."""

    def __init__(self, steps: int, fail_at: int | None = None) -> None:
        self.steps, self.fail_at, self.made, self.closed = steps, fail_at, 0, False

    def batches(self) -> Generator[Batch, None, None]:
        try:
            for step in range(self.steps):
                if step == self.fail_at:
                    raise DataError("shard gone")
                self.made += 1
                yield batch(step)
        finally:
            self.closed = True


def doubled(one: Batch) -> Batch:
    return Batch(one.global_crops * 2, one.local_crops, one.masks, keys=one.keys, step=one.step)


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def eventually(true: Iterator[bool], seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while not next(true) and time.monotonic() < end:
        time.sleep(0.005)
    return next(true)


@both
def test_every_batch_comes_once_in_order_and_moved(threaded: bool) -> None:
    source = Source(5)
    got = list(prefetch(source.batches(), doubled, CPU, threaded=threaded))
    assert [one.step for one in got] == [0, 1, 2, 3, 4]
    assert [int(one.global_crops[0, 0, 0, 0, 0]) for one in got] == [0, 2, 4, 6, 8]
    assert source.closed
    assert not running()


def test_the_next_batch_is_made_while_the_present_one_is_used_and_no_more_than_that() -> None:
    source = Source(50)
    batches = prefetch(source.batches(), doubled, CPU, threaded=True)
    next(batches)
    assert eventually(iter(lambda: source.made >= 3, None))  # one in the queue, one about to be put there
    time.sleep(0.2)
    assert source.made == 3
    batches.close()
    assert source.closed
    assert not running()


@both
def test_an_error_comes_after_the_batches_before_it(threaded: bool) -> None:
    source = Source(9, fail_at=2)
    seen = []
    with pytest.raises(DataError, match="shard gone"):
        seen.extend(one.step for one in prefetch(source.batches(), doubled, CPU, threaded=threaded))
    assert seen == [0, 1]
    assert source.closed
    assert not running()


def test_a_reader_that_goes_does_not_wait_for_ever_for_a_batch_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("essa_dist.data.prefetch.GIVE_UP_S", 0.3)
    server_is_back = threading.Event()

    def stuck() -> Generator[Batch, None, None]:
        yield batch(0)
        server_is_back.wait(30)

    batches = prefetch(stuck(), doubled, CPU, threaded=True)
    next(batches)
    begin = time.monotonic()
    batches.close()
    assert time.monotonic() - begin < 5
    server_is_back.set()
    assert eventually(iter(lambda: not running(), None))


@both
def test_a_failing_move_is_raised_too(threaded: bool) -> None:
    def fail(one: Batch) -> Batch:
        raise RuntimeError("out of memory")

    source = Source(3)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(prefetch(source.batches(), fail, CPU, threaded=threaded))
    assert source.closed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_batch_can_be_used_at_once() -> None:
    device = torch.device("cuda")
    got = list(
        prefetch(Source(20).batches(), lambda one: one.to(device, mean=(0.5,) * 3, std=(0.5,) * 3), device)
    )
    values = [float(one.global_crops.sum()) for one in got]
    expected = [96 * ((step / 255) - 0.5) / 0.5 for step in range(20)]
    assert values == pytest.approx(expected, rel=1e-4)
