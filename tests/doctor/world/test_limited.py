"""A call that never comes back does not take its caller with it."""

import subprocess
import sys
import time

import pytest

from essa_dist.doctor.world.limited import within


def test_what_the_call_gives_or_raises_comes_through() -> None:
    assert within(5, lambda a, b: a - b, 7, 3) == 4
    with pytest.raises(KeyError, match="gone"):
        within(5, {}.__getitem__, "gone")


def test_a_process_whose_call_hangs_still_ends_with_all_it_had_to_say() -> None:
    code = (
        "import time\n"
        "from essa_dist.doctor.world.limited import Late, within\n"
        "try:\n    within(0.2, time.sleep, 60)\nexcept Late:\n    print('late')"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stdout) == (1, "late\n")
    assert time.monotonic() - begin < 30
