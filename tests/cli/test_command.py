"""The command as a user meets it: what comes on stdout, what on stderr, and the exit code."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from essa_dist.cli.pages import FLAGS
from essa_dist.verbs import VERBS

Essa = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["adpt"],
            f"no verb 'adpt'; verbs are {', '.join(VERBS)}, try; did you mean adapt?",
        ),
        (["data"], "essa data needs a second word: data show, data ledger, data report, data verify"),
        (
            ["data", "shwo", "x"],
            "essa data needs a second word: data show, data ledger, data report, data verify",
        ),
        (
            ["try", "--jsno"],
            f"no flag '--jsno'; flags are {', '.join(FLAGS)}; did you mean --json?",
        ),
        (["try", "--n=3"], "no flag '--n=3'; settings have no dashes: n=3"),
        (["try", "m=3"], "m: unknown key (given 3); keys here: do, n"),
        (["try", "n=x"], "n: 'x' is not allowed; allowed: integer"),
        (["try", "none.yaml"], "no file none.yaml; . holds no YAML file"),
        (["try", "a.yaml", "b.yaml"], "'b.yaml' is one word too many; settings are written key=value"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(
    essa: Essa, words: list[str], line: str, tmp_path: Path
) -> None:
    done = essa(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"essa: error: {line}\n")
    done = essa(*words, "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"error": line, "exit_code": 2}


def test_each_problem_has_its_line_on_stderr(essa: Essa) -> None:
    assert essa("try", "m=3", "n=x").stderr.count("essa: error: ") == 2


def test_json_is_one_object_on_stdout_and_all_else_is_on_stderr(essa: Essa) -> None:
    done = essa("try", "n=3", "--json")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout) == {"path": "a/b", "nan": None, "inf": None, "array": [0, 1, 2], "n": 3}
    for noise in ("a stray print", "a C library's puts", "a child", "news", "warning: trouble"):
        assert noise in done.stderr
    assert "chatter" not in done.stderr


def test_a_reader_gets_keys_and_values(essa: Essa) -> None:
    assert essa("try", "n=3").stdout.endswith(
        "path   a/b\nnan    nan\ninf    inf\narray  [0 1 2]\nn      3\n"
    )


@pytest.mark.parametrize(
    ("do", "exit_code", "line"),
    [
        ("data", 1, "error: no images in x; give a folder with images"),
        ("preempted", 75, "error: stopped; go on with resume=true"),
        ("interrupt", 130, "error: interrupted"),
        (
            "full",
            1,
            "error: /data/run: No space left on device; free some space or write elsewhere with out=DIR",
        ),
        ("locked", 1, "error: /data/run: Permission denied; change its permissions or choose another path"),
        (
            "memory",
            1,
            "error: out of memory; use a smaller batch_size, fewer or smaller crops, or fewer data workers (MemoryError)",
        ),
    ],
)
def test_a_failure_is_one_line_and_its_exit_code(essa: Essa, do: str, exit_code: int, line: str) -> None:
    done = essa("try", f"do={do}", "--json")
    assert done.returncode == exit_code
    assert done.stderr.splitlines()[-1] == f"essa: {line}"
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout) == {"error": line.removeprefix("error: "), "exit_code": exit_code}


def test_a_bug_shows_its_traceback_only_if_asked(essa: Essa) -> None:
    done = essa("try", "do=bug")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert done.stderr.endswith(
        "essa: internal error: KeyError: 'thing'\nessa: run it again with --debug for the traceback\n"
    )
    assert "Traceback" in essa("try", "do=bug", "--debug").stderr
    assert "Traceback" in essa("try", "do=bug", ESSA_DEBUG="1").stderr
    assert "Traceback" not in essa("try", "do=bug", ESSA_DEBUG="0").stderr


def test_only_rank_0_has_results_and_news(essa: Essa) -> None:
    done = essa("try", "--json", RANK="1", LOCAL_RANK="1")
    assert (done.returncode, done.stdout) == (0, "")
    assert "news" not in done.stderr
    assert "[rank 1] warning: trouble" in done.stderr


def test_a_failure_of_any_rank_is_told_but_a_wrong_setting_once_a_machine(essa: Essa) -> None:
    done = essa("try", "do=data", RANK="3", LOCAL_RANK="1")
    assert (done.returncode, done.stdout.count("images")) == (1, 0)
    assert "essa[rank 3]: error: no images in x" in done.stderr
    done = essa("try", "n=x", RANK="3", LOCAL_RANK="1")
    assert (done.returncode, done.stderr) == (2, "")
    assert "essa[rank 4]: error: n: 'x'" in essa("try", "n=x", RANK="4", LOCAL_RANK="0").stderr


@pytest.mark.parametrize("flag", ["", "--json"])
def test_a_reader_that_leaves_early_is_no_error(flag: str, repository: Path) -> None:
    # Without a buffer Python itself drops the rest of such a write and reports nothing.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    code = "import essa_dist.cli.command as c; c.overview = lambda: 'x' * 10**6; raise SystemExit(c.main())"
    command = f'"{sys.executable}" -c "{code}" --help {flag} | head -c 10; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=repository, env=buffered
    )
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_below_stdout_is_one_line(repository: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "essa_dist", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No space left on device" in done.stderr


def test_the_version_and_the_help_come_at_once(essa: Essa) -> None:
    started = time.perf_counter()
    done = essa("--help")
    assert time.perf_counter() - started < 2  # about 0.1 s on an idle machine; with torch it would be several
    assert done.returncode == 0
    assert "\n  adapt " in done.stdout
    assert essa().stdout == done.stdout
    assert essa("--version").stdout.startswith("essa ")
    assert "version" in json.loads(essa("--version", "--json").stdout)


def test_a_verb_explains_its_settings(essa: Essa) -> None:
    page = essa("try", "--help").stdout
    assert "usage: essa try [CONFIG.yaml] [key=value ...]" in page
    assert "# A number. [integer]\nn: 1\n" in page


def test_the_module_is_the_command(repository: Path) -> None:
    command = [sys.executable, "-m", "essa_dist", "adpt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert (done.returncode, "did you mean adapt?" in done.stderr) == (2, True)


def test_a_command_leaves_its_process_group(tmp_path: Path) -> None:
    # Left to the end of the interpreter, gloo aborted a rank of a test once after all its work was done.
    code = f"""
import essa_dist.distributed.collectives, torch.distributed as dist
from essa_dist.cli import main
dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
main(["--version"])
print(dist.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
