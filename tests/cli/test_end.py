"""How the command's process ends: a launcher's rank without the interpreter's tidying up, in which torch can abort it."""

import os
import subprocess
import sys

import pytest

LAST_THINGS = """
import atexit, os, sys, torch
class Teardown:
    def __del__(self):
        os.abort()
torch.kept_by_torch = Teardown()
atexit.register(lambda: print("tidied up"))
sys.argv = ["essa", *{words}]
from essa_dist.cli import run
run()
"""


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["adap"], 2)])
def test_a_rank_whose_work_is_done_is_not_lost_in_the_teardown_of_torch(words: list[str], code: int) -> None:
    rank = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", LAST_THINGS.format(words=words)],
        env=rank,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    assert "tidied up" in ended.stdout
    assert ("essa 0" in ended.stdout) == (code == 0)
    assert ("did you mean adapt?" in ended.stderr) == (code == 2)
