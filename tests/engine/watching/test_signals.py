"""Signals end a run at once before training, and wait for a step boundary after; none is lost, none is taken twice."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from essa_dist.engine.watching import signals
from essa_dist.engine.watching.signals import SIGNALS, NoBatch, stop_signals
from essa_dist.errors import Preempted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_training_a_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    with stop_signals(), pytest.raises(Preempted, match=f"stopped by {number.name} before its first update"):
        send(number)


def test_a_library_that_swallows_the_exception_gets_it_again() -> None:
    def library() -> None:
        try:
            send(signal.SIGTERM)
        except Exception:
            time.sleep(5)

    with stop_signals(), pytest.raises(Preempted):
        library()


@pytest.mark.parametrize("number", SIGNALS)
def test_during_training_a_signal_is_remembered(number: signal.Signals) -> None:
    with stop_signals() as stop:
        stop.remember()
        assert stop.received is None
        send(number)
        send(number)
        assert stop.received == number.name


def test_a_batch_that_does_not_come_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE_S", 0.4)
    with stop_signals() as stop:
        stop.remember()
        begin = time.monotonic()
        with stop.waiting():
            send(signal.SIGUSR1)
            time.sleep(0.1)  # a batch that comes soon enough
        with pytest.raises(NoBatch), stop.waiting():
            time.sleep(10)
        assert 0.3 < time.monotonic() - begin < 5
        time.sleep(0.5)  # nothing is raised where nobody waits


def test_a_second_interrupt_ends_at_once_unless_it_is_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_signals() as stop:
        stop.remember()
        send(signal.SIGINT)
        send(signal.SIGINT)  # a terminal and a launcher both pass it on
        monkeypatch.setattr(signals, "AGAIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_the_command_and_the_run_listen_together() -> None:
    with stop_signals() as outer:
        with stop_signals() as inner:
            assert inner is outer
            inner.remember()
        send(signal.SIGTERM)
        assert outer.received == "SIGTERM"
    with stop_signals() as later:
        assert later.received is None


def test_afterwards_handlers_are_as_before_but_a_rank_that_ends_is_deaf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "tell_of_parents_death", lambda number: None)
    for name in ("RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.setenv("RANK", "0")
    with stop_signals():  # by a script of the user's, which goes on
        pass
    assert signal.getsignal(signal.SIGTERM) == before
    with stop_signals(until_exit=True):
        pass
    assert all(signal.getsignal(number) == signal.SIG_IGN for number in SIGNALS)


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_signals() as stop:
        send(signal.SIGHUP)
        assert stop.received is None


def test_a_forked_process_that_has_not_its_own_handlers_yet_does_not_heed_them() -> None:
    with stop_signals() as stop:
        child = os.fork()
        if not child:
            try:
                send(signal.SIGTERM)
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert stop.received is None


def test_a_rank_whose_launcher_is_gone_already_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "tell_of_parents_death", lambda number: None)
    monkeypatch.setattr(signals, "orphaned", lambda: True)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(Preempted, match="the death of its launcher"), stop_signals():
        pytest.fail("it went on")


DEAF = """
import ctypes, threading
from essa_dist.engine.watching import signals
signals.UNHEARD_S = 0.3
with signals.stop_signals():
    threading.Timer(0.5, lambda: print("deaf", flush=True)).start()
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)  # for ever: no signal interrupts it
"""


def test_a_process_that_hears_nothing_inside_a_library_is_ended_where_nothing_has_to_be_saved() -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"deaf\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=5) == Preempted.exit_code
        finally:
            process.kill()


def test_what_a_forked_worker_is_sent_does_not_end_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "UNHEARD_S", 0.1)
    fork = multiprocessing.get_context("fork")
    up = fork.Event()

    def work() -> None:
        up.set()
        time.sleep(5)

    with stop_signals() as stop:
        worker = fork.Process(target=work)
        worker.start()
        assert up.wait(5)
        os.kill(worker.pid or 0, signal.SIGTERM)
        time.sleep(0.4)
        assert stop.received is None
        worker.kill()
        worker.join()
