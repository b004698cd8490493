"""Only the result reaches stdout."""

import logging
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from essa_dist.cli.streams import is_first_on_node, lasting_streams, rank, reserved_stdout, set_up_logging


def test_stdout_is_reserved_and_then_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    with reserved_stdout() as stdout:
        os.write(1, b"by descriptor\n")
        sys.stdout.write("by name\n")
        stdout.write("result\n")
    os.write(1, b"afterwards\n")
    captured = capfd.readouterr()
    assert captured.out == "result\nafterwards\n"
    assert captured.err == "by descriptor\nby name\n"


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (rank(), is_first_on_node()) == (0, True)
    monkeypatch.setenv("RANK", "8")
    assert (rank(), is_first_on_node()) == (8, False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert (rank(), is_first_on_node()) == (8, True)


@pytest.mark.parametrize(("debug", "levels"), [(False, "IWE"), (True, "DIWE")])
def test_the_log_is_short_and_quiet_about_others(
    debug: bool, levels: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    own, other = logging.getLogger("essa_dist"), logging.getLogger("other")
    own_level = own.level
    try:
        set_up_logging(debug=debug)
        for logger in (own, other):
            for text in "DIWE":
                logger.log({"D": 10, "I": 20, "W": 30, "E": 40}[text], f"{logger.name} {text}")
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = before
        root.setLevel(level)
        own.setLevel(own_level)
    lines = capfd.readouterr().err.splitlines()
    assert "".join(line[-1] for line in lines if "essa_dist" in line) == levels
    assert "".join(line[-1] for line in lines if "other" in line) == "WE"


def test_a_log_whose_reader_has_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(BrokenPipeError), os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with lasting_streams():
            for _ in range(3):
                sys.stderr.write("saving a checkpoint\n")
                sys.stderr.flush()
        assert sys.stderr is stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["--version", "--version --json"])
def test_a_command_started_without_its_streams_does_its_work(closed: str, words: str) -> None:
    command = f"{sys.executable} -m essa_dist {words} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
