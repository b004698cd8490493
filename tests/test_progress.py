"""Progress: recent rates, a line now and then, and a terminal that stays usable."""

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from essa_dist.progress import Progress, duration


class Clock:
    """Stands still until told to move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _first_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def steps(
    progress: Progress, clock: Clock, *, first: int, last: int, seconds: float, wait: float = 0.0
) -> Iterator[int]:
    for step in range(first, last + 1):
        clock.now += seconds
        progress.update(step, {"total": 10.0 / step}, data_wait=wait)
        yield step


def test_rates_are_of_the_last_steps_only(clock: Clock) -> None:
    with Progress(100, 8, window=4, stream=io.StringIO(), clock=clock) as progress:
        list(steps(progress, clock, first=1, last=5, seconds=60, wait=30))
        list(steps(progress, clock, first=6, last=9, seconds=2, wait=0.5))
    window = progress.window()
    assert window["img_per_s"] == pytest.approx(4.0)
    assert window["data_wait"] == pytest.approx(0.25)
    assert window["memory_gib"] > 0.01


def test_the_first_step_has_a_rate_too(clock: Clock) -> None:
    with Progress(10, 8, stream=io.StringIO(), clock=clock) as progress:
        list(steps(progress, clock, first=1, last=1, seconds=4))
        assert progress.window()["img_per_s"] == pytest.approx(2.0)


def test_a_resumed_loop_counts_its_own_steps_only(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(100, 8, start=90, stream=out, clock=clock) as progress:
        list(steps(progress, clock, first=91, last=91, seconds=2))
    assert re.match(
        r"step  91/100  loss 0\.1099  4\.0 img/s  data wait 0 %  \d+\.\d GiB  ETA 18s\n", out.getvalue()
    )


def test_plain_lines_come_every_few_seconds_and_for_the_first_and_the_last_step(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(20, 8, every_s=5, stream=out, clock=clock) as progress:
        list(steps(progress, clock, first=1, last=20, seconds=1))
    assert re.findall(r"step +(\d+)/20", out.getvalue()) == ["1", "6", "11", "16", "20"]


def test_an_interrupted_loop_shows_where_it_stopped(clock: Clock) -> None:
    out = io.StringIO()
    with suppress(KeyboardInterrupt), Progress(20, 8, stream=out, clock=clock) as progress:
        list(steps(progress, clock, first=1, last=3, seconds=1))
        raise KeyboardInterrupt
    assert re.findall(r"step +(\d+)/20", out.getvalue()) == ["1", "3"]


def test_a_loop_without_steps_shows_nothing(clock: Clock) -> None:
    out = io.StringIO()
    with Progress(20, 8, stream=out, clock=clock):
        pass
    assert out.getvalue() == ""


def test_other_ranks_are_silent_but_still_measure(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    out = io.StringIO()
    with Progress(5, 8, stream=out, clock=clock) as progress:
        list(steps(progress, clock, first=1, last=5, seconds=2))
    assert out.getvalue() == ""
    assert progress.window()["img_per_s"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (7500, "2h05m"),
        (273600, "3d04h"),
        (-1, "0s"),
    ],
)
def test_durations_read_at_a_glance(seconds: float, words: str) -> None:
    assert duration(seconds) == words


MEMORY = """
from essa_dist.progress import memory_gib
before = memory_gib()
held = b"x" * 2**27
after = memory_gib()
del held
print(before, after, memory_gib(peak=True))
"""


def test_memory_grows_with_what_is_held_and_the_peak_remains() -> None:
    # In a process of its own: one that has freed much memory takes 128 MB from that, and does not grow.
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, after, peak = map(float, done.stdout.split())
    assert 0.1 < after - before < 0.2
    assert peak >= after - 0.01


LIVE_LOOP = """
import sys
from essa_dist.progress import Progress
with Progress(1000, 8) as progress:
    for step in range(1, 1001):
        progress.update(step, {"loss": 1.5})
        if step == 500:
            sys.stderr.write("a log line\\n")
            raise KeyboardInterrupt
"""


def test_a_terminal_gets_one_live_line_and_its_cursor_back_after_ctrl_c() -> None:
    shown = on_terminal(LIVE_LOOP)
    assert "\x1b[?25l" in shown  # cursor hidden
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "step  500/1000  loss 1.5000" in shown
    assert shown.count("/1000") < 50  # not every step was drawn
    assert "a log line\r\n" in shown


def on_terminal(code: str) -> str:
    main, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=terminal, env=environment | {"TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end was closed
        pass
    os.close(main)
    assert process.wait() != 0
    return shown.decode()
