"""What is seen of a sweep while it runs."""

import io
import logging
import re
from dataclasses import replace

import pytest
from rich.console import Console

from essa_dist.tuning.live import Live
from essa_dist.tuning.record import Sweep, Trial
from tests.tuning.report.trials import KNN, drawn, trial


class Clock:
    """Stands still until told to move."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    caplog.set_level(logging.INFO, "essa_dist.tuning.live")


def live(made: Sweep, **given: object) -> Live:
    return Live(made.objectives, made.parameters, len(made.trials), **given)  # type: ignore[arg-type]


def at(one: Trial, looks: int) -> Trial:
    """``one`` as it was while it ran."""
    curve = one.curve[:looks]
    return replace(one, status="running", curve=curve, step=10 * looks, best=curve[-1] if curve else {})


def test_without_a_terminal_each_look_and_each_change_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    made = drawn(2)
    one, two = made.trials
    with live(made, stream=io.StringIO()) as shown:
        for now in (at(one, 0), at(one, 0), at(one, 1), at(one, 1), at(one, 2), one, one):
            shown.update([now, replace(two, status="waiting", best={}, curve=[])])
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split("  ")[:2] for line in lines[:-1]] == [
        ["t0000", "running 0/30"],
        ["t0000", "running 10/30"],
        ["t0000", "running 20/30"],
        ["t0000", "done 30/30"],
    ]
    assert lines[-1].startswith("1/2 trials ended: 1 done; 1 waiting")
    assert "best so far" in lines[1]
    assert ["optim" in line or "lr=" in line for line in lines] == [True, False, False, False, False]


def test_what_ended_before_a_resumed_sweep_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    made = drawn(9)
    with live(made, stream=io.StringIO()) as shown:
        shown.update(made.trials)
        shown.update(made.trials)
    assert [record.getMessage() for record in caplog.records] == ["trials that ended before: 9 done"]


def test_a_table_is_no_higher_than_the_terminal_and_shows_what_runs_and_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINES", "12")
    monkeypatch.setenv("COLUMNS", "110")
    made = drawn(60)
    trials = [at(one, 2) if i in (40, 50) else one for i, one in enumerate(made.trials)]
    with live(made, stream=Terminal()) as shown:
        shown.update(trials)
    page = Console(file=io.StringIO(), width=110, height=12)
    page.print(shown._table(replace(made, trials=tuple(trials))))
    lines = page.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) < 12
    assert max(map(len, lines)) <= 110
    names = re.findall(r"^t\d{4}", "\n".join(lines), flags=re.MULTILINE)
    best = [one.name for one in made.scored() if one.name not in ("t0040", "t0050")]
    assert names == ["t0040", "t0050", *best[: len(names) - 2]]
    assert len([line for line in lines if " * " in line]) == 1
    assert lines[-1].strip() == f"not shown: {60 - len(names)} done"


def test_a_terminal_of_one_line_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "1")
    monkeypatch.setenv("COLUMNS", "20")
    made = drawn(3)
    out = Terminal()
    with live(made, stream=out) as shown:
        shown.update([])
        shown.update(made.trials)
    assert out.getvalue()


def test_a_broken_trial_is_told_with_its_reason_beside_the_table_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = drawn(2)
    bad = trial(1, status="out_of_memory", reason="8 GiB asked of 4", params={"optim.lr": 0.5})
    with live(made, stream=Terminal()) as shown:
        shown.update([made.trials[0], at(bad, 0)])
        shown.update([made.trials[0], bad])
        shown.update([made.trials[0], bad])
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1
    assert "8 GiB asked of 4" in told[0]


def test_time_left_is_of_the_steps_that_were_done_since_the_start() -> None:
    clock, made = Clock(), drawn(4)
    done, other = (
        made.trials[:2],
        [replace(one, status="waiting", step=0, curve=[], best={}) for one in made.trials[2:]],
    )
    with live(made, stream=io.StringIO(), clock=clock) as shown:
        shown.update([*done, *other])  # half of it was done before
        assert "left" not in shown.header([*done, *other])
        clock.now += 60
        now = [*done, at(made.trials[2], 3), other[1]]  # a quarter more
        assert shown.header(now).endswith("; 1m00s, about 1m00s left")
        assert "left" not in shown.header(made.trials)


def test_scores_that_are_not_there_yet_are_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    made = drawn(1)
    early = replace(made.trials[0], status="running", best={}, curve=[{"step": 5, KNN: float("nan")}])
    with live(made, stream=Terminal()) as shown:
        shown.update([early])
        shown.update([replace(early, total_steps=0)])
